"""Where a chat's lines come from: a terminal with history and completion, or a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPressEvent

QUOTES: Final = '"""'
_PATIENCE: Final = 2.0  # seconds that a pipe may be silent before it is said what is waited for
# what is typed stands out from what is replied; no band of light below it
_STYLE: Final = {"prompt": "bold ansicyan", "bottom-toolbar": "noreverse ansicyan"}
_WITH_PATHS: Final = ("/doc", "/save", "/restore", "/load", "/contract")


class Lines:
    """Where lines come from.

    typed     whether by a person who waits
    can_edit  whether a draft can be put before them
    """

    typed = False
    can_edit = False

    def read(self, _draft: str = "") -> str:
        """The next line. Raises EOFError after the last, and KeyboardInterrupt for Ctrl-C."""
        raise EOFError

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Meanwhile what is typed is not shown; it is there when the next line is read."""
        yield


class Pipe(Lines):
    """Lines of a file; a text between triple quotes is one."""

    def __init__(self, file: Iterable[str]) -> None:
        self._lines = (
            (line if i else line.removeprefix("\ufeff")).rstrip("\r\n")
            for i, line in enumerate(file)
        )

    def read(self, _draft: str = "") -> str:
        """The next line. Raises EOFError."""
        for line in self._lines:
            text = line.lstrip().removeprefix(QUOTES)
            if text == line.lstrip():
                return line
            while QUOTES not in text and (more := next(self._lines, None)) is not None:
                text += "\n" + more
            return text.partition(QUOTES)[0].strip("\n")
        raise EOFError


def piped(on_silence: Callable[[], None]) -> str:
    """All that comes through a pipe or from a file; nothing if the input is a terminal, or none.
    `on_silence` is called if that takes long: a pipe that somebody forgot has no end.
    """
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    timer = threading.Timer(_PATIENCE, on_silence)
    timer.daemon = True
    timer.start()
    try:
        return sys.stdin.read()
    except OSError:  # nohup's, say, which cannot be read
        return ""
    finally:
        timer.cancel()


class Plain(Lines):
    """Lines that are typed where a terminal can do nothing more."""

    typed = True

    def read(self, _draft: str = "") -> str:
        """The next line. Raises EOFError, KeyboardInterrupt."""
        try:
            return input("> ")
        except EOFError:
            print()
            raise


class Keyboard(Lines):
    """Lines that are typed, with history, completion, and a line below that says where one is."""

    typed = True
    can_edit = True

    def __init__(
        self,
        *,
        words: Callable[[str], Mapping[str, str]],
        below: Callable[[int], str],
        history: Path | None,
        colour: bool,
    ) -> None:
        """`words` are what can stand behind a command, with what it is, or for "" the commands
        themselves; `below` is the line below, for a width in columns.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output.color_depth import ColorDepth
        from prompt_toolkit.styles import Style

        self._session: PromptSession[str] = PromptSession(
            message=[("class:prompt", "> ")],
            style=Style.from_dict(_STYLE),
            history=_history(history),
            completer=_completer(words),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation=lambda *_: ". ",
            key_bindings=_bindings(),
            bottom_toolbar=lambda: below(self._session.output.get_size().columns),
            color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
            enable_open_in_editor=True,
        )

    def read(self, draft: str = "") -> str:
        """What is typed next; `draft` is there already. Raises EOFError for Ctrl-D,
        KeyboardInterrupt for Ctrl-C.
        """
        text = self._session.prompt(default=draft)
        if text.lstrip().startswith(QUOTES):
            text = text.strip().removeprefix(QUOTES).removesuffix(QUOTES)
        return text.strip("\n").rstrip()

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Switches the terminal's echo off: it would get into the reply."""
        try:
            import termios
        except ImportError:  # Windows echoes only what is being read
            yield
            return
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        silent = [*before]
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(fd, termios.TCSADRAIN, silent)
        try:
            yield
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def history_file(home: Path) -> Path | None:
    """Where typed lines are kept, for the user only; None if it cannot be written."""
    path = home / "chat_history"
    try:
        home.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError:
        return None
    return path


def is_dumb() -> bool:
    """Whether the terminal has no cursor to move."""
    return os.environ.get("TERM", "dumb") == "dumb" and sys.platform != "win32"


def _history(path: Path | None) -> Any:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            with contextlib.suppress(OSError):  # a full disk is no reason to leave
                super().store_string(string)

    return InMemoryHistory() if path is None else Kept(str(path))


def _bindings() -> Any:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()
    in_text = has_focus(DEFAULT_BUFFER)  # and not in a search

    @bindings.add("enter", filter=in_text)
    def _(event: KeyPressEvent) -> None:
        text = event.current_buffer.text.strip()
        if text.startswith(QUOTES) and text.count(QUOTES) < 2:
            event.current_buffer.newline(copy_margin=False)
        elif text:
            event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=in_text)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings


def _completer(words: Callable[[str], Mapping[str, str]]) -> Any:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Slashes(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Iterator[Completion]:
            line = document.text_before_cursor
            if not line.startswith("/") or "\n" in line:
                return
            command, space, rest = line.partition(" ")
            found = words(command[1:] if space else "")
            last = rest.rpartition(" ")[2] if space else command[1:]
            for word, what in found.items():
                if word.startswith(last):
                    yield Completion(word, -len(last), display_meta=what)
            if command in _WITH_PATHS and space:
                inner = rest.rpartition("=")[2]
                yield from paths.get_completions(Document(inner, len(inner)), complete_event)

    return Slashes()
