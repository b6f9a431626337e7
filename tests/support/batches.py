"""What tests do while something is computed: see, slow down or use the moment of every batch.

A test that needs a call to be under way when something else happens says so here. What trusts that
a reply is long enough, or that 50 milliseconds are, fails on a faster machine or a busier one.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def before_each_batch(call: Callable[[], object]) -> Iterator[None]:
    """Calls it on the thread that computes, which has the context's lock."""
    binding = importlib.import_module("llama_cpp.llama_cpp")
    real = binding.llama_decode

    def decode(*args: Any) -> Any:
        call()
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binding, "llama_decode", decode)
        yield


@contextmanager
def threads_of_batches() -> Iterator[list[threading.Thread]]:
    """A list that grows by the thread of every batch that is computed."""
    threads = list[threading.Thread]()
    with before_each_batch(lambda: threads.append(threading.current_thread())):
        yield threads


@contextmanager
def slow_batches(seconds: float = 0.02) -> Iterator[None]:
    """Every batch takes so much longer."""
    with before_each_batch(lambda: time.sleep(seconds)):
        yield


@contextmanager
def amid_batch(n: int, call: Callable[[], object]) -> Iterator[None]:
    """Another thread makes the call while the n-th batch from now on is being computed."""
    left = n

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            caller = threading.Thread(target=call)
            caller.start()
            caller.join()

    with before_each_batch(count):
        yield
    assert left <= 0, f"{left} batches of {n} were not computed"
