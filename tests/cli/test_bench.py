"""`alora-gguf bench` as a user runs it: every row, other adapters, what a file may say."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.cli.bench import subjects

from alora_gguf import demo
from tests.support import corrupt
from tests.support.bench_command import SMALL, measured, run, squeezed
from tests.support.files import Files
from tests.support.tiny_base import BOS, END, write_hybrid
from tests.support.verified import adapter_with

# the demo's adapters, and the tokens of their invocations
INVOCATIONS = dict(zip(demo.INTRINSICS, (7, 4, 6, 9, 3), strict=True))
SIDES = ("alora", "lora", "base")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return measured(*SMALL)


# As JSON ------------------------------------------------------------------------------------------


def test_who_was_measured_and_how(found: dict[str, Any]) -> None:
    assert set(found) == {
        "version", "base", "adapters", "method", "contexts", "together", "decoding", "memory",
        "notes", "elapsed", "interrupted", "plain_lora",
    }  # fmt: skip
    assert found["base"] == {
        "path": str(demo.base_path()),
        "name": "alora-gguf demo",
        "architecture": "granite",
        "n_parameters": 4590848,
        "nbytes": demo.base_path().stat().st_size,
        "trained": 2048,
    }
    assert found["adapters"] == [
        {"name": name, "path": str(demo.adapter_path(name)), "kind": "alora", "rank": 32,
         "n_invocation": n}
        for name, n in INVOCATIONS.items()
    ]  # fmt: skip
    assert found["method"] == {
        "threads": 1, "gpu_layers": 0, "seed": 0, "rounds": 2, "seconds": 60, "answer_tokens": 8,
        "asked": "answerability",
    }  # fmt: skip
    assert found["plain_lora"].startswith("the aLoRA's own weights, on from the first token")
    assert not found["interrupted"]
    assert found["notes"][0] == (
        "5 aLoRAs were given; up to 8 are made of them by loading the same again, each into a slot "
        "of its own"
    )


def test_each_side_read_what_it_had_to(found: dict[str, Any]) -> None:
    assert [row["n_tokens"] for row in found["contexts"]] == [32, 96]
    for row in found["contexts"]:
        n = row["n_tokens"]
        tokens = {side: (row[side]["reused"], row[side]["evaluated"]) for side in SIDES}
        assert tokens == {"alora": (n, 7), "lora": (0, n + 7), "base": (n, 7)}
        samples = {side: len(row[side]["total"]) for side in SIDES}
        assert samples == {"alora": 6, "lora": 2, "base": 6}
        assert len(row["read"]) == 2
        for side in SIDES:
            pairs = zip(row[side]["first_token"], row[side]["total"], strict=True)
            assert all(0 < first < total for first, total in pairs)


def test_ratios_are_of_the_medians_of_the_samples(found: dict[str, Any]) -> None:
    median = statistics.median
    for row in found["contexts"]:
        for what in ("first_token", "total"):
            alora, lora, base = (median(row[side][what]) for side in SIDES)
            assert row["ratios"][what] == {
                "lora_to_alora": lora / alora,
                "alora_to_base": alora / base,
                "lora_to_base": lora / base,
            }
    for row in found["together"]:
        ratio = median(row["one_by_one"]) / median(row["at_once"])
        assert row["one_by_one_to_at_once"] == ratio
    decoding = found["decoding"]
    assert decoding["base_to_adapter"] == median(decoding["base"]) / median(decoding["adapter"])
    memory = found["memory"]
    assert memory["apart_to_forks"] == memory["cells_apart"] / memory["cells"]


def test_rows_that_need_one_context_take_the_longest(found: dict[str, Any]) -> None:
    assert [row["n_adapters"] for row in found["together"]] == [1, 2, 4, 8]
    assert {row["n_tokens"] for row in found["together"]} == {96}
    assert all(len(row["at_once"]) == len(row["one_by_one"]) == 2 for row in found["together"])
    assert found["decoding"]["n_tokens"] == 96
    assert len(found["decoding"]["adapter"]) == len(found["decoding"]["base"]) == 4


def test_forks_share_the_context(found: dict[str, Any]) -> None:
    invocations = list(INVOCATIONS.values())
    own = sum((invocations * 2)[:8]) + 8 * 8  # five adapters in eight slots, answers of 8
    memory = found["memory"]
    assert (memory["n_tokens"], memory["n_forks"]) == (96, 8)
    assert memory["cells"] == 96 + own
    assert memory["cells_apart"] == 8 * 96 + own
    # 6 layers of keys and values of 256 in F16, and what llama.cpp notes of each cell
    assert 6 * 2 * 256 * 2 <= memory["cell_nbytes"] <= 6 * 2 * 256 * 2 + 32


# Other adapters -----------------------------------------------------------------------------------


def tiny(files: Files, *adapters: Path) -> dict[str, Any]:
    return measured(files.base, *adapters, "--contexts", "70", "--rounds", "1", "--threads", "1")


def test_a_plain_lora_has_no_other_side(files: Files) -> None:
    result = tiny(files, files.lora)
    assert result["plain_lora"] is None
    assert result["method"]["asked"] == "lora"
    (row,) = result["contexts"]
    assert row["alora"] is None
    assert (row["lora"]["reused"], row["lora"]["evaluated"]) == (0, 78)
    assert (row["base"]["reused"], row["base"]["evaluated"]) == (70, 8)
    assert row["ratios"]["first_token"]["lora_to_alora"] is None
    assert row["ratios"]["first_token"]["lora_to_base"] > 0
    assert result["together"] == []
    assert result["memory"] is None
    assert result["decoding"]["n_tokens"] == 64
    assert result["notes"][0] == (
        "there is no aLoRA side: lora is a plain LoRA, which changes every token, so nothing that "
        "the base has cached serves it"
    )
    status, out, _ = run(
        files.base, files.lora, files.lora, "--contexts", "70", "--rounds", "1", "--threads", "1"
    )
    assert status == 0
    assert "\n  lora: plain LoRA of rank 16\n  lora (2): plain LoRA of rank 16\n" in out
    assert re.search(r"^ +70 +- +[\d.]+ ms +[\d.]+ ms +- +-$", out, re.MULTILINE)
    said = squeezed(out)
    assert "The plain LoRA is 'lora', which reads everything; the base is asked on the" in said
    assert "Only lora was measured: plain LoRAs cannot share a context." in said
    assert "There is no aLoRA side: lora is a plain LoRA," in said


def test_plain_loras_beside_aloras_are_left_out(files: Files) -> None:
    result = tiny(files, files.lora, files.alora)
    assert result["method"]["asked"] == "sure"
    assert result["contexts"][0]["alora"]["reused"] == 70
    own = 8 * (len(files.invocation) + 8)  # also where all eight are the same file
    assert (result["memory"]["cells"], result["memory"]["cells_apart"]) == (70 + own, 560 + own)
    assert result["notes"][:2] == [
        "left out, since plain LoRAs cannot share a context: lora",
        "1 aLoRA was given; up to 8 are made of it by loading the same again, each into a slot of "
        "its own",
    ]


def test_more_than_eight_are_all_asked(files: Files) -> None:
    result = tiny(files, *[files.alora] * 5, *[files.other] * 5)
    assert [row["n_adapters"] for row in result["together"]] == [1, 2, 4, 8, 10]
    assert [each["name"] for each in result["adapters"]][3:7] == [
        "sure (4)", "sure (5)", "other", "other (2)",
    ]  # fmt: skip
    assert not any("given" in note for note in result["notes"])
    assert result["memory"]["n_forks"] == 8


def test_a_base_without_text_or_cells(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tensors = {
        "blk.1.attn_q.weight.lora_a": rng.standard_normal((4, 64), np.float32) / 8,
        "blk.1.attn_q.weight.lora_b": rng.standard_normal((64, 4), np.float32),
    }
    adapter = corrupt.adapter(
        tmp_path / "a.gguf",
        tensors,
        arch="jamba",
        array=(corrupt.Type.UINT32, [5, 6]),
    )
    base = write_hybrid(tmp_path / "hybrid.gguf")
    result = measured(base, adapter, "--contexts", "70", "--rounds", "1", "--threads", "1")
    assert result["base"]["name"] == "hybrid"
    assert result["contexts"][0]["alora"]["reused"] == 70
    assert result["memory"] is None
    assert "memory was not measured: this base's memory is more than cells" in result["notes"]


def test_the_text_is_drawn_by_its_seed(files: Files) -> None:
    choice = subjects.choose(files.base, [files.alora], [100], usual=[])

    def drawn(seed: int) -> subjects.Subjects:
        with subjects.opened(
            choice, n_threads=1, n_gpu_layers=0, seed=seed, verbose=False, progress=lambda _: None
        ) as opened:
            return opened

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first.tokens == again.tokens != other.tokens
    assert len(first.tokens) == 100
    assert first.tokens[0] == BOS
    assert not set(first.tokens) & {*files.invocation, END}
    assert first.question == files.invocation
    assert len(set(first.slots)) == 8


def test_names_in_files_cannot_steer_the_terminal(files: Files, tmp_path: Path) -> None:
    adapter = adapter_with(
        tmp_path / "odd.gguf", {"general.name": "odd\x1b[2J"}, invocation=files.invocation
    )
    status, out, _ = run(files.base, adapter, "--contexts", "8", "--rounds", "1", "--threads", "1")
    assert status == 0
    assert "\x1b" not in out
    assert "  odd\\x1b[2J: aLoRA of rank 8, invoked by" in out
    assert "The aLoRA is 'odd\\x1b[2J'," in squeezed(out)


def test_usual_contexts_go_as_far_as_the_base() -> None:
    files = demo.base_path(), [demo.adapter_path("jailbreak")]
    usual = (128, 512, 2048, 8192)
    choice = subjects.choose(*files, None, usual=usual)
    assert choice.contexts == [128, 512, 1984]
    assert choice.notes[-1] == (
        "contexts end at 1984 tokens, since this base was trained for texts of 2048"
    )
    assert subjects.choose(*files, None, usual=usual[:2]).contexts == [128, 512]
    assert subjects.choose(*files, [9, 3, 9], usual=usual).contexts == [3, 9]
