"""os.fork() after a model was opened: the child is told, at once, and the parent goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

import alora_gguf as ag
from tests.support import inside
from tests.support.files import Files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def in_child(call: Callable[[], object]) -> str:
    """What the error says that a call raises in a child process; "hangs" after 20 seconds."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            call()
            os.write(writer, b"nothing")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    until = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return "hangs"
        time.sleep(0.01)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read().decode()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("busy", [False, True])
def test_the_child_is_told(files: Files, busy: bool) -> None:
    with files.model(n_threads=2) as model, model.session() as session:
        session.append([1, 2, 3])
        stop = threading.Event()

        def work() -> None:
            with model.session() as other:
                while not stop.is_set():
                    other.sync([5] * 200, adapter="lora")
                    other.sync([6] * 200)

        thread = threading.Thread(target=work)
        if busy:
            thread.start()
        calls: list[Callable[[], object]] = [
            lambda: session.append([4]),
            lambda: session.invoke("sure"),
            model.session,
            lambda: model.unload_adapter("sure"),
        ]
        for call in calls * 3:
            said = in_child(call)
            assert said.startswith("ClosedError"), said
            assert "was forked" in said
            assert "open it in the child" in said
        assert in_child(model.close) == in_child(session.close) == "nothing"
        stop.set()
        if busy:
            thread.join()
        session.append([4])
        assert inside.last_position(session) == 3


def test_the_child_may_open_its_own(files: Files) -> None:
    with files.model():

        def own() -> None:
            with ag.Model(files.base, n_ctx=256, n_threads=1) as model, model.session() as session:
                session.append([1, 2, 3])

        assert in_child(own) == "nothing"
