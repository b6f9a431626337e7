"""From the name of an adapted module to the base's tensors that it changes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from alora_gguf.errors import AdapterMismatchError, UnsupportedAdapterError

from .families import Rows, Tensors
from .model import BaseModel, Place
from .orders import Order, by_head, in_turns

_HEADS: Final = ("lm_head", "embed_out")  # the other is GPT-NeoX's of transformers 4
# a multimodal model's language model lies deeper: "model.language_model.layers.0", and others
_WRAPPERS: Final = re.compile(r"^(?:(?:model|language_model|text_model)\.)+")
_IN_BLOCK: Final = re.compile(r"\.(\d+)\.(.+)")
_EXPERT: Final = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")
_NESTED: Final = ".base_layer"
# mlx-lm keeps a projection of all experts as one module
_SWITCH: Final = re.compile(r".*\.switch_mlp\.(gate|up|down)_proj")


@dataclass(frozen=True)
class Reading:
    """One way to understand a module: the places its output rows go to, one after another.

    name     what PEFT's patterns call it: the module, or the parameter of it that is adapted
    expert   the one expert it belongs to; None if it has none, or holds them all
    order    in which its rows are shared out to the places; None is as they are
    refused  why it cannot be converted; "" if it can
    """

    name: str
    places: tuple[Place, ...]
    expert: int | None = None
    order: Order | None = None
    refused: str = ""

    @property
    def n_packed(self) -> int:
        """The experts whose factors lie in one tensor; 1 if there are none, or it is one of them.

        PEFT keeps the factors of a parameter with E experts as A [E·r, in] and B [out, r·E].
        """
        return 1 if self.expert is not None else self.places[0].n_experts or 1

    @property
    def n_out(self) -> int:
        """The rows of all places."""
        return sum(place.rows for place in self.places)


class Locator:
    """Finds modules of one adapter in one base; `source` is the adapter's file, for messages."""

    def __init__(self, base: BaseModel, source: str) -> None:
        self.base = base
        self.source = source

    def is_embedding(self, module: str) -> bool:
        """Whether a module is the token embedding, wherever a multimodal model keeps it."""
        return _plain_path(module) == _plain_path(self.base.family.embedding)

    def is_head(self, module: str) -> bool:
        """Whether a module is the output projection."""
        return _plain_path(module) in _HEADS

    def readings(self, module: str) -> list[Reading]:
        """What a module can mean; the shapes of its factors decide which, if there are several."""
        if self.is_embedding(module) or self.is_head(module):
            tensor = "output.weight" if self.is_head(module) else "token_embd.weight"
            return [Reading(module, (self._whole(tensor, module),))]
        family, path = self.base.family, _plain_path(module)
        for other, tensor in family.others.items():
            if path == _plain_path(other):
                return [Reading(module, (self._whole(f"{tensor}.weight", module),))]
        blocks = _plain_path(family.block)
        block = _IN_BLOCK.fullmatch(path.removeprefix(blocks))
        if block is None or not path.startswith(blocks):
            raise self._unknown(module)
        layer, inner = int(block[1]), block[2]
        expert = _EXPERT.fullmatch(inner)
        index = None
        if expert is not None:
            index, inner = int(expert[2]), f"{expert[1]}.{expert[3]}"
        candidates = self._candidates(module, inner)
        if layer >= self.base.n_layers:
            raise AdapterMismatchError(
                f"{self.base.label}: has {self.base.n_layers} layers, but the adapter changes "
                f"'{module}'; was the adapter trained on another base?"
            )
        found = [
            reading
            for path, name, tensors in candidates
            if (reading := self.reading(layer, path, tensors, name, index)) is not None
        ]
        if not found:
            weights = [f"blk.{layer}.{tensor}" for *_, tensors in candidates for tensor in tensors]
            missing = next(w for w in weights if self.base.place(layer, w) is None)
            raise AdapterMismatchError(
                f"{self.base.label}: has no tensor '{missing}.weight', which the adapter's "
                f"'{module}' changes; was the adapter trained on another base?"
            )
        for place in (reading.places[0] for reading in found):
            if index is not None and index >= place.n_experts:
                raise AdapterMismatchError(
                    f"{self.base.label}: '{place.tensor}' holds {place.n_experts} experts, but the "
                    f"adapter changes '{module}'; was the adapter trained on another base?"
                )
        return found

    def n_in(self, module: str) -> int:
        """How many values a module maps from; raises what readings() does."""
        return self.readings(module)[0].places[0].n_in

    def reading(
        self, layer: int, path: str, tensors: Tensors, name: str = "", expert: int | None = None
    ) -> Reading | None:
        """One reading of a module of the table; None if the block lacks one of its tensors."""
        found = [self.base.place(layer, f"blk.{layer}.{tensor}") for tensor in tensors]
        places = tuple(place for place in found if place is not None)
        if len(places) < len(found):
            return None
        order = self._order(layer, path, places)
        return Reading(name, places, expert, order, self.base.family.refused.get(path, ""))

    def _candidates(self, module: str, inner: str) -> list[tuple[str, str, Tensors]]:
        """The paths in the table, names and tensors of a module, or of its parameters."""
        table = self.base.family.modules
        own = module.replace(_NESTED, "")
        if inner in table:
            return [(inner, own, tensors) for tensors in table[inner]]
        if switch := _SWITCH.fullmatch(inner):
            return [(inner, own, (f"ffn_{switch[1]}_exps",))]
        found = [
            (path, f"{own}.{path[len(inner) + 1 :]}", tensors)
            for path, readings in table.items()
            if path.rpartition(".")[0] == inner
            for tensors in readings
        ]
        if not found:
            raise self._unknown(module)
        return found

    def _order(self, layer: int, path: str, places: tuple[Place, ...]) -> Order | None:
        """How the rows of a module of the table are shared out."""
        kind = self.base.family.rows.get(path)
        rows = sum(place.rows for place in places)
        if kind is Rows.DELTA_BY_KEY:
            return self.base.delta_heads().joined()
        if kind is Rows.QUERY_KEY_VALUE_BY_HEAD:
            return by_head(rows, self.base.n_heads(layer, keys=False))
        return in_turns(rows) if kind is Rows.IN_TURNS else None

    def _whole(self, tensor: str, module: str) -> Place:
        shape = self.base.shape(tensor)
        if shape is None or len(shape) != 2:
            raise AdapterMismatchError(
                f"{self.base.label}: has no matrix '{tensor}', which the adapter's '{module}' "
                "changes; was the adapter trained on another base?"
            )
        return Place(tensor, shape, 0, shape[1])

    def _unknown(self, module: str) -> UnsupportedAdapterError:
        family = self.base.family
        return UnsupportedAdapterError(
            f"{self.source}: module '{module}' cannot be converted for {family.architecture}; "
            f"what can: {', '.join(sorted(family.modules))} of {family.block}.<n>, "
            f"{', '.join((*family.others, family.embedding))} and {_HEADS[0]}; train without it, "
            "or merge it into the base (PEFT merges no aLoRA)"
        )


@lru_cache(maxsize=16)  # a module is asked about several times in a row
def _plain_path(module: str) -> str:
    return _WRAPPERS.sub("", module.replace(_NESTED, ""))
