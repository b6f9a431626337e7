"""The one funnel: which failure ends with which status, and what is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alora_gguf import cli
from alora_gguf.errors import AloraError, CancelledError
from tests.support.peft_files import sound_case


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """The status of a command that raises."""

    def raises(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr("alora_gguf.convert.convert_adapter", raises)
    return cli.run(["convert", "source", "--base", "base.gguf", "-o", "out.gguf"])


def test_what_the_user_can_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(AloraError("a.gguf: is odd; mend it"), monkeypatch) == 1
    assert capsys.readouterr().err == "Error: a.gguf: is odd; mend it\n"


def test_an_error_of_the_system(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = PermissionError(13, "Permission denied", "out.gguf")
    assert fail_with(error, monkeypatch) == 1
    assert "Permission denied: 'out.gguf'" in capsys.readouterr().err


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."
    assert fail_with(CancelledError("stopped before training began"), monkeypatch) == 130
    assert capsys.readouterr().err.strip() == "Interrupted: stopped before training began"


def test_our_own_bug_leaves_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(ZeroDivisionError("never"), monkeypatch) == 3
    message = capsys.readouterr().err.strip()
    log = Path(
        message.removeprefix("Error: a bug in alora-gguf. Please report it with this file: ")
    )
    assert "ZeroDivisionError: never" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    "arguments", [["frob"], ["convert"], ["convert", "a", "--frob"], ["demo", "x"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert "Usage: alora-gguf" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["convert", "-h"], ["demo", "-h"]]
)
def test_questions(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 0
    assert "alora-gguf" in capsys.readouterr().out


def test_help_loads_little() -> None:
    """Neither numpy nor the library, which would take longer than the help."""
    code = (
        "import sys; from alora_gguf.cli import run; run(['--help']); "
        "print([m for m in ('numpy', 'gguf', 'llama_cpp', 'ctypes.util') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_while_modules_are_imported() -> None:
    code = """if True:
        import sys
        class Interrupt:
            def find_spec(self, name, *_):
                if name == "click":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupt())
        from alora_gguf.__main__ import main
        main()
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "Interrupted.\n")


def test_ctrl_c_while_a_file_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        assert list(tmp_path.glob(".out.gguf.*.part")), "nothing is being written"
        raise KeyboardInterrupt

    monkeypatch.setattr("alora_gguf.cli.progress.Progress.__call__", interrupt)
    case = sound_case(tmp_path)
    case.write()
    arguments = [str(case.source), "--base", str(case.base), "-o", str(case.out)]
    assert cli.run(["convert", *arguments]) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\nInterrupted.\n"  # the break after a terminal's ^C
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "base.gguf"]


def test_what_a_file_says_cannot_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = sound_case(tmp_path)
    case.config["\x1b[31mfield"] = 1
    case.write()
    assert cli.run(["convert", str(case.source), "--base", str(case.base)]) == cli.EXIT_USER
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "\\x1b[31mfield = 1 is unknown" in error
