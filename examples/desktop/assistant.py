"""The part of a desktop program that talks to the model, in a thread of its own. Knows no window.

The window calls say(), stop() and quit(), and looks into `events` from time to time. What the
thread has to tell stands there in order.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from alora_gguf import AloraError, CancelledError, CancelToken, Chat, Model, SavedSessionError

Kind = Literal[
    "loading", "ready", "reading", "piece", "verdict", "done", "stopped", "failed", "ended"
]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    loading, reading  how far it is, `fraction` from 0 to 1
    ready             the model is there; `text` is the conversation so far
    piece             the next piece of a reply
    verdict           what an intrinsic says of it
    done              the turn is over
    stopped           it ended because of stop()
    failed            it ended because of an error, `text`
    ended             there is no model (any more), `text` says why; nothing that is said is heard
    """

    kind: Kind
    text: str = ""
    fraction: float = 0.0


class Assistant:
    """One conversation, kept in the file `saved` from one run of the program to the next."""

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        documents: Sequence[str],
        saved: Path,
        n_threads: int | None = None,
    ) -> None:
        self.events: SimpleQueue[Event] = SimpleQueue()
        self._base, self._adapters, self._documents = base, adapters, documents
        self._saved, self._n_threads = saved, n_threads
        self._said: SimpleQueue[tuple[str, CancelToken] | None] = SimpleQueue()
        self._loading, self._turn = CancelToken(), CancelToken()
        self._thread = threading.Thread(target=self._run, name="assistant")
        self._thread.start()

    def say(self, text: str) -> None:
        """What the user says; the reply and the verdicts come as events. Returns at once."""
        self._turn = CancelToken()  # one for each turn: it stays cancelled
        self._said.put((text, self._turn))

    def stop(self) -> None:
        """Ends the turn that is going on; what was said so far stays. Returns at once."""
        self._turn.cancel()

    def quit(self) -> None:
        """Ends everything and waits until the model is closed, which takes a moment."""
        self._said.put(None)
        self._loading.cancel()
        self._turn.cancel()
        self._thread.join()

    # In the thread: the only one that touches model and chat -------------------------------------

    def _tell(self, kind: Kind, text: str = "", fraction: float = 0.0) -> None:
        self.events.put(Event(kind, text, fraction))

    def _run(self) -> None:
        try:
            with Model(
                self._base,
                adapters=self._adapters,
                n_threads=self._n_threads,
                progress=lambda fraction: self._tell("loading", fraction=fraction),
                cancel=self._loading,
            ) as model:
                chat, problem = self._open(model)
                self._tell("ready", "\n".join(f"{m.role}: {m.content}" for m in chat.messages))
                if problem:
                    self._tell("failed", problem)
                while said := self._said.get():
                    self._tell(*self._take_turn(chat, *said))
        except CancelledError:
            self._tell("ended", "Loading was stopped.")
        except AloraError as error:  # its text says what to do
            self._tell("ended", str(error))
        except BaseException as error:  # a bug; the window should not wait for ever
            self._tell("ended", repr(error))
            raise

    def _open(self, model: Model) -> tuple[Chat, str]:
        """The conversation, and what kept the saved one from going on."""
        problem = ""
        if self._saved.is_file():
            try:
                return model.restore(self._saved), ""  # nothing is read again
            except SavedSessionError as error:  # damaged, or of another base: start over
                problem = str(error)
        return model.chat(documents=self._documents), problem

    def _take_turn(self, chat: Chat, text: str, cancel: CancelToken) -> tuple[Kind, str]:
        try:
            try:
                self._talk(chat, text, cancel)
            finally:
                chat.save(self._saved)  # complete or not at all: a crash loses a turn at most
        except CancelledError:
            return "stopped", ""
        except AloraError as error:
            return "failed", str(error)
        return "done", ""

    def _talk(self, chat: Chat, text: str, cancel: CancelToken) -> None:
        def progress(read: int, all_: int) -> None:
            self._tell("reading", fraction=read / all_)

        for piece in chat.say(text, stream=True, cancel=cancel, progress=progress):
            self._tell("piece", piece)
        for result in chat.invoke_many(list(self._adapters), cancel=cancel):
            said = result.value if result.error is None else result.error
            self._tell("verdict", f"{result.name}: {said}")
