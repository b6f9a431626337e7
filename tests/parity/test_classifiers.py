"""Classifiers' heads against transformers: the state of every family that they read, in one call
with others' logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import convert_adapter

import alora_gguf as ag
from alora_gguf.engine.llama_context import Head, Logits, Run
from tests.support import inside
from tests.support.tiny_families import HIDDEN
from tests.support.tiny_models import tiny_model

from .checks import TOLERANCE
from .sides import ALORA, EXACT, Sides, words

pytestmark = pytest.mark.parity

TEXT = words(24)  # longer than gemma3's window of 16
LABELS = (7, 11, 2)  # tokens
_RNG = np.random.default_rng(3)
HEAD = Head(
    _RNG.normal(size=(3, HIDDEN)).astype(np.float32),
    _RNG.normal(size=3).astype(np.float32),
    LABELS,
)


def theirs(sides: Sides) -> Logits:
    """The head's scores by transformers' last hidden state."""
    import torch

    with torch.inference_mode():
        whole = sides.tiny.load().base_model(input_ids=torch.tensor([TEXT]))
    state: Logits = whole.last_hidden_state[0, -1].numpy()
    return HEAD.weight @ state + HEAD.bias


def _error(row: Logits | None, expected: Logits) -> float:
    assert row is not None
    return float(np.abs(row[list(LABELS)] - expected).max() / np.abs(expected).max())


def test_scores(sides: Sides) -> None:
    engine, others = inside.engine(sides.model), [*words(5, 1), *sides.invocation(ALORA)]
    seqs = [engine.allocate() for _ in range(2)]
    try:
        with inside.runtime(sides.model).bank.using(ALORA, 1.0) as use:
            engine.activate(seqs[1], 5, use.slot, 1.0)
            rows = engine.decode([Run(seqs[0], TEXT, head=HEAD), Run(seqs[1], others, "all")])
    finally:
        for seq in seqs:
            engine.drop(seq)
    scored, beside = rows
    assert scored is not None
    assert beside is not None
    assert _error(scored, theirs(sides)) < TOLERANCE
    assert np.delete(scored, LABELS).max() < -1e8  # nothing else is ever sampled
    # states are no longer asked for, and who shares the batch notices nothing
    np.testing.assert_array_equal(beside, sides.ours(others, ALORA))


def test_the_token_before_is_clearly_another(sides: Sides) -> None:
    engine = inside.engine(sides.model)
    seq = engine.allocate()
    try:
        (row,) = engine.decode([Run(seq, TEXT[:-1], head=HEAD)])
    finally:
        engine.drop(seq)
    assert _error(row, theirs(sides)) > 20 * TOLERANCE


# PEFT's sequence classifiers: a LoRA with a head -------------------------------------------------

FAMILIES = ("llama", "qwen3", "gemma2", "mistral", "gpt2")
NAMES = ("good", "bad", "neutral")


def trained(family: str, folder: Path) -> tuple[Any, Path]:
    """A sequence classifier of PEFT's with random weights, and where it is saved."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_model(family).directory, num_labels=len(NAMES), attn_implementation="eager",
        dtype=torch.float32,
    )  # fmt: skip
    base.config.pad_token_id = None
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules="all-linear")
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.normal_(std=0.5 if "score" in name else 0.1)
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_classifier(family: str, tmp_path: Path) -> None:
    import torch

    pytest.importorskip("peft")
    model, folder = trained(family, tmp_path / "peft")
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([TEXT])).logits[0].numpy()
    base, out = tiny_model(family).gguf, tmp_path / "tone.gguf"
    report = convert_adapter(folder, base, out, labels=NAMES, outtype="f32")
    assert (report.kind, report.labels) == ("lora", NAMES)
    with ag.Model(base, adapters={"tone": out}, options=EXACT) as opened:
        engine, file = inside.engine(opened), opened.adapters["tone"]
        assert isinstance(file, ag.AdapterFile)
        assert file.classifier is not None
        head = Head(file.classifier.weight, file.classifier.bias, LABELS)
        rows = []
        for scale in (1.0, 0.0):
            seq = engine.allocate()
            with inside.runtime(opened).bank.using("tone", scale) as use:
                engine.activate(seq, 0, use.slot, use.scale)
                rows += engine.decode([Run(seq, TEXT, head=head)])
            engine.drop(seq)
    with_lora, without = (_error(row, expected) for row in rows)
    assert with_lora < TOLERANCE
    assert without > 20 * TOLERANCE
