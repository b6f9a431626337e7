"""Servers in a thread of their own, on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.serve import Server, Settings


def open_demo(**how: Any) -> ag.Model:
    how = {"n_threads": 1, "n_seq_max": 49, "n_pooled": 16, **how}
    return ag.Model(demo.base_path(), adapters=demo.adapter_paths(), **how)


@contextlib.contextmanager
def serving(
    load: Callable[[], ag.Model] = open_demo, *, grace: float = 5.0, **settings: Any
) -> Iterator[Server]:
    """A server that is ready, until the end of the block."""
    ready = threading.Event()
    server = Server(
        load,
        Settings(**{"name": "demo", **settings}),
        host="127.0.0.1",
        port=0,
        grace=grace,
        ready=lambda _: ready.set(),
    )
    thread = threading.Thread(target=server.serve_until_stopped, daemon=True)
    thread.start()
    try:
        assert ready.wait(60)
        yield server
    finally:
        server.stop()
        thread.join(60)
        assert not thread.is_alive()
