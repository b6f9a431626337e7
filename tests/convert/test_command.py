"""`alora-gguf convert`, and what importing the converter costs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from alora_gguf.cli.convert import command
from alora_gguf.cli.progress import Progress
from alora_gguf.convert import convert_adapter
from alora_gguf.convert.metadata import OUTTYPES
from click.testing import CliRunner

from alora_gguf import cli
from tests.support import vectors
from tests.support.peft_files import Case


def arguments(case: Case, *more: str) -> list[str]:
    case.write()
    return [str(case.source), "--base", str(case.base), "-o", str(case.out), *more]


def test_report_for_people(case: Case) -> None:
    result = CliRunner().invoke(command, arguments(case, "--outtype", "f32"))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith(f"{case.out}: 0.01 MB f32 in ")
    assert lines[1:] == [
        "  kind          aLoRA",
        "  invocation    7, 8",
        "  architecture  llama",
        "  targets       attn_k x2, attn_output x2, attn_q x2, attn_v x2, "
        "ffn_down x2, ffn_gate x2, ffn_up x2",
        "  rank          4",
        "  alpha         8",
        "  contract      none (there is no io.yaml)",
    ]


def test_the_report_says_which_contract_went_in(case: Case, tmp_path: Path) -> None:
    sound = "model: ~\nresponse_format: ~\ntransformations: ~\n"
    beside, other = case.source / "io.yml", tmp_path / "other.yaml"
    other.write_text(sound)
    given = arguments(case, "--force")
    beside.write_text(sound)
    for more, row in (
        ((), str(beside)),
        (("--contract", str(other)), str(other)),
        (("--no-contract",), "none (--no-contract)"),
    ):
        result = CliRunner().invoke(command, [*given, *more])
        assert result.output.splitlines()[-1] == f"  contract      {row}"
        report = json.loads(CliRunner().invoke(command, [*given, *more, "--json"]).output)
        assert report["contract"] == (None if row.startswith("none") else row)
    result = CliRunner().invoke(command, [*given, "--no-contract", "--contract", str(other)])
    assert "give --contract or --no-contract, not both" in result.output


def test_a_gguf_is_no_source(case: Case) -> None:
    case.write()
    result = CliRunner().invoke(command, [str(case.base), "--base", str(case.base)])
    assert str(result.exception) == (
        f"{case.base}: is a GGUF, and needs no conversion; give the PEFT adapter's directory, and "
        "the model that it was trained on as the base (--base)"
    )


def test_a_steering_vector_is_no_source(case: Case, tmp_path: Path) -> None:
    case.write()
    path = vectors.plain(tmp_path / "formal.gguf")
    result = CliRunner().invoke(command, [str(path), "--base", str(case.base)])
    assert str(result.exception) == (
        f"{path}: is a steering vector in a GGUF, and needs no conversion; use it as it is: -a "
        "NAME=formal.gguf"
    )


def test_report_as_json(case: Case) -> None:
    result = CliRunner().invoke(command, arguments(case, "--json", "--name", "sure"))
    report = json.loads(result.output)
    assert report["name"] == "sure"
    assert report["kind"] == "alora"
    assert report["invocation"] == [7, 8]
    assert report["outtype"] == "f16"
    assert report["nbytes"] == case.out.stat().st_size


def test_force_and_invocation_tokens(case: Case) -> None:
    del case.config["alora_invocation_tokens"]
    given = ("--invocation-tokens", "5, 6")
    result = CliRunner().invoke(command, arguments(case, *given))
    assert "warning: adapter_config.json names no invocation" in result.output
    result = CliRunner().invoke(command, arguments(case, *given))
    assert "exists already; pass overwrite=True" in str(result.exception)
    result = CliRunner().invoke(command, arguments(case, *given, "--force"))
    assert "  invocation    5, 6" in result.output
    result = CliRunner().invoke(command, arguments(case, "--invocation-tokens", "a"))
    assert "'a' is not a list of token ids such as 27,91,3" in result.output


def test_the_command_line_speaks_of_its_options(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.out.write_bytes(b"")
    assert cli.run(["convert", *arguments(case)]) == cli.EXIT_USER
    error = capsys.readouterr().err
    assert f"{case.out}: exists already; pass --force to replace it" in error
    assert "overwrite" not in error


def test_dry_run(case: Case) -> None:
    result = CliRunner().invoke(command, arguments(case, "--dry-run"))
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0].endswith(" (dry run: not written)")
    assert not case.out.exists()
    dry = json.loads(CliRunner().invoke(command, arguments(case, "--dry-run", "--json")).output)
    real = json.loads(CliRunner().invoke(command, arguments(case, "--json")).output)
    assert (dry.pop("written"), real.pop("written")) == (False, True)
    assert (dry.pop("seconds"), real.pop("seconds")) > (0, 0)
    assert dry == real


def test_a_dry_run_checks_the_values(case: Case) -> None:
    next(iter(case.tensors.values()))[0, 0] = float("nan")
    result = CliRunner().invoke(command, arguments(case, "--dry-run"))
    assert "NaN or infinite" in str(result.exception)


def test_output_is_named_after_the_adapter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.folder)
    case.write()
    result = CliRunner().invoke(command, [str(case.source), "--base", str(case.base)])
    assert result.output.startswith("adapter.gguf: ")
    assert (case.folder / "adapter.gguf").is_file()


def test_one_invocation_only(case: Case) -> None:
    more = ("--invocation", "a", "--invocation-tokens", "5")
    result = CliRunner().invoke(command, arguments(case, *more))
    assert "give --invocation or --invocation-tokens, not both" in result.output


def test_the_types_it_offers_are_those_it_can_write() -> None:
    (option,) = [p for p in command.params if p.name == "outtype"]
    assert isinstance(option.type, click.Choice)
    assert set(option.type.choices) == set(OUTTYPES)


class Screen(io.StringIO):
    """A stderr that is a terminal, or not."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(
    ("terminal", "patience", "shown"), [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)]
)
def test_a_bar_is_shown_where_somebody_waits(
    case: Case, monkeypatch: pytest.MonkeyPatch, terminal: bool, patience: float, shown: bool
) -> None:
    case.write()
    screen = Screen(terminal=terminal)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("alora_gguf.cli.progress._PATIENCE", patience)
    with Progress("Converting") as progress:
        convert_adapter(case.source, case.base, case.out, progress=progress)
    assert ("100%" in screen.getvalue()) is shown
    assert ("Converting" in screen.getvalue()) is shown
    assert screen.getvalue().endswith("\n") is shown


def test_needs_no_torch_and_no_native_library(case: Case) -> None:
    code = (
        "import sys; from alora_gguf.convert import convert_adapter;"
        "convert_adapter(*sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'peft', 'safetensors', 'llama_cpp')"
        " if m in sys.modules])"
    )
    case.write()
    paths = [str(p) for p in (case.source, case.base, case.out)]
    command = [sys.executable, "-c", code, *paths]
    run = subprocess.run(command, capture_output=True, text=True, cwd=case.folder)
    assert run.stdout == "[]\n", run.stderr
