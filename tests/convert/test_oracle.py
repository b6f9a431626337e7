"""The oracle itself: its masking of layers that PEFT does not activate equals PEFT's own aLoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.peft_oracle import activation_point, make_adapter, reference_logits
from tests.support.tiny_models import tiny_model

pytest.importorskip("peft")

TOKENS = [9, 5, 5, 6, 30, 31, 5, 5, 6, 6, 40, 41]


def test_masked_lora_is_an_alora(tmp_path: Path) -> None:
    model = tiny_model("llama")
    alora = make_adapter(model, tmp_path / "a", targets="all-linear", invocation=[5, 5, 6])
    lora = make_adapter(model, tmp_path / "l", targets="all-linear")
    assert activation_point(alora, TOKENS) == 6
    expected = reference_logits(model, alora, TOKENS)
    masked = reference_logits(model, replace(lora, invocation=(5, 5, 6)), TOKENS)
    np.testing.assert_allclose(masked, expected, atol=1e-5)
    base = reference_logits(model, None, TOKENS)
    np.testing.assert_array_equal(expected[:6], base[:6])
    assert (np.abs(expected - base)[6:].max(axis=1) > 0.1).all()


def test_without_its_invocation_an_alora_is_the_base(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    adapter = make_adapter(model, tmp_path / "a", invocation=[1, 2])
    assert activation_point(adapter, TOKENS) == len(TOKENS)
    np.testing.assert_array_equal(
        reference_logits(model, adapter, TOKENS), reference_logits(model, None, TOKENS)
    )
