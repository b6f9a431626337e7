"""Steering against PyTorch: each operation at each hook, several at once, and with adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.llama_context import Logits
from alora_gguf.errors import AdapterMismatchError
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.vector import Directions
from alora_gguf.verification.probe import open_probe
from tests.native.harness import Base, Context, sequence
from tests.support.peft_oracle import TinyAdapter, make_adapter
from tests.support.steering_oracle import Part, module_outputs, random_part, steered_logits
from tests.support.tiny_models import TinyModel, tiny_model

from .checks import error
from .sides import gguf_of, words

pytestmark = pytest.mark.parity

FAMILIES = ("llama", "qwen3", "gemma3", "granitemoe", "granitemoehybrid")
HOOKS = ("block", "attention", "ffn")
OPERATIONS = ("add", "project", "project_positive", "add_keep_norm")
TOKENS = [*words(12, 60), 5, 5, 6, *words(9, 61)]
FIRST = 12  # the invocation
SCALE = 0.8
# as tests of adapters have it: of the largest logit, more where GELU is a table on the CPU
BOUNDS = {"gemma3": 2e-3}
BOUND = 1e-4


@dataclass
class Steered:
    """A family's base, an aLoRA for it on both sides, and a context."""

    tiny: TinyModel
    adapter: TinyAdapter
    base: Base
    ctx: Context
    slot: int  # the aLoRA's
    n_embd: int
    attention: list[int]  # layers that have some
    n_layer: int

    def layers(self, hook: str) -> list[int]:
        return self.attention if hook == "attention" else list(range(self.n_layer))

    def parts(self, hook: str, operation: str, *seed: int) -> list[Directions]:
        """A part at every layer that has the hook."""
        layers = self.layers(hook)
        return [random_part(i, hook, operation, self.n_embd, *seed) for i in layers]

    def add(self, parts: list[Directions]) -> int:
        return self.ctx.native.vector_add(self.ctx.handle, parts, self.n_embd, "vector")

    def combine(self, *slots: tuple[int, float]) -> int:
        return self.ctx.native.combine(
            self.ctx.handle, [slot for slot, _ in slots], [scale for _, scale in slots]
        )

    def remove(self, *slots: int) -> None:
        self.ctx.deactivate()
        for slot in slots:
            self.ctx.native.adapter_remove(self.ctx.handle, slot, "vector")

    def ours(self, slot: int, scale: float = 1.0, first: int = FIRST) -> Logits:
        self.ctx.clear()
        self.ctx.deactivate()
        self.ctx.activate(0, first, slot, scale)
        return self.ctx.decode(sequence(TOKENS))

    def theirs(self, parts: list[Part], *, adapted: bool = False, first: int = FIRST) -> Logits:
        adapter = self.adapter if adapted else None
        return steered_logits(self.tiny, parts, TOKENS, first=first, adapter=adapter)

    def assert_close(self, ours: Logits, theirs: Logits) -> None:
        bound = BOUNDS.get(self.tiny.family, BOUND)
        assert error(ours, theirs) <= bound
        ranked = np.sort(theirs, axis=-1)
        sure = ranked[:, -1] - ranked[:, -2] > 2 * bound * np.abs(theirs).max()
        assert sure.sum() > len(theirs) / 2
        assert np.array_equal(ours[sure].argmax(-1), theirs[sure].argmax(-1))


def open_family(family: str, folder: Path) -> Iterator[Steered]:
    pytest.importorskip("peft")
    tiny = tiny_model(family)
    adapter = make_adapter(
        tiny, folder / "alora", targets="all-linear", invocation=(5, 5, 6), rank=8, alpha=16
    )
    header = read_header(tiny.gguf)
    architecture = header.architecture
    n_layer = int(header.metadata[f"{architecture}.block_count"])  # type: ignore[arg-type]
    attention = [i for i in range(n_layer) if f"blk.{i}.attn_output.weight" in header.tensors]
    base = Base(tiny.gguf)
    ctx = base.context()
    slot = ctx.add(gguf_of(adapter, folder / "alora.gguf"))
    n_embd = int(header.metadata[f"{architecture}.embedding_length"])  # type: ignore[arg-type]
    yield Steered(tiny, adapter, base, ctx, slot, n_embd, attention, n_layer)
    ctx.close()
    base.close()


@pytest.fixture(scope="module", params=FAMILIES)
def steered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Steered]:
    yield from open_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("hook", HOOKS)
def test_an_operation_at_a_hook(steered: Steered, hook: str, operation: str) -> None:
    parts = steered.parts(hook, operation)
    slot = steered.add(parts)
    base, ours = steered.ours(slot, 0.0), steered.ours(slot, SCALE)
    assert np.array_equal(ours[:FIRST], base[:FIRST])
    assert error(ours[FIRST:], base[FIRST:]) > 1e-2
    steered.assert_close(ours, steered.theirs([(part, SCALE) for part in parts]))
    steered.remove(slot)


def test_all_of_it_at_once_and_an_adapter(steered: Steered) -> None:
    """Every operation at every hook, at scales of their own, on the same tokens."""
    own = {
        (h, o): 0.3 + 0.1 * i for i, (h, o) in enumerate((h, o) for h in HOOKS for o in OPERATIONS)
    }
    parts = {(h, o): steered.parts(h, o, 1, i) for i, (h, o) in enumerate(own)}
    slots = {key: steered.add(parts[key]) for key in own}
    together = steered.combine((steered.slot, 1.0), *((slots[key], own[key]) for key in own))
    theirs = steered.theirs([(part, own[key]) for key in own for part in parts[key]], adapted=True)
    steered.assert_close(steered.ours(together), theirs)
    alone = steered.theirs([(part, own[key]) for key in own for part in parts[key]])
    assert error(theirs[FIRST:], alone[FIRST:]) > 1e-2  # the adapter does something
    steered.remove(together, *slots.values())


def test_an_activations_scale_multiplies_all_parts(steered: Steered) -> None:
    parts = steered.parts("block", "add")
    slot = steered.add(parts)
    pair = steered.combine((slot, 2.0), (slot, -0.5))
    steered.assert_close(steered.ours(pair, 0.5), steered.theirs([(p, 0.75) for p in parts]))
    steered.remove(pair, slot)


def test_eight_sequences_with_eight_vectors(steered: Steered) -> None:
    """In one batch: the base's rows between them, and half of them with the adapter as well."""
    everything = [(hook, operation) for hook in HOOKS for operation in OPERATIONS]
    vectors, slots, expected = [], [], []
    for i, (hook, operation) in enumerate(everything[:4] + everything[8:]):
        parts = steered.parts(hook, operation, 2, i)
        vectors.append(steered.add(parts))
        adapted = i % 2 == 1
        both = steered.combine((steered.slot, 1.0), (vectors[-1], SCALE)) if adapted else 0
        slots.append((both, 1.0) if adapted else (vectors[-1], SCALE))
        expected.append(steered.theirs([(p, SCALE) for p in parts], adapted=adapted))
    steered.ctx.clear()
    steered.ctx.deactivate()
    for seq, (slot, scale) in enumerate(slots):
        steered.ctx.activate(seq, FIRST, slot, scale)
    batch = [(t, i, (seq,)) for i, t in enumerate(TOKENS) for seq in range(8)]
    before = steered.ctx.stats()
    logits = steered.ctx.decode(batch)
    after = steered.ctx.stats()
    assert (after.n_reserves, after.compute_bytes) == (before.n_reserves, before.compute_bytes)
    for seq, theirs in enumerate(expected):
        steered.assert_close(logits[seq::8], theirs)
        for other in expected[:seq]:
            assert error(theirs, other) > 1e-2
    steered.remove(*(slot for slot, _ in slots if slot not in vectors), *vectors)


def test_token_by_token(steered: Steered) -> None:
    parts = [*steered.parts("block", "project"), *steered.parts("ffn", "add", 3)]
    slot = steered.add(parts)
    steered.ctx.clear()
    steered.ctx.activate(0, FIRST, slot)
    rows = [steered.ctx.decode([(t, i, (0,))]) for i, t in enumerate(TOKENS)]
    steered.assert_close(np.concatenate(rows), steered.theirs([(p, 1.0) for p in parts]))
    steered.remove(slot)


@pytest.mark.parametrize("hook", HOOKS)
def test_what_flows_at_a_hook_is_what_its_module_returns(steered: Steered, hook: str) -> None:
    """What vectors are made of is read where they act."""
    n, theirs = len(TOKENS), module_outputs(steered.tiny, hook, TOKENS)
    with (
        ag.Model(steered.tiny.gguf, n_ctx=64, n_threads=1) as model,
        open_probe(model, {}, n_tokens=n, n_rows=n, hook=hook) as probe,  # type: ignore[arg-type]
    ):
        ours = probe.read(TOKENS, n).layers
    assert [*ours] == [*theirs] == steered.layers(hook)
    for layer, rows in ours.items():
        assert rows.shape == (n, steered.n_embd)
        assert error(rows, theirs[layer]) <= BOUNDS.get(steered.tiny.family, BOUND)


def test_a_layer_without_attention_has_no_such_hook(steered: Steered) -> None:
    others = set(range(steered.n_layer)) - set(steered.attention)
    assert bool(others) == (steered.tiny.family == "granitemoehybrid")
    for layer in others:
        with pytest.raises(AdapterMismatchError, match=f"has no attention at layer {layer}"):
            steered.add([random_part(layer, "attention", "add", steered.n_embd)])


@pytest.fixture(scope="module", params=("granitemoehybrid-moe", "qwen2moe"))
def two_ffns(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Steered]:
    """Experts beside a shared one; in one family that is multiplied with a gate."""
    yield from open_family(request.param, tmp_path_factory.mktemp(request.param))


def test_a_projection_acts_on_both_ffns(two_ffns: Steered) -> None:
    parts = two_ffns.parts("ffn", "project")
    slot = two_ffns.add(parts)
    two_ffns.assert_close(two_ffns.ours(slot, SCALE), two_ffns.theirs([(p, SCALE) for p in parts]))
    both = two_ffns.combine((two_ffns.slot, 1.0), (slot, SCALE))
    theirs = two_ffns.theirs([(p, SCALE) for p in parts], adapted=True)
    two_ffns.assert_close(two_ffns.ours(both), theirs)
    two_ffns.remove(both, slot)


@pytest.mark.parametrize("operation", ["add", "project_positive", "add_keep_norm"])
def test_what_cannot_act_on_both_ffns_is_refused(two_ffns: Steered, operation: str) -> None:
    with pytest.raises(AdapterMismatchError, match="has 2 of what 'FFN' names at layer 0"):
        two_ffns.add(two_ffns.parts("ffn", operation))
