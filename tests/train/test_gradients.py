"""Training on suffixes alone gives the gradients that PEFT gets from whole conversations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from alora_gguf.train.adapter import Adapter, shapes_of
from alora_gguf.train.hf_model import load_model
from alora_gguf.train.prefixes import Prefixes, SharedPrefixes
from alora_gguf.train.settings import TrainSettings
from alora_gguf.train.steps import Prefixed, Row, losses
from tests.support.tiny_families import ALL_FAMILIES
from tests.support.tiny_models import TinyModel, tiny_model

pytestmark = pytest.mark.parity

INVOCATION = (7, 8, 9)
# of several lengths, longer than a sliding window of 16, two with a beginning in common
_LONG = tuple(range(20, 60))
ROWS = [
    Row(_LONG, INVOCATION, (100, 101, 102, 2), 1),
    Row((*_LONG[:30], 80, 81), (*INVOCATION, 33), (110, 2)),
    Row((5, 6), INVOCATION, (120, 121, 2), 2),
    Row((), INVOCATION, (130, 2)),
]
TARGETS = ("attention", "all-linear")


def _gradients(
    adapter: Adapter, prefixes: Prefixed | None, rows: Sequence[Row] = ROWS
) -> dict[str, torch.Tensor]:
    found = losses(adapter.model, prefixes, rows)
    (found.total / found.weight).backward()
    named = adapter.model.named_parameters()
    return {name: each.grad for name, each in named if each.requires_grad}


def _started(adapter: Adapter) -> None:
    """As after some training: a new adapter changes nothing, and its A has no gradient."""
    generator = torch.Generator().manual_seed(3)
    for each in adapter.parameters:
        noise = torch.randn(each.shape, generator=generator)
        each.data = noise * 0.5 * each.shape[-1] ** -0.5


def both(
    tiny: TinyModel, targets: str, folder: Path, limit: int = 1 << 30
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Prefixes]:
    """PEFT's gradients and ours."""
    torch.set_num_threads(1)
    base: Any = load_model(tiny.gguf)
    settings = TrainSettings(targets=targets)
    architecture = base_architecture(tiny)
    peft = Adapter(base, architecture, settings, INVOCATION)
    _started(peft)
    theirs = _gradients(peft, None)
    base = peft.close()
    shapes = shapes_of(base)
    assert shapes is not None
    prefixes = Prefixes(base, shapes, [row.prefix for row in ROWS], folder, limit=limit)
    prefixes.open()
    prefixes.compute()
    ours = Adapter(base, architecture, settings)
    prefixes.without_adapter = ours.model.disable_adapter
    _started(ours)
    return theirs, _gradients(ours, prefixes), prefixes


def base_architecture(tiny: TinyModel) -> str:
    from alora_gguf.gguf.base import BaseFile

    return BaseFile.read(tiny.gguf).architecture


def assert_equal(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> None:
    assert theirs.keys() == ours.keys()
    for name, one in theirs.items():
        assert one.abs().max() > 0, name
        assert (one - ours[name]).norm() <= 1e-3 * one.norm(), name


# PEFT's activated LoRA cannot act on a shared expert, whose input has no rows of a batch
CASES = [
    (family, targets)
    for family in ALL_FAMILIES
    for targets in TARGETS
    if "hybrid" not in family and (family, targets) != ("qwen2moe", "all-linear")
]


@pytest.mark.parametrize(("family", "targets"), CASES)
def test_gradients_are_pefts(family: str, targets: str, tmp_path: Path) -> None:
    theirs, ours, _ = both(tiny_model(family), targets, tmp_path)
    assert_equal(theirs, ours)


@pytest.mark.parametrize("family", [each for each in ALL_FAMILIES if "hybrid" not in each])
def test_a_plain_loras_gradients_are_pefts(family: str) -> None:
    """With what its rows begin with alike computed once: of two all, of a third a part; and a long
    beginning of one alone, for which the others are not padded.
    """
    torch.set_num_threads(1)
    tiny = tiny_model(family)
    base: Any = load_model(tiny.gguf)
    rows = [*ROWS, Row(_LONG, (11,), (100, 2)), Row(tuple(range(140, 190)), (12,), (90, 2))]
    shapes = shapes_of(base)
    assert shapes is not None
    adapter = Adapter(base, base_architecture(tiny), TrainSettings())
    _started(adapter)
    theirs = {name: each.clone() for name, each in _gradients(adapter, None, rows).items()}
    for each in adapter.parameters:
        each.grad = None
    prefixes = SharedPrefixes(base, shapes)
    given = [row.prefix for row in rows]
    assert prefixes.n_tokens(given) == 40 + 2 + 2 + 50
    assert prefixes.before(given)[1] == [40, 30, 0, 0, 40, 50]
    assert_equal(theirs, _gradients(adapter, prefixes, rows))


@pytest.mark.parametrize("limit", [0, 40_000])
def test_what_is_not_kept_is_computed(limit: int, tmp_path: Path) -> None:
    """With no room, and with room for some of the tokens."""
    theirs, ours, prefixes = both(tiny_model("gemma3"), "attention", tmp_path, limit)
    assert_equal(theirs, ours)
    assert prefixes.n_kept < prefixes.n_tokens
    assert (prefixes.n_kept > 0) == (limit > 0)


def test_a_hybrid_keeps_more_than_keys_and_values() -> None:
    """So it is trained PEFT's ordinary way, on whole conversations."""
    tiny = tiny_model("granitemoehybrid")
    base = load_model(tiny.gguf)
    assert shapes_of(base) is None
    adapter = Adapter(base, base_architecture(tiny), TrainSettings(), INVOCATION)
    _started(adapter)
    for each in _gradients(adapter, None).values():
        assert 0 < each.norm() < float("inf")


def test_a_hybrid_of_attention_alone_is_none(tmp_path: Path) -> None:
    theirs, ours, _ = both(tiny_model("granitemoehybrid-attention"), "attention", tmp_path)
    assert_equal(theirs, ours)


def test_what_conversations_share_is_computed_once(tmp_path: Path) -> None:
    _, _, prefixes = both(tiny_model("llama"), "attention", tmp_path)
    assert prefixes.n_given == 40 + 32 + 2
    assert prefixes.n_tokens == 40 + 2 + 2
    again = Prefixes(
        prefixes.model, prefixes.shapes, [row.prefix for row in ROWS], tmp_path, limit=1 << 30
    )
    again.open()
    assert again.n_done_tokens == again.n_tokens  # of the run before
    other = Prefixes(
        prefixes.model,
        prefixes.shapes,
        [row.prefix for row in ROWS],
        tmp_path,
        limit=1 << 30,
        identity="another base",
    )
    other.open()
    assert other.n_done_tokens == 0
