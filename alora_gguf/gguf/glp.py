"""What the header of a steering vector says: its keys, its directions, and what makes it sound.

Two conventions share the file:

llama.cpp   general.architecture "controlvector", controlvector.model_hint, and for each layer
            direction.<layer> [n_embd]: added to the stream behind that block. repeng writes it.
GLP         the keys glp.* beside them, which say what llama.cpp's leave to a guess: operation,
            hook, strength, base. Of rank k, direction.<layer>.1 to .<k-1> are the other directions.
            (github.com/msuiche/weightless, spec/GLP.md, versions 1 and 2)

Ours are two values of glp.mode that GLP's readers refuse, as they should: "project_positive" and
"add_keep_norm"; and an invocation, in the keys that activated LoRAs have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple, cast

from .adapter import INVOCATION, Problem
from .header import GGUFHeader
from .parser import ArrayRef, TensorInfo, ValueType
from .soundness import MAX_LAYERS

Hook = Literal["block", "attention", "ffn"]
Operation = Literal["add", "project", "project_positive", "add_keep_norm"]

CONTROLVECTOR: Final = "controlvector"
HINT: Final = "controlvector.model_hint"
LAYER_COUNT: Final = "controlvector.layer_count"
MODE: Final = "glp.mode"
VERSION: Final = "glp.spec_version"
ALPHA: Final = "glp.alpha_default"
RANK: Final = "glp.rank"
ORTHONORMAL: Final = "glp.orthonormal"
HOOK: Final = "glp.hook_point"
STRUCTURE: Final = "glp.structure"
LAYERS: Final = "glp.layer_ids_zero_based"
DIR_SCALES: Final = "glp.dir_scales"
LAYER_SCALES: Final = "glp.layer_scales"
SHA256: Final = "glp.content_sha256"
TEXT: Final = "alora.invocation_text"

OPERATIONS: Final[tuple[Operation, ...]] = ("add", "project", "project_positive", "add_keep_norm")
PROJECTIONS: Final = ("project", "project_positive")
HOOK_POINTS: Final[Mapping[str, Hook]] = {
    "residual_stream_post_layer": "block",
    "attn_out_pre_residual": "attention",
    "ffn_out_pre_residual": "ffn",
}
HOOKS: Final[tuple[Hook, ...]] = tuple(HOOK_POINTS.values())
# keys of the origin by VectorOrigin's fields; where GLP has none of its own, GGUF's
ORIGIN: Final[Mapping[str, tuple[str, ...]]] = {
    "base_model": ("glp.base_model", "general.base_model.0.name"),
    "base_revision": ("glp.base_revision", "general.base_model.0.version"),
    "method": ("glp.method",),
    "contrast": ("glp.contrast",),
    "derived_at": ("glp.derived_at",),
    "validation": ("glp.validation",),
    "generator": ("glp.generator",),
    "created": ("glp.created",),
}
_DIRECTION: Final = re.compile(r"direction\.(0|[1-9][0-9]{0,5})(?:\.([1-9][0-9]{0,5}))?", re.ASCII)
_TYPES: Final = ("F32", "F16")
_VERSIONS: Final = (1, 2)
_STRINGS: Final = (HINT, MODE, HOOK, STRUCTURE, DIR_SCALES, LAYER_SCALES, SHA256, TEXT)
_AGAIN: Final = "export the vector again"
_ANOTHER: Final = "use a version of alora-gguf that knows it"


class Place(NamedTuple):
    """Which direction a tensor is: the block's index, and its number in that layer's basis."""

    layer: int
    number: int


def is_vector(header: GGUFHeader) -> bool:
    """Whether a file is a steering vector, or means to be one: by its kind, keys or tensors."""
    return (
        CONTROLVECTOR in map(header.metadata.get, ("general.architecture", "general.type"))
        or any(key.startswith(("controlvector.", "glp.")) for key in header.metadata)
        or any(name.startswith("direction.") for name in header.tensors)
    )


def place_of(name: str) -> Place | None:
    """Where the direction in a tensor of that name stands; None if the name says none."""
    found = _DIRECTION.fullmatch(name)
    return Place(int(found[1]), int(found[2] or 0)) if found else None


def directions_in(header: GGUFHeader) -> dict[int, list[TensorInfo]]:
    """The tensors of each layer in the order of their numbers, layers ascending."""
    placed = [(place, info) for name, info in header.tensors.items() if (place := place_of(name))]
    layers: dict[int, list[TensorInfo]] = {}
    for place, info in sorted(placed, key=lambda each: each[0]):
        layers.setdefault(place.layer, []).append(info)
    return layers


def operation_of(header: GGUFHeader) -> Operation:
    """What a sound file does; to add is what llama.cpp does with one that does not say."""
    return cast(Operation, header.metadata.get(MODE, "add"))


def hook_of(header: GGUFHeader) -> Hook:
    """Where a sound file acts; behind the block is where llama.cpp adds."""
    return HOOK_POINTS[cast(str, header.metadata.get(HOOK, "residual_stream_post_layer"))]


def strength_of(header: GGUFHeader) -> float:
    """glp.alpha_default of a sound file, 1 if it has none."""
    return float(cast(float, header.metadata.get(ALPHA, 1.0)))


def scales_of(header: GGUFHeader, layer: int, rank: int) -> list[float]:
    """The scale of each of a layer's directions, in a sound file."""
    alpha = strength_of(header)
    of_directions = _dir_scales(header) or [1.0] * rank
    return [alpha * each * _layer_scales(header).get(layer, 1.0) for each in of_directions]


def text_of(header: GGUFHeader, *keys: str) -> str | None:
    """The first of the keys that has a text."""
    found = (header.metadata.get(key) for key in keys)
    return next((text for text in found if isinstance(text, str) and text), None)


# What makes a vector's header sound ---------------------------------------------------------------


def problems(header: GGUFHeader) -> Iterator[Problem]:
    """Everything that is wrong with a vector, as far as its header and no base tell."""
    yield from _kind_problems(header)
    yield from _type_problems(header)
    yield from _value_problems(header)
    yield from _invocation_problems(header)
    yield from _tensor_problems(header)
    yield from _rank_problems(header)
    yield from _layer_problems(header)
    yield from _scale_problems(header)


def _kind_problems(header: GGUFHeader) -> Iterator[Problem]:
    key = "general.architecture"
    way_out = "this is not a steering vector's file"
    if key not in header.metadata:
        yield Problem(f"{key} is missing, expected '{CONTROLVECTOR}'", way_out)
    elif header.types[key] is not ValueType.STRING:
        yield Problem(f"{key} is {header.type_of(key)}, expected a string", way_out)
    elif header.metadata[key] != CONTROLVECTOR:
        yield Problem(f"{key} is '{header.metadata[key]}', expected '{CONTROLVECTOR}'", way_out)


def _type_problems(header: GGUFHeader) -> Iterator[Problem]:
    for key in _STRINGS:
        if key in header.metadata and header.types[key] is not ValueType.STRING:
            yield Problem(f"{key} is {header.type_of(key)}, expected a string", _AGAIN)
    for key in (VERSION, RANK):
        if key in header.metadata and _integer(header, key) is None:
            yield Problem(f"{key} is {header.type_of(key)}, expected an integer", _AGAIN)
    if ORTHONORMAL in header.metadata and header.types[ORTHONORMAL] is not ValueType.BOOL:
        found = header.type_of(ORTHONORMAL)
        yield Problem(f"{ORTHONORMAL} is {found}, expected a bool", _AGAIN)
    if ALPHA in header.metadata:
        value = header.metadata[ALPHA]
        if isinstance(value, (bool, str, ArrayRef)):
            yield Problem(f"{ALPHA} is {header.type_of(ALPHA)}, expected a float32", _AGAIN)
        elif not math.isfinite(value):
            yield Problem(f"{ALPHA} is {value}, expected a finite number", _AGAIN)


def _value_problems(header: GGUFHeader) -> Iterator[Problem]:
    mode, hook = header.metadata.get(MODE), header.metadata.get(HOOK)
    if isinstance(mode, str) and mode not in OPERATIONS:
        yield Problem(f"{MODE} is '{mode}', expected one of {', '.join(OPERATIONS)}", _ANOTHER)
    if isinstance(hook, str) and hook not in HOOK_POINTS:
        yield Problem(f"{HOOK} is '{hook}', expected one of {', '.join(HOOK_POINTS)}", _ANOTHER)
    if mode is None and any(key.startswith("glp.") for key in header.metadata):
        found = f"{MODE} is missing, but other glp keys are there"
        yield Problem(f"{found}: nothing says whether to add or to project", _AGAIN)
    if hook is None and isinstance(mode, str) and mode != "add":
        found = f"{HOOK} is missing, expected one of {', '.join(HOOK_POINTS)}"
        yield Problem(f"{found}: at another place '{mode}' does something else", _AGAIN)
    version = _integer(header, VERSION)
    if version is not None and version not in _VERSIONS:
        yield Problem(f"{VERSION} is {version}, expected 1 or 2", _ANOTHER)
    if header.metadata.get(STRUCTURE) == "per-execution-step":
        found = f"{STRUCTURE} is 'per-execution-step', expected one direction for a layer"
        yield Problem(found, "derive a vector by layers")


def _invocation_problems(header: GGUFHeader) -> Iterator[Problem]:
    if INVOCATION not in header.metadata:
        return
    ref = header.metadata[INVOCATION]
    if not isinstance(ref, ArrayRef) or ref.type is not ValueType.UINT32:
        found = f"{INVOCATION} is {header.type_of(INVOCATION)}, expected an array of uint32"
        yield Problem(found, _AGAIN)
    elif not ref.count:
        found = f"{INVOCATION} is empty"
        yield Problem(found, "leave the key out for a vector that begins at the reply")
    elif (largest := max(header.array(INVOCATION))) > 2**31 - 1:
        yield Problem(f"{INVOCATION} holds {largest}, which is not a token id", _AGAIN)


def _tensor_problems(header: GGUFHeader) -> Iterator[Problem]:
    if not header.tensors:
        yield Problem("holds no directions, so it does nothing", "download or export it again")
    width = None
    for name, info in header.tensors.items():
        if place_of(name) is None:
            found = f"tensor '{name}' is not named direction.<layer>"
            yield Problem(f"{found}, or direction.<layer>.<number>", _AGAIN)
        if info.type_name not in _TYPES:
            found = f"'{name}' is {info.type_name}"
            yield Problem(f"{found}, expected one of {', '.join(_TYPES)}", _AGAIN)
        if len(info.shape) != 1 or not info.shape[0]:
            found = f"'{name}' has the shape {list(info.shape)}"
            yield Problem(f"{found}, expected one dimension, of the base's n_embd", _AGAIN)
        elif width is None:
            width = info.shape[0]
        elif info.shape[0] != width:
            found = f"'{name}' has {info.shape[0]} numbers, but others have {width}"
            yield Problem(f"{found}; all of a base's layers are equally wide", _AGAIN)


def _rank_problems(header: GGUFHeader) -> Iterator[Problem]:
    ranks = set[int]()
    for layer, infos in directions_in(header).items():
        numbers = [cast(Place, place_of(info.name)).number for info in infos]
        ranks.add(len(numbers))
        if numbers != list(range(len(numbers))):
            missing = min({*range(len(numbers))} - {*numbers})
            name = f"direction.{layer}.{missing}" if missing else f"direction.{layer}"
            yield Problem(f"'{name}' is missing, a later one of its layer is there", _AGAIN)
    rank, stated = max(ranks, default=1), _integer(header, RANK)
    if len(ranks) > 1:
        found = f"its layers have {', '.join(map(str, sorted(ranks)))} directions"
        yield Problem(f"{found}, expected as many in each", _AGAIN)
    elif stated is not None and stated != rank:
        yield Problem(f"{RANK} is {stated}, but each layer has {rank} directions", _AGAIN)
    if rank > 1 and operation_of(header) not in PROJECTIONS:
        found = f"a layer has {rank} directions, expected one where they are added"
        yield Problem(found, "add them up, or say in glp.mode that they are projected out")
    later = [key for key in (DIR_SCALES, LAYER_SCALES) if key in header.metadata]
    if _integer(header, VERSION) == 1 and (rank > 1 or later):
        found = f"{VERSION} is 1, which knows neither several directions for a layer nor scales"
        yield Problem(f"{found} for each", _AGAIN)
    if DIR_SCALES in header.metadata and header.metadata.get(ORTHONORMAL) is not True:
        found = f"{DIR_SCALES} is there, but {ORTHONORMAL} is not true"
        yield Problem(f"{found}: scales of directions that overlap mean nothing", _AGAIN)


def _layer_problems(header: GGUFHeader) -> Iterator[Problem]:
    layers = [*directions_in(header)]
    stated = header.metadata.get(LAYERS)
    if isinstance(stated, str) and stated.strip():
        listed = _layer_ids(stated)
        if listed is None:
            yield Problem(f"{LAYERS} is '{stated[:80]}', expected layers with commas", _AGAIN)
        elif sorted(listed) != layers:
            found = f"{LAYERS} is '{stated[:80]}', but the tensors are of {_shown(layers)}"
            yield Problem(f"{found}; one of the two is another layer's", _AGAIN)
    elif stated is False:
        found = f"{LAYERS} is false, but direction.N acts behind block N, counted from 0"
        yield Problem(found, "export the vector with the blocks' own indices")
    elif stated is not None and stated is not True and not isinstance(stated, str):
        yield Problem(f"{LAYERS} is {header.type_of(LAYERS)}, expected a string", _AGAIN)
    if layers[:1] == [0] and (stated is None or stated is False or stated == ""):
        yield Problem(
            "'direction.0' is there, but in control vectors the first layer is 1: it is of the "
            f"embeddings, or all layers are off by one, unless {LAYERS} lists a layer 0",
            "leave it out, or export the vector with the blocks' own indices",
        )
    if layers and layers[-1] >= MAX_LAYERS:
        found = f"'direction.{layers[-1]}' is of a layer that no model has"
        yield Problem(f"{found}, expected at most {MAX_LAYERS - 1}", _AGAIN)


def _scale_problems(header: GGUFHeader) -> Iterator[Problem]:
    layers = directions_in(header)
    rank = max(map(len, layers.values()), default=1)
    for key, found in ((DIR_SCALES, _dir_scales(header)), (LAYER_SCALES, _layer_scales(header))):
        text = header.metadata.get(key)
        if not isinstance(text, str):
            continue
        numbers = list(found.values()) if isinstance(found, dict) else found
        if not numbers or not all(map(math.isfinite, numbers)):
            wanted = "L:number" if key == LAYER_SCALES else "number"
            yield Problem(f"{key} is '{text[:80]}', expected a {wanted} each, with commas", _AGAIN)
        elif key == DIR_SCALES and len(numbers) != rank:
            yield Problem(f"{key} has {len(numbers)} numbers, expected {rank} (the rank)", _AGAIN)
        elif isinstance(found, dict) and not found.keys() <= layers.keys():
            strange = min(found.keys() - layers.keys())
            yield Problem(f"{key} names layer {strange}, which has no direction", _AGAIN)


# Values -------------------------------------------------------------------------------------------


def _integer(header: GGUFHeader, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _layer_ids(text: str) -> list[int] | None:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(re.fullmatch("[0-9]{1,6}", part, re.ASCII) for part in parts):
        return None
    return [int(part) for part in parts]


def _dir_scales(header: GGUFHeader) -> list[float]:
    """glp.dir_scales; [] if it is not there, or no list of numbers."""
    text = header.metadata.get(DIR_SCALES)
    try:
        return [float(part) for part in text.split(",")] if isinstance(text, str) else []
    except ValueError:
        return []


def _layer_scales(header: GGUFHeader) -> dict[int, float]:
    """glp.layer_scales, "L:m" with commas; {} if it is not there, or says something else."""
    text, found = header.metadata.get(LAYER_SCALES), dict[int, float]()
    for part in text.split(",") if isinstance(text, str) else ():
        layer, _, number = part.strip().partition(":")
        try:
            twice = int(layer) in found
            found[int(layer)] = float(number)
        except ValueError:
            return {}
        if twice:
            return {}
    return found


def _shown(layers: list[int]) -> str:
    listed = ",".join(map(str, layers[:12]))
    return f"{listed},…" if len(layers) > 12 else listed or "none"
