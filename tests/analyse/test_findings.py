"""The static check: each rule finds what it is for, and nothing in sound adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alora_gguf import InputError, demo
from alora_gguf.analyse import LEVELS, RULES, Finding, analyse, sarif, write_sarif
from tests.analyse.known import K, Q, orthonormal, random_pair, write
from tests.support.files import Files
from tests.support.make_gguf import Array

Pairs = dict[str, tuple[Array, Array]]


def findings(path: Path, **options: Any) -> tuple[Finding, ...]:
    return analyse(path, **options).adapters[0].findings


def layers(n: int = 6, name: str = "attn_q", seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    return {f"blk.{i}.{name}.weight": random_pair(rng) for i in range(n)}


def only(found: tuple[Finding, ...]) -> tuple[str, str, str]:
    (finding,) = found
    assert finding.rule in RULES
    return finding.rule, finding.level, finding.message


def test_random_weights_are_not_odd(tmp_path: Path) -> None:
    found = analyse(write(tmp_path / "a.gguf", layers()))
    assert found.adapters[0].findings == ()
    assert found.worst is None


@pytest.mark.parametrize("name", demo.INTRINSICS)
def test_trained_adapters_have_notes_at_most(name: str) -> None:
    assert {finding.level for finding in findings(demo.adapter_path(name))} <= {"note"}


def test_never_trained(tmp_path: Path) -> None:
    pairs = {target: (a, 0 * b) for target, (a, b) in layers().items()}
    found = analyse(write(tmp_path / "a.gguf", pairs))
    assert only(found.adapters[0].findings) == (
        "never-trained", "error",
        "every dW is 0, so the adapter changes nothing; its B matrices are zero, as before "
        "training",
    )  # fmt: skip
    assert found.worst == "error"
    matrix = found.adapters[0].matrices[0]
    assert (matrix.stable_rank, matrix.effective_rank, matrix.energy_rank) == (0, 0, 0)
    assert found.adapters[0].concentration == 0
    assert str(found).splitlines()[0].endswith(": rank 4, never trained")


def test_dead_targets(tmp_path: Path) -> None:
    pairs = layers()
    for i in range(4):
        a, b = pairs[f"blk.{i}.attn_q.weight"]
        pairs[f"blk.{i}.attn_k.weight"] = (a, 0 * b)
    (finding,) = findings(write(tmp_path / "a.gguf", pairs))
    assert (finding.rule, finding.level) == ("dead-targets", "warning")
    assert finding.targets == tuple(f"blk.{i}.attn_k.weight" for i in range(4))
    assert finding.message == (
        "dW is 0 in blk.0.attn_k.weight, blk.1.attn_k.weight, blk.2.attn_k.weight and 1 more; "
        "trained, they would have been changed"
    )


def test_outlier_layers(tmp_path: Path) -> None:
    pairs = layers()
    a, b = pairs["blk.3.attn_q.weight"]
    pairs["blk.3.attn_q.weight"] = (a, 9 * b)
    (finding,) = findings(write(tmp_path / "a.gguf", pairs))
    assert (finding.rule, finding.level) == ("outlier-layers", "warning")
    assert finding.targets == ("blk.3.attn_q.weight",)
    assert "times the median over layers in blk.3.attn_q.weight, up to 9" in finding.message


def test_three_layers_have_no_outliers(tmp_path: Path) -> None:
    pairs = layers(3)
    a, b = pairs["blk.2.attn_q.weight"]
    pairs["blk.2.attn_q.weight"] = (a, 9 * b)
    assert findings(write(tmp_path / "a.gguf", pairs)) == ()


def test_one_direction(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs, sizes = layers(), np.array([1.0, 0.1, 0.1, 0.1])
    narrow = orthonormal(rng, 64, 4).T, orthonormal(rng, 48, 4) * sizes * 30
    pairs["blk.0.attn_q.weight"] = narrow
    (finding,) = findings(write(tmp_path / "a.gguf", pairs))
    assert (finding.rule, finding.level) == ("dominant-direction", "note")
    assert finding.message.startswith(
        "one direction has more than 95% of ||dW||_F^2 in blk.0.attn_q.weight; an edit of one fact"
    )
    everywhere = dict.fromkeys(pairs, narrow)
    (finding,) = findings(write(tmp_path / "all.gguf", everywhere))
    assert finding.level == "warning"
    # which is all that rank 1 can be
    single = {target: (a[:1], b[:, :1]) for target, (a, b) in pairs.items()}
    assert findings(write(tmp_path / "one.gguf", single)) == ()


@pytest.mark.parametrize("target", ["token_embd.weight", "blk.0.ffn_gate_inp.weight"])
def test_unusual_targets(tmp_path: Path, target: str) -> None:
    pairs = {**layers(), target: random_pair(np.random.default_rng(0), 4, 4, 64)}
    if target == "token_embd.weight":
        a, b = pairs[target]
        pairs[target] = (a.T, b)
    rule, level, message = only(findings(write(tmp_path / "a.gguf", pairs)))
    assert (rule, level) == ("unusual-targets", "warning")
    assert message.startswith(f"{target} is rarely trained; check that the adapter's author")


def test_weights_that_overflow(tmp_path: Path) -> None:
    pairs = {target: (1e25 * a, 1e25 * b) for target, (a, b) in layers().items()}
    found = findings(write(tmp_path / "a.gguf", pairs))
    assert found[0].rule == "not-finite"
    assert found[0].level == "error"
    assert "exceed float32's range in blk.0.attn_q.weight, blk.1" in found[0].message


def test_overwriting(files: Files, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = {Q: random_pair(rng, 4, 64, 64), K: random_pair(rng, 4, 64, 32)}
    large = write(tmp_path / "a.gguf", pairs, invocation=())
    rule, level, message = only(findings(large, base=files.base))
    assert (rule, level) == ("overwriting", "warning")
    assert message.startswith("||dW||_2 is more than 0.3 of the base's ||W||_2 in blk.0.attn_k.w")
    assert message.endswith("the base's own abilities may suffer")
    rule, level, message = only(findings(write(tmp_path / "b.gguf", pairs), base=files.base))
    assert (rule, level) == ("overwriting", "note")
    assert message.endswith("the base's own abilities may suffer after its invocation")
    small = {target: (a, 1e-3 * b) for target, (a, b) in pairs.items()}
    assert findings(write(tmp_path / "small.gguf", small), base=files.base) == ()


def test_worst_first(tmp_path: Path) -> None:
    pairs = layers()
    for i, (target, (a, b)) in enumerate(list(pairs.items())):
        padded = np.pad(a, ((0, 4), (0, 0))), np.pad(b, ((0, 0), (0, 4)))
        pairs[target] = (padded[0], padded[1] * (i != 0))
    found = findings(write(tmp_path / "a.gguf", pairs))
    assert [finding.rule for finding in found] == ["dead-targets", "spare-rank"]
    levels = [LEVELS.index(finding.level) for finding in found]
    assert levels == sorted(levels, reverse=True)


# SARIF --------------------------------------------------------------------------------------------


def test_sarif(tmp_path: Path) -> None:
    pairs = layers()
    pairs[K] = (pairs[Q][0], 0 * pairs[Q][1])
    path = write(tmp_path / "an adapter.gguf", pairs)
    found = analyse(path)
    shown = sarif(found)
    assert (shown["version"], len(shown["runs"])) == ("2.1.0", 1)
    run = shown["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    (result,) = run["results"]
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == "dead-targets"
    assert result["level"] == "warning"
    (location,) = result["locations"]
    assert (
        location["physicalLocation"]["artifactLocation"]["uri"]
        == f"{tmp_path.as_posix()}/an%20adapter.gguf"
    )
    assert location["logicalLocations"] == [{"fullyQualifiedName": K}]
    write_sarif(found, tmp_path / "found.sarif")
    assert json.loads((tmp_path / "found.sarif").read_text("utf-8")) == shown
    with pytest.raises(InputError, match="its directory does not exist; create it first"):
        write_sarif(found, tmp_path / "gone" / "found.sarif")
