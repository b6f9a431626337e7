"""`alora-gguf verify` as a user runs it: the report, the JSON, the statuses and the sentences."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.chart import bars
from alora_gguf.cli.render import size_text

from alora_gguf import Description, Store, cli, demo
from alora_gguf.verification.records import LayerChange
from tests.support import tiny_base, vectors
from tests.support.files import Files
from tests.support.verified import VOCABULARY_KEY, adapter_with, tiny_vocabulary_sha256, with_nan

ESCAPE = "\x1b["


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(
    base: Path | str, adapter: Path | str, *options: str, out: io.StringIO | None = None
) -> tuple[int, str, str]:
    """(status, stdout, stderr)"""
    out, err = out or io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(["verify", str(base), str(adapter), "--threads", "1", *options])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def sound(files: Files) -> Path:
    entries = {
        VOCABULARY_KEY: tiny_vocabulary_sha256(),
        "general.name": "sure",
        "alora.invocation_text": "<certainty>",
    }
    return adapter_with(files.folder / "sound.gguf", entries, invocation=files.invocation)


def squeezed(text: str) -> str:
    """Without what line breaks put between words."""
    return " ".join(text.split())


# The report ---------------------------------------------------------------------------------------

REPORT = """\
  base          tiny, llama, F32, 108,608 parameters, {base}
  adapter       sure, aLoRA of rank 8, F32, 7,168 parameters, {adapter}
  targets       attn_k, attn_output, attn_q, attn_v in 2 layers
  invocation    '<certainty>', 9 tokens
  text          297 tokens with seed 0, the adapter on at the last 41; 1 thread

  ok    every target is a weight of this base, of the right shape
  ok    the base's vocabulary is the one that the adapter was converted for
  ok    before the invocation: layers and logits of 16 tokens are the base's,
        bit for bit, in one batch with adapted ones
  ok    before the invocation: cells of 256 tokens are the base's, bit for bit,
        in one batch with adapted ones
  ok    asked on a fork, it reuses 256 of 256 tokens and leaves the
        conversation's cells as they were, byte for byte
  ok    every layer and every logit is finite
  ok    it changes what the base computes

From the invocation on (41 tokens)
"""


def test_the_report(files: Files, sound: Path) -> None:
    status, out, err = run(files.base, sound)
    assert (status, err) == (0, "")
    sizes = (size_text(path.stat().st_size) for path in (files.base, sound))
    assert REPORT.format(**dict(zip(("base", "adapter"), sizes, strict=True))) in out
    assert squeezed(out).startswith(f"{sound} on {files.base} base")
    lines = out.splitlines()
    assert lines[-1] == "sure passes."
    assert max(map(len, lines[2:])) <= 80
    rows = lines[-4:-2]
    assert [row[:9] for row in rows] == ["      0  ", "      1  "]
    assert max(row.count("#") for row in rows) == 53


def test_the_demo_model() -> None:
    status, out, err = run(demo.base_path(), demo.adapter_path("answerability"))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "answerability passes."


def test_a_steering_vector(files: Files, tmp_path: Path) -> None:
    path = vectors.glp(tmp_path / "formal.gguf", keys={"general.name": "formal"}, hook="ffn")
    status, out, err = run(files.base, path)
    assert (status, err) == (0, "")
    size = size_text(path.stat().st_size)
    facts = (
        f"  adapter       formal, steering vector of rank 1, F32, 64 parameters, {size}\n"
        "  operation     project, made for the scale 2\n"
        "  targets       blk.1.ffn\n"
        "  invocation    none; it begins at the reply\n"
        "  text          288 tokens with seed 0, the adapter on at the last 32; 1 thread\n"
    )
    assert facts in out
    assert "  ok    every target is a layer of this base, of the right shape\n" in out
    assert "before the reply: layers and logits of 16 tokens are the base's, bit" in squeezed(out)
    assert "before the reply: cells of 256 tokens are the base's, bit" in squeezed(out)
    assert "\nFrom the reply on (32 tokens)\n" in out
    assert out.splitlines()[-1] == "formal passes."


def test_a_plain_lora_says_that_it_changes_every_token(files: Files) -> None:
    status, out, _ = run(files.base, files.lora)
    assert status == 0
    assert "  invocation    none; it is on for every token\n" in out
    assert "it reuses 0 of 256 tokens and leaves the conversation's cells as they" in squeezed(out)
    assert "byte for byte; a plain LoRA changes every token, so it re-reads every" in squeezed(out)
    assert "\nEverywhere (32 tokens)\n" in out
    assert "before the invocation" not in out
    assert "  note  the adapter does not say which vocabulary it was converted for;\n" in out


@pytest.mark.parametrize(("columns", "widest"), [("50", 50), ("20", 40), ("300", 100)])
def test_the_width_is_the_terminals(
    files: Files, sound: Path, monkeypatch: pytest.MonkeyPatch, columns: str, widest: int
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = run(files.base, sound)[1].splitlines()
    words = [line for line in lines[2:] if " " in line.strip() and "gguf" not in line]
    assert widest - 9 <= max(map(len, words)) <= widest


def test_colour_is_for_terminals(
    files: Files, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert ESCAPE not in run(files.base, sound)[1]
    coloured = run(files.base, sound, out=Terminal())[1]
    assert f"  {ESCAPE}32mok{ESCAPE}0m    every target" in coloured
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert ESCAPE not in run(files.base, sound, out=Terminal())[1]


def test_what_a_file_says_cannot_steer_the_terminal(files: Files) -> None:
    hostile = adapter_with(
        files.folder / "hostile.gguf",
        {"general.name": "\x1b[31mred", "alora.invocation_text": "<certainty>"},
        invocation=files.invocation,
    )
    out = run(files.base, hostile)[1]
    assert ESCAPE not in out
    assert out.endswith("\n\\x1b[31mred passes.\n")


# The chart ----------------------------------------------------------------------------------------


def changes(*values: float) -> list[LayerChange]:
    return [LayerChange(i, value, value, 1 - value / 10) for i, value in enumerate(values)]


def test_bars_are_as_long_as_changes_are_large() -> None:
    heading, rows = bars(changes(0, 0.001, 0.5, 1), 47)
    assert heading == "  layer   change   cosine"
    assert rows == [
        ("      0   0.0000   1.0000  ", ""),
        ("      1   0.0010   0.9999  ", "."),
        ("      2   0.5000   0.9500  ", "#" * 10),
        ("      3   1.0000   0.9000  ", "#" * 20),
    ]


@pytest.mark.parametrize("n", [1, 24, 25, 48, 49, 80, 200])
def test_many_layers_share_rows(n: int) -> None:
    _, rows = bars(changes(*[1.0] * n), 80)
    assert len(rows) <= 24
    assert all(len(row[0] + row[1]) <= 80 for row in rows)
    assert rows[-1][0].split()[0].split("-")[-1] == str(n - 1)


def test_a_row_of_several_layers_has_their_means() -> None:
    _, rows = bars(changes(*[1.0, 3.0] * 15), 80)
    assert len(rows) == 15
    assert rows[0][0] == "    0-1   2.0000   0.8000  "
    assert rows[-1][0].split()[0] == "28-29"


@pytest.mark.parametrize(
    ("value", "shown"), [(12345.6, "1.23e+04"), (12.345, "   12.3"), (float("nan"), "    nan")]
)
def test_odd_numbers_have_room(value: float, shown: str) -> None:
    _, rows = bars(changes(value, 0.5), 80)
    assert f"  {shown}  " in rows[0][0]


def test_no_layer_is_finite() -> None:
    _, rows = bars(changes(float("nan"), float("inf")), 80)
    assert [row[1] for row in rows] == ["", ""]


# JSON ---------------------------------------------------------------------------------------------


def test_everything_is_one_object(files: Files, sound: Path) -> None:
    status, out, err = run(files.base, sound, "--json", "--seed", "3")
    assert (status, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    assert set(found) == {
        "passed", "base", "adapter", "n_threads", "n_gpu_layers", "vocabularies", "text", "cells",
        "finite", "effective", "logits", "layers", "peft", "failures", "warnings",
    }  # fmt: skip
    assert found["passed"] is True
    assert (found["text"]["seed"], found["n_threads"]) == (3, 1)
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    assert all(0 < layer["change"] <= layer["largest"] for layer in found["layers"])
    assert found["base"]["path"] == str(files.base)
    assert found["peft"] is None


def test_a_failure_is_json_too(files: Files) -> None:
    huge = tiny_base.write_adapter(
        files.folder / "huge.gguf", invocation=files.invocation, strength=1e30
    )
    status, out, err = run(files.base, huge, "--json")
    assert status == 1
    found = json.loads(out, parse_constant=lambda _: pytest.fail("not JSON"))
    assert found["passed"] is False
    assert len(found["failures"]) == 1
    assert err == f"Error: {huge}: fails on {files.base}; the report says why\n"
    assert "     nan" in run(files.base, huge)[1]


# What fails ---------------------------------------------------------------------------------------


def test_a_failure_is_reported_and_is_status_1(files: Files) -> None:
    zero = tiny_base.write_adapter(
        files.folder / "zero.gguf", invocation=files.invocation, strength=0.0
    )
    status, out, err = run(files.base, zero)
    assert status == 1
    assert "  FAIL  it changes what the base computes\n" in out
    assert "      0   0.0000   1.0000\n" in out
    assert (
        "FAIL the adapter changes nothing: with it, every layer and every logit is bit for bit the "
        "base's; its B matrices are zero, as they are before training zero FAILS."
    ) in squeezed(out)
    assert err == f"Error: {zero}: fails on {files.base}; the report says why\n"


def refusal(base: Path, adapter: Path, *options: str) -> str:
    status, out, err = run(base, adapter, *options)
    assert (status, out) == (1, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    return err.removeprefix("Error: ").rstrip("\n")


def test_files_that_cannot_be_read(files: Files, tmp_path: Path) -> None:
    gone, empty, text = tmp_path / "gone.gguf", tmp_path / "empty.gguf", tmp_path / "text.gguf"
    empty.write_bytes(b"")
    text.write_text("no GGUF at all")
    base, adapter = files.base, files.alora
    assert refusal(gone, adapter) == (
        f"base model {gone}: there is no such file, expected a GGUF file; check the path"
    )
    made = "(`alora-gguf convert` makes one of a PEFT directory)"
    expected = f"an adapter's GGUF file {made}; check the path"
    assert refusal(base, gone) == f"{gone}: there is no such file, expected {expected}"
    assert refusal(tmp_path, adapter) == (
        f"base model {tmp_path}: is a directory, expected a GGUF file; check the path"
    )
    assert refusal(base, tmp_path) == f"{tmp_path}: is a directory, expected {expected}"
    message = "the file is empty; download or write it again"
    assert refusal(empty, adapter) == f"base model {empty}: {message}"
    assert refusal(base, empty) == f"{empty}: {message}"
    message = "is not a GGUF file: it starts with b'no G', expected b'GGUF'; check the path"
    assert refusal(text, adapter) == f"base model {text}: {message}"
    assert refusal(base, text) == f"{text}: {message}"
    assert refusal(base, with_nan(adapter, tmp_path / "nan.gguf")).endswith(
        "holds NaN or infinite values; its training has diverged, or the file is damaged"
    )


def test_files_that_are_something_else(files: Files) -> None:
    base, adapter = files.base, files.alora
    assert refusal(adapter, base) == (
        f"{adapter}: is an adapter (general.type = adapter), not a base model; open the base "
        "model's file and pass this one as an adapter"
    )
    assert refusal(base, base) == (
        f"{base}: general.type is missing, expected 'adapter'; this is not an adapter's file"
    )
    other = demo.base_path()
    assert refusal(other, adapter) == (
        f"{adapter}: was made for the architecture 'llama', but {other} is 'granite'; use the base "
        "it was trained on"
    )


def test_peft_without_the_extra(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    assert refusal(files.base, files.alora, "--peft", "adapter") == (
        "comparing with PEFT needs torch, transformers, peft, but torch, transformers, peft are "
        "not installed: pip install 'alora-gguf[train]'"
    )


def test_wrong_usage(files: Files) -> None:
    for options in (["--hf-base", "base"], ["--threads", "0"], ["--seed", "-1"]):
        status, out, err = run(files.base, files.alora, *options)
        assert (status, out) == (2, "")
        assert "Usage: alora-gguf verify" in err
    assert (
        "--hf-base is only used with --peft; give both"
        in run(files.base, files.alora, "--hf-base", "base")[2]
    )


@pytest.mark.parity
def test_beside_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tests.parity.sides import gguf_of
    from tests.support.peft_oracle import make_adapter
    from tests.support.tiny_models import tiny_model

    tiny = tiny_model("llama")
    right, wrong = (
        make_adapter(tiny, tmp_path / name, invocation=(5, 5, 6), seed=seed, size=0.3)
        for seed, name in enumerate(("right", "wrong"))
    )
    adapter = gguf_of(right, tmp_path / "adapter.gguf")
    status, out, err = run(tiny.gguf, adapter, "--peft", str(right.directory))
    assert (status, err) == (0, "")
    assert "  ok    beside PEFT, logits are off by " in out
    assert (
        "for a base of type F32 0.005 is allowed at a typical token, 0.005 at the worst ok what it "
        "adds to the logits has a cosine of 1.0000 with what it adds in PEFT; at least 0.99 is "
        "expected"
    ) in squeezed(out)
    base = ("--hf-base", str(tiny.directory))
    status, out, err = run(tiny.gguf, adapter, "--peft", str(wrong.directory), *base)
    assert status == 1
    assert "  FAIL  beside PEFT, logits are off by " in out
    assert err == f"Error: {adapter}: fails on {tiny.gguf}; the report says why\n"


def test_what_loading_warns_of_is_said_once(files: Files, tmp_path: Path) -> None:
    adapter = adapter_with(tmp_path / "a.gguf", {"alora.io_yaml": "model: ["}, invocation=(7, 8))
    command = [sys.executable, "-m", "alora_gguf", "verify", str(files.base), str(adapter)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert squeezed(done.stdout).count("cannot be asked as an intrinsic: ") == 1
    assert "FAIL the adapter works, but cannot be asked as an" in squeezed(done.stdout)
    assert done.stdout.splitlines()[-1].endswith(" FAILS.")
    assert done.stderr == f"Error: {adapter}: fails on {files.base}; the report says why\n"
    assert done.returncode == 1


def test_a_file_of_the_store_that_was_changed(
    files: Files, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALORA_GGUF_HOME", str(tmp_path))
    store = Store()
    for name, source in (("tiny", files.base), ("sure", sound)):
        with store.adding(name) as addition:
            addition.put(source, f"{name}.gguf")
            about = Description.of(source, repository=None, commit=None, sources=())
            addition.commit(about)
    assert run("tiny", "sure")[0] == 0
    for name in ("sure", "tiny"):
        path = store.resolve(name)
        data = path.read_bytes()
        path.unlink()  # or the test's own would change with it
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        status, out, err = run("tiny", "sure")
        assert (status, out) == (1, "")
        assert err.startswith(f"Error: {path}: has the SHA-256 ")


def test_help_loads_little() -> None:
    code = (
        "import sys; from alora_gguf.cli import run; run(['verify', '--help']); "
        "print([m for m in ('numpy', 'gguf', 'llama_cpp', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Measure what an adapter or steering vector does to a base" in done.stdout
