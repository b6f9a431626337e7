"""Writes a steering vector's GGUF: the same bytes for the same vector, with every key of GLP."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from alora_gguf._calls import checked

from . import glp
from .adapter import INVOCATION
from .directions import EXACT, Directions, overlap, require
from .glp import Hook
from .parser import ValueType
from .vector_file import VectorFile, VectorOrigin
from .writer import OutTensor, Value, write_gguf

_F32: Final = 0


@checked
def write_vector(
    path: str | os.PathLike[str],
    parts: Iterable[Directions],
    *,
    architecture: str,
    name: str = "",
    invocation: Sequence[int] = (),
    invocation_text: str | None = None,
    origin: VectorOrigin | None = None,
    overwrite: bool = False,
) -> VectorFile:
    """Writes a vector, with every GLP key, and reads it back: the same bytes for the same vector.

    parts            of one operation and one hook, with equally many directions in each layer;
                     others are a combination of several vectors
    architecture     the base's, such as "llama"
    name             the file's own by default
    invocation       the token ids where it begins, as `invocation_text`; () for the reply

    To add is written with its scales in the numbers, which is what llama.cpp reads; all else with
    glp.alpha_default, or with a scale for each layer or direction where they differ. llama.cpp
    would add those too, whatever they say; readers of GLP know better. A direction at layer 0 it
    refuses. Raises InputError for what one file cannot hold, ConvertError if the file system
    refuses.
    """
    target = Path(path)
    layers = _by_layer(parts)
    first = next(iter(layers.values()))[0]
    require(bool(architecture), "architecture is empty, expected the base's, such as 'llama'")
    require(
        all(_is_token(token) for token in invocation),
        f"invocation is {list(invocation)!r:.80}, expected token ids",
    )
    adds = first.operation == "add"
    scales = _Scales(1.0) if adds else _written_scales(layers)
    tensors = list(_out_tensors(layers, folded=adds))
    digest = hashlib.sha256(b"".join(bytes(tensor.data()) for tensor in tensors))
    entries: list[tuple[str, Value | None]] = [
        ("general.architecture", glp.CONTROLVECTOR),
        ("general.type", glp.CONTROLVECTOR),
        ("general.name", name or target.stem),
        *_base_entries(origin or VectorOrigin()),
        (glp.HINT, architecture),
        (glp.LAYER_COUNT, len(layers)),
        (INVOCATION, [*invocation] or None),
        (glp.TEXT, invocation_text),
        (glp.VERSION, 2 if scales.later or _rank(layers) > 1 else 1),
        (glp.MODE, first.operation),
        (glp.HOOK, _hook_point(first.hook)),
        (glp.ALPHA, scales.alpha),
        (glp.DIR_SCALES, scales.of_directions),
        (glp.LAYER_SCALES, scales.of_layers),
        (glp.RANK, _rank(layers)),
        (glp.ORTHONORMAL, first.operation in glp.PROJECTIONS),
        (glp.STRUCTURE, "per-layer"),
        (glp.LAYERS, ",".join(map(str, layers))),
        *_origin_entries(origin or VectorOrigin(), _hook_point(first.hook)),
        (glp.SHA256, digest.hexdigest()),
    ]
    metadata = [(key, _type_of(value), value) for key, value in entries if value is not None]
    write_gguf(target, metadata, tensors, overwrite=overwrite)
    return VectorFile.read(target)


_Layers = dict[int, list[Directions]]


@dataclass(frozen=True)
class _Scales:
    """The scales of a vector as GLP's keys have them."""

    alpha: float
    of_directions: str | None = None
    of_layers: str | None = None

    @property
    def later(self) -> bool:
        """Whether version 1 does not know of them."""
        return self.of_directions is not None or self.of_layers is not None


def _by_layer(parts: Iterable[Directions]) -> _Layers:
    given = [*parts]
    require(bool(given), "parts are empty, expected at least one layer's directions")
    for part in given:
        require(isinstance(part, Directions), f"parts hold {part!r:.80}, expected Directions")
    for what in ("operation", "hook", "n_embd"):
        found = sorted({str(getattr(part, what)) for part in given})
        require(
            len(found) == 1,
            f"parts have several of {what} ({', '.join(found)}), expected one in a file; write a "
            "file for each, and use them together",
        )
    layers: _Layers = {}
    for part in sorted(given, key=lambda part: part.layer):
        layers.setdefault(part.layer, []).append(part)
    ranks = sorted({sum(part.rank for part in each) for each in layers.values()})
    require(
        len(ranks) == 1,
        f"layers have {', '.join(map(str, ranks))} directions, expected as many in each; write a "
        "file for each, and use them together",
    )
    one = given[0].operation in glp.PROJECTIONS or ranks == [1]
    require(one, f"a layer has {ranks[0]} parts that add, expected one; add them up")
    for layer, each in layers.items():
        import numpy as np

        off = overlap(np.concatenate([part.values for part in each])) if len(each) > 1 else 0
        require(
            off <= EXACT,
            f"the parts of layer {layer} overlap, expected orthogonal ones in a file; write a file "
            "for each, and use them together",
        )
    return layers


def _rank(layers: _Layers) -> int:
    return sum(part.rank for part in next(iter(layers.values())))


def _written_scales(layers: _Layers) -> _Scales:
    of_each = {
        layer: [part.scale for part in each for _ in range(part.rank)]
        for layer, each in layers.items()
    }
    first = next(iter(of_each.values()))
    if all(scales == first for scales in of_each.values()):
        if len(set(first)) == 1:
            return _Scales(first[0])
        return _Scales(1.0, of_directions=",".join(map(_shortest, first)))
    require(
        all(len(set(scales)) == 1 for scales in of_each.values()),
        "scales differ both by layer and by direction, expected one of the two; write a file for "
        "each direction, and use them together",
    )
    listed = ",".join(f"{layer}:{_shortest(scales[0])}" for layer, scales in of_each.items())
    return _Scales(1.0, of_layers=listed)


def _shortest(scale: float) -> str:
    """A float32 in as few digits as tell it from all others."""
    import numpy as np

    return str(np.float32(scale))


def _out_tensors(layers: _Layers, *, folded: bool) -> Iterable[OutTensor]:
    import numpy as np

    for layer, each in layers.items():
        rows = [(part, row) for part in each for row in part.values]
        for number, (part, row) in enumerate(rows):
            with np.errstate(over="ignore"):
                values = row * np.float32(part.scale) if folded else row
            require(
                bool(np.isfinite(values).all() and values.any()),
                f"the direction of layer {layer} times its scale {part.scale:g} is beyond float32 "
                "or nothing; give it another scale",
            )
            data = values.astype("<f4").tobytes()
            name = f"direction.{layer}" + (f".{number}" if number else "")
            yield OutTensor(name, (len(row),), _F32, lambda data=data: data)  # type: ignore[misc]


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _hook_point(hook: Hook) -> str:
    return next(point for point, each in glp.HOOK_POINTS.items() if each == hook)


def _base_entries(origin: VectorOrigin) -> list[tuple[str, Value | None]]:
    """The base as GGUF's own keys have it."""
    if not origin.base_model:
        return []
    organization, _, name = origin.base_model.rpartition("/")
    return [
        ("general.base_model.count", 1),
        ("general.base_model.0.name", name),
        ("general.base_model.0.organization", organization or None),
        ("general.base_model.0.version", origin.base_revision or None),
    ]


def _origin_entries(origin: VectorOrigin, hook_point: str) -> list[tuple[str, Value | None]]:
    texts: dict[str, Any] = {each.name: getattr(origin, each.name) for each in fields(origin)}
    texts["derived_at"] = texts["derived_at"] or hook_point
    return [(f"glp.{key}", text or None) for key, text in texts.items()]


def _type_of(value: Value) -> ValueType:
    if isinstance(value, str):
        return ValueType.STRING
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        return ValueType.UINT32
    return ValueType.FLOAT32 if isinstance(value, float) else ValueType.ARRAY
