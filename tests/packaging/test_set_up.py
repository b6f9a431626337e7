"""CMake's own messages, the one pin, and where the installed libraries are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import alora_gguf
from alora_gguf.engine.library import library_dir
from alora_gguf.engine.native import API_VERSION
from alora_gguf.errors import LibraryError
from tests.support.building import build_tool

ROOT = Path(__file__).resolve().parents[2]


def configure(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs CMake on the project with nothing in PATH."""
    cmake, ninja = build_tool("cmake"), build_tool("ninja")
    if cmake is None or ninja is None:
        pytest.skip("CMake and Ninja of requirements-build.txt are not installed")
    command = [cmake, "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja"]
    command += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DALORA_UPSTREAM_DIR={folder / 'upstream'}"]
    env["PATH"] = str(folder)
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Visual Studio is found without PATH")
@pytest.mark.parametrize("env", [{}, {"CC": "/nowhere/cc", "CXX": "/nowhere/c++"}])
def test_a_missing_compiler_says_what_to_install(tmp_path: Path, env: dict[str, str]) -> None:
    done = configure(tmp_path, **env)
    message = " ".join(done.stderr.split())
    assert done.returncode != 0
    assert "alora-gguf compiles llama.cpp and found no C compiler" in message
    assert "apt install build-essential" in message
    assert "CC and CXX" in message
    assert not (tmp_path / "upstream").exists()


def test_every_file_names_the_pinned_version() -> None:
    pin = (ROOT / "native/upstream.txt").read_text(encoding="utf-8")
    found = re.search(r"^(llama-cpp-python==\S+) --hash=sha256:(\w+)$", pin, re.MULTILINE)
    assert found is not None
    for name in ("pyproject.toml", "requirements.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(r"llama-cpp-python==[\w.]+", text) == [found[1]], name
        assert found[2] not in text, name


def test_the_libraries_are_plain_files_that_find_each_other(tmp_path: Path) -> None:
    folder = library_dir()
    names = {path.name for path in folder.iterdir()}
    assert {re.sub(r"^lib|\..*$", "", name) for name in names} >= {"llama", "ggml", "ggml-base"}
    assert not any(path.is_symlink() for path in folder.iterdir())

    (library,) = (path for path in folder.iterdir() if "llama" in path.name)
    script = f"import ctypes; print(ctypes.CDLL({str(library)!r}).alora_api_version())"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(API_VERSION), done.stderr


def test_missing_libraries_say_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alora_gguf, "__path__", [str(tmp_path)])
    with pytest.raises(LibraryError) as raised:
        library_dir()
    assert f"Looked in:\n  {tmp_path / 'lib'}\n" in str(raised.value)
    assert "run `make setup` or `pip install .`" in str(raised.value)
