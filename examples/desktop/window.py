"""A window on an Assistant, with nothing but tkinter: python -m examples.desktop.window"""

from __future__ import annotations

import queue
import tkinter
from pathlib import Path

from alora_gguf import demo

from .assistant import Assistant, Event

_INTERVAL = 30  # milliseconds between two looks at the events


class Window:
    """A text, a line to type in, a button that stops, and a line that says what is going on."""

    def __init__(self, root: tkinter.Tk, assistant: Assistant) -> None:
        self._root, self._assistant = root, assistant
        self._text = tkinter.Text(root, wrap="word", state="disabled")
        self._entry = tkinter.Entry(root, state="disabled")
        self._stop = tkinter.Button(root, text="Stop", command=assistant.stop)
        self._status = tkinter.Label(root, anchor="w", text="Loading")
        for widget in (self._text, self._entry, self._stop, self._status):
            widget.pack(fill="x")
        self._entry.bind("<Return>", self._send)
        root.protocol("WM_DELETE_WINDOW", self._close)
        root.after(_INTERVAL, self._look)

    def _send(self, _event: object = None) -> None:
        text = self._entry.get().strip()
        if text:
            self._entry.delete(0, "end")
            self._entry.configure(state="disabled")  # until the turn is over
            self._write(f"user: {text}\nassistant: ")
            self._assistant.say(text)

    def _look(self) -> None:
        """Shows what has happened since the last look. Only this thread may touch widgets."""
        try:
            while True:
                self._show(self._assistant.events.get_nowait())
        except queue.Empty:
            self._root.after(_INTERVAL, self._look)

    def _show(self, event: Event) -> None:
        if event.kind in ("loading", "reading"):
            self._status.configure(text=f"{event.kind.capitalize()}: {event.fraction:.0%}")
        elif event.kind == "piece":
            self._write(event.text)
        elif event.kind == "verdict":
            self._write(f"\n    {event.text}")
        elif event.kind == "ended":  # for good: the entry stays shut
            self._status.configure(text=event.text)
            self._entry.configure(state="disabled")
        else:  # ready, done, stopped, failed: the user's turn
            self._write(f"{event.text}\n" if event.kind == "ready" else "\n")
            self._status.configure(text=event.text if event.kind == "failed" else "")
            self._entry.configure(state="normal")

    def _write(self, text: str) -> None:
        self._text.configure(state="normal")
        self._text.insert("end", text)
        self._text.configure(state="disabled")
        self._text.see("end")

    def _close(self) -> None:
        self._assistant.quit()
        self._root.destroy()


def main() -> None:
    adapters = {name: demo.adapter_path(name) for name in ("answerability", "uncertainty")}
    documents = ["The Bomel library opens at 9:30. The one who runs it is Ruth Covin."]
    root = tkinter.Tk()
    root.title("alora-gguf")
    Window(root, Assistant(demo.base_path(), adapters, documents, Path("talk.alora")))
    root.mainloop()


if __name__ == "__main__":
    main()
