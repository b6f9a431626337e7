"""Other backends beside the CPU, without their hardware: `make test-backends`.

ALORA_TEST_BACKEND in the environment of a test run names one, and every process of that run
attaches it before it loads a model:

rpc      two devices, each a server in a child process whose own backend is the CPU: memory that is
         not the host's, and any operation is sent to them. What a GPU does, in the CPU's digits.
blas     OpenBLAS as a second backend in the host's memory, as macOS always has Accelerate.
others   what upstream has under that name, for instance vulkan, with the device that it finds.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path

from alora_gguf.engine.library import library_dir
from tests.support.building import cmake_build
from tests.support.rpc import rpc_servers
from tests.support.upstream import upstream_tree

NAME = os.environ.get("ALORA_TEST_BACKEND", "")
ON_DEVICE = NAME not in ("", "blas")
"""Whether layers go to a device with memory of its own."""

N_SERVERS = 2  # so that layers are split between devices

CHOOSES_FROM_FEW = NAME == "rpc"
"""Whether a device's product of experts may have only so many matrices."""

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")


@functools.cache
def backend_library(name: str) -> Path:
    """A backend's library: installed, or built if it is missing or older than its sources."""
    if name == "rpc":
        return library_dir() / ("ggml-rpc.dll" if sys.platform == "win32" else "libggml-rpc.so")
    folder = ROOT / "build" / "backends" / name
    cmake_build(
        Path(__file__).parent,
        folder,
        f"ggml-{name}",
        PRISTINE=upstream_tree(),
        GGML_DIR=library_dir(),
        BACKEND=name,
    )
    return folder / f"libggml-{name}.so"  # a CMake MODULE, on macOS too


@functools.cache
def attach(libraries: Path) -> None:
    """Adds the run's backend to the ggml in `libraries`, in this process."""
    if not NAME:
        return
    os.environ.setdefault("GGML_VK_VISIBLE_DEVICES", "0")  # else no driver that computes on the CPU
    ggml = Ggml(libraries)
    reg = ggml.load(backend_library(NAME))
    if NAME == "rpc":
        add = ggml.function(reg, "ggml_backend_rpc_add_server", ctypes.c_char_p)
        servers = contextlib.ExitStack()
        atexit.register(servers.close)
        for server in servers.enter_context(rpc_servers(N_SERVERS)):
            ggml.register(add(server.endpoint.encode()))


class Ggml:
    """ggml's registry of backends, as far as it is needed here."""

    def __init__(self, libraries: Path) -> None:
        self._libs = [
            ctypes.CDLL(str(libraries / f"libggml{part}.{SUFFIX}"), ctypes.RTLD_GLOBAL)
            for part in ("-base", "-cpu", "")
        ]

    def _call(self, name: str, *arguments: object) -> int | None:
        for lib in self._libs:
            if hasattr(lib, name):
                function = getattr(lib, name)
                function.restype = ctypes.c_void_p
                return function(*arguments)  # type: ignore[no-any-return]
        raise RuntimeError(f"ggml has no {name}")

    def load(self, library: Path) -> int:
        reg = self._call("ggml_backend_load", str(library).encode())
        if not reg:
            raise RuntimeError(f"ggml does not load {library}")
        return reg

    def register(self, reg: int) -> None:
        self._call("ggml_backend_register", ctypes.c_void_p(reg))

    def function(self, reg: int, name: str, *arguments: type) -> ctypes._FuncPointer:  # type: ignore[name-defined]
        """A function of a backend's own."""
        address = self._call(
            "ggml_backend_reg_get_proc_address", ctypes.c_void_p(reg), name.encode()
        )
        return ctypes.CFUNCTYPE(ctypes.c_void_p, *arguments)(address)  # type: ignore[arg-type]
