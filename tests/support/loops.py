"""What the tests of asyncio share: waiting for something, and seeing what computes where."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.0005)


def watch_batches(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """A list that grows by the thread of every batch that is computed from now on."""
    binding = importlib.import_module("llama_cpp.llama_cpp")
    real, threads = binding.llama_decode, list[threading.Thread]()

    def decode(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return real(*args)

    monkeypatch.setattr(binding, "llama_decode", decode)
    return threads
