"""One family on both sides: PEFT on the adapters it wrote, and the package on the same files.

Owns how a side is asked. What is asked, and how close the answers must be, is the tests' business.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from alora_gguf.convert import convert_adapter

import alora_gguf as ag
from alora_gguf.engine.context import Engine
from alora_gguf.engine.llama_context import Logits, Run
from tests.backends import ON_DEVICE
from tests.support import inside
from tests.support.peft_oracle import (
    TinyAdapter,
    activation_point,
    make_adapter,
    reference_logits,
)
from tests.support.tiny_models import TinyModel, tiny_model

GREEDY = ag.Sampling(temperature=0.0)
# the tiny models with tied embeddings repeat themselves; this way every token of a reply counts
EACH_ONCE = ag.Sampling(temperature=0.0, presence_penalty=1000.0)
EXACT = ag.ContextOptions(
    n_ctx=1024,
    n_outputs=512,
    n_threads=1,
    n_gpu_layers=-1 if ON_DEVICE else 0,
    type_k="f32",
    type_v="f32",
    flash_attn="off",
)

ALORA, OTHER, LORA = "alora", "other", "lora"
# invocations that begin with what repeats, or with what does not; three ranks, two of them padded
_ADAPTERS: dict[str, tuple[tuple[int, ...] | None, int]] = {
    ALORA: ((5, 5, 6), 8),
    OTHER: ((1, 2, 3), 4),
    LORA: (None, 16),
}


def words(n: int, *seed: int) -> list[int]:
    """Tokens of which no invocation has any."""
    return [int(t) for t in np.random.default_rng([11, *seed]).integers(10, 310, n)]


def gguf_of(adapter: TinyAdapter, path: Path) -> Path:
    """What a user would load for an adapter directory.

    PEFT's files of an aLoRA of experts do not say that it is one, so the invocation is given again.
    """
    convert_adapter(
        adapter.directory, adapter.model.gguf, path, outtype="f32", invocation=adapter.invocation
    )
    return path


def make_adapters(tiny: TinyModel, folder: Path, targets: str) -> dict[str, TinyAdapter]:
    return {
        name: make_adapter(
            tiny,
            folder / name,
            targets=targets,
            invocation=invocation,
            rank=rank,
            alpha=2 * rank,
            seed=rank,
        )
        for name, (invocation, rank) in _ADAPTERS.items()
    }


def open_model(
    tiny: TinyModel, files: Mapping[str, Path], *, n_ubatch: int = EXACT.n_ubatch
) -> ag.Model:
    """The base with adapters; `n_ubatch` is the largest number of tokens of a graph."""
    options = dataclasses.replace(EXACT, n_ubatch=n_ubatch)
    return ag.Model(tiny.gguf, adapters=files, options=options)


@dataclass
class Sides:
    """A base with two aLoRAs and a LoRA, as PEFT and as the package has them.

    Logits are [n_tokens, n_vocab]; `first` overrides where an aLoRA begins.
    """

    tiny: TinyModel
    adapters: dict[str, TinyAdapter]
    files: dict[str, Path]
    model: ag.Model
    _known: dict[object, Logits] = field(default_factory=dict)

    @classmethod
    def open(cls, family: str, targets: str, folder: Path) -> Sides:
        tiny = tiny_model(family)
        adapters = make_adapters(tiny, folder, targets)
        files = {name: gguf_of(a, folder / f"{name}.gguf") for name, a in adapters.items()}
        return cls(tiny, adapters, files, open_model(tiny, files))

    @property
    def rewinds(self) -> bool:
        """Whether a conversation can be forked in its middle."""
        return inside.engine(self.model).rewinds

    def check_nothing_skipped(self) -> None:
        """Every product of an adapter was one."""
        assert self.model.stats().n_skipped == 0

    def invocation(self, name: str) -> list[int]:
        return list(self.adapters[name].invocation or ())

    def first(self, tokens: Sequence[int], name: str | None) -> int | None:
        """Where PEFT begins to adapt `tokens`."""
        if name is None or self.adapters[name].invocation is None:
            return None
        return activation_point(self.adapters[name], tokens)

    def theirs(
        self, tokens: Sequence[int], name: str | None = None, *, first: int | None = None
    ) -> Logits:
        key = (tuple(tokens), name, first)
        if key not in self._known:
            adapter = None if name is None else self.adapters[name]
            self._known[key] = reference_logits(self.tiny, adapter, tokens, first=first)
        return self._known[key]

    def ours(
        self,
        tokens: Sequence[int],
        name: str | None = None,
        *,
        first: int | None = None,
        scale: float = 1.0,
        cuts: Sequence[int] = (),
    ) -> Logits:
        """Reads `tokens` in one batch, or in several that begin at `cuts`."""
        return read(self.model, tokens, name, first=first, scale=scale, cuts=cuts)


def read(
    model: ag.Model,
    tokens: Sequence[int],
    name: str | None = None,
    *,
    first: int | None = None,
    scale: float = 1.0,
    cuts: Sequence[int] = (),
) -> Logits:
    engine = inside.engine(model)
    with inside.runtime(model).bank.using(name, scale) as use:
        pass  # nothing unloads it
    if first is None:
        first = use.first_position(tokens, engine.vocab)
    seq = engine.allocate()
    try:
        if first is not None:
            engine.activate(seq, first, use.slot, scale)
        bounds = [0, *cuts, len(tokens)]
        parts = [tokens[a:b] for a, b in itertools.pairwise(bounds)]
        return np.concatenate([_decode(engine, [Run(seq, part, "all")])[0] for part in parts])
    finally:
        engine.drop(seq)


@dataclass(frozen=True)
class Asked:
    """A suffix to read on a fork, and by whom."""

    suffix: list[int]
    name: str | None
    scale: float = 1.0


def read_forks(
    model: ag.Model, conversation: Sequence[int], asked: Sequence[Asked]
) -> list[Logits]:
    """Logits of every suffix, all read in one batch on forks of a conversation that the base read.

    A plain LoRA's fork shares no cell with the base, so the batch holds its conversation as well.
    """
    engine, n = inside.engine(model), len(conversation)
    parent = engine.allocate()
    forks: list[int] = []
    runs: list[Run] = []
    try:
        engine.decode([Run(parent, conversation, "none")])
        for ask in asked:
            prompt = [*conversation, *ask.suffix]
            with inside.runtime(model).bank.using(ask.name, ask.scale) as use:
                pass
            first = use.first_position(prompt, engine.vocab)
            shared = 0 if first == 0 else n
            assert first is None or first in (0, *range(n, len(prompt)))
            forks.append(engine.fork(parent, shared))
            if first is not None:
                engine.activate(forks[-1], first, use.slot, ask.scale)
            runs.append(Run(forks[-1], prompt[shared:], "all"))
        rows = _decode(engine, runs)
        return [r[len(r) - len(ask.suffix) :] for r, ask in zip(rows, asked, strict=True)]
    finally:
        for seq in [*forks, parent]:
            engine.drop(seq)


def _decode(engine: Engine, runs: list[Run]) -> list[Logits]:
    """All in one call of llama_decode, or this is not the test it claims to be."""
    assert sum(len(run.tokens) for run in runs) <= min(engine.n_batch, EXACT.n_outputs or 0)
    rows = engine.decode(runs)
    return [row for row in rows if row is not None]
