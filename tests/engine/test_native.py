"""Loading the native library: the right one, or an error that says what to do."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import alora_gguf as ag
from alora_gguf.engine import native as _native
from tests.support.files import Files

OPEN = "import alora_gguf as ag\ntry: ag.Model({base!r})\nexcept ag.LibraryError as e: print(e)\n"


def run(code: str, **env: str) -> str:
    """Runs code in a process of its own; returns its output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **env},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def library_folder() -> Path:
    return _native.load().path.parent


def test_another_library_that_came_first_is_an_error(files: Files, tmp_path: Path) -> None:
    shutil.copytree(library_folder(), tmp_path / "other", ignore=shutil.ignore_patterns("*.a"))
    said = run(
        "import llama_cpp\n" + OPEN.format(base=str(files.base)),
        LLAMA_CPP_LIB_PATH=str(tmp_path / "other"),
        ALORA_LIB_DIR=str(library_folder()),
    )
    assert "llama_cpp was already imported with another library" in said
    assert "before anything imports llama_cpp" in said


def test_our_library_that_came_first_is_fine(files: Files) -> None:
    folder = str(library_folder())
    said = run(
        f"import llama_cpp, alora_gguf\nprint(alora_gguf.Model({str(files.base)!r}).n_vocab)",
        LLAMA_CPP_LIB_PATH=folder,
        ALORA_LIB_DIR=folder,
    )
    assert int(said) > 200


def test_a_folder_without_a_library(files: Files, tmp_path: Path) -> None:
    said = run(OPEN.format(base=str(files.base)), ALORA_LIB_DIR=str(tmp_path))
    assert "cannot be loaded" in said
    assert "ALORA_LIB_DIR" in said


def test_another_version_of_llama_cpp_python(files: Files) -> None:
    code = "import alora_gguf.engine.native as n\nn.LLAMA_CPP_PYTHON = '9.9.9'\n" + OPEN.format(
        base=str(files.base)
    )
    said = run(code, ALORA_LIB_DIR=str(library_folder()))
    assert "expected 9.9.9" in said
    assert "pip install llama-cpp-python==9.9.9" in said


def test_another_version_of_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    native = _native.load()
    monkeypatch.setattr(_native, "API_VERSION", 99)
    with pytest.raises(ag.LibraryError, match="expected 99; install alora-gguf again"):
        native._bind()


def test_a_stock_library_is_named_as_such(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stock:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    native = _native.load()
    monkeypatch.setattr(native, "_lib", Stock())
    with pytest.raises(ag.LibraryError, match="has no adapter bank, so it is a stock"):
        native._bind()


@pytest.mark.slow
def test_it_is_quiet_unless_asked(files: Files) -> None:
    code = f"import alora_gguf as ag\nwith ag.Model({str(files.base)!r}{{}}) as m: pass"
    env = {**os.environ, "ALORA_LIB_DIR": str(library_folder())}
    for extra, loud in (("", False), (", verbose=True", True)):
        done = subprocess.run(
            [sys.executable, "-c", code.format(extra)],
            capture_output=True,
            text=True,
            env=env,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        assert bool(done.stderr) == loud
        assert done.stdout == ""


def test_leaving_everything_open_at_exit_is_fine(files: Files) -> None:
    code = (
        "import alora_gguf as ag\n"
        f"m = ag.Model({str(files.base)!r}, adapters={{'l': {str(files.lora)!r}}}, n_threads=1)\n"
        "s = m.session(); s.append('Hello')\n"
        "g = s.generate(adapter='l'); next(g)\n"
        "sys = None; print('end')"
    )
    assert run(code, ALORA_LIB_DIR=str(library_folder())) == "end\n"


def test_a_model_is_verbose_for_itself_alone(files: Files) -> None:
    code = (
        "import sys, alora_gguf as ag\n"
        f"loud = ag.Model({str(files.base)!r}, n_ctx=64, verbose=True)\n"
        "print('--', file=sys.stderr, flush=True)\n"
        f"quiet = ag.Model({str(files.base)!r}, n_ctx=64)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    before, after = done.stderr.split("--\n")
    assert "llama_model_loader" in before
    assert not after


def test_the_log_goes_to_logging(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "alora_gguf.llama_cpp"), files.model(n_ctx=64):
        pass
    assert any("llama_model_loader" in record.message for record in caplog.records)
    assert not any("\n" in record.message for record in caplog.records)


def test_each_call_has_the_lines_that_it_logged() -> None:
    log = _native.Log()
    error = 4

    def elsewhere() -> None:
        with log.capture():
            log.write(error, b"theirs\n", None)
            found.append(log.tail())

    found: list[str] = []
    with log.capture():
        log.write(error, b"of the ", None)
        log.write(5, b"first\n", None)  # the line goes on
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with log.capture():
            assert not log.tail()
            log.write(3, b"a warning\n", None)
            log.write(2, b"no warning\n", None)
            assert log.tail() == " (llama.cpp: a warning)"
        assert log.tail() == " (llama.cpp: of the first)"
    assert not log.tail()
    assert found == [" (llama.cpp: theirs)"]
