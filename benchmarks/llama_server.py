"""llama-server, built from the pinned sources without our patch, on the same ggml as ours: the same
flags, so that only the programs differ.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "llama-server"
OFF = (
    "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI",
    "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL",
)  # fmt: skip


def built() -> Path:
    """The program; built on first use, some minutes. ALORA_LLAMA_SERVER names another."""
    given = os.environ.get("ALORA_LLAMA_SERVER")
    if given:
        return Path(given)
    from alora_gguf.engine.library import library_dir
    from tests.support.building import cmake_build
    from tests.support.upstream import sdist

    program = HOME / "build" / "bin" / "llama-server"
    if not program.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        if not (HOME / "src" / "CMakeLists.txt").exists():
            _unpack(sdist(HOME), HOME / "src")
        settings = dict.fromkeys(OFF, "OFF")
        cmake_build(HOME / "src", HOME / "build", "llama-server", **settings)
    for library in sorted(library_dir().iterdir()):
        if "ggml" in library.name:
            shutil.copy2(library, program.parent / library.name)
    return program


def _unpack(archive: Path, folder: Path) -> None:
    """The sdist's llama.cpp, whole."""
    with tarfile.open(archive) as tar:
        top = tar.getnames()[0].split("/")[0]
        prefix = f"{top}/vendor/llama.cpp/"
        members = [each for each in tar.getmembers() if each.name.startswith(prefix)]
        for each in members:
            each.name = each.name.removeprefix(prefix)
        tar.extractall(folder, members, filter="data")


@contextlib.contextmanager
def running(
    base: Path, adapters: Sequence[Path], *, n_ctx: int, n_threads: int
) -> Iterator[httpx.Client]:
    """A server with these adapters, none of them on, one slot, and a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(built()), "-m", str(base), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", str(n_ctx), "-t", str(n_threads), "-np", "1", "--no-webui"]
    command += [word for each in adapters for word in ("--lora", str(each))]
    command += ["--lora-init-without-apply"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            for _ in range(600):
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        break
                if process.poll() is not None:
                    raise RuntimeError(f"llama-server ended with {process.returncode}")
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(30)
