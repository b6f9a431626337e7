"""Servers in a thread of their own, on free ports of the loopback interface."""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.serve import Server, Settings
from examples.demo_model.base_gguf import write_base_gguf

ROOT = Path(__file__).resolve().parents[2]


def open_demo(**how: Any) -> ag.Model:
    how = {"n_threads": 1, "n_seq_max": 49, "n_pooled": 16, **how}
    return ag.Model(demo.base_path(), adapters=demo.adapter_paths(), **how)


@functools.cache
def exact_base() -> Path:
    """The demo's base in F32: on quantised weights batches of other sizes round otherwise, and a
    token that is nearly as likely as another can win.
    """
    folder = Path(tempfile.mkdtemp(prefix="alora-exact-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_base_gguf(ROOT / "examples/demo_model/base", folder / "base.gguf", "f32")
    return folder / "base.gguf"


def open_exact(**how: Any) -> ag.Model:
    """The demo on its base in F32, with cells in F32."""
    how = {"n_threads": 1, "n_seq_max": 49, "n_pooled": 16, "type_k": "f32", "type_v": "f32", **how}
    return ag.Model(exact_base(), adapters=demo.adapter_paths(), **how)


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
