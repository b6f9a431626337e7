"""Adapters with a module per expert, as PEFT saved them under transformers 4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.peft_oracle import reference_logits
from tests.support.tiny_models import tiny_model
from tests.support.transformers4 import make_old_adapter, old_reference_logits

from .sides import words

pytestmark = pytest.mark.parity
pytest.importorskip("peft")

TOKENS = [*words(20), 5, 5, 6, *words(9, 1)]


@pytest.mark.parametrize("family", ["mixtral", "qwen3moe"])
def test_the_reference_equals_peft(family: str, tmp_path: Path) -> None:
    """Where PEFT itself converts them rightly: without rsLoRA."""
    adapter = make_old_adapter(tiny_model(family), tmp_path / "a")
    ours, theirs = (
        old_reference_logits(adapter, TOKENS),
        reference_logits(adapter.model, adapter, TOKENS),
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    base = reference_logits(adapter.model, None, TOKENS)
    assert np.abs(theirs - base).max() > 0.1 * np.abs(base).max()
