"""The desktop program: its thread as it is, and its window on a tkinter that shows nothing."""

from __future__ import annotations

import time
import tkinter
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import demo
from examples.desktop import window
from examples.desktop.assistant import Assistant, Event

ADAPTERS = {name: demo.adapter_path(name) for name in ("answerability", "uncertainty")}
DOCUMENTS = ["The Bomel library opens at 9:30. The one who runs it is Ruth Covin."]


class Running:
    """Assistants that are ended after a test, whatever became of it."""

    def __init__(self, saved: Path) -> None:
        self._saved = saved
        self._all: list[Assistant] = []

    def start(self, base: Path | None = None) -> Assistant:
        assistant = Assistant(
            base or demo.base_path(), ADAPTERS, DOCUMENTS, self._saved, n_threads=1
        )
        self._all.append(assistant)
        return assistant

    def end(self) -> None:
        for assistant in self._all:
            assistant.quit()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path / "talk.alora")
    yield made
    made.end()


def until(assistant: Assistant, *kinds: str) -> list[Event]:
    """The events up to the first one of `kinds`."""
    found: list[Event] = []
    while not found or found[-1].kind not in kinds:
        found.append(assistant.events.get(timeout=60))
    return found


def test_a_turn_comes_in_pieces_and_is_judged(running: Running) -> None:
    assistant = running.start()
    loading = until(assistant, "ready")
    assert loading[-1].text == ""
    assert [e.fraction for e in loading[:-1]] == sorted(e.fraction for e in loading[:-1])
    assistant.say("When does the Bomel library open?")
    events = until(assistant, "done")
    said = "".join(event.text for event in events if event.kind == "piece")
    assert "9:30" in said
    verdicts = [event.text for event in events if event.kind == "verdict"]
    assert [text.partition(":")[0] for text in verdicts] == list(ADAPTERS)
    assert [e.fraction for e in events if e.kind == "reading"][-1] == 1


def test_stop_ends_a_turn_and_the_next_one_goes_on(running: Running) -> None:
    assistant = running.start()
    assistant.say("When does the Bomel library open?")
    assistant.stop()
    until(assistant, "ready")
    assert until(assistant, "done", "stopped", "failed")[-1] == Event("stopped")
    assistant.say("When does the Bomel library open?")
    assert until(assistant, "done", "stopped", "failed")[-1].kind == "done"


def test_the_next_run_goes_on_where_this_one_ended(running: Running) -> None:
    first = running.start()
    first.say("When does the Bomel library open?")
    until(first, "done")
    first.quit()
    second = running.start()
    assert until(second, "ready")[-1].text.startswith(
        "user: When does the Bomel library open?\nassistant: "
    )


def test_a_damaged_file_is_said_and_not_fatal(running: Running, tmp_path: Path) -> None:
    (tmp_path / "talk.alora").write_bytes(b"nonsense")
    assistant = running.start()
    assert {event.kind for event in until(assistant, "ready")} == {"loading", "ready"}
    assert "talk.alora" in until(assistant, "failed")[-1].text
    assistant.say("When does the Bomel library open?")
    assert until(assistant, "done", "failed")[-1].kind == "done"


def test_a_base_that_is_missing_is_said(running: Running, tmp_path: Path) -> None:
    assistant = running.start(tmp_path / "no.gguf")
    assert "no.gguf" in until(assistant, "ended")[-1].text


def test_quit_while_loading(running: Running) -> None:
    assistant = running.start()
    assistant.quit()
    assert not assistant._thread.is_alive()


# The window --------------------------------------------------------------------------------------


class Widget:
    """Any of tkinter's, as far as the window needs them: it keeps what it is told."""

    def __init__(self, _root: object = None, **options: Any) -> None:
        self.options = options
        self.text = ""
        self.handlers: dict[str, Callable[..., None]] = {}
        self.due: list[Callable[[], None]] = []
        self.destroyed = False
        made[type(self).__name__].append(self)

    def configure(self, **options: Any) -> None:
        self.options |= options

    def pack(self, **_: Any) -> None: ...

    def see(self, _at: str) -> None: ...

    def title(self, _text: str) -> None: ...

    def bind(self, name: str, handler: Callable[..., None]) -> None:
        self.handlers[name] = handler

    protocol = bind

    def get(self) -> str:
        return self.text

    def delete(self, _first: int, _last: str) -> None:
        self.text = ""

    def insert(self, _at: str, text: str) -> None:
        assert self.options["state"] == "normal"
        self.text += text

    def after(self, _milliseconds: int, call: Callable[[], None]) -> None:
        self.due.append(call)

    def destroy(self) -> None:
        self.destroyed = True

    def mainloop(self) -> None:
        """The user's part: asks once, stops what comes after, and closes the window."""
        (text,), (entry,), (button,) = made["Text"], made["Entry"], made["Button"]
        self._wait(entry)
        for words in ("When does the Bomel library open?", "Who runs it?"):
            entry.text = words
            entry.handlers["<Return>"](None)
            assert entry.options["state"] == "disabled"
            if words.startswith("Who"):
                button.options["command"]()
            self._wait(entry)
        assert "user: When does the Bomel library open?\nassistant: " in text.text
        assert "9:30" in text.text
        assert "\n    uncertainty: " in text.text
        self.handlers["WM_DELETE_WINDOW"]()

    def _wait(self, entry: Widget) -> None:
        """Runs what is due until the user may type."""
        end = time.monotonic() + 60
        while entry.options["state"] == "disabled":
            assert time.monotonic() < end
            due, self.due = self.due, []
            for call in due:
                call()
            time.sleep(0.01)


made: dict[str, list[Widget]] = defaultdict(list)


@pytest.mark.slow
def test_the_window_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()
    for name in ("Tk", "Text", "Entry", "Button", "Label"):
        monkeypatch.setattr(tkinter, name, type(name, (Widget,), {}))
    monkeypatch.chdir(tmp_path)
    window.main()
    (root,) = made["Tk"]
    assert root.destroyed
    assert (tmp_path / "talk.alora").is_file()


def test_the_window_stays_shut_without_a_model(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said would be heard by nobody."""
    made.clear()
    for name in ("Tk", "Text", "Entry", "Button", "Label"):
        monkeypatch.setattr(tkinter, name, type(name, (Widget,), {}))
    shown = window.Window(tkinter.Tk(), running.start(tmp_path / "no.gguf"))
    end = time.monotonic() + 60
    while "no.gguf" not in made["Label"][0].options["text"]:
        assert time.monotonic() < end
        shown._look()
    assert made["Entry"][0].options["state"] == "disabled"


def test_the_window_opens_where_there_is_a_screen(tmp_path: Path, running: Running) -> None:
    try:
        root = tkinter.Tk()
    except tkinter.TclError as error:
        pytest.skip(f"no screen: {error}")
    window.Window(root, running.start())
    root.update()
    root.destroy()
