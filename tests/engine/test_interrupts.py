"""Ctrl-C at any moment: the call ends, and the model goes on for everybody."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest

from alora_gguf import _calls
from tests.support import inside
from tests.support.files import Files

PROMPT = [(3 * i) % 200 for i in range(40)]


# a vocabulary alone, as `convert` reads it
BARE = "engine.loading.BareVocabulary(pathlib.Path(sys.argv[1]), 'base')"


class HandledError(Exception):
    """Raised by the test's own handler."""


@contextmanager
def interrupted_at(n: int) -> Iterator[None]:
    """Sends the signal before the n-th instruction of the package's Python code."""
    left = n

    def instruction(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if event == "opcode":
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return instruction

    def call(frame: FrameType, _event: str, _argument: object) -> Any:
        if f"{os.sep}alora_gguf{os.sep}" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return instruction

    def raises(_number: int, _frame: FrameType | None) -> None:
        sys.settrace(None)
        raise HandledError

    before = signal.signal(signal.SIGINT, raises)
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(None)
        assert signal.getsignal(signal.SIGINT) is raises
        signal.signal(signal.SIGINT, before)


def length_of(call: Callable[[], object]) -> int:
    """About how many instructions of the package a call takes."""
    low, high = 1, 2**22
    while low < high - low // 50:
        middle = (low + high) // 2
        try:
            with interrupted_at(middle):
                call()
            high = middle
        except HandledError:
            low = middle
    return high


@pytest.mark.parametrize("seed", range(4))
def test_at_any_instruction(files: Files, seed: int) -> None:
    rng = random.Random(seed)
    with files.model(n_ctx=512) as model, model.session() as session:
        session.append(PROMPT)
        expected, cells = inside.last_logits(session).copy(), inside.cells(model)
        used = cells.used()

        def invoke() -> None:
            session.invoke_many(["sure", "other", None])

        def generate() -> None:
            with session.fork() as fork:
                for _ in fork.generate(max_tokens=4):
                    pass

        def begin() -> None:
            with model.session() as other:
                other.append([9, *PROMPT], adapter="lora")

        def reload() -> None:
            if "again" in model.adapters:
                model.unload_adapter("again")
            model.load_adapter("again", files.lora)

        calls = [invoke, generate, begin, reload]
        lengths = [length_of(call) for call in calls]
        hit = 0
        for _ in range(60):
            which = rng.randrange(len(calls))
            try:
                with interrupted_at(rng.randint(1, lengths[which])):
                    calls[which]()
            except HandledError:
                hit += 1
            elsewhere = threading.Thread(target=lambda: model.session().append([1, 2, 3]))
            elsewhere.start()
            elsewhere.join(20)
            assert not elsewhere.is_alive()
            inside.forget_prefixes(model)
            inside.engine(model).collect()
            assert (cells.used(), cells.promised(), len(cells.sequences)) == (used, 0, 1)
        assert hit > 30
        for call in calls:
            call()
        assert np.array_equal(inside.last_logits(session), expected)


def test_a_call_that_waits_ends(files: Files) -> None:
    """For another thread's batch, say."""
    with files.model() as model, model.session() as session:
        scheduler = inside.engine(model).scheduler
        scheduler._leading = True  # as if it were computing

        def interrupt() -> None:
            while not scheduler._requests:
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            session.append(PROMPT)
        scheduler._leading = False
        session.append(PROMPT)


def test_the_programs_own_callbacks_are_interrupted_at_once(files: Files) -> None:
    def slow(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("should have been interrupted")

    with files.model() as model, model.session() as session:
        with pytest.raises(KeyboardInterrupt):
            session.append(PROMPT, progress=slow)
        with pytest.raises(KeyboardInterrupt):
            session.invoke_many(["sure"], on_text=slow)
        session.append(PROMPT)


def test_handlers_stay_the_programs(files: Files) -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = list[int]()
    try:
        signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
        mine = signal.getsignal(signal.SIGINT)
        with _calls.deferred:
            with _calls.deferred:
                signal.raise_signal(signal.SIGINT)
            assert seen == []
            assert _calls.pending()
        assert seen == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is mine
        with _calls.deferred:
            signal.signal(signal.SIGINT, before)  # as a library may amid a call
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


def test_ours_set_again_by_the_program_does_no_harm(files: Files) -> None:
    """By what puts back, after a call, the handler that it found amid it."""
    mine = signal.getsignal(signal.SIGINT)
    with _calls.deferred:
        found = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        signal.signal(signal.SIGINT, found)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is mine
    signal.signal(signal.SIGINT, found)
    with _calls.deferred:
        pass
    assert signal.getsignal(signal.SIGINT) is mine


def test_who_insists_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls, "_PATIENCE", 0.05)

    @_calls.uninterrupted
    def hangs() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("should have been interrupted")

    with pytest.raises(KeyboardInterrupt):
        hangs()


@pytest.mark.parametrize("load", ["Model(sys.argv[1], n_ctx=256)", BARE])
@pytest.mark.parametrize(("handler", "said"), [("raises", "ended"), ("returns", "loaded")])
def test_loading_ends(files: Files, load: str, handler: str, said: str) -> None:
    """Without a traceback from inside a callback of llama.cpp's; not where the handler returns."""
    program = (
        "import pathlib, signal, sys, alora_gguf, alora_gguf.engine.loading\n"
        "from alora_gguf.engine import native\n"
        "if sys.argv[2] == 'returns': signal.signal(signal.SIGINT, lambda *_: None)\n"
        "log, sent = native.Log.write, []\n"
        "def write(*given):\n"
        "    if b'load' in (given[2] or b'') and not sent:\n"
        "        sent.append(signal.raise_signal(signal.SIGINT))\n"
        "    log(*given)\n"
        "native.Log.write = write\n"
        "try:\n"
        f"    alora_gguf.{load}\n"
        "    print('loaded')\n"
        "except KeyboardInterrupt: print('ended')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(files.base), handler],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (f"{said}\n", "")
