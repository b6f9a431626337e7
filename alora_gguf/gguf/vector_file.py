"""A steering vector's GGUF file: what it holds, and reading it, checked before any C sees it.

What the keys of a header mean is glp.py's, what is done to a layer directions.py's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from alora_gguf._calls import checked
from alora_gguf.errors import (
    AdapterFormatError,
    AdapterMismatchError,
    FileFormatError,
)
from alora_gguf.files import open_file

from . import glp
from .adapter import INVOCATION, Begins
from .base import BaseFile
from .directions import Directions, data_problem, identity_of, orthonormal, overlap
from .header import GGUFHeader, read_header
from .parser import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CLAIMED: Final = 1e-3  # of max |V Vᵀ - 1| of rows said to be orthonormal; GLP's tolerance
_LARGEST: Final = (2 - 2**-23) * 2.0**127  # of float32
# families by their names in transformers' model_type, which repeng writes; GGUF's name is another
_FAMILIES: Final[Mapping[str, str]] = {
    "mistral": "llama",
    "mixtral": "llama",
    "granitemoehybrid": "granitehybrid",
    "phi": "phi2",
    "cohere": "commandr",
    "deepseekv2": "deepseek2",
    "deepseekv3": "deepseek2",
    "olmo3": "olmo2",
}


@checked
@dataclass(frozen=True)
class VectorOrigin:
    """Where a vector comes from, in words; "" is what nobody says.

    base_model, base_revision  such as "org/name", and the commit
    method, contrast           how it was derived, and from what against what
    derived_at                 the hook that it was read at: GLP's word for one
    validation                 what was measured of it
    generator, created         the program, and the day as 2026-11-30
    """

    base_model: str = ""
    base_revision: str = ""
    method: str = ""
    contrast: str = ""
    derived_at: str = ""
    validation: str = ""
    generator: str = ""
    created: str = ""


@checked
@dataclass(frozen=True)
class VectorFile:
    """A checked steering vector: an adapter that changes what flows through the model.

    `identity` is the hash of what it does (operation, hook, layer, scale and directions of every
    part), whatever the file is called. `architecture` is the base's kind, "" if the file does not
    say. `scale` is the strength that the file was made for (glp.alpha_default, 1 if it has none);
    the parts' own scales have it in them, so an activation's scale of 1 is what the file means.
    It begins at the reply: `invocation` is () unless the file has one, where it begins then;
    `from_start` is of one that was loaded to be on for every token.
    `content_sha256` is of the directions as they lie in the file, and there for every file.
    """

    path: Path
    name: str
    architecture: str
    invocation: tuple[int, ...]
    invocation_text: str | None
    parts: tuple[Directions, ...] = field(repr=False)
    scale: float
    origin: VectorOrigin
    content_sha256: str
    identity: str
    io_yaml: str | None = field(default=None, repr=False)
    temperatures: Mapping[str, float] = field(default_factory=dict, repr=False)
    from_start: bool = False

    @property
    def kind(self) -> Literal["vector"]:
        """What it is."""
        return "vector"

    @property
    def rank(self) -> int:
        """The most directions that a layer has."""
        return max(part.rank for part in self.parts)

    @property
    def n_embd(self) -> int:
        """The width of the base's stream."""
        return self.parts[0].n_embd

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that it changes, ascending."""
        return tuple(sorted({part.layer for part in self.parts}))

    @property
    def targets(self) -> tuple[str, ...]:
        """Where it acts, such as "blk.12", by layer."""
        return tuple(dict.fromkeys(part.target for part in self.parts))

    @property
    def begins(self) -> Begins:
        """Where it is on from: the last token of the prompt, unless it has an invocation."""
        return "start" if self.from_start else "invocation" if self.invocation else "reply"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> VectorFile:
        """Reads a file and checks everything that needs no base. Raises AdapterFormatError, and
        MissingFileError.
        """
        file = Path(path)
        header = _read(file)
        sha256 = _check_content(header)
        parts = tuple(_parts(header))
        return cls(
            path=file,
            name=glp.text_of(header, "general.name") or file.stem,
            architecture=glp.text_of(header, glp.HINT) or "",
            invocation=header.array(INVOCATION) if INVOCATION in header.metadata else (),
            invocation_text=glp.text_of(header, glp.TEXT),
            parts=parts,
            scale=glp.strength_of(header),
            origin=origin_of(header),
            content_sha256=sha256,
            identity=identity_of(parts),
        )

    def check_base(self, base: BaseFile, n_vocab: int) -> None:
        """Raises AdapterMismatchError unless the vector fits this base of `n_vocab` tokens."""
        if self.architecture and _family(self.architecture) != _family(base.architecture):
            raise AdapterMismatchError(
                f"{self.path}: was made for '{self.architecture}' ({glp.HINT}), but {base.path} is "
                f"'{base.architecture}'; use the base it was made for"
            )
        if base.n_embd is not None and self.n_embd != base.n_embd:
            raise AdapterMismatchError(
                f"{self.path}: its directions have {self.n_embd} numbers, but {base.path} is "
                f"{base.n_embd} wide; use the base it was made for"
            )
        if base.n_layer is not None and self.layers[-1] >= base.n_layer:
            raise AdapterMismatchError(
                f"{self.path}: acts on layer {self.layers[-1]}, but {base.path} has {base.n_layer} "
                f"layers, 0 to {base.n_layer - 1}; use the base it was made for"
            )
        for token in self.invocation:
            if token >= n_vocab:
                raise AdapterMismatchError(
                    f"{self.path}: invocation token {token} is outside the vocabulary of "
                    f"{base.path} ({n_vocab} tokens); use the base it was made for"
                )

    def without_data(self) -> VectorFile:
        """Itself: directions are few, where an adapter's weights are many."""
        return self


def origin_of(header: GGUFHeader) -> VectorOrigin:
    """What a vector's header says of where it comes from."""
    texts = {key: glp.text_of(header, *keys) or "" for key, keys in glp.ORIGIN.items()}
    return VectorOrigin(**texts)


# Reading ------------------------------------------------------------------------------------------


def _read(path: Path) -> GGUFHeader:
    """The header of a file's bytes; of a large one that is no vector only its header is read."""
    what = "a steering vector's GGUF file"
    with open_file(path, what, AdapterFormatError) as file:
        try:
            header = read_header(path)
            _check_header(header)
            end = max(info.offset + info.nbytes for info in header.tensors.values())
            header = read_header(file.read(end), name=str(path))  # of these very bytes
            _check_header(header)
        except FileFormatError as error:
            raise AdapterFormatError(str(error)) from error
    return header


def _check_header(header: GGUFHeader) -> None:
    for problem in glp.problems(header):
        raise AdapterFormatError(f"{header.name}: {problem.text}; {problem.fix}")


def _check_content(header: GGUFHeader) -> str:
    """The hash of all directions' bytes, layer by layer, which has to be what the file says."""
    digest = hashlib.sha256()
    for infos in glp.directions_in(header).values():
        for info in infos:
            digest.update(header.tensor_data(info.name))
    found, stated = digest.hexdigest(), header.metadata.get(glp.SHA256)
    if stated is not None and str(stated).lower() != found:
        raise AdapterFormatError(
            f"{header.name}: {glp.SHA256} is '{str(stated)[:80]}', but its directions have "
            f"{found}; the file is damaged or was changed: download or export it again"
        )
    return found


def _parts(header: GGUFHeader) -> Iterable[Directions]:
    import numpy as np

    operation, hook = glp.operation_of(header), glp.hook_of(header)
    for layer, infos in glp.directions_in(header).items():
        values = np.stack([_values(header, info) for info in infos])
        if problem := data_problem(values, operation, [f"'{info.name}'" for info in infos]):
            raise AdapterFormatError(f"{header.name}: {problem}")
        claimed = header.metadata.get(glp.ORTHONORMAL) is True
        if operation in glp.PROJECTIONS and claimed and (off := overlap(values)) > _CLAIMED:
            raise AdapterFormatError(
                f"{header.name}: {glp.ORTHONORMAL} is true, but the directions of layer {layer} "
                f"are not (max |V Vᵀ - 1| is {off:.3g}, expected at most {_CLAIMED:g}); "
                "export the vector again"
            )
        values = orthonormal(values) if operation in glp.PROJECTIONS else values
        scales = glp.scales_of(header, layer, len(infos))
        if not all(abs(scale) <= _LARGEST for scale in scales):
            raise AdapterFormatError(
                f"{header.name}: the scale of layer {layer} is beyond float32 ({glp.ALPHA} "
                "times those of the layer and direction); export the vector again"
            )
        if len(set(scales)) == 1:
            yield Directions(layer, hook, operation, scales[0], values)
        else:  # each on its own: they read the same, and their changes are added up
            for row, scale in zip(values, scales, strict=True):
                yield Directions(layer, hook, operation, scale, row)


def _values(header: GGUFHeader, info: TensorInfo) -> NDArray[np.float32]:
    import numpy as np

    stored = np.frombuffer(
        header.tensor_data(info.name), "<f4" if info.type_name == "F32" else "<f2"
    )
    return stored.astype(np.float32)


def _family(architecture: str) -> str:
    """An architecture's name as GGUF and transformers both can be brought to."""
    plain = "".join(c for c in architecture.lower() if c.isalnum())
    plain = plain.removesuffix("text")  # of multimodal ones, such as gemma3_text
    return _FAMILIES.get(plain, plain)
