"""An RPC server whose device is the CPU.

python -m tests.backends.rpc_server LIBRARIES BACKEND: prints its endpoint; ends with its parent,
which holds its standard input.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
from pathlib import Path

from tests.backends import Ggml

N_THREADS = 1  # the models are too small to share


def main(libraries: str, backend: str) -> None:
    ggml = Ggml(Path(libraries))
    reg = ggml.load(Path(backend))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    said = os.dup(1)
    os.dup2(2, 1)  # the server's own words
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.Thread(target=_say_when_up, args=(endpoint, said), daemon=True).start()
    start = ggml.function(
        reg,
        "ggml_backend_rpc_start_server",
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_void_p),
    )
    devices = (ctypes.c_void_p * 1)(ggml.cpu())
    start(endpoint.encode(), None, N_THREADS, 1, devices)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _say_when_up(endpoint: str, to: int) -> None:
    """Upstream says that it listens before it does, and serves one client after the other."""
    host, port = endpoint.split(":")
    while True:
        try:
            socket.create_connection((host, int(port))).close()
            break
        except ConnectionRefusedError:
            threading.Event().wait(0.01)
    os.write(to, f"{endpoint}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
