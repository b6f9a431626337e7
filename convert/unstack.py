"""The modules of an adapter GGUF: what values.py stacked is taken apart again.

Names are those of transformers 5, where a router and the experts of a block are parameters; of
transformers 4, with a module for each expert, where the experts' gate and up projections have
factors of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import AdapterMismatchError, UnsupportedAdapterError
from alora_gguf.gguf.adapter import AdapterFile, Pair
from alora_gguf.gguf.parser import TensorInfo

from .base.families import Experts
from .base.locate import Locator, Reading
from .base.model import BaseModel, Place

Bits = NDArray[Any]  # values of any type, BF16 as uint16

_TYPES: Final = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# of transformers 5: parameters
_ROUTERS: Final = ("mlp.gate", "mlp.router", "feed_forward.gate", "block_sparse_moe.router")
_SINGLE: Final = re.compile(r"((?:.*\.)?experts)\.(\w+)")


@dataclass(frozen=True)
class Factors:
    """A and B of one module, or of one parameter of a module, as PEFT keeps them.

    module      what its tensors are called after, such as "model.layers.0.self_attn.q_proj"
    name        what PEFT's patterns call it; a parameter by its own name
    path        the same inside a block
    target      what target_modules call it: the last part of its name, as people write it, where
                all that are called so are adapted; its path, where every block that has it is; else
                its name
    a, b        [r, n_in] and [n_out, r]; with E experts [E·r, n_in] and [n_out, r·E]
    kinds       their types in safetensors' words
    rank        of one expert's, where they hold several
    scale       what B·A is multiplied with
    parameter   whether it is one of target_parameters
    """

    module: str
    name: str
    path: str
    target: str
    a: Bits
    b: Bits
    kinds: tuple[str, str]
    rank: int
    scale: float
    parameter: bool = False
    embedding: bool = False


@dataclass(frozen=True)
class _Stack:
    """A target's factors: A [E, r, n_in] and B [E, n_out, r], E = 1 in a plain matrix."""

    a: Bits
    b: Bits
    kinds: tuple[str, str]
    scale: float
    n_experts: int


def unstack(file: AdapterFile, base: BaseModel) -> list[Factors]:
    """The factors of every module that an adapter changes, in the order of layers.

    Raises AdapterMismatchError if it does not fit the base, and UnsupportedAdapterError, naming the
    tensor, where no module of the base's family is that tensor.
    """
    return list(_Unstacker(file, base).modules())


class _Unstacker:
    def __init__(self, file: AdapterFile, base: BaseModel) -> None:
        self.file = file
        self.base = base
        self.family = base.family
        self.locator = Locator(base, str(file.path))
        self.stacks = {pair.target: _stack(file, pair) for pair in file.pairs}
        for pair in file.pairs:
            self._check_shape(pair)
        self.left = set(self.stacks)
        self._counted: dict[str, int] = {}  # blocks by path: experts have many of one
        experts, dense = ("ffn_gate_exps", "ffn_up_exps"), ("ffn_gate", "ffn_up")
        layers = range(base.n_layers)
        self.one_by_one = any(self._share_a(layer, experts) is False for layer in layers)
        # Granite 4 without state space layers is llama.cpp's granite, but has Granite 4's modules
        both = {"shared_mlp.input_linear", "mlp.gate_proj"} <= self.family.modules.keys()
        self.renamed = both and any(self._share_a(layer, dense) for layer in layers)

    def modules(self) -> Iterator[Factors]:
        ends = {f"{tensor}.weight": path for path, tensor in self.family.others.items()}
        ends |= {"token_embd.weight": self.family.embedding, "output.weight": "lm_head"}
        for target in sorted(ends.keys() & self.stacks):
            self.left.discard(target)
            stack, name = self.stacks[target], ends[target]
            embeds = target == "token_embd.weight"
            made = self._factors(name, name, stack, stack.b, embedding=embeds)
            yield replace(made, a=_contiguous(made.a.T)) if embeds else made
        found = [f for layer in range(self.base.n_layers) for f in self._block(layer)]
        if self.left:
            target = min(self.left)
            raise UnsupportedAdapterError(
                f"{self.file.path}: '{target}' is no module of {self.family.architecture} in "
                "transformers that has these factors; it cannot be exported"
            )
        adapted: dict[str, set[str]] = {}
        for each in found:
            adapted.setdefault(each.path, set()).add(each.name)
        whole = {path for path, names in adapted.items() if len(names) == self._layers(path)}
        alone = {path for path in whole if self._alone(path, whole)}
        for each in found:
            if each.path not in whole:
                yield each
            elif each.parameter or each.path not in alone:
                yield replace(each, target=each.path)
            else:
                yield replace(each, target=_last(each.path))

    def _alone(self, path: str, whole: set[str]) -> bool:
        """Whether all modules of blocks that end as a path does are among `whole`; a single expert
        never is.
        """
        others = {each for each in self.family.modules if _last(each) == _last(path)} - whole
        return all(self._passed_over(each) or not self._layers(each) for each in others)

    def _layers(self, path: str) -> int:
        """How many blocks of the base have a module or parameter."""
        listed, layers = _listed(path), range(self.base.n_layers)
        if listed not in self._counted:
            found = (self._reading(layer, listed) for layer in layers)
            self._counted[listed] = sum(each is not None for each in found)
        return self._counted[listed]

    def _reading(self, layer: int, path: str) -> Reading | None:
        """How a module of the family's table is to be read in a block; None if the block has not
        its tensors.
        """
        readings = self.family.modules.get(path, ())
        found = (self.locator.reading(layer, path, tensors) for tensors in readings)
        return next(filter(None, found), None)

    def _block(self, layer: int) -> Iterator[Factors]:
        taken: set[tuple[str, int]] = set()
        made: list[Factors] = []
        for path in self.family.modules:
            reading = self._reading(layer, path)
            if reading is None or self._passed_over(path):
                continue
            places = reading.places
            spots = {(place.tensor, place.first) for place in places}
            if spots & taken or not {place.tensor for place in places} <= self.stacks.keys():
                continue
            if reading.refused:
                raise UnsupportedAdapterError(
                    f"{self.file.path}: '{places[0].tensor}' cannot be exported for "
                    f"{self.family.architecture}: {reading.refused}"
                )
            new = list(self._module(layer, path, reading))
            if new:
                taken |= spots
                self.left -= {place.tensor for place in places}
                made += new
        # PEFT wraps a module's parameters in the order of their definition, the last outermost
        doubled = {each.module for each in made if each.name.endswith("experts.down_proj")}
        for each in made:
            inner = each.module in doubled and each.name.endswith("experts.gate_up_proj")
            yield replace(each, module=f"{each.module}.base_layer") if inner else each

    def _share_a(self, layer: int, tensors: tuple[str, str]) -> bool | None:
        """Whether the gate and up projections of a block are changed by one A, as one module's
        would be; None if neither is changed, or the base lacks them.
        """
        places = [self.base.place(layer, f"blk.{layer}.{name}") for name in tensors]
        stacks = [self.stacks.get(place.tensor) if place else None for place in places]
        if None in places or stacks == [None, None]:
            return None
        found = [
            stack.a[:, self._columns(stack, place)]
            for stack, place in zip(stacks, places, strict=True)
            if stack is not None and place is not None
        ]
        return len(found) == 2 and np.array_equal(found[0], found[1])

    def _passed_over(self, path: str) -> bool:
        """Whether a path is that of the other of two models that share an architecture, or of the
        other transformers: see the module's docstring.
        """
        if self.renamed and path.startswith("mlp."):
            return True
        if not self.one_by_one:
            return False
        published = any(each.endswith("experts.w1") for each in self.family.modules)
        renamed = _SINGLE.fullmatch(path) and not re.search(r"\.w[123]$", path)
        return path.endswith("experts.gate_up_proj") or (
            published and (path.startswith("mlp.gate") or bool(renamed))
        )

    def _module(self, layer: int, path: str, reading: Reading) -> Iterator[Factors]:
        """A module's factors; none if none of its rows change."""
        places = reading.places
        stack = self.stacks[places[0].tensor]
        columns = self._columns(stack, *places) if len(_tensors(places)) == 1 else slice(None)
        a = stack.a[:, columns]
        if not a.shape[1]:
            return
        rows = []
        for place in places:
            other = self.stacks[place.tensor]
            if other.a.shape != stack.a.shape or (other.a != stack.a).any():
                return  # not what one module would have
            part = other.b[:, place.first : place.first + place.rows][:, :, columns]
            rows.append(part if place.order is None else part[:, place.order.inverse()])
        b = np.concatenate(rows, axis=1)
        if reading.order is not None:
            b = b[:, reading.order.inverse()]
        if places[0].columns is not None:
            a = a[:, :, places[0].columns.inverse()]
        name = f"{self.family.block}.{layer}.{path}"
        own = replace(stack, a=a)
        single = _SINGLE.fullmatch(path)
        if not stack.n_experts:
            parameter = path in _ROUTERS and not self.one_by_one
            end = ".weight" if parameter else ""
            yield self._factors(name, path + end, own, b, parameter=parameter)
        elif self.one_by_one and single:
            yield from self._each_expert(layer, single, own, b)
        else:
            yield self._packed(name, path, own, b)

    def _packed(self, name: str, path: str, stack: _Stack, b: Bits) -> Factors:
        """Several experts' factors as PEFT keeps a parameter's; values.py has the order."""
        n_experts, rank, n_in = stack.a.shape
        a, kinds = stack.a, stack.kinds
        if self.family.experts is Experts.IN_OUT:  # what PEFT calls A is our B, transposed
            a, b, kinds, n_in = b.swapaxes(1, 2), a.swapaxes(1, 2), kinds[::-1], b.shape[1]
        packed = replace(stack, a=a.reshape(1, n_experts * rank, n_in), kinds=kinds)
        order = b.transpose(1, 2, 0).reshape(1, b.shape[1], rank * n_experts)
        parameter = _SINGLE.fullmatch(path) is not None
        made = self._factors(name, path, packed, order, parameter=parameter)
        return replace(made, rank=rank)

    def _each_expert(
        self, layer: int, path: re.Match[str], stack: _Stack, b: Bits
    ) -> Iterator[Factors]:
        """A module for each expert, without the ranks that it was padded with."""
        for expert in range(len(b)):
            a = stack.a[expert : expert + 1]
            ranks = np.flatnonzero(a.any(axis=(0, 2)) | b[expert].any(axis=0))
            if len(ranks):
                rank = int(ranks[-1]) + 1
                inner = f"{path[1]}.{expert}.{path[2]}"
                own = replace(stack, a=a[:, :rank])
                name = f"{self.family.block}.{layer}.{inner}"
                yield self._factors(name, inner, own, b[expert : expert + 1, :, :rank])

    def _factors(
        self,
        name: str,
        path: str,
        stack: _Stack,
        b: Bits,
        *,
        parameter: bool = False,
        embedding: bool = False,
    ) -> Factors:
        experts = parameter and _SINGLE.fullmatch(path) is not None
        own = f"{name}.weight" if path.endswith(".weight") else name
        return Factors(
            module=name.rpartition(".")[0] if experts else name,
            name=own,
            path=path,
            target=own,
            a=_contiguous(stack.a[0]),
            b=_contiguous(b[0]),
            kinds=stack.kinds,
            rank=b.shape[2],
            scale=stack.scale,
            parameter=parameter,
            embedding=embedding,
        )

    @staticmethod
    def _columns(stack: _Stack, *places: Place) -> Any:
        """The ranks that rows of a tensor have: all, unless other rows have some of them alone."""
        own = np.zeros(stack.b.shape[1], bool)
        for place in places:
            own[place.first : place.first + place.rows] = True
        if own.all():
            return slice(None)
        return np.flatnonzero(stack.b[:, own].any(axis=(0, 1)))

    def _check_shape(self, pair: Pair) -> None:
        shape = self.base.shape(pair.target)
        stack = self.stacks[pair.target]
        n_in, n_out = stack.a.shape[2], stack.b.shape[1]
        if pair.target == "token_embd.weight":
            n_in, n_out = n_out, stack.a.shape[1]
        found = (n_in, n_out, *((stack.n_experts,) if stack.n_experts else ()))
        # a vector, as a gate of one output, has one row
        wanted = None if shape is None else (*shape, *(1,) * (2 - len(shape)))
        if wanted != found:
            raise AdapterMismatchError(
                f"{self.file.path}: '{pair.target}' is {list(found)} in the adapter, but "
                f"{'not there' if shape is None else list(shape)} in {self.base.label}; give the "
                "base it was trained on"
            )


def _listed(path: str) -> str:
    """A path as the family's table has it."""
    return re.sub(r"\bexperts\.\d+\.", "experts.", path.removesuffix(".weight"))


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _tensors(places: Sequence[Place]) -> set[str]:
    return {place.tensor for place in places}


def _contiguous(values: Bits) -> Bits:
    return np.ascontiguousarray(values)


def _stack(file: AdapterFile, pair: Pair) -> _Stack:
    n_experts = pair.a.shape[2] if len(pair.a.shape) > 2 else 0
    scale = file.alpha / pair.rank if file.alpha else 1.0
    (a, first), (b, second) = (_bits(file, info) for info in (pair.a, pair.b))
    return _Stack(a, b, (first, second), scale, n_experts)


def _bits(file: AdapterFile, info: TensorInfo) -> tuple[Bits, str]:
    """A tensor as [E, rows, columns], and its type."""
    data = memoryview(file.data)[info.offset : info.offset + info.nbytes]
    shape = (info.shape[2] if len(info.shape) > 2 else 1, info.shape[1], info.shape[0])
    if info.type_name in _TYPES:
        return np.frombuffer(data, _TYPES[info.type_name]).reshape(shape), info.type_name
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks = np.frombuffer(data, np.uint8).reshape(shape[0] * shape[1], -1)
    return dequantize(blocks, GGMLQuantizationType(info.type)).reshape(shape), "F32"
