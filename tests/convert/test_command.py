"""`alora-gguf convert`, and what importing the converter costs."""

from __future__ import annotations

import json
import subprocess
import sys

from alora_gguf.cli.convert import command
from click.testing import CliRunner

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
    ]


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
    assert "exists already; pass --force" in str(result.exception)
    result = CliRunner().invoke(command, arguments(case, *given, "--force"))
    assert "  invocation    5, 6" in result.output
    result = CliRunner().invoke(command, arguments(case, "--invocation-tokens", "a"))
    assert "'a' is not a list of token ids such as 27,91,3" in result.output


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
