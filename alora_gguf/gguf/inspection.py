"""What a GGUF file is, told from its header alone: adapters, bases, and whatever else comes.

Nothing is refused here that can be read: what is wrong with an adapter becomes one of its
`problems`. Neither numpy nor a vocabulary is loaded; how it is shown is the command's business.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from alora_gguf._kinds import checked

from .adapter import ALPHA, INVOCATION, Pair, pairs_in, problems
from .header import GGUFHeader, read_header
from .parser import VALUE_FORMATS, ArrayRef, Scalar, TensorInfo
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

_LONG: Final = 1024  # arrays of more elements are only counted, layers are never that many
_LAYER: Final = re.compile(r"(.*\bblk)\.(0|[1-9][0-9]*)\.(.+)", re.ASCII)


@checked
def inspect_gguf(path: str | os.PathLike[str]) -> AdapterSummary | BaseSummary:
    """Reads a GGUF file's header and says what the file holds.

    A malformed adapter is described too, with its `problems`. Raises FileFormatError if the file
    is not a GGUF, truncated or damaged.
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
            or any(name.endswith((".lora_a", ".lora_b")) for name in self.header.tensors)
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
        return self.header.array(key)

    def unexpected(self, key: str, expected: str) -> None:
        """Notes a problem if `key` is there at all."""
        if key in self.header.metadata:
            self.problems.append(f"{key} is {self.header.type_of(key)}, expected {expected}")

    def metadata(self) -> dict[str, MetadataValue]:
        return {key: self.shown(key, value) for key, value in self.header.metadata.items()}

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
            metadata=self.metadata(),
            problems=tuple(dict.fromkeys(self.problems)),
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
    # the texts that the constructor missed may be among them, once more
    facts.problems += [problem.text for problem in problems(facts.header)]
    alpha, invocation = _alpha(facts), _invocation(facts)
    forms = _forms(facts.header)
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
        **facts.common("alora" if INVOCATION in facts.header.metadata else "lora"),
    )


def _alpha(facts: _Facts) -> float | None:
    value = facts.header.metadata.get(ALPHA)
    return None if value is None or isinstance(value, (bool, str, ArrayRef)) else float(value)


def _invocation(facts: _Facts) -> tuple[int, ...]:
    ref = facts.header.metadata.get(INVOCATION)
    return (facts.integers(INVOCATION, ref) if isinstance(ref, ArrayRef) else None) or ()


def _forms(header: GGUFHeader) -> dict[_Form, list[tuple[int | None, int]]]:
    """Pairs that fit as (layer, bytes), by what they share."""
    forms: dict[_Form, list[tuple[int | None, int]]] = defaultdict(list)
    for pair in pairs_in(header):
        if pair.fits:
            layer, form = _form(pair)
            forms[form].append((layer, pair.a.nbytes + pair.b.nbytes))
    return forms


def _form(pair: Pair) -> tuple[int | None, _Form]:
    """A pair's layer and form."""
    weight, a, b = pair.target.removesuffix(".weight"), pair.a, pair.b
    found = _LAYER.fullmatch(weight)
    return int(found[2]) if found else None, _Form(
        name=found[1].removesuffix("blk") + found[3] if found else weight,
        n_experts=a.shape[2] if len(a.shape) == 3 else None,
        n_in=pair.n_in,
        n_out=b.shape[1],
        rank=pair.rank,
        type=a.type_name if a.type == b.type else f"{a.type_name}/{b.type_name}",
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
