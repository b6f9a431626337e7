"""Several adapters on one token compute what PEFT computes with several that are active."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.llama_context import Logits, Run
from tests.support import inside
from tests.support.peft_oracle import (
    TinyAdapter,
    has_experts,
    make_adapter,
    reference_together,
)
from tests.support.tiny_models import tiny_model

from .checks import TOLERANCE, assert_close, error
from .sides import Sides, gguf_of, open_model, words

pytestmark = pytest.mark.parity

INVOCATION = (5, 5, 6)
TOKENS = [*words(20, 80), *INVOCATION, *words(9, 81)]
ADAPTERS = {
    "tone": (None, 8, "attention"),
    "facts": (None, 4, "all-linear"),
    "judge": (INVOCATION, 16, "attention"),
    "critic": (INVOCATION, 8, "all-linear"),
}
TOGETHER: dict[str, dict[str, float]] = {
    "two LoRAs": {"tone": 0.7, "facts": 0.3},
    "a LoRA and an aLoRA": {"tone": 1.0, "judge": 1.0},
    "two aLoRAs": {"judge": 0.5, "critic": -1.5},
    "all of them": {"tone": 1.0, "facts": 0.5, "judge": 2.0, "critic": 1.0},
}
# one of each kind of graph: dense, windows and norms, shared experts, a state space, a delta net
FAMILIES = ("llama", "gemma3", "phi3", "qwen2moe", "granitemoehybrid", "qwen35")


@pytest.fixture(scope="module", params=FAMILIES)
def sides(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    pytest.importorskip("peft")
    tiny, folder = tiny_model(request.param), tmp_path_factory.mktemp(request.param)
    adapters = {}
    for name, (invocation, rank, targets) in ADAPTERS.items():
        # PEFT's experts take one adapter only, and are not given tokens in rows, as its aLoRAs need
        dense = invocation is not None and has_experts(tiny.family)
        adapters[name] = make_adapter(
            tiny,
            folder / name,
            targets="attention" if dense else targets,
            invocation=invocation,
            rank=rank,
            alpha=2 * rank,
            seed=rank + bool(invocation),
            **({"target_parameters": None} if targets == "all-linear" and not dense else {}),
        )
    files = {name: gguf_of(a, folder / f"{name}.gguf") for name, a in adapters.items()}
    with open_model(tiny, files) as model:
        yield Sides(tiny, adapters, files, model)


def runs(model: ag.Model, asked: Mapping[str, Mapping[str, float] | str | None]) -> list[Logits]:
    """Logits of TOKENS, read by each in a sequence of its own, all of them in one batch."""
    engine, batch = inside.engine(model), []
    bank = inside.runtime(model).bank
    for adapter in asked.values():
        with bank.using(adapter, 1.0) as use:
            seq = engine.allocate()
            for position, stage in use.over(TOKENS, engine.vocab).stages:
                engine.activate(seq, position, stage.slot, stage.scale)
            batch.append(Run(seq, TOKENS, "all"))
    try:
        return [row for row in engine.decode(batch) if row is not None]
    finally:
        for run in batch:
            engine.drop(run.seq)


def of_peft(sides: Sides, asked: Mapping[str, float]) -> Logits:
    parts: list[tuple[TinyAdapter, float]] = [
        (sides.adapters[name], scale) for name, scale in asked.items()
    ]
    return reference_together(parts, TOKENS)


@pytest.mark.parametrize("which", TOGETHER)
def test_logits(sides: Sides, which: str) -> None:
    asked = TOGETHER[which]
    theirs = of_peft(sides, asked)
    (ours,) = runs(sides.model, {which: asked})
    assert_close(sides, ours, theirs, which)
    for name in asked:  # each counts
        others = {each: scale for each, scale in asked.items() if each != name}
        assert error(theirs, of_peft(sides, others)) > 10 * TOLERANCE


def test_in_one_batch_with_others(sides: Sides) -> None:
    asked: dict[str, Mapping[str, float] | str | None] = {
        **TOGETHER, "base": None, "alone": "judge"
    }  # fmt: skip
    together = runs(sides.model, asked)
    for (name, adapter), ours in zip(asked.items(), together, strict=True):
        if isinstance(adapter, Mapping):
            assert_close(sides, ours, of_peft(sides, adapter), name)
        elif adapter is None:
            assert_close(sides, ours, sides.theirs(TOKENS), name)
        else:
            assert_close(sides, ours, sides.theirs(TOKENS, adapter), name)


def test_before_the_invocation_the_lora_alone(sides: Sides) -> None:
    """So what it has read serves it, whatever is asked about it afterwards."""
    n = TOKENS.index(INVOCATION[0])
    with sides.model.session() as session:
        session.append(TOKENS[:n], adapter="tone")
        done = session.sync(TOKENS, adapter={"tone": 1, "judge": 1})
        assert done.reused == n or not sides.rewinds
        last = inside.last_logits(session)
        theirs = of_peft(sides, TOGETHER["a LoRA and an aLoRA"])[-1]
        assert np.abs(last - theirs).max() < TOLERANCE * np.abs(theirs).max()


def test_combine_is_the_same(sides: Sides, tmp_path: Path) -> None:
    made = sides.model.combine("both", TOGETHER["two LoRAs"])
    try:
        named, mapped = runs(sides.model, {"named": "both", "mapped": TOGETHER["two LoRAs"]})
        assert np.array_equal(named, mapped)
        assert made.rank == 12
    finally:
        sides.model.unload_adapter("both")
