"""A server of llama.cpp's RPC, on which another process computes some of a model's layers."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

from alora_gguf._calls import Within, checked
from alora_gguf.errors import InputError, RpcError
from alora_gguf.threads import default_threads

from .native import load

DEFAULT_PORT: Final = 50052  # of llama.cpp's own server
_GLANCE: Final = 0.2  # seconds between two looks at whether it still serves


@checked
def serve_rpc(
    host: str = "127.0.0.1",
    port: Annotated[int, Within(0, 65535)] = DEFAULT_PORT,
    *,
    n_threads: Annotated[int, Within(1, 512)] | None = None,
    cache: str | os.PathLike[str] | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serves this machine's GPUs, or its processors if it has none, to `ContextOptions.rpc` of
    another process: one at a time, further ones are turned away. It also serves other programs with
    llama.cpp, of a release that speaks the same version of the protocol.

    llama.cpp's code prints to the process's standard output when it begins, and at each connection.

    Whoever can connect can read and write this process's memory, and so do what it may do: `host`
    is an IPv4 address of this machine, of a network where nobody else is.

    host, port  where to listen; port 0: a free one
    n_threads   threads to compute with (None: one per core that is free)
    cache       a folder for tensors of 10 MB and more, which are sent once then; is made
    ready       is called with "host:port" when it listens

    Never returns: it ends with the process, or by what a signal's handler raises, after which the
    process must end, too. Raises InputError, and RpcError if nothing can listen there.
    """
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise InputError(f"host must be an IPv4 address, such as 10.0.0.2, got {host!r}") from None
    try:
        with socket.socket() as probe:
            if sys.platform != "win32":  # where it would let two listen
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            port = probe.getsockname()[1]
        folder = None
        if cache is not None:
            folder = Path(cache)
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{host}:{port}: cannot listen" if error.filename is None else error.filename
        raise RpcError(f"{what}: {error.strerror or error}") from error
    endpoint, failed = f"{host}:{port}", list[BaseException]()

    def serve() -> None:
        try:
            load().rpc_serve(endpoint, folder, n_threads or default_threads())
        except BaseException as error:
            failed.append(error)

    load()  # which fails here, if at all
    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    if ready is not None and _listens(host, port, serving):
        ready(endpoint)
    while serving.is_alive():
        serving.join(_GLANCE)  # a thread in C hears no signal
    raise failed[0]


def _listens(host: str, port: int, serving: threading.Thread) -> bool:
    """Waits until it does; false if it failed."""
    anywhere = ipaddress.IPv4Address(host).is_unspecified  # which some systems do not connect to
    at = ("127.0.0.1" if anywhere else host, port)
    while serving.is_alive():
        with socket.socket() as probe:
            if probe.connect_ex(at) == 0:
                return True
        serving.join(0.01)
    return False
