"""What a GGUF file is, told from its header alone: adapters, bases, and whatever else comes.

Nothing is refused here that can be read: what is wrong with an adapter becomes one of its
`problems`. Neither numpy nor a vocabulary is loaded; how it is shown is the command's business.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from .header import GGUFHeader, read_header
from .summary import (
    AdapterSummary,
    ArraySummary,
    BaseSummary,
    FileSummary,
    MetadataValue,
    Split,
    Target,
    TypeTotal,
    Vocabulary,
)
from .types import VALUE_FORMATS, ArrayRef, Scalar, TensorInfo, ValueType

_LONG: Final = 1024  # arrays of more elements are only counted, layers are never that many
_A, _B = ".lora_a", ".lora_b"
# what alora_gguf.gguf.adapter takes; it needs numpy, and a test compares the verdicts of both
_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
_MAX_RANK: Final = 4096
_ALPHA: Final = "adapter.lora.alpha"
_INVOCATION: Final = "adapter.alora.invocation_tokens"
_LAYER: Final = re.compile(r"(.*\bblk)\.(0|[1-9][0-9]*)\.(.+)", re.ASCII)


def inspect_gguf(path: str | os.PathLike[str]) -> AdapterSummary | BaseSummary:
    """Reads a GGUF file's header and says what the file holds.

    A malformed adapter is described too, with its `problems`. Raises FileFormatError if the file
    is no GGUF, truncated or damaged.
    """
    path = Path(path)
    facts = _Facts(path, read_header(path))
    return _adapter(facts) if facts.is_adapter() else _base(facts)


class _Facts:
    """A header's values by type; one of an unexpected type counts as absent and is a problem."""

    def __init__(self, path: Path, header: GGUFHeader) -> None:
        self.path = path
        self.header = header
        self.problems: list[str] = []
        self.declared = self.text("general.type")
        self.architecture = self.text("general.architecture")
        self.name = self.text("general.name")

    def is_adapter(self) -> bool:
        """Whether it says so, or looks like one that fails to."""
        return (
            self.declared == "adapter"
            or "adapter.type" in self.header.metadata
            or any(name.endswith((_A, _B)) for name in self.header.tensors)
        )

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
        if numbers is not None:
            return numbers
        self.unexpected(key, f"an integer, or at most {_LONG} of them")
        return None

    def integers(self, key: str, ref: ArrayRef) -> tuple[int, ...] | None:
        """An array's elements, if they are integers."""
        if VALUE_FORMATS.get(ref.type, "?") in "?fd":
            return None
        return self.numbers(key, ref)

    def numbers(self, key: str, ref: ArrayRef) -> tuple[Any, ...]:
        """An array's elements, without numpy, which takes longer to import than all of this."""
        form = f"<{ref.count}{VALUE_FORMATS[ref.type]}"
        return struct.unpack(form, self.header.array_bytes(key))

    def unexpected(self, key: str, expected: str) -> None:
        """Notes a problem if `key` is there at all."""
        if key in self.header.metadata:
            self.problems.append(f"{key} is {self.type_of(key)}, expected {expected}")

    def type_of(self, key: str) -> str:
        """Such as "of type uint32" or "an array of 3 float32"."""
        value = self.header.metadata[key]
        if isinstance(value, ArrayRef):
            return f"an array of {value.count} {value.type.name.lower()}"
        return f"of type {self.header.types[key].name.lower()}"

    def metadata(self) -> dict[str, MetadataValue]:
        return {key: self.shown(key, value) for key, value in self.header.metadata.items()}

    def shown(self, key: str, value: Scalar | ArrayRef) -> MetadataValue:
        if not isinstance(value, ArrayRef):
            return value
        if key.startswith("tokenizer.") or value.count > _LONG:
            return ArraySummary(value.type.name.lower(), value.count)
        if value.type is ValueType.STRING:
            return tuple(self.header.array(key))
        return self.numbers(key, value)

    def common(self, kind: str) -> dict[str, Any]:
        """The fields of FileSummary, once all problems are known."""
        groups: dict[str, list[TensorInfo]] = defaultdict(list)
        for info in self.header.tensors.values():
            groups[info.type_name].append(info)
        types = [
            TypeTotal(name, len(infos), sum(map(_count, infos)), sum(i.nbytes for i in infos))
            for name, infos in groups.items()
        ]
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
            types=tuple(sorted(types, key=lambda total: (-total.nbytes, total.type))),
            metadata=self.metadata(),
            problems=tuple(self.problems),
        )
        return vars(facts)


class _Form(NamedTuple):
    """What a target's layers must share to be shown as one."""

    name: str
    n_experts: int | None
    n_in: int
    n_out: int
    rank: int
    type: str


def _adapter(facts: _Facts) -> AdapterSummary:
    header, problems = facts.header, facts.problems
    if facts.declared != "adapter" and "general.type" not in header.metadata:
        problems.append("general.type is missing, expected 'adapter'")
    elif facts.declared not in (None, "adapter"):
        problems.append(f"general.type is '{facts.declared}', expected 'adapter'")
    if "adapter.type" not in header.metadata:
        problems.append("adapter.type is missing, expected 'lora'")
    elif (technique := facts.text("adapter.type")) not in (None, "lora"):
        problems.append(f"adapter.type is '{technique}', expected 'lora'")
    if (
        not facts.architecture
        and header.types.get("general.architecture", ValueType.STRING) is ValueType.STRING
    ):
        problems.append("general.architecture is missing or empty; it names the base's kind")

    alpha, invocation = _alpha(facts), _invocation(facts)
    forms = _forms(facts)
    targets = [
        Target(
            name=form.name,
            layers=tuple(sorted({layer for layer, _ in members if layer is not None})),
            rank=form.rank,
            scale=alpha / form.rank if alpha else 1.0,
            type=form.type,
            n_in=form.n_in,
            n_out=form.n_out,
            n_experts=form.n_experts,
            nbytes=sum(nbytes for _, nbytes in members),
        )
        for form, members in forms.items()
    ]
    return AdapterSummary(
        invocation_text=facts.text("alora.invocation_text"),
        invocation=invocation,
        alpha=alpha,
        ranks=tuple(sorted({form.rank for form in forms})),
        targets=tuple(sorted(targets, key=lambda t: (t.name, t.layers, t.rank))),
        **facts.common("alora" if _INVOCATION in header.metadata else "lora"),
    )


def _alpha(facts: _Facts) -> float | None:
    if _ALPHA not in facts.header.metadata:
        return None
    value = facts.header.metadata[_ALPHA]
    if facts.header.types[_ALPHA] is not ValueType.FLOAT32:
        facts.unexpected(_ALPHA, "a float32")
    if isinstance(value, (bool, str, ArrayRef)):
        return None
    if not math.isfinite(value):
        facts.problems.append(f"{_ALPHA} is {value}, expected a finite number")
    return float(value)


def _invocation(facts: _Facts) -> tuple[int, ...]:
    if _INVOCATION not in facts.header.metadata:
        return ()
    ref = facts.header.metadata[_INVOCATION]
    ids = (facts.integers(_INVOCATION, ref) if isinstance(ref, ArrayRef) else None) or ()
    if not isinstance(ref, ArrayRef) or ref.type is not ValueType.UINT32:
        facts.unexpected(_INVOCATION, "an array of uint32")
    elif not ids:
        facts.problems.append(
            f"{_INVOCATION} is empty, which makes it a plain LoRA that is on for every token; "
            "leave the key out if that is meant"
        )
    elif max(ids) > 2**31 - 1:
        facts.problems.append(f"{_INVOCATION} holds {max(ids)}, which is no token id")
    return ids


def _forms(facts: _Facts) -> dict[_Form, list[tuple[int | None, int]]]:
    """Sound pairs as (layer, bytes), by what they share; notes problems of the others."""
    halves: dict[str, dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in facts.header.tensors.items():
        if name.endswith((_A, _B)):
            halves[name[: -len(_A)]][name[-len(_A) :]] = info
        elif name.endswith("_norm.weight"):
            facts.problems.append(f"'{name}' is a trained norm, which llama.cpp ignores")
        else:
            facts.problems.append(f"tensor '{name}' ends in neither {_A} nor {_B}")
    if not facts.header.tensors:
        facts.problems.append("holds no weights, so it does nothing")
    forms: dict[_Form, list[tuple[int | None, int]]] = defaultdict(list)
    for target, pair in halves.items():
        if missing := [suffix for suffix in (_A, _B) if suffix not in pair]:
            facts.problems.append(f"'{target}{missing[0]}' is missing, its counterpart is there")
            continue
        a, b = pair[_A], pair[_B]
        facts.problems += _pair_problems(target, a, b)
        if (found := _form(target, a, b)) is not None:
            forms[found[1]].append((found[0], a.nbytes + b.nbytes))
    return forms


def _form(target: str, a: TensorInfo, b: TensorInfo) -> tuple[int | None, _Form] | None:
    """The layer and form of a pair, None if A and B do not fit together."""
    if not _is_matrix(a) or not _is_matrix(b) or a.shape[2:] != b.shape[2:]:
        return None
    # A is [n_in, r], but token_embd's is [r, n_vocab]
    rank, n_in = a.shape[:2] if _is_embedding(target) else (a.shape[1], a.shape[0])
    if rank != b.shape[0]:
        return None
    found = _LAYER.fullmatch(target.removesuffix(".weight"))
    name = found[1].removesuffix("blk") + found[3] if found else target.removesuffix(".weight")
    return int(found[2]) if found else None, _Form(
        name=name,
        n_experts=a.shape[2] if len(a.shape) == 3 else None,
        n_in=n_in,
        n_out=b.shape[1],
        rank=rank,
        type=a.type_name if a.type == b.type else f"{a.type_name}/{b.type_name}",
    )


def _pair_problems(target: str, a: TensorInfo, b: TensorInfo) -> Iterator[str]:
    for info in (a, b):
        if info.type_name not in _TYPES:
            yield f"'{info.name}' is {info.type_name}, expected one of {', '.join(_TYPES)}"
        if not _is_matrix(info):
            yield (
                f"'{info.name}' has the shape {list(info.shape)}, expected 2 dimensions, or 3 "
                "with experts, and none of them 0"
            )
    if not _is_matrix(a) or not _is_matrix(b):
        return
    rank = a.shape[0] if _is_embedding(target) else a.shape[1]
    if rank != b.shape[0]:
        yield (
            f"'{target}': A {list(a.shape)} has rank {rank}, but B {list(b.shape)} has rank "
            f"{b.shape[0]}"
        )
    if a.shape[2:] != b.shape[2:]:
        yield f"'{target}': A {list(a.shape)} and B {list(b.shape)} differ in their experts"
    if rank > _MAX_RANK:
        yield f"'{target}' has rank {rank}, at most {_MAX_RANK} is supported"


def _is_matrix(info: TensorInfo) -> bool:
    return len(info.shape) in (2, 3) and min(info.shape) > 0


def _is_embedding(target: str) -> bool:
    return target.endswith("token_embd.weight")


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
        tied_output=_tied(header, split),
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


def _tied(header: GGUFHeader, split: Split | None) -> bool | None:
    if "output.weight" in header.tensors:
        return False
    if "token_embd.weight" not in header.tensors or split is not None:
        return None
    return True


def _count(info: TensorInfo) -> int:
    return math.prod(info.shape)
