"""What a GGUF file is, told from its header alone: adapters, steering vectors, bases, and whatever
else comes.

Nothing is refused here that can be read: what is wrong with an adapter or a vector becomes one of
its `problems`. Neither numpy nor a vocabulary is loaded; how it is shown is the command's business.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final

from alora_gguf._calls import checked

from . import classifier, glp, head
from .adapter import ALPHA, INVOCATION, Pair, pairs_in, problems
from .header import GGUFHeader, read_header
from .parser import VALUE_FORMATS, ArrayRef, Scalar, TensorInfo
from .vector_file import VectorOrigin, origin_of

_LONG: Final = 1024  # arrays of more elements are only counted, layers are never that many
_LAYER: Final = re.compile(r"(.*\bblk)\.(0|[1-9][0-9]*)\.(.+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ArraySummary:
    """An array that was left in the file: the type of its elements, such as "string", and count."""

    array_of: str
    count: int


MetadataValue = Scalar | tuple[Scalar, ...] | ArraySummary


@dataclass(frozen=True, slots=True)
class TypeTotal:
    """All tensors of one ggml type together."""

    type: str
    n_tensors: int
    n_parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Like weights of several layers that an adapter changes in the same way.

    `name` leaves out the layer and ".weight", such as "attn_q"; `layers` are ascending, and () for
    a weight outside the layers. `type` is "F16", or "F16/F32" where A's differs from B's. A pair
    maps `n_in` to `n_out` through `rank`, in each of `n_experts` (None for a plain matrix);
    for token_embd `n_in` is the vocabulary. `scale` is alpha/rank, 1 if the file has no alpha, as
    llama.cpp has it. `nbytes` counts A and B of all layers.
    """

    name: str
    layers: tuple[int, ...]
    rank: int
    scale: float
    type: str
    n_in: int
    n_out: int
    n_experts: int | None
    nbytes: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A base's tokens, counted; `model` and `pre` name the tokenizer, such as "gpt2", "qwen2"."""

    size: int | None
    model: str | None
    pre: str | None
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of a split model a file is: `part` counts from 1, `n_tensors` is of all parts."""

    part: int
    n_parts: int
    n_tensors: int | None


@dataclass(frozen=True)
class FileSummary:
    """What every GGUF file has.

    kind         "alora", "lora", "vector", "model", "vocabulary" (a model without weights),
                 "mmproj", or what general.type says, such as "imatrix"
    nbytes       the size of the file; `weights_nbytes` that of the tensors, without padding
    types        the tensors by ggml type, the most bytes first
    metadata     every key in the file's order; long arrays, and all of a tokenizer's, only counted
    problems     what is wrong with the file, one sentence each; () for a sound one
    """

    path: Path
    kind: str
    architecture: str | None
    name: str | None
    gguf_version: int
    nbytes: int
    n_tensors: int
    n_parameters: int
    weights_nbytes: int
    types: tuple[TypeTotal, ...]
    metadata: Mapping[str, MetadataValue]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON can hold it; numbers that are not finite become strings."""
        shown: dict[str, Any] = plain(self)
        for last in ("metadata", "problems"):  # long, and of interest once the rest is known
            shown[last] = shown.pop(last)
        return shown


@dataclass(frozen=True)
class AdapterSummary(FileSummary):
    """A LoRA or aLoRA.

    `invocation` is () for a plain LoRA; `invocation_text` is None where the file does not say.
    `alpha` is None if there is none. `targets` and `ranks` leave out tensors that are not pairs;
    `problems` names those. `labels` are a classifier's, whose head is in it. The weights themselves
    are not looked at.
    """

    invocation_text: str | None
    invocation: tuple[int, ...]
    alpha: float | None
    ranks: tuple[int, ...]
    targets: tuple[Target, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class VectorSummary(FileSummary):
    """A steering vector, as its header has it; None is what it does not say, or not readably.

    `architecture` is the base's (controlvector.model_hint). `operation` and `hook` are as in
    Directions, `scale` is glp.alpha_default, 1 if there is none. `layers` are the blocks' indices,
    ascending, `rank` the most directions that one has. It begins at the reply where `invocation`
    is (). The directions themselves are not looked at.
    """

    invocation_text: str | None
    invocation: tuple[int, ...]
    operation: str | None
    hook: str | None
    scale: float | None
    rank: int
    layers: tuple[int, ...]
    n_embd: int | None
    origin: VectorOrigin


@dataclass(frozen=True)
class ClassifierSummary(FileSummary):
    """A classifier's head, which tells `labels` apart by states of `n_embd` values, as far as its
    header says so readably. Its numbers are not looked at.
    """

    invocation_text: str | None
    invocation: tuple[int, ...]
    labels: tuple[str, ...]
    n_embd: int | None


@dataclass(frozen=True)
class BaseSummary(FileSummary):
    """A base, or any other file that is not an adapter; None is what the file does not say.

    `heads` and `kv_heads` are one number, or one for each layer. `tied_output` is whether the
    output head shares the embedding's weight; in a split model one part may not know.
    """

    size_label: str | None
    layers: int | None
    n_embd: int | None
    heads: int | tuple[int, ...] | None
    kv_heads: int | tuple[int, ...] | None
    context_length: int | None
    experts: int | None
    experts_used: int | None
    vocabulary: Vocabulary | None
    tied_output: bool | None
    split: Split | None


def plain(value: Any) -> Any:
    """A value of a record in terms of dict, list, str, int, float, bool and None."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


# Finding out -------------------------------------------------------------------------------------


@checked
def inspect_gguf(
    path: str | os.PathLike[str],
) -> AdapterSummary | VectorSummary | ClassifierSummary | BaseSummary:
    """Reads a GGUF file's header and says what the file holds.

    A malformed adapter or vector is described too, with its `problems`. Raises FileFormatError if
    the file is not a GGUF, truncated or damaged.
    """
    path = Path(path)
    facts = _Facts(path, read_header(path))
    if glp.is_vector(facts.header):
        return _vector(facts)
    if classifier.is_classifier(facts.header):
        return _classifier(facts)
    # it says so, or looks like one that fails to
    is_adapter = (
        facts.declared == "adapter"
        or "adapter.type" in facts.header.metadata
        or any(name.endswith((".lora_a", ".lora_b")) for name in facts.header.tensors)
    )
    return _adapter(facts) if is_adapter else _base(facts)


class _Facts:
    """A header's values by type; one of an unexpected type counts as absent and is a problem."""

    def __init__(self, path: Path, header: GGUFHeader) -> None:
        self.path = path
        self.header = header
        self.problems: list[str] = []
        self.declared = self.text("general.type")
        self.architecture = self.text("general.architecture")
        self.name = self.text("general.name")

    def text(self, key: str) -> str | None:
        value = self.header.metadata.get(key)
        if isinstance(value, str):
            return value
        self.unexpected(key, "a string")
        return None

    def integer(self, key: str) -> int | None:
        value = self.header.metadata.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        self.unexpected(key, "an integer")
        return None

    def per_layer(self, key: str) -> int | tuple[int, ...] | None:
        """An integer, or an array of one for each layer."""
        value = self.header.metadata.get(key)
        if not isinstance(value, ArrayRef):
            return self.integer(key)
        numbers = self.integers(key, value) if value.count <= _LONG else None
        if numbers is None:
            self.unexpected(key, f"an integer, or at most {_LONG} of them")
        return numbers

    def integers(self, key: str, ref: Scalar | ArrayRef | None) -> tuple[int, ...] | None:
        """An array's elements, if they are integers."""
        if not isinstance(ref, ArrayRef) or VALUE_FORMATS.get(ref.type, "?") in "?fd":
            return None
        return self.header.array(key)

    def unexpected(self, key: str, expected: str) -> None:
        """Notes a problem if `key` is there at all."""
        if key in self.header.metadata:
            self.problems.append(f"{key} is {self.header.type_of(key)}, expected {expected}")

    def shown(self, key: str, value: Scalar | ArrayRef) -> MetadataValue:
        if not isinstance(value, ArrayRef):
            return value
        if key.startswith("tokenizer.") or value.count > _LONG:
            return ArraySummary(value.type.name.lower(), value.count)
        return self.header.array(key)

    def common(self, kind: str) -> dict[str, Any]:
        """The fields of FileSummary, once all problems are known."""
        types = type_totals(self.header.tensors.values())
        facts = FileSummary(
            path=self.path,
            kind=kind,
            architecture=self.architecture,
            name=self.name,
            gguf_version=self.header.version,
            nbytes=self.header.size,
            n_tensors=len(self.header.tensors),
            n_parameters=sum(total.n_parameters for total in types),
            weights_nbytes=sum(total.nbytes for total in types),
            types=types,
            metadata={key: self.shown(key, each) for key, each in self.header.metadata.items()},
            problems=tuple(dict.fromkeys(self.problems)),
        )
        return vars(facts)


def _adapter(facts: _Facts) -> AdapterSummary:
    # the texts that the constructor missed may be among them, once more
    facts.problems += [problem.text for problem in problems(facts.header)]
    metadata = facts.header.metadata
    value = metadata.get(ALPHA)
    alpha = None if value is None or isinstance(value, (bool, str, ArrayRef)) else float(value)
    targets = _targets(facts.header, alpha)
    return AdapterSummary(
        invocation_text=facts.text("alora.invocation_text"),
        invocation=facts.integers(INVOCATION, metadata.get(INVOCATION)) or (),
        alpha=alpha,
        ranks=tuple(sorted({target.rank for target in targets})),
        targets=targets,
        labels=head.labels_in(facts.header) if head.has_head(facts.header) else (),
        **facts.common("alora" if INVOCATION in metadata else "lora"),
    )


def _classifier(facts: _Facts) -> ClassifierSummary:
    header = facts.header
    facts.problems += [problem.text for problem in classifier.problems(header)]
    weight = header.tensors.get(head.WEIGHT)
    return ClassifierSummary(
        invocation_text=facts.text("alora.invocation_text"),
        invocation=facts.integers(INVOCATION, header.metadata.get(INVOCATION)) or (),
        labels=head.labels_in(header),
        n_embd=weight.shape[0] if weight is not None and weight.shape else None,
        **facts.common(head.KIND),
    )


def _vector(facts: _Facts) -> VectorSummary:
    header, metadata = facts.header, facts.header.metadata
    facts.architecture = facts.text(glp.HINT)
    facts.problems += [problem.text for problem in glp.problems(header)]
    alpha, mode, hook = (metadata.get(key) for key in (glp.ALPHA, glp.MODE, glp.HOOK))
    number = alpha if isinstance(alpha, (int, float)) and not isinstance(alpha, bool) else None
    layers = glp.directions_in(header)
    of_layer = next(iter(layers.values()), [])
    return VectorSummary(
        invocation_text=facts.text(glp.TEXT),
        invocation=facts.integers(INVOCATION, metadata.get(INVOCATION)) or (),
        operation="add" if mode is None else mode if isinstance(mode, str) else None,
        hook="block"
        if hook is None
        else glp.HOOK_POINTS.get(hook)
        if isinstance(hook, str)
        else None,
        scale=1.0 if alpha is None else number,
        rank=max(map(len, layers.values()), default=0),
        layers=tuple(layers),
        n_embd=of_layer[0].shape[0] if of_layer else None,
        origin=origin_of(header),
        **facts.common("vector"),
    )


def _targets(header: GGUFHeader, alpha: float | None) -> tuple[Target, ...]:
    """Pairs that fit; those of several layers that share all else as one."""
    alike: dict[Target, list[Target]] = defaultdict(list)
    for pair in pairs_in(header):
        if pair.fits:
            target = _target(pair, alpha)
            alike[replace(target, layers=(), nbytes=0)].append(target)
    merged = (
        replace(
            target,
            layers=tuple(sorted({layer for each in group for layer in each.layers})),
            nbytes=sum(each.nbytes for each in group),
        )
        for target, group in alike.items()
    )
    return tuple(sorted(merged, key=lambda t: (t.name, t.layers, t.rank)))


def _target(pair: Pair, alpha: float | None) -> Target:
    weight, a, b = pair.target.removesuffix(".weight"), pair.a, pair.b
    found = _LAYER.fullmatch(weight)
    return Target(
        name=found[1].removesuffix("blk") + found[3] if found else weight,
        layers=(int(found[2]),) if found else (),
        rank=pair.rank,
        scale=alpha / pair.rank if alpha else 1.0,
        type=a.type_name if a.type == b.type else f"{a.type_name}/{b.type_name}",
        n_in=pair.n_in,
        n_out=b.shape[1],
        n_experts=a.shape[2] if len(a.shape) == 3 else None,
        nbytes=a.nbytes + b.nbytes,
    )


def _base(facts: _Facts) -> BaseSummary:
    header, arch = facts.header, facts.architecture or ""
    split = _split(facts)
    kind = facts.declared or "model"
    if arch == "clip":
        kind = "mmproj"  # older ones do not say so
    elif kind == "model" and not header.tensors and "tokenizer.ggml.tokens" in header.metadata:
        kind = "vocabulary"
    # only the first part of a split model has the metadata
    if kind == "model" and not facts.architecture and (split is None or split.part == 1):
        facts.problems.append("general.architecture is missing")
    if kind == "model" and not header.tensors and split is None:
        facts.problems.append("holds neither weights nor a vocabulary; download the whole model")
    tied = False if "output.weight" in header.tensors else None
    if tied is None and "token_embd.weight" in header.tensors and split is None:
        tied = True
    return BaseSummary(
        size_label=facts.text("general.size_label"),
        layers=facts.integer(f"{arch}.block_count"),
        n_embd=facts.integer(f"{arch}.embedding_length"),
        heads=facts.per_layer(f"{arch}.attention.head_count"),
        kv_heads=facts.per_layer(f"{arch}.attention.head_count_kv"),
        context_length=facts.integer(f"{arch}.context_length"),
        experts=facts.integer(f"{arch}.expert_count"),
        experts_used=facts.integer(f"{arch}.expert_used_count"),
        vocabulary=_vocabulary(facts, arch),
        tied_output=tied,
        split=split,
        **facts.common(kind),
    )


def _split(facts: _Facts) -> Split | None:
    number, count = facts.integer("split.no"), facts.integer("split.count")
    if number is None or count is None or count <= 1:
        return None
    return Split(number + 1, count, facts.integer("split.tensors.count"))


def _vocabulary(facts: _Facts, arch: str) -> Vocabulary | None:
    header = facts.header
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    embedding = header.tensors.get("token_embd.weight")
    size = tokens.count if isinstance(tokens, ArrayRef) else facts.integer(f"{arch}.vocab_size")
    if size is None and embedding is not None and len(embedding.shape) == 2:
        size = embedding.shape[1]
    found = Vocabulary(
        size=size,
        model=facts.text("tokenizer.ggml.model"),
        pre=facts.text("tokenizer.ggml.pre"),
        has_chat_template=any(key.startswith("tokenizer.chat_template") for key in header.metadata),
    )
    return None if found == Vocabulary(None, None, None, has_chat_template=False) else found


def type_totals(tensors: Iterable[TensorInfo]) -> tuple[TypeTotal, ...]:
    """Tensors by their type, the most bytes first."""
    groups: dict[str, list[TensorInfo]] = defaultdict(list)
    for info in tensors:
        groups[info.type_name].append(info)
    totals = [
        TypeTotal(
            type=name,
            n_tensors=len(infos),
            n_parameters=sum(math.prod(info.shape) for info in infos),
            nbytes=sum(info.nbytes for info in infos),
        )
        for name, infos in groups.items()
    ]
    return tuple(sorted(totals, key=lambda total: (-total.nbytes, total.type)))
