"""What computes a text, and where each of it begins: adapters by name, several of them at once.

An adapter is a file of weights or of steering vectors. A plain LoRA begins at the first token, an
activated one at its invocation, its last occurrence as in PEFT, whose first token it adapts too; a
vector at the reply: at the token before the reply's first one, which is what that is chosen by. Of
several each begins where it would alone. A classifier's head changes no token: it scores its labels
by what the base computes at the last one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from alora_gguf.errors import InputError, InvocationNotFoundError
from alora_gguf.gguf.adapter import AdapterFile, Begins
from alora_gguf.gguf.classifier import ClassifierFile
from alora_gguf.gguf.head import Classifier
from alora_gguf.gguf.vector import VectorFile
from alora_gguf.options import MAX_SCALE, AdapterLike, FrozenDict, check_adapter

from .tokens import BASE, Provenance, Spans, Vocabulary, find_last, float32, nearest_miss


@dataclass(frozen=True)
class Combination:
    """Several adapters under one name, made by Model.combine().

    `parts` are their names and scales; they stay loaded while it is. `identity` is the hash of what
    they compute together at these scales; one alone at scale 1 has its own. `invocation` is the one
    that some of them begin at, () if none does. `rank` is that of the weights together, without any
    the largest vector's; `targets` are all that they change. `io_yaml` and `temperatures` are those
    of the one that has a contract, or that begins at its invocation besides; where such ones differ
    there are none.
    """

    name: str
    parts: Mapping[str, float]
    identity: str
    invocation: tuple[int, ...] = ()
    invocation_text: str | None = None
    io_yaml: str | None = field(default=None, repr=False)
    temperatures: Mapping[str, float] = field(default_factory=dict, repr=False)
    rank: int = 0
    targets: tuple[str, ...] = field(default=(), repr=False)
    begins: Begins = "reply"

    @property
    def kind(self) -> Literal["combination"]:
        """What it is."""
        return "combination"

    @property
    def path(self) -> None:
        """None: it is in no file."""


AdapterLikeFile = AdapterFile | VectorFile | ClassifierFile
"""What a file of the bank's is."""
Loaded = AdapterLikeFile | Combination
"""What has a name among a model's adapters."""
Find = Callable[[str], Loaded]
"""What is loaded under a name, or UnknownAdapterError."""


# Names and scales -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One file of those that act at once: the name it is loaded under, and its scale."""

    name: str
    file: AdapterLikeFile
    scale: float


def parts_of(adapter: AdapterLike | None, scale: float, find: Find) -> tuple[Part, ...]:
    """The files that `adapter` at `scale` comes to; of several those with the scale 0 fall away.

    Raises UnknownAdapterError, and InputError for a scale that comes to too much, and for two
    invocations.
    """
    if adapter is None:
        return ()
    found = tuple(_flat(adapter, scale, find))
    for part in found:
        if abs(part.scale) > MAX_SCALE:
            raise InputError(
                f"the scale of '{part.name}' comes to {part.scale:g}, expected one in "
                f"[{-MAX_SCALE}, {MAX_SCALE}]"
            )
    heads = [part.name for part in found if classifier_of(part) is not None]
    if heads and len(found) > 1:
        raise InputError(
            f"'{heads[0]}' is a classifier, whose head was trained on what it reads; ask it by "
            "itself"
        )
    begun = {part.file.invocation: part for part in found if part.file.begins == "invocation"}
    if len(begun) > 1:
        first, second, *_ = begun.values()
        raise InputError(
            f"'{first.name}' begins at the invocation {list(first.file.invocation)}, "
            f"'{second.name}' at {list(second.file.invocation)}; together they can have but one: "
            "ask them one after the other, or load one of them with from_start=True"
        )
    return found


def _flat(adapter: AdapterLike, scale: float, find: Find) -> Iterator[Part]:
    if isinstance(adapter, str):
        found = find(adapter)
        if isinstance(found, Combination):
            yield from _flat(found.parts, scale, find)
        else:
            yield Part(adapter, found, scale)
        return
    for name, each in adapter.items():
        parts = list(_flat(name, each * scale, find))
        if float32(each) or len(adapter) == 1:
            yield from parts


def has_weights(part: Part) -> bool:
    """Whether it is a LoRA: no steering vector."""
    return isinstance(part.file, AdapterFile)


def classifier_of(part: Part) -> Classifier | None:
    """The head that scores labels, if it has one."""
    return None if isinstance(part.file, VectorFile) else part.file.classifier


def label_of(adapter: AdapterLike) -> str:
    """How messages call it: `'legal'`, or `'legal' at 0.8 + 'formal'`."""
    if isinstance(adapter, str):
        return f"'{adapter}'"
    return " + ".join(
        f"'{name}'" + ("" if scale == 1 else f" at {scale:g}") for name, scale in adapter.items()
    )


def acting(adapter: AdapterLike, find: Find) -> Loaded:
    """What `adapter` names; a mapping as if it had been given a name. Raises what parts_of()
    does.
    """
    if isinstance(adapter, str):
        return find(adapter)
    check_adapter(adapter)
    return combined(label_of(adapter), adapter, find)


def combined(name: str, adapters: Mapping[str, float], find: Find) -> Combination:
    """The combination of that name. Raises what parts_of() does."""
    parts = parts_of(adapters, 1.0, find)
    speaks = _contract_of(parts)
    ranks = {kind: [p.file.rank for p in parts if has_weights(p) == kind] for kind in (True, False)}
    begun = next((part.file for part in parts if part.file.begins == "invocation"), None)
    begins = {part.file.begins for part in parts}
    by = Provenance.of_parts((part.file.identity, part.scale) for part in parts)
    order: tuple[Begins, ...] = ("start", "invocation", "reply")
    return Combination(
        name=name,
        parts=FrozenDict({each: float(one) for each, one in adapters.items()}),
        identity=by.digest or "",
        invocation=begun.invocation if begun else (),
        invocation_text=begun.invocation_text if begun else None,
        io_yaml=speaks.io_yaml if speaks else None,
        temperatures=FrozenDict(speaks.temperatures if speaks else {}),
        rank=sum(ranks[True]) or max(ranks[False], default=0),
        targets=tuple(sorted({target for part in parts for target in part.file.targets})),
        begins=next((each for each in order if each in begins), "reply"),
    )


def _contract_of(parts: Sequence[Part]) -> AdapterLikeFile | None:
    """Whose contract a combination has: the activated ones' first, and no one's if they differ."""
    there = [part.file for part in parts if part.file.io_yaml is not None]
    there = [file for file in there if file.begins == "invocation"] or there
    return there[0] if len({file.io_yaml for file in there}) == 1 else None


def reader_of(
    adapter: AdapterLike | None, scale: float, find: Find
) -> tuple[AdapterLike | None, float]:
    """What of an adapter reads a conversation before a reply: all of it that begins at the first
    token; None and 1 for the base.
    """
    parts = parts_of(adapter, scale, find)
    first = [part for part in parts if part.file.begins == "start"]
    if not first:
        return None, 1.0
    if isinstance(adapter, str) and len(first) == len(parts):
        return adapter, scale
    scales: dict[str, float] = {}
    for part in first:
        scales[part.name] = scales.get(part.name, 0.0) + part.scale
    return FrozenDict(scales), 1.0


# Where they begin -----------------------------------------------------------------------------


def begins_at(loaded: Loaded, prompt: Sequence[int]) -> int:
    """From which token of a prompt on it acts, if a reply follows: 0 to len(prompt), which it is
    where the invocation is still to be appended.
    """
    if loaded.begins == "start":
        return 0
    if loaded.begins == "reply":
        return max(0, len(prompt) - 1)
    at = find_last(prompt, loaded.invocation)
    return len(prompt) if at is None else at


@dataclass(frozen=True, slots=True)
class Stage:
    """What computes tokens: a slot at a scale, and what their cells are remembered as."""

    slot: int
    scale: float
    provenance: Provenance


def stages_of(parts: Sequence[Part]) -> dict[frozenset[Begins], tuple[Part, ...]]:
    """What acts together, by what has begun: the first token always comes first, invocation and
    reply in either order.
    """
    there = {part.file.begins for part in parts}
    orders: tuple[tuple[Begins, ...], ...] = (
        ("start", "invocation", "reply"),
        ("start", "reply", "invocation"),
    )
    found = dict[frozenset[Begins], tuple[Part, ...]]()
    for order in orders:
        begun = frozenset[Begins]()
        for each in order:
            if each in there:
                begun |= {each}
                found[begun] = tuple(part for part in parts if part.file.begins in begun)
    return found


@dataclass(frozen=True, slots=True)
class Places:
    """Where in a text its invocation and the reply begin: the position of the first token of each
    that is computed otherwise; None where nothing begins there.
    """

    invocation: int | None
    reply: int | None


@dataclass(frozen=True, slots=True)
class Activations:
    """Who computes which tokens of a text: in ascending order, from a position on until the next
    one; before the first, the base.
    """

    stages: tuple[tuple[int, Stage], ...] = ()

    @property
    def first(self) -> int | None:
        """From where on it is not the base; None: nowhere."""
        return self.stages[0][0] if self.stages else None

    @property
    def spans(self) -> Spans:
        """The same as cells remember it."""
        begun: dict[int, Provenance] = {0: BASE}
        begun.update((position, stage.provenance) for position, stage in self.stages)
        return tuple(begun.items())


@dataclass(frozen=True)
class ActiveAdapter:
    """How tokens are to be computed: by what has a name and a scale, or by the base (`name` None).

    `stages` has what computes where those begin that are named by its key; `invocation` is what
    some of them begin at. `classifier` scores labels at the last token, if it has one.
    """

    name: AdapterLike | None = None
    stages: Mapping[frozenset[Begins], Stage] = field(default_factory=dict)
    invocation: tuple[int, ...] = ()
    plain_lora: bool = False
    classifier: Classifier | None = None

    @property
    def label(self) -> str:
        """How messages call it."""
        return "the base model" if self.name is None else label_of(self.name)

    @property
    def slot(self) -> int:
        """What computes where all of it acts; 0 for the base."""
        return self._whole.slot

    @property
    def scale(self) -> float:
        """The scale of that."""
        return self._whole.scale

    @property
    def provenance(self) -> Provenance:
        """What the cells of that are remembered as."""
        return self._whole.provenance

    @cached_property
    def _begins(self) -> frozenset[Begins]:
        return frozenset().union(*self.stages)

    @cached_property
    def _whole(self) -> Stage:
        return self.stages[self._begins] if self.stages else _NOTHING

    def places(self, tokens: Sequence[int], vocab: Vocabulary, reply: int | None = None) -> Places:
        """Where in `tokens` it begins, if what follows them is the reply, or the reply begins at
        the token at `reply`. Raises InvocationNotFoundError.
        """
        at = None
        if "invocation" in self._begins:
            at = find_last(tokens, self.invocation)
            if at is None:
                raise not_found(self, tokens, vocab)
        # the last token of a prompt is what the reply's first one is chosen by
        return Places(at, max(0, len(tokens) - 1) if reply is None else reply)

    def at(self, places: Places) -> Activations:
        """Who computes a text in which it begins there."""
        positions: dict[Begins, int | None] = {
            "start": 0, "invocation": places.invocation, "reply": places.reply
        }  # fmt: skip
        begun, found = frozenset[Begins](), dict[int, Stage]()
        order = [(at, each) for each, at in positions.items() if at is not None]
        for position, each in sorted(order, key=lambda item: item[0]):
            if each in self._begins:
                begun |= {each}
                found[position] = self.stages[begun]
        stages = itertools.dropwhile(lambda item: item[1].provenance == BASE, found.items())
        return Activations(tuple(stages))

    def over(
        self, tokens: Sequence[int], vocab: Vocabulary, reply: int | None = None
    ) -> Activations:
        """at() the places() of `tokens`."""
        return self.at(self.places(tokens, vocab, reply))

    def first_position(self, tokens: Sequence[int], vocab: Vocabulary) -> int | None:
        """From which token of `tokens` on it computes, if the reply follows them; None for the
        base. Raises InvocationNotFoundError.
        """
        return self.over(tokens, vocab).first


_NOTHING: Final = Stage(0, 1.0, BASE)


def not_found(
    active: ActiveAdapter, tokens: Sequence[int], vocab: Vocabulary
) -> InvocationNotFoundError:
    """The error for a text without the invocation, with the nearest near-miss in tokens."""
    invocation = active.invocation
    head = (
        f"adapter {active.label} begins at its invocation [{vocab.show(invocation)}], which does "
        f"not occur in these {len(tokens)} tokens"
    )
    at, n = nearest_miss(tokens, invocation)
    found = tokens[at : at + len(invocation)]
    if n:
        near = (
            f"; nearest: [{vocab.show(found)}] at position {at}, whose first {n} of "
            f"{len(invocation)} tokens agree"
        )
        if n < len(found):
            near += f" (token {n} is {found[n]}, expected {invocation[n]})"
    else:
        near = "; not even its first token occurs"
    if vocab.has_text and vocab.detokenize(invocation, special=True) in vocab.detokenize(
        tokens, special=True
    ):
        near += (
            "; its text does occur, but split into other tokens: pass the invocation as token ids, "
            "or leave it out and let it be appended"
        )
    return InvocationNotFoundError(head + near)
