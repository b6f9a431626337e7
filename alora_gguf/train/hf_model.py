"""A base's GGUF as transformers' causal language model: the weights that will serve, dequantised.

What the model computes is hf_config.py's. Each of its parameters names the tensors that it is made
of, and each tensor of the file must have been used by one.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.convert.base.families import supported_names
from alora_gguf.convert.base.gguf import GGUFBase
from alora_gguf.convert.base.model import Place
from alora_gguf.errors import InputError, ModelError
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.parser import TensorInfo

from .hf_config import TRAINABLE, planned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

DTYPES: Final[Mapping[str, int]] = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a value
_NEEDED: Final = ("torch", "transformers")
# values that are dequantised at a time: 16 MiB in F32, and what gguf needs beside them
_AT_ONCE: Final = 4 << 20

# times as many values as the file has: if it only lacks a tensor, that is told by name
_MOST: Final = 2

# What is not in Family.modules: vectors, which adapters do not target. Without "blk.<n>.".
_NORMS: Final[Mapping[str, str]] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "mamba.norm": "ssm_norm",
    "mamba.conv1d": "ssm_conv1d",
}
# where a block's halves have a norm after them too
_NORMS_AFTER: Final[Mapping[str, str]] = {
    **_NORMS,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_AFTER: Final = frozenset({"gemma2", "gemma3", "olmo2"})
_MAMBA: Final[Mapping[str, str]] = {
    "mamba.A_log": "ssm_a",
    "mamba.D": "ssm_d",
    "mamba.dt_bias": "ssm_dt.bias",
}
_WHOLE: Final[Mapping[str, str]] = {
    "lm_head": "output",
    "model.norm": "output_norm",
    "transformer.ln_f": "output_norm",
    "transformer.wpe": "position_embd",
}
_GEMMA: Final = frozenset({"gemma2", "gemma3"})  # transformers adds one to their norms' weights
# of what llama.cpp keeps with one dimension more or less
_RESHAPED: Final = frozenset({"ssm_a", "ssm_d", "ssm_conv1d.weight", "ssm_norm.weight"})
_ROPE_FACTORS: Final = "rope_freqs.weight"
# graphs that divide a rotary embedding's frequencies by those
_TAKES_FACTORS: Final = frozenset({"llama", "granite", "granitemoe", "granitehybrid"})


def load_model(path: str | os.PathLike[str], *, dtype: str = "float32") -> Any:
    """The base in `path` (a GGUF, or the first of a split model's) as transformers' model of it.

    dtype  of its parameters: "float32", "bfloat16" or "float16"

    It is in eval mode, with parameters that require no gradient, and computes what llama.cpp
    computes with the same weights, but for rounding. Raises MissingFileError and ModelError for a
    file that cannot serve as a base, or that transformers has no exact counterpart of; InputError
    for another dtype, and where torch or transformers is not installed.
    """
    _check(dtype)
    weights = _Weights.open(path)
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    plan = planned(weights.base, dtype)
    weights.require_room(plan)
    auto: Any = transformers.AutoModelForCausalLM
    with no_init_weights():  # memory that is not touched before it is filled
        model = auto.from_config(plan.config, dtype=getattr(torch, dtype))
    model.tie_weights()
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        weights.fill(name, parameter.data)
    weights.scale_rope(model)
    weights.require_all_used()
    return model


def model_bytes(path: str | os.PathLike[str], dtype: str = "float32") -> int:
    """The bytes of memory that load_model() takes: the parameters, and the largest once more in
    F32. Only the header is read.
    """
    _check(dtype, installed=False)
    sizes = [math.prod(info.shape) for info in BaseFile.read(path).tensors.values()]
    return sum(sizes) * DTYPES[dtype] + max(sizes) * DTYPES["float32"]


def _check(dtype: str, *, installed: bool = True) -> None:
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if installed and missing:
        raise InputError(
            f"training needs {' and '.join(missing)}, not installed here: pip install "
            "'alora-gguf[train]'"
        )


@dataclass(frozen=True)
class _Part:
    """A run of a tensor's rows, dequantised, and the tensor's name for messages."""

    tensor: str
    values: Array


class _Weights:
    """A base's tensors, each in its file until a parameter is made of it."""

    def __init__(self, base: GGUFBase, data: Mapping[str, memoryview]) -> None:
        self.base = base
        self.data = data
        self.used = set[str]()
        family = base.family
        self._block = re.compile(rf"{re.escape(family.block)}\.(\d+)\.(.+)")
        self._whole = {**_WHOLE, family.embedding: "token_embd"}
        self._norms = _NORMS_AFTER if base.architecture in _AFTER else _NORMS

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> _Weights:
        file = BaseFile.read(path)
        if file.architecture not in TRAINABLE or not file.causal:
            what = f"of the architecture '{file.architecture}'" if file.causal else "not causal"
            raise ModelError(
                f"{file.path}: is {what}, which cannot be trained on; supported families: "
                f"{supported_names(TRAINABLE)}"
            )
        headers = [read_header(part) for part in file.parts]
        data = {name: each.tensor_data(name) for each in headers for name in each.tensors}
        headers[0].tensors.update(file.tensors)
        return cls(GGUFBase(headers[0]), data)

    def require_room(self, plan: Any) -> None:
        """Raises ModelError if a model has far more values than the file: its metadata, which say
        how much memory is taken, are another model's.
        """
        wanted = sum(parameter.numel() for parameter in plan.parameters())
        held = sum(math.prod(info.shape) for info in self.base.header.tensors.values())
        if wanted > _MOST * held:
            raise ModelError(
                f"{self.base.label}: its tensors have {held:,} values, but a model as its metadata "
                f"describe it has {wanted:,}; convert the model again"
            )

    def fill(self, name: str, target: Any) -> None:
        """Writes the parameter `name`, whose memory is `target`, a tensor of torch's."""
        import torch

        axis = 0 if target.dim() < 2 else -2  # of the rows; experts are the first dimension
        flipped = self.base.architecture == "gpt2" and target.dim() == 2 and ".h." in name
        into = target.T if flipped else target  # GPT-2 keeps [in, out]
        start = 0
        for part in self._parts(name, tuple(into.shape)):
            same = part.values.ndim == into.dim()
            rows = part.values.shape[axis] if same else 0
            if not same or start + rows > into.shape[axis]:
                raise self._misfit(name, part.tensor, tuple(into.shape))
            spot = into.narrow(axis, start, rows)
            if tuple(spot.shape) != part.values.shape:
                raise self._misfit(name, part.tensor, tuple(into.shape))
            spot.copy_(torch.from_numpy(part.values))
            start += rows
        if start != into.shape[axis]:
            raise self._misfit(name, part.tensor, tuple(into.shape))

    def scale_rope(self, model: Any) -> None:
        """Llama 3.1's scaling, which a GGUF keeps as a divisor of each frequency."""
        import torch

        if _ROPE_FACTORS not in self.data or self.base.architecture not in _TAKES_FACTORS:
            return
        factors = torch.from_numpy(self._read(_ROPE_FACTORS, "inv_freq"))
        for name, buffer in model.named_buffers():
            if name.endswith("inv_freq"):
                if buffer.shape != factors.shape:
                    raise self._misfit(name, _ROPE_FACTORS, tuple(buffer.shape))
                buffer.div_(factors)

    def require_all_used(self) -> None:
        """Raises ModelError if a tensor of the file belongs to no parameter."""
        left = sorted(self.data.keys() - self.used)
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ModelError(
                f"{self.base.label}: tensor '{left[0]}'{more} would not be used by transformers' "
                f"model of a {self.base.architecture}; train on another conversion of the model"
            )

    def _parts(self, name: str, shape: tuple[int, ...]) -> Iterator[_Part]:
        """What a parameter's rows are made of, in their order."""
        path, _, leaf = name.rpartition(".")
        block = self._block.fullmatch(name)
        if block is None:
            tensor = self._whole.get(path)
            if tensor is None:
                raise self._unknown(name)
            yield self._vector(f"{tensor}.{leaf}", name, shape)
            return
        layer, inner = int(block[1]), block[2]
        module = inner.removesuffix(f".{leaf}")
        prefix = f"blk.{layer}"
        if inner in _MAMBA:
            yield self._vector(f"{prefix}.{_MAMBA[inner]}", name, shape)
        elif module in self._norms:
            yield self._vector(f"{prefix}.{self._norms[module]}.{leaf}", name, shape)
        else:
            modules = self.base.family.modules
            whole = inner in modules  # a parameter's own name, as of experts
            if not whole and module not in modules:
                raise self._unknown(name)
            kind = "weight" if whole else leaf
            for place in self._places(layer, name, modules[inner if whole else module]):
                yield self._rows(place, kind, name)

    def _places(self, layer: int, name: str, readings: tuple[tuple[str, ...], ...]) -> list[Place]:
        """Where the first reading of which all is there has its rows."""
        missing = ""
        for tensors in readings:
            found = [self.base.place(layer, f"blk.{layer}.{tensor}") for tensor in tensors]
            places = [place for place in found if place is not None]
            if len(places) == len(tensors):
                return places
            missing = missing or tensors[found.index(None)]
        raise self._missing(f"blk.{layer}.{missing}.weight", name)

    def _rows(self, place: Place, kind: str, name: str) -> _Part:
        """The rows of a place, or their biases, in the order of transformers' heads."""
        import numpy as np

        tensor = f"{place.tensor.removesuffix('weight')}{kind}"
        values = self._read(tensor, name, slice(place.first, place.first + place.rows))
        if place.order is not None:
            if values.shape[0] != place.rows:
                raise self._misfit(name, tensor, (place.rows, *values.shape[1:]))
            ordered = np.empty_like(values)
            ordered[place.order.index()] = values
            values = ordered
        return _Part(tensor, values)

    def _vector(self, tensor: str, name: str, shape: tuple[int, ...]) -> _Part:
        """A whole tensor that is no block's weight."""
        import numpy as np

        values = self._read(tensor, name)
        own = tensor.split(".", 2)[2] if tensor.startswith("blk.") else tensor
        if own in _RESHAPED and values.size == math.prod(shape):
            values = values.reshape(shape)
        if own == "ssm_a":
            if not (values < 0).all():
                raise ModelError(
                    f"{self.base.label}: '{tensor}' has values that are not negative, expected "
                    "minus the exponential of what was trained; the file is damaged"
                )
            values = np.log(-values)
        elif self.base.architecture in _GEMMA and own.endswith("norm.weight"):
            values = values - np.float32(1)
        return _Part(tensor, values)

    def _read(self, tensor: str, name: str, rows: slice = slice(None)) -> Array:
        """A tensor's rows, dequantised, in torch's order of dimensions."""
        info = self.base.header.tensors.get(tensor)
        if info is None:
            raise self._missing(tensor, name)
        self.used.add(tensor)
        return _dequantised(self.data[tensor], info, rows, self.base.label)

    def _missing(self, tensor: str, parameter: str) -> ModelError:
        return ModelError(
            f"{self.base.label}: there is no tensor '{tensor}', which transformers' '{parameter}' "
            "is made of; convert the model again"
        )

    def _unknown(self, name: str) -> ModelError:
        return ModelError(
            f"{self.base.label}: no tensor is known for transformers' parameter '{name}' of a "
            f"{self.base.architecture}; install the transformers of 'alora-gguf[train]'"
        )

    def _misfit(self, name: str, tensor: str, shape: tuple[int, ...]) -> ModelError:
        found = list(reversed(self.base.header.tensors[tensor].shape))
        return ModelError(
            f"{self.base.label}: tensor '{tensor}' of shape {found} does not fit transformers' "
            f"'{name}' of shape {list(shape)}, as the metadata have it; convert the model again"
        )


def _dequantised(data: memoryview, info: TensorInfo, rows: slice, label: str) -> Array:
    """Some of a tensor's rows (of a vector, elements) in F32, a few at a time: gguf keeps the parts
    of what it is given beside the whole.
    """
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    shape = info.shape[::-1] if len(info.shape) > 1 else (*info.shape, 1)  # vectors are F32
    stored = np.frombuffer(data, np.uint8).reshape(*shape[:-1], -1)[..., rows, :]
    source = stored.reshape(-1, stored.shape[-1])
    out = np.empty((*stored.shape[:-1], shape[-1]), np.float32)
    flat, n = out.reshape(-1, shape[-1]), max(1, _AT_ONCE // shape[-1])
    try:
        kind = GGMLQuantizationType(info.type)
        for first in range(0, len(flat), n):
            flat[first : first + n] = dequantize(source[first : first + n], kind)
    except (NotImplementedError, ValueError) as error:
        raise ModelError(
            f"{label}: tensor '{info.name}' is {info.type_name}, which the installed gguf cannot "
            "dequantise; train on the model in another quantization"
        ) from error
    return out.reshape(-1) if len(info.shape) == 1 else out
