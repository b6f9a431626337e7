"""Matches an adapter's tensors with the base's: what will be written is decided here."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from alora_gguf.errors import (
    AdapterMismatchError,
    ConvertError,
    FileFormatError,
    UnsupportedAdapterError,
)
from alora_gguf.gguf.adapter import MAX_RANK

from .base.locate import Locator, Reading
from .base.model import BaseModel, Place, Shape
from .base.orders import Order
from .peft.config import PeftConfig
from .peft.fields import INSTEAD
from .peft.weights import SafetensorsFile, StoredTensor

_PREFIX: Final = "base_model.model."
SCORE: Final = "base_model.model.score.weight"
"""The head of transformers' sequence classifiers, [labels, hidden size], which is no change of a
weight.
"""
_SUFFIXES: Final = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}


@dataclass(frozen=True)
class Piece:
    """What one module contributes to one of the base's tensors.

    module   the adapted module, such as "model.layers.0.self_attn.q_proj"
    a, b     its factors: [rank, n_in] and [n_out, rank] in torch's order
    rank     of one expert's factors, where they hold several
    scale    what PEFT multiplies B·A with
    rows     the first of B's rows that belong here, and the one after the last
    first    the row of the base's tensor that the first of them changes
    joined   the order in which the module's rows are shared out, before any are taken
    order    these rows' in the base's tensor
    columns  A's columns' in it
    expert   the expert it belongs to; None if the tensor has none, or A and B hold all of them
    swapped  A [experts·r, n_out] and B [n_in, r·experts] have changed places, each transposed
    """

    module: str
    a: StoredTensor
    b: StoredTensor
    rank: int
    scale: float
    rows: tuple[int, int]
    first: int = 0
    joined: Order | None = None
    order: Order | None = None
    columns: Order | None = None
    expert: int | None = None
    swapped: bool = False


@dataclass(frozen=True)
class Pair:
    """One adapted tensor of the base and everything that adapts it.

    target   the base's tensor, such as "blk.0.attn_q.weight", and its shape in ggml order
    pieces   usually one; more where the base holds several modules, or experts, in one tensor
    rank     the inner dimension of the pair that is written
    flip_a   an embedding's A is written transposed, as llama.cpp reads its columns
    """

    target: str
    shape: Shape
    pieces: tuple[Piece, ...]
    rank: int
    flip_a: bool = False

    @property
    def n_in(self) -> int:
        """The values that A maps from; for an embedding, the tokens."""
        return self.shape[1] if self.flip_a else self.shape[0]

    @property
    def n_out(self) -> int:
        """The values that B maps to."""
        if self.flip_a:
            return self.shape[0]
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def n_experts(self) -> int:
        """The experts of the tensor; 0 if it is a plain matrix."""
        return self.shape[2] if len(self.shape) > 2 else 0


def make_plan(
    config: PeftConfig, weights: SafetensorsFile, base: BaseModel, *, activated: bool
) -> tuple[list[Pair], list[str | None]]:
    """Finds the base's tensors for every pair of adapter tensors and checks all shapes: the pairs,
    in the order of their names with layers counted as numbers, and remarks.

    `activated` says that the adapter is an aLoRA, whoever says so.
    """
    planner = _Planner(config, weights, base, activated=activated)
    return planner.pairs(), planner.warnings


class _Planner:
    def __init__(
        self, config: PeftConfig, weights: SafetensorsFile, base: BaseModel, *, activated: bool
    ) -> None:
        self.config = config
        self.activated = activated
        self.weights = weights
        self.base = base
        self.locator = Locator(base, str(weights.path))
        self.warnings: list[str | None] = []
        # a tensor and the first of some of its rows -> expert -> the module that changes them
        self.taken: dict[tuple[str, int], dict[int | None, str]] = {}

    def pairs(self) -> list[Pair]:
        halves = self.collect()
        if not halves:
            raise ConvertError(
                f"{self.weights.path}: holds no LoRA tensors (lora_A, lora_B); save the adapter "
                "with PEFT's save_pretrained()"
            )
        pieces: dict[str, list[Piece]] = {}
        shapes: dict[str, Shape] = {}
        for module, half in halves.items():
            if len(half) < 2:
                present, missing = ("A", "B") if "A" in half else ("B", "A")
                raise FileFormatError(
                    f"{self.weights.path}: module '{module}' has a lora_{present} but no "
                    f"lora_{missing}; save the adapter again"
                )
            a, b = half["A"], half["B"]
            reading, swapped = self.reading(module, a, b)
            if reading.refused:
                raise UnsupportedAdapterError(
                    f"{self.weights.path}: module '{reading.name}' cannot be converted for "
                    f"{self.base.architecture}: {reading.refused}; train without it"
                )
            shapes |= {place.tensor: place.shape for place in reading.places}
            for target, piece in self.pieces(module, a, b, reading, swapped=swapped):
                pieces.setdefault(target, []).append(piece)
        self.warnings += self.config.rank_pattern.warnings + self.config.alpha_pattern.warnings
        if unused := [module for module in halves if self.config.leaves_out(module)]:
            self.warnings.append(
                f"{self.config.path}: target_modules or layers_to_transform leave out "
                f"{len(unused)} of the {len(halves)} modules that have weights, such as "
                f"'{unused[0]}'; they are converted, but PEFT would not load them"
            )
        embedding = "token_embd.weight"
        return [
            _pair(target, shapes[target], pieces[target], flip_a=target == embedding)
            for target in sorted(pieces, key=_sort_key)
        ]

    def collect(self) -> dict[str, dict[str, StoredTensor]]:
        """The factors A and B of each module, as far as they are there."""
        halves: dict[str, dict[str, StoredTensor]] = {}
        for name, info in self.weights.tensors.items():
            if name == SCORE and self.config.classifies:
                continue
            suffix = next((s for s in _SUFFIXES if name.endswith(s)), None)
            if suffix is None or not name.startswith(_PREFIX):
                self.refuse_stranger(name, info)
                continue
            module = name[len(_PREFIX) : -len(suffix)]
            halves.setdefault(module, {})[_SUFFIXES[suffix]] = info
        return halves

    def refuse_stranger(self, name: str, info: StoredTensor) -> None:
        """Passes over copies of the base's own embeddings; refuses every other tensor.

        PEFT saves the embeddings along when they are targets, or when it cannot tell whether they
        changed; with the vocabulary's size unchanged, the base has them already.
        """
        module = name.removeprefix(_PREFIX).removesuffix(".base_layer.weight")
        embeds, head = self.locator.is_embedding(module), self.locator.is_head(module)
        if name.endswith(".base_layer.weight") and (embeds or head):
            target = "token_embd.weight" if embeds or self.base.tied else "output.weight"
            shape = self.base.shape(target) or ()
            if shape == info.shape[::-1]:
                self.warnings.append(
                    f"'{name}' is taken to equal the base's {target}; not converted"
                )
                return
            raise UnsupportedAdapterError(
                f"{self.weights.path}: '{name}' has the shape {list(info.shape)}, but the base's "
                f"{target} has {list(shape[::-1])}: the adapter's vocabulary was resized; convert "
                "it with a base GGUF made from the resized model"
            )
        if "lora_magnitude_vector" in name:
            reason = "belongs to DoRA, whose magnitudes an adapter GGUF cannot hold"
        elif name.endswith((".lora_B.bias", ".lora_A.bias")):
            reason = "is a bias, which an adapter GGUF cannot hold"
        elif ".lora_" in name:
            reason = "is not one of PEFT's lora_A.weight and lora_B.weight tensors"
        else:
            reason = "is a whole weight (modules_to_save), not a low-rank change"
        raise UnsupportedAdapterError(f"{self.weights.path}: '{name}' {reason}; {INSTEAD}")

    def reading(self, module: str, a: StoredTensor, b: StoredTensor) -> tuple[Reading, bool]:
        """The reading of a module that its factors fit, and whether they fit with places changed.

        PEFT may take a parameter with experts for [experts, in, out] where the family has
        [experts, out, in], or the reverse: what it calls A is our B then, transposed.
        """
        if self.locator.is_embedding(module) or self.locator.is_head(module):
            self.check_embedding(module)
        readings = self.locator.readings(module)
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise FileFormatError(
                f"{self.weights.path}: module '{module}' has lora_A {list(a.shape)} and lora_B "
                f"{list(b.shape)}, expected [r, in] and [out, r]; save the adapter again"
            )
        # an embedding's weight is stored [vocab, dim], transposed to what a linear layer's would be
        embeds = self.locator.is_embedding(module)
        found = (b.shape[0], a.shape[1]) if embeds else (a.shape[1], b.shape[0])
        for reading in readings:
            fitting = reading.places[0].n_in, reading.n_out
            if reading.n_packed > 1 and found == fitting == fitting[::-1]:
                return reading, self.config.swaps_experts(self.base.family.experts)
            if found == fitting:
                return reading, False
            if reading.n_packed > 1 and found == fitting[::-1]:
                return reading, True
        reading = readings[0]
        tensors = " and ".join(f"'{place.tensor}'" for place in reading.places)
        raise AdapterMismatchError(
            f"{self.base.label}: {tensors} maps {reading.places[0].n_in} to {reading.n_out} "
            f"values, but the adapter's module '{module}' maps {found[0]} to {found[1]}; is it "
            "another base than the adapter was trained on?"
        )

    def pieces(
        self, module: str, a: StoredTensor, b: StoredTensor, reading: Reading, *, swapped: bool
    ) -> list[tuple[str, Piece]]:
        """A module's share in each tensor that it changes, with the tensor's name."""
        name = self.config.pattern_name(reading.name)
        rank = self.config.rank_of(name)
        if rank * reading.n_packed != a.shape[0]:
            per_expert = f" for each of {reading.n_packed} experts" * (reading.n_packed > 1)
            raise FileFormatError(
                f"{self.weights.path}: module '{module}' has the rank {a.shape[0]}, but "
                f"{self.config.path.name} (r, rank_pattern) says {rank}{per_expert}; use the "
                "configuration that was saved with these weights"
            )
        scale = self.config.scale_of(name, rank)
        out: list[tuple[str, Piece]] = []
        row = 0
        for place in reading.places:
            self.take(module, place, reading.expert)
            end = row + place.rows
            rows = (row, end) if not self.locator.is_embedding(module) else (0, b.shape[0])
            piece = Piece(
                module,
                a,
                b,
                rank,
                scale,
                rows,
                place.first,
                reading.order,
                place.order,
                place.columns,
                reading.expert,
                swapped,
            )
            out = _joined(out, place.tensor, piece)
            row = end
        return out

    def take(self, module: str, place: Place, expert: int | None) -> None:
        """Refuses rows that another module changes already: two spellings of one module would both
        be added, which is nothing PEFT would compute.
        """
        owners = self.taken.setdefault((place.tensor, place.first), {})
        rivals = owners.values() if expert is None else (owners.get(expert), owners.get(None))
        for rival in rivals:
            if rival not in (None, module):
                raise FileFormatError(
                    f"{self.weights.path}: '{rival}' and '{module}' both change "
                    f"'{place.tensor}'; keep the one that the model has"
                )
        owners[expert] = module

    def check_embedding(self, module: str) -> None:
        if self.base.tied or self.config.ties_weights:
            raise UnsupportedAdapterError(
                f"{self.weights.path}: module '{module}' cannot be converted: {self.base.label} "
                "uses one tensor as embedding and as output, so changing the one would change the "
                "other; leave embed_tokens and lm_head out of target_modules"
            )
        if self.locator.is_embedding(module) and self.activated:
            raise UnsupportedAdapterError(
                f"{self.weights.path}: module '{module}' cannot be converted for an aLoRA: PEFT "
                "does not define what activation means for an embedding; leave it out of "
                "target_modules"
            )


def _joined(pieces: list[tuple[str, Piece]], target: str, piece: Piece) -> list[tuple[str, Piece]]:
    """`pieces` and one more of the same module, as one where its rows go on in the same tensor."""
    if pieces and pieces[-1][0] == target:
        before = pieces[-1][1]
        goes_on = before.first + before.rows[1] - before.rows[0] == piece.first
        if goes_on and before.order is None and piece.order is None:
            merged = replace(before, rows=(before.rows[0], piece.rows[1]))
            return [*pieces[:-1], (target, merged)]
    return [*pieces, (target, piece)]


def _pair(target: str, shape: Shape, pieces: list[Piece], *, flip_a: bool) -> Pair:
    """Pieces side by side need the sum of their ranks; those of different experts do not add up."""
    shared = sum(piece.rank for piece in pieces if piece.expert is None)
    single: dict[int, int] = {}
    for piece in pieces:
        if piece.expert is not None:
            single[piece.expert] = single.get(piece.expert, 0) + piece.rank
    rank = shared + max(single.values(), default=0)
    if rank > MAX_RANK:
        raise UnsupportedAdapterError(
            f"'{pieces[0].module}' and what shares the base's '{target}' with it have rank {rank}, "
            f"at most {MAX_RANK} is supported; train one of a lower rank"
        )
    return Pair(target, shape, tuple(pieces), rank, flip_a)


def _sort_key(name: str) -> tuple[str | int, ...]:
    # split() with a group alternates text and digits, so equal places compare equal kinds
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))
