"""Files that end a process are sentences, whatever rule does not know them: here the rules are
switched off.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.engine import trial
from tests.support import tiny_base
from tests.support.base_mutants import Parts, V


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ALORA_TRIAL_LOAD")
    monkeypatch.setenv("ALORA_GGUF_HOME", str(tmp_path / "home"))


@pytest.fixture
def no_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_base", "check_vocabulary"):
        monkeypatch.setattr(f"alora_gguf.gguf.base.{name}", lambda *_: None)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that a process was started for."""
    found: list[Path] = []
    run = trial._run

    def counted(interpreter: str, path: Path, *rest: Any, **more: Any) -> bool:
        found.append(path)
        return run(interpreter, path, *rest, **more)

    monkeypatch.setattr(trial, "_run", counted)
    return found


def _base(path: Path, **keys: tuple[V, Any]) -> Path:
    parts = Parts.read(tiny_base.write_base(path))
    parts.keys |= {f"llama.{name}": value for name, value in keys.items()}
    path.write_bytes(parts.encode())
    return path


def _endless(path: Path) -> Path:
    """An RWKV vocabulary that llama.cpp reads for ever: one of its bytes has no token."""
    parts = Parts.read(tiny_base.write_base(path))
    parts.keys["tokenizer.ggml.model"] = V.STRING, b"rwkv"
    tokens = [b"\\x%02x" % i if i != 65 else b"Ab" for i in range(256)]
    parts.put(
        "tokenizer.ggml.tokens", tokens + [b"x%d" % i for i in range(tiny_base.N_VOCAB - 256)]
    )
    path.write_bytes(parts.encode())
    return path


def _home(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "home").glob("known/*"))


_OPENED: dict[str, Callable[[Path], Any]] = {
    "Model": lambda path: ag.Model(path, n_ctx=64),
    "Llama": lambda path: ag.Llama(str(path), n_ctx=64, verbose=False),
    "vocab_only": lambda path: ag.Llama(str(path), vocab_only=True, verbose=False),
    "Tokenizer": lambda path: ag.Tokenizer(path, template="{{ messages }}"),
}


@pytest.mark.usefixtures("no_rules")
@pytest.mark.parametrize("opened", ["Model", "Llama"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", (V.UINT32, 2000)),  # while it is loaded
        ("attention.layer_norm_rms_epsilon", (V.FLOAT32, -1e-5)),  # while it computes
    ],
)
def test_what_llama_cpp_asserts_on(
    opened: str, key: str, value: tuple[V, Any], tmp_path: Path
) -> None:
    path = _base(tmp_path / "base.gguf", **{key: value})
    with pytest.raises(ag.ModelError, match="does not survive loading") as error:
        _OPENED[opened](path)
    assert f"{path}: llama.cpp does not survive loading this file" in str(error.value)
    assert "SIGABRT" in str(error.value)
    assert "GGML_ASSERT(" in str(error.value)
    assert not _home(tmp_path)


@pytest.mark.usefixtures("no_rules")
@pytest.mark.parametrize("opened", _OPENED)
def test_what_llama_cpp_reads_for_ever(
    opened: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_LONGEST", 1.0)
    path = _endless(tmp_path / "base.gguf")
    with pytest.raises(ag.ModelError, match="was still loading this file after 1 s"):
        _OPENED[opened](path)


def test_a_file_is_tried_once(tmp_path: Path, runs: list[Path]) -> None:
    path = tiny_base.write_base(tmp_path / "base.gguf")
    for _ in range(2):
        ag.Model(path, n_ctx=64).close()
    assert runs == [path]
    ag.Llama(str(path), n_ctx=64, verbose=False).close()
    ag.Tokenizer(path, template="{{ messages }}").close()  # whose weights were loaded, too
    (tmp_path / "copy.gguf").write_bytes(path.read_bytes())
    ag.Model(tmp_path / "copy.gguf", n_ctx=64).close()
    assert runs == [path]
    _base(path, context_length=(V.UINT32, 77))
    ag.Model(path, n_ctx=64).close()
    assert runs == [path, path]
    assert len(_home(tmp_path)) == 2


def test_large_files_are_known_by_place_and_time(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_SMALL", 0)
    path = tiny_base.write_base(tmp_path / "base.gguf")
    for _ in range(2):
        ag.Model(path, n_ctx=64).close()
    assert len(runs) == 1
    os.utime(path, ns=(0, 12345))
    ag.Model(path, n_ctx=64).close()
    assert len(runs) == 2


def test_so_many_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_KNOWN", 2)
    for i in range(4):
        trial._remember(tmp_path / "home" / "known" / str(i))
        os.utime(tmp_path / "home" / "known" / str(i), ns=(i, i))
    assert {each.name for each in _home(tmp_path)} == {"2", "3"}


@pytest.mark.skipif(sys.platform == "win32", reason="has no core files")
def test_a_crash_leaves_no_core_file(tmp_path: Path) -> None:
    path = tiny_base.write_base(tmp_path / "base.gguf")
    program = (
        "import resource, sys; from alora_gguf.engine.loading import load_here; "
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]; "
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)); load_here(sys.argv[1], True); "
        "print(hard, *resource.getrlimit(resource.RLIMIT_CORE))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    hard, *limits = run.stdout.split()[1:]
    if hard == "0":
        pytest.skip("core files are switched off here")
    assert limits == ["0", "0"]


def test_nothing_in_the_current_directory_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_base.write_base(tmp_path / "base.gguf")
    for name in ("json", "numpy", "alora_gguf", "hashlib"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    ag.Model(path, n_ctx=64).close()
    assert _home(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_is_not_tried(
    tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_base.write_base(tmp_path / "base.gguf")
    for name, value in (("frozen", True), ("executable", "/usr/bin/blender"), ("executable", "")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, value, raising=False)
            ag.Model(path, n_ctx=64).close()
    monkeypatch.setenv("ALORA_TRIAL_LOAD", "0")
    ag.Model(path, n_ctx=64).close()
    monkeypatch.delenv("ALORA_TRIAL_LOAD")
    ag.Model(demo.base_path(), n_ctx=64).close()  # a file of this package
    assert runs == []


@pytest.mark.parametrize("broken", ["import", "killed", "absent"])
def test_a_trial_that_fails_says_nothing_of_the_file(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_base.write_base(tmp_path / "base.gguf")
    if broken == "absent":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    else:
        end = "import os; print(1, flush=True); os.kill(os.getpid(), 9)"
        monkeypatch.setattr(trial, "_PROGRAM", "import nothing" if broken == "import" else end)
    ag.Model(path, n_ctx=64).close()
    assert not _home(tmp_path)


@pytest.mark.usefixtures("no_rules")
def test_it_can_be_cancelled_and_interrupted(tmp_path: Path) -> None:
    path = _endless(tmp_path / "base.gguf")
    cancel = ag.CancelToken()
    threading.Timer(0.7, cancel.cancel).start()
    since = time.monotonic()
    with pytest.raises(ag.CancelledError):
        ag.Model(path, n_ctx=64, cancel=cancel)

    def interrupted() -> None:
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        ag.Model(path, n_ctx=64)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - since < 20
