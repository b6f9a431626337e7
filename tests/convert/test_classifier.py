"""Classifiers' heads to GGUF: what is written, and that all else is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.cli.convert import command
from click.testing import CliRunner
from safetensors.numpy import save_file

from alora_gguf import ClassifierFile, ClassifierSummary, demo, inspect_gguf, load_contract
from alora_gguf.errors import AloraError
from tests.support import tiny_base
from tests.support.classifiers import LABELS, N_EMBD, convert_head, write_head


def test_what_is_written(tmp_path: Path) -> None:
    weight, bias = write_head(tmp_path / "head")
    report = convert_head(tmp_path / "head", tmp_path / "safety.gguf")
    assert (report.kind, report.name, report.labels) == ("classifier", "safety", LABELS)
    assert (report.invocation_text, report.targets) == ("<|start_of_role|>", {})
    assert report.nbytes == (tmp_path / "safety.gguf").stat().st_size
    assert report.to_dict()["labels"] == LABELS

    file = ClassifierFile.read(tmp_path / "safety.gguf")
    np.testing.assert_array_equal(file.classifier.weight, weight)
    np.testing.assert_array_equal(file.classifier.bias, bias)
    assert (file.labels, file.invocation, file.architecture) == (
        LABELS,
        report.invocation,
        "granite",
    )
    contract = load_contract(file)
    assert (contract.name, contract.choices) == ("safety", LABELS)
    assert contract.parameter("add_generation_prompt") is False

    summary = inspect_gguf(tmp_path / "safety.gguf")
    assert isinstance(summary, ClassifierSummary)
    assert (summary.kind, summary.labels, summary.n_embd) == ("classifier", LABELS, N_EMBD)
    assert summary.problems == ()

    again = convert_head(tmp_path / "head", tmp_path / "again.gguf")
    assert again.out.read_bytes() == report.out.read_bytes()


def test_what_can_be_chosen(tmp_path: Path) -> None:
    write_head(tmp_path / "head")
    out = tmp_path / "a.gguf"
    report = convert_head(
        tmp_path / "head", out, name="mine", invocation="<|end_of_role|>", contract=False
    )
    file = ClassifierFile.read(out)
    assert (file.name, file.invocation_text, file.io_yaml) == ("mine", "<|end_of_role|>", None)
    assert convert_head(tmp_path / "head", out, dry_run=True).written is False
    assert report.contract is None
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: mine\nmodel: ~\nchoices: [safe, unsafe, neutral]\nresponse_format: ~\n"
        "transformations: ~\nparameters: {extra_body: {add_generation_prompt: false}}\n",
        encoding="utf-8",
    )
    convert_head(tmp_path / "head", out, contract=own, overwrite=True)
    assert ClassifierFile.read(out).io_yaml == own.read_text(encoding="utf-8")
    text = own.read_text(encoding="utf-8")
    own.write_text(text.replace(": false", ": true"), encoding="utf-8")
    with pytest.raises(AloraError, match=r"own\.yaml: has a generation prompt, before which"):
        convert_head(tmp_path / "head", out, contract=own, overwrite=True)
    own.write_text(text.replace("unsafe, neutral", "neutral"), encoding="utf-8")
    with pytest.raises(AloraError, match=r"own\.yaml: choices are \['safe', 'neutral'\], expected"):
        convert_head(tmp_path / "head", out, contract=own, overwrite=True)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"labels": ["safe"]}, r"labels: has 1 label, expected 2 to 64"),
        ({"labels": ["safe", "unsafe", "safe"]}, r"labels: has the label 'safe' twice"),
        ({"labels": ["safe", " ", "x"]}, r"labels: has the label ' ', expected a word"),
        ({"labels": ["a", "b"]}, r"weight has the shape \[3, 256\], expected \[2, 256\]: 2 labels"),
        ({"labels": ["ababa", "ababc", "x"]}, r"labels: 'ababa' and 'ababc' begin with the same"),
        ({"invocation": "none"}, None),
        ({"invocation": [1 << 20]}, r"1048576"),
        ({"invocation": ""}, r"invocation text is empty"),
        ({"base": "none.gguf"}, r"none\.gguf: there is no"),
        ({"source": "elsewhere"}, r"elsewhere: there is no such directory"),
    ],
)
def test_refusals(tmp_path: Path, how: dict[str, Any], said: str | None) -> None:
    write_head(tmp_path / "head")
    out = tmp_path / "out.gguf"
    given = {**how}
    source = given.pop("source", tmp_path / "head")
    if said is None:
        convert_head(source, out, **given)
        return
    with pytest.raises(AloraError, match=said):
        convert_head(source, out, **given)
    assert not out.exists()


def test_weights_that_will_not_do(tmp_path: Path) -> None:
    write_head(tmp_path / "head")
    file, out = tmp_path / "head" / "classifier_head.safetensors", tmp_path / "out.gguf"
    weight, bias = np.ones((3, N_EMBD), np.float32), np.ones(3, np.float32)
    for tensors, said in (
        ({"weight": weight}, r"holds weight, expected weight and bias"),
        ({"weight": weight, "bias": bias, "x": bias}, r"holds bias, weight, x, expected"),
        ({"weight": weight, "bias": np.ones(2, np.float32)}, r"bias has the shape \[2\]"),
        ({"weight": weight[:, 1:].copy(), "bias": bias}, r"\[3, 255\], .* use the base it was"),
        ({"weight": weight * np.nan, "bias": bias}, r"holds NaN or infinite values"),
    ):
        save_file(tensors, file)
        with pytest.raises(AloraError, match=said):
            convert_head(tmp_path / "head", out)
    # types that PyTorch saves
    save_file({"weight": weight.astype(np.float16), "bias": bias}, file)
    convert_head(tmp_path / "head", out)
    np.testing.assert_array_equal(ClassifierFile.read(out).classifier.weight, weight)
    with pytest.raises(AloraError, match="overwrite"):
        convert_head(tmp_path / "head", out)


def test_a_base_without_a_usual_marker(tmp_path: Path) -> None:
    write_head(tmp_path / "head", n_embd=tiny_base.N_EMBD)
    base = tiny_base.write_base(tmp_path / "base.gguf")
    with pytest.raises(AloraError, match=r"has none of the tokens .*\(--invocation TEXT\)"):
        convert_head(tmp_path / "head", tmp_path / "out.gguf", base=base)
    convert_head(tmp_path / "head", tmp_path / "out.gguf", base=base, invocation=[5])


def test_the_command(tmp_path: Path) -> None:
    write_head(tmp_path / "head")
    given = [str(tmp_path / "head"), "--base", str(demo.base_path())]
    out = ["-o", str(tmp_path / "s.gguf")]
    without = CliRunner().invoke(command, [*given, *out])
    assert without.exit_code == 1
    assert "--labels LABEL,LABEL" in str(without.exception)
    done = CliRunner().invoke(command, [*given, *out, "--labels", "safe, unsafe,neutral"])
    assert done.exit_code == 0, done.output
    assert "labels        safe, unsafe, neutral" in done.output
    assert ClassifierFile.read(tmp_path / "s.gguf").labels == LABELS
    (tmp_path / "head" / "io.yaml").unlink()
    made = CliRunner().invoke(
        command, [*given, *out, "--labels", "safe, unsafe,neutral", "--force"]
    )
    assert "contract      made of the labels" in made.output
