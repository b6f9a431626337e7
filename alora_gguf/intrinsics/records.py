"""The rules that move what a reply says from one shape into another, and `likelihood`: from a word
that was chosen to an expected value of what it stands for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

from alora_gguf.errors import InputError
from alora_gguf.options import TokenLogprob

from .reply import JsonValue, Node, Path, PathPattern, Reply, replace_at, show_path, show_value
from .sentences import Sentence

Record = dict[str, JsonValue]
_FIX = "the contract's response_format must say so, and no earlier rule may change it"
_SINGLE: Final = (type(None), bool, int, float, str)
# of a Sentence, by its own names, in the order of the new fields
OUTPUTS: Final = ("begin", "end", "text", "document_id", "message_index")


@dataclass(frozen=True)
class Nest:
    """Puts a value into a new object, as its only field."""

    name: ClassVar[str] = "nest"
    input_path: PathPattern
    field_name: str

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:  # noqa: ARG002 # as the others
        """The value with objects at `input_path`. Raises nothing."""
        return replace_at(value, self.input_path, lambda v, _: {self.field_name: v})


@dataclass(frozen=True)
class Project:
    """Keeps some fields of an object, or of each object in a list, under old or new names.

    `retained` holds (old name, new name), in the order of the result. A field that is not there
    becomes null.
    """

    name: ClassVar[str] = "project"
    input_path: PathPattern
    retained: tuple[tuple[str, str], ...]

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """The value with fewer fields at `input_path`.

        Raises OutputError for anything but objects there.
        """

        def change(found: JsonValue, here: Path) -> JsonValue:
            if isinstance(found, dict):
                return self._project(found)
            return [
                self._project(r) for r in records(found, here, self.name, reply, "an object or")
            ]

        return replace_at(value, self.input_path, change)

    def _project(self, record: Record) -> JsonValue:
        return {new: record.get(old) for old, new in self.retained}


@dataclass(frozen=True)
class Explode:
    """Makes several objects of each one in a list: one for each item of its field's list."""

    name: ClassVar[str] = "explode"
    input_path: PathPattern
    target_field: str

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """The value with more, or fewer, objects in the list at `input_path`.

        Raises OutputError unless it is a list of objects with a list in that field.
        """

        def change(found: JsonValue, here: Path) -> JsonValue:
            out: list[JsonValue] = []
            for i, record in enumerate(records(found, here, self.name, reply)):
                items = field_of(record, self.target_field, (*here, i), self.name, reply)
                if not isinstance(items, list):
                    where = show_path((*here, i, self.target_field))
                    problem = f"{where} is {show_value(items)}, expected an array"
                    raise reply.error(self.name, problem, _FIX)
                # the fields keep their order
                out += [
                    {k: item if k == self.target_field else v for k, v in record.items()}
                    for item in items
                ]
            return out

        return replace_at(value, self.input_path, change)


@dataclass(frozen=True)
class DropDuplicates:
    """Of a list's objects that agree in some fields, keeps the last, at the place of the first."""

    name: ClassVar[str] = "drop_duplicates"
    input_path: PathPattern
    target_fields: tuple[str, ...]

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """The value with each combination of `target_fields` once in the list at `input_path`.

        Raises OutputError unless it is a list of objects that all have them.
        """

        def change(found: JsonValue, here: Path) -> JsonValue:
            out: dict[Hashable, JsonValue] = {}
            for i, record in enumerate(records(found, here, self.name, reply)):
                at = (*here, i)
                key = tuple(
                    _frozen(field_of(record, name, at, self.name, reply))
                    for name in self.target_fields
                )
                out[key] = record
            return list(out.values())

        return replace_at(value, self.input_path, change)


def records(found: JsonValue, here: Path, rule: str, reply: Reply, also: str = "") -> list[Record]:
    """`found`, which must be a list of objects. Raises OutputError, naming the first that is not.

    `also` says what else could have been there.
    """
    if not isinstance(found, list):
        expected = f"{also} an array of objects".strip()
        problem = f"{show_path(here)} is {show_value(found)}, expected {expected}"
        raise reply.error(rule, problem, _FIX)
    out: list[Record] = []
    for i, record in enumerate(found):
        if not isinstance(record, dict):
            problem = f"{show_path((*here, i))} is {show_value(record)}, expected an object"
            raise reply.error(rule, problem, _FIX)
        out.append(record)
    return out


def field_of(record: Record, name: str, here: Path, rule: str, reply: Reply) -> JsonValue:
    """A field that must be there. Raises OutputError if it is not."""
    if name not in record:
        has = ", ".join(map(repr, list(record)[:12])) or "none"
        raise reply.error(rule, f"{show_path(here)} has no field {name!r} but {has}", _FIX)
    return record[name]


def _frozen(value: JsonValue) -> Hashable:
    """Something that is equal for equal JSON values only: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return isinstance(value, bool), value


@dataclass(frozen=True)
class DecodeSentences:
    """Adds, beside the number of a sentence, where the sentence is and what it says.

    `source` are the places whose numbers can be meant; `outputs` holds (what, name of the field),
    with the words of OUTPUTS.
    """

    name: ClassVar[str] = "decode_sentences"
    input_path: PathPattern
    source: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """The value with more fields in the objects that `input_path` without its last step leads
        to. Raises OutputError if that step is not a field, or its value no number that was given.
        """
        known = {s.number: s for place in self.source for s in reply.sentences.get(place, ())}
        wanted = self.input_path[-1]

        def change(found: JsonValue, here: Path) -> JsonValue:
            if isinstance(found, list) and found and wanted is None:
                problem = f"{show_path(here)} is an array, expected an object"
                raise reply.error(self.name, problem, "correct input_path in the contract")
            if not isinstance(found, dict):
                return found
            out = dict(found)
            for key in found:
                if wanted in (None, key):
                    out |= self._fields(out[key], (*here, key), known, reply)
            return out

        return replace_at(value, self.input_path[:-1], change)

    def _fields(
        self, number: JsonValue, here: Path, known: Mapping[int, Sentence], reply: Reply
    ) -> Record:
        if isinstance(number, bool) or not isinstance(number, int) or number not in known:
            numbers = f"{min(known)} to {max(known)}" if known else "none was given"
            raise reply.error(
                self.name,
                f"{show_path(here)} is {show_value(number)}, expected the number of a sentence of "
                f"{' or '.join(self.source)}: {numbers}",
                "a response_format with integers keeps replies to numbers; the model must know the "
                "numbers from the conversation",
            )
        sentence = known[number]
        return {name: getattr(sentence, what) for what, name in self.outputs}


@dataclass(frozen=True)
class MergeSpans:
    """Joins spans that follow on one another, within each group, and sorts them.

    Groups are objects that agree in `group_fields`. A span begins where the one before it ends to
    be joined with it; `text_field`, if there is one, holds their texts, which are joined too.
    """

    name: ClassVar[str] = "merge_spans"
    input_path: PathPattern
    group_fields: tuple[str, ...]
    begin_field: str
    end_field: str
    text_field: str | None = None

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """The value with fewer objects in the list at `input_path`, sorted by group and begin.

        Raises OutputError if there is no list of objects with exactly these fields, if a begin or
        end is not an integer, and if two spans of a group begin at the same place.
        """

        def change(found: JsonValue, here: Path) -> JsonValue:
            spans = records(found, here, self.name, reply)
            for i, span in enumerate(spans):
                self._check(span, (*here, i), reply)
            out: list[Record] = []
            last: Record | None = None
            for span in sorted(spans, key=lambda s: (self._group(s), s[self.begin_field])):
                same = last is not None and self._group(last) == self._group(span)
                begin = span[self.begin_field]
                if same and last is not None and last[self.begin_field] == begin:
                    problem = f"two spans of {show_path(here)} begin at {begin} in the same group"
                    raise reply.error(self.name, problem, "put drop_duplicates before it")
                if same and out[-1][self.end_field] == begin:
                    self._extend(out[-1], span)
                else:
                    out.append(dict(span))
                last = span
            return list[JsonValue](out)

        return replace_at(value, self.input_path, change)

    def _extend(self, last: Record, span: Record) -> None:
        last[self.end_field] = span[self.end_field]
        if self.text_field is not None:
            last[self.text_field] = f"{last[self.text_field]}{span[self.text_field]}"

    def _check(self, span: Record, here: Path, reply: Reply) -> None:
        kinds: dict[str, tuple[type, ...]] = dict.fromkeys(self.group_fields, _SINGLE)
        kinds |= {self.begin_field: (int,), self.end_field: (int,)}
        if self.text_field is not None:
            kinds[self.text_field] = (str,)
        fix = "project to the fields that are named, and put decode_sentences before it"
        unknown = sorted(set(span) - set(kinds))
        if unknown:
            problem = f"{show_path(here)} has the field {unknown[0]!r}, which has no part in it"
            raise reply.error(self.name, problem, fix)
        for field, wanted in kinds.items():
            found = span.get(field)
            if not isinstance(found, wanted) or (wanted == (int,) and isinstance(found, bool)):
                what = (
                    {int: "an integer", str: "a text"}[wanted[0]]
                    if wanted != _SINGLE
                    else "a single value"
                )
                where = show_path((*here, field))
                problem = f"{where} is {show_value(found)}, expected {what}"
                raise reply.error(self.name, problem, fix)

    def _group(self, span: Record) -> tuple[tuple[str, str | float], ...]:
        """A key to sort by; values of several kinds can be compared by it."""
        return tuple(_sortable(span.get(field)) for field in self.group_fields)


def _sortable(value: JsonValue) -> tuple[str, str | float]:
    if isinstance(value, bool):
        return "bool", float(value)
    if isinstance(value, (int, float)):
        return "number", value
    return ("null", 0) if value is None else ("text", str(value))


Category: TypeAlias = "bool | int | float | str | None"

TOP_LOGPROBS: Final = 10  # alternatives that are looked at, the chosen token among them


@dataclass(frozen=True)
class Likelihood:
    """Replaces a value by the mean of `categories`' numbers, weighted by their probability.

    A category's probability is that of the first token of the value, or of an alternative to it
    with which the category begins; of several such categories the first counts. The weights are
    those of the categories found, made to sum to 1.
    """

    name: ClassVar[str] = "likelihood"
    input_path: PathPattern
    categories: tuple[tuple[Category, float], ...]

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """The value with the categories at `input_path` replaced.

        Raises OutputError if one of them is not in the reply as it stands, or no category is found;
        InputError if there are no log-probabilities.
        """
        return replace_at(value, self.input_path, lambda v, here: self._expected(v, here, reply))

    def _expected(self, value: JsonValue, here: Path, reply: Reply) -> float:
        node = reply.root.find(here)
        if node is None or node.value is not value or node.children is not None:
            raise reply.error(
                self.name,
                f"{show_path(here)} is {show_value(value)}, not a single value of the reply as it "
                "was generated, so that it has no tokens",
                "put likelihood before the rules that move or change values",
            )
        if reply.tokens is None:
            raise InputError(
                f"{reply.source}: the rule {self.name} needs the reply's tokens with their "
                f"{TOP_LOGPROBS} likeliest alternatives; ask for log-probabilities"
            )
        start = node.begin + isinstance(node.value, str)  # behind the quote
        token, begin = reply.tokens.at(start)
        reply.used.append(token)
        lead = token.text[: start - begin]
        if lead and begin + len(token.text) == node.end:  # a token with more than the whole value
            return self._number(node, reply, here)
        weighed = self._weigh(node, token, lead)
        total = math.fsum(weight for weight, _ in weighed)
        if not total > 0:
            raise reply.error(
                self.name,
                f"{show_path(here)} is {show_value(value)}, and neither that nor an alternative to "
                f"it is one of {self._listed()}",
                "a response_format with enum keeps replies to the categories",
            )
        return math.fsum(weight * number for weight, number in weighed) / total

    def _weigh(self, node: Node, chosen: TokenLogprob, lead: str) -> list[tuple[float, float]]:
        """Weights and numbers of the categories that a token begins; `lead` is what comes before
        the value in it.
        """
        found: list[tuple[float, float]] = []  # log-probabilities first
        number = self._find(node.value)
        if number is not None:
            found.append((chosen.logprob, number))
        for top in chosen.top:
            rest = top.text[len(lead) :]
            # a part of a character has no text, with which every category would begin
            if top.text == chosen.text or not rest or not top.text.startswith(lead):
                continue
            for category, number in self.categories:
                if _spelling(category).startswith(rest):
                    found.append((top.logprob, number))
                    break
        best = max((logprob for logprob, _ in found), default=-math.inf)
        if not math.isfinite(best):
            return []
        return [(math.exp(logprob - best), number) for logprob, number in found]

    def _number(self, node: Node, reply: Reply, here: Path) -> float:
        number = self._find(node.value)
        if number is None:
            raise reply.error(
                self.name,
                f"{show_path(here)} is {show_value(node.value)}, expected one of {self._listed()}",
                "a response_format with enum keeps replies to the categories",
            )
        return number

    def _find(self, value: JsonValue) -> float | None:
        same = (n for c, n in self.categories if _kind(c) is _kind(value) and c == value)
        return next(same, None)

    def _listed(self) -> str:
        names = [show_value(category) for category, _ in self.categories]
        return ", ".join([*names[:12], "..."] if len(names) > 12 else names)


def _spelling(category: Category) -> str:
    """How a reply's JSON has it, without the quotes."""
    return category if isinstance(category, str) else json.dumps(category)


def _kind(value: JsonValue) -> type:
    """Numbers are of one kind; True is none of them, though Python says that it equals 1."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float if is_number else type(value)
