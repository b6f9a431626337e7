"""The rules that make an answer of a reply: what a contract's `transformations` may say, and how
each changes what the reply says.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Final, TypeAlias

from alora_gguf.errors import InputError, OutputError
from alora_gguf.gguf.decisions import temperature_of
from alora_gguf.options import ABOUT

from .fields import ARGUMENTS, Pairs, as_written
from .replies import check_categories, check_path
from .reply import JsonValue, Path, PathPattern, Reply, replace_at, show_path, show_value
from .sentences import DOCUMENTS, HISTORY
from .spellings import weigh
from .yaml_file import Item, Scalar

TOP_LOGPROBS: Final = 10  # alternatives that are looked at, the chosen token among them
_FIX: Final = "the contract's response_format must say so, and no earlier rule may change it"

MAX_RULES: Final = 100  # of a contract; those that are known have at most six

Record: TypeAlias = dict[str, JsonValue]


@dataclass(frozen=True)
class Rule(ABC):
    """One of a contract's transformations; its arguments are its fields."""

    name: ClassVar[str]
    input_path: PathPattern

    @classmethod
    def arguments(cls) -> tuple[list[str], list[str]]:
        """The names of the arguments that must be there, and of those that may."""
        needed = [each.name for each in fields(cls) if each.default is MISSING]
        return needed, [each.name for each in fields(cls) if each.default is not MISSING]

    def _check(self, said: Mapping[str, Item], places: Collection[str]) -> None:  # noqa: B027
        """Raises ContractError for arguments that do not go together, or with the contract."""

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """`value` with what is at `input_path` changed. Raises OutputError if it does not fit."""
        return replace_at(value, self.input_path, lambda found, at: self._change(found, at, reply))

    @abstractmethod
    def _change(self, found: JsonValue, here: Path, reply: Reply) -> JsonValue:
        """What takes the place of a value."""

    def _error(self, reply: Reply, problem: str, fix: str = _FIX) -> OutputError:
        return OutputError(f"{reply.source}: rule {self.name}: {problem}; {fix}")

    def _unlike(
        self, reply: Reply, here: Path, found: JsonValue, expected: str, fix: str = _FIX
    ) -> OutputError:
        problem = f"{show_path(here)} is {show_value(found)}, expected {expected}"
        return self._error(reply, problem, fix)

    def _records(self, found: JsonValue, here: Path, reply: Reply, also: str = "") -> list[Record]:
        """A list of objects; `also` says what else could have been there."""
        if not isinstance(found, list):
            raise self._unlike(reply, here, found, f"{also}an array of objects")
        out: list[Record] = []
        for i, record in enumerate(found):
            if not isinstance(record, dict):
                raise self._unlike(reply, (*here, i), record, "an object")
            out.append(record)
        return out

    def _field_of(self, record: Record, name: str, here: Path, reply: Reply) -> JsonValue:
        """A field that must be there."""
        if name not in record:
            has = ", ".join(map(repr, list(record)[:12])) or "none"
            raise self._error(reply, f"{show_path(here)} has no field {name!r} but {has}")
        return record[name]


@dataclass(frozen=True)
class Nest(Rule):
    """Puts a value into a new object, as its only field."""

    name: ClassVar[str] = "nest"
    field_name: str

    def _change(self, found: JsonValue, here: Path, reply: Reply) -> JsonValue:  # noqa: ARG002
        reply.make(1, self.name)
        return {self.field_name: found}


@dataclass(frozen=True)
class Project(Rule):
    """Keeps some fields of an object, or of each object in a list, under old or new names, in the
    order of the rule. A field that is not there becomes null.
    """

    name: ClassVar[str] = "project"
    retained_fields: Pairs

    def _change(self, found: JsonValue, here: Path, reply: Reply) -> JsonValue:
        reply.make(len(self.retained_fields), self.name)
        if isinstance(found, dict):
            return {new: found.get(old) for old, new in self.retained_fields}
        records = self._records(found, here, reply, "an object or ")
        reply.make(len(self.retained_fields) * len(records), self.name)
        return [{new: record.get(old) for old, new in self.retained_fields} for record in records]


@dataclass(frozen=True)
class Explode(Rule):
    """Makes several objects of each one in a list: one for each item of its field's list."""

    name: ClassVar[str] = "explode"
    target_field: str

    def _change(self, found: JsonValue, here: Path, reply: Reply) -> JsonValue:
        out: list[JsonValue] = []
        for i, record in enumerate(self._records(found, here, reply)):
            items = self._field_of(record, self.target_field, (*here, i), reply)
            if not isinstance(items, list):
                raise self._unlike(reply, (*here, i, self.target_field), items, "an array")
            reply.make(len(items) * len(record), self.name)
            out += [{**record, self.target_field: item} for item in items]  # in the same order
        return out


@dataclass(frozen=True)
class DropDuplicates(Rule):
    """Of a list's objects that agree in some fields, keeps the last, at the place of the first."""

    name: ClassVar[str] = "drop_duplicates"
    target_fields: tuple[str, ...]

    def _change(self, found: JsonValue, here: Path, reply: Reply) -> JsonValue:
        out: dict[Hashable, JsonValue] = {}
        for i, record in enumerate(self._records(found, here, reply)):
            at = (*here, i)
            values = [self._field_of(record, name, at, reply) for name in self.target_fields]
            out[_frozen(values)] = record
        return list(out.values())


@dataclass(frozen=True)
class DecodeSentences(Rule):
    """Adds, beside the number of a sentence, where the sentence is and what it says.

    `source` are the places whose numbers can be meant, `output_names` what is added (words of
    OUTPUTS) and under which names.
    """

    name: ClassVar[str] = "decode_sentences"
    source: tuple[str, ...]
    output_names: Pairs

    def _check(self, said: Mapping[str, Item], places: Collection[str]) -> None:
        needs = {"document_id": DOCUMENTS, "message_index": HISTORY}
        for key in said["output_names"].entries("a mapping", "correct it"):
            place = needs.get(str(key.value), self.source[0])
            if place not in self.source:
                raise key.error(f"{place} among the sources", "remove it, or add the source")
        if not self.input_path or isinstance(self.input_path[-1], int):
            wanted = "a path to a field of an object"
            raise said["input_path"].error(wanted, "the new fields are put beside it")
        for place in self.source:
            if place not in places:
                raise said["source"].error(
                    f"places that sentence_boundaries has, {', '.join(places) or 'which are none'}",
                    f"add '{place}' to sentence_boundaries",
                    found=place,
                )

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """As the others, but what it changes are the objects that have the number in a field."""
        objects = self.input_path[:-1]
        return replace_at(value, objects, lambda found, at: self._change(found, at, reply))

    def _change(self, found: JsonValue, here: Path, reply: Reply) -> JsonValue:
        wanted = self.input_path[-1]
        if isinstance(found, list) and found and wanted is None:
            problem = f"{show_path(here)} is an array, expected an object"
            raise self._error(reply, problem, "correct input_path in the contract")
        if not isinstance(found, dict):
            return found
        known = {s.number: s for place in self.source for s in reply.sentences.get(place, ())}
        out = dict(found)
        for key in found:
            if wanted not in (None, key):
                continue
            number = out[key]
            if isinstance(number, bool) or not isinstance(number, int) or number not in known:
                numbers = f"{min(known)} to {max(known)}" if known else "none was given"
                places = " or ".join(self.source)
                raise self._unlike(
                    reply, (*here, key), number,
                    f"the number of a sentence of {places}: {numbers}",
                    "a response_format with integers keeps replies to numbers; the model must know "
                    "the numbers from the conversation",
                )  # fmt: skip
            reply.make(len(self.output_names), self.name)
            out |= {name: getattr(known[number], what) for what, name in self.output_names}
        return out


@dataclass(frozen=True)
class MergeSpans(Rule):
    """Joins spans that follow on one another, within each group, and sorts them.

    Groups are objects that agree in `group_fields`. A span begins where the one before it ends to
    be joined with it; `text_field`, if there is one, holds their texts, which are joined too.
    """

    name: ClassVar[str] = "merge_spans"
    group_fields: tuple[str, ...]
    begin_field: str
    end_field: str
    text_field: str | None = None

    def _calls(self) -> list[tuple[str, str, tuple[type, ...]]]:
        """The fields of a span, each with what it must be."""
        single: tuple[type, ...] = (type(None), bool, int, float, str)
        kinds = [(name, "a single value", single) for name in self.group_fields]
        kinds += [(name, "an integer", (int,)) for name in (self.begin_field, self.end_field)]
        return kinds if self.text_field is None else [*kinds, (self.text_field, "a text", (str,))]

    def _check(self, said: Mapping[str, Item], places: Collection[str]) -> None:  # noqa: ARG002
        names = [name for name, _, _ in self._calls()]
        for name in names:
            if names.count(name) > 1:
                found = f"{name!r} in two"
                raise said["group_fields"].error(
                    "each field in one part", "correct it", found=found
                )

    def _change(self, found: JsonValue, here: Path, reply: Reply) -> JsonValue:
        spans = self._records(found, here, reply)
        for i, span in enumerate(spans):
            self._check_span(span, (*here, i), reply)
        out: list[Record] = []
        seen = set()
        for span in sorted(spans, key=self._place):
            begin, place = span[self.begin_field], self._place(span)
            if place in seen:
                problem = f"two spans of {show_path(here)} begin at {begin} in the same group"
                raise self._error(reply, problem, "put drop_duplicates before it")
            seen.add(place)
            last = out[-1] if out else {}
            if last and self._place(last)[0] == place[0] and last[self.end_field] == begin:
                last[self.end_field] = span[self.end_field]
                if self.text_field is not None:
                    last[self.text_field] = f"{last[self.text_field]}{span[self.text_field]}"
            else:
                out.append(dict(span))
        return list[JsonValue](out)

    def _check_span(self, span: Record, here: Path, reply: Reply) -> None:
        fix = "project to the fields that are named, and put decode_sentences before it"
        kinds = self._calls()
        unknown = sorted(set(span) - {name for name, _, _ in kinds})
        if unknown:
            problem = f"{show_path(here)} has the field {unknown[0]!r}, which has no part in it"
            raise self._error(reply, problem, fix)
        for name, what, types in kinds:
            found = span.get(name)
            if not isinstance(found, types) or (types == (int,) and isinstance(found, bool)):
                raise self._unlike(reply, (*here, name), found, what, fix)

    def _place(self, span: Record) -> tuple[tuple[tuple[str, Any], ...], Any]:
        """The group and the begin, to sort by; values of several kinds can be compared by it."""
        group = tuple(_sortable(span.get(name)) for name in self.group_fields)
        return group, span[self.begin_field]


@dataclass(frozen=True)
class Likelihood(Rule):
    """Replaces a value by the mean of the categories' numbers, weighted by their probability.

    A category's probability is that of all its spellings by tokens, its logarithm divided by the
    reply's temperature for such a decision. The weights are those of the categories found, made to
    sum to 1; the reply gets them as its `shares`. Raises InputError if there are no
    log-probabilities.
    """

    name: ClassVar[str] = "likelihood"
    categories_to_values: tuple[tuple[Scalar, float], ...]

    def _change(self, found: JsonValue, here: Path, reply: Reply) -> JsonValue:
        place = reply.places.get(here)
        original: Any = reply.value
        for step in here if place else ():
            original = original[step]
        if place is None or original is not found or isinstance(found, (dict, list)):
            raise self._error(
                reply,
                f"{show_path(here)} is {show_value(found)}, not a single value of the reply as it "
                "was generated, so that it has no tokens",
                "put likelihood before the rules that move or change values",
            )
        if reply.tokens is None:
            raise InputError(
                f"{reply.source}: the rule {self.name} needs the reply's tokens with their "
                f"{TOP_LOGPROBS} likeliest alternatives; ask for log-probabilities"
            )
        bare = reply.text[slice(*place)] == found  # no JSON
        quoted = not bare and all(isinstance(each, str) for each, _ in self.categories_to_values)
        start = place[0] + (quoted and isinstance(found, str))
        texts: list[str] = []
        own: int | None = None
        for i, (category, _) in enumerate(self.categories_to_values):
            if own is None and _frozen(category) == _frozen(found):
                own = i
                texts.append(reply.text[start : place[1]])  # which may have escapes
            else:
                text = json.dumps(category, ensure_ascii=False)
                texts.append(str(category) if bare else text[start - place[0] :])
        numbers = [number for _, number in self.categories_to_values]
        weighed = weigh(reply, start, texts, own)
        if not weighed:
            names = [show_value(category) for category, _ in self.categories_to_values]
            listed = ", ".join([*names[:12], "..."] if len(names) > 12 else names)
            fix = "a response_format with enum keeps replies to the categories"
            wanted = f"one of {listed}, or one among its alternatives"
            raise self._unlike(reply, here, found, wanted, fix)
        best = max(logprob for logprob, _ in weighed)
        weights = [(math.exp(logprob - best), i) for logprob, i in weighed]
        if (heat := self._temperature(reply)) != 1.0:
            sums = [math.fsum(w for w, of in weights if of == i) for i in range(len(numbers))]
            weights = [(w ** (1 / heat), i) for i, w in enumerate(sums)]
        total = math.fsum(w for w, _ in weights)
        reply.shares[here] = tuple(
            math.fsum(w for w, of in weights if of == i) / total for i in range(len(numbers))
        )
        return math.fsum(w * numbers[i] for w, i in weights) / total

    @property
    def yes(self) -> int | None:
        """Which of two categories is the number 1 where the other is 0; None: no yes and no."""
        numbers = [number for _, number in self.categories_to_values]
        return numbers.index(1.0) if sorted(numbers) == [0.0, 1.0] else None

    def _temperature(self, reply: Reply) -> float:
        kind = "choice" if self.yes is None else "noul"
        found = temperature_of(reply.temperatures, kind, len(self.categories_to_values))
        return 1.0 if found is None else found


def _frozen(value: JsonValue) -> Hashable:
    """Something that is equal for equal JSON values only: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return frozenset((key, _frozen(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return isinstance(value, bool), value


def _sortable(value: JsonValue) -> tuple[str, str | float]:
    if isinstance(value, bool):
        return "bool", float(value)
    if isinstance(value, (int, float)):
        return "number", value
    return ("null", 0) if value is None else ("text", str(value))


RULES: Final[Mapping[str, type[Rule]]] = {
    rule.name: rule
    for rule in (DecodeSentences, DropDuplicates, Explode, Likelihood, MergeSpans, Nest, Project)
}


def read_rules(
    item: Item, places: Collection[str], schema: Mapping[str, Any] | None = None
) -> tuple[Rule, ...]:
    """The rules of a contract whose `sentence_boundaries` number the sentences of `places`, and
    whose replies have a schema, or none.

    Raises ContractError, with the line, for what is unknown, missing or of the wrong kind, and for
    what replies of the schema never have.
    """
    if item.is_null or item.value == ():
        return ()
    elements = item.elements("a list of rules, or null", "begin each rule with `- type:`")
    if len(elements) > MAX_RULES:
        fix = "a contract needs far fewer"
        raise item.error(f"at most {MAX_RULES} rules", fix, found=str(len(elements)))
    rules: list[Rule] = []
    for element in elements:
        # rules find the reply as the schema has it until one changes its shape
        as_said = all(isinstance(rule, (Likelihood, DropDuplicates)) for rule in rules)
        rules.append(_read_rule(element, places, schema or {}, as_said=as_said))
    return tuple(rules)


def _read_rule(
    item: Item, places: Collection[str], schema: Mapping[str, Any], *, as_said: bool
) -> Rule:
    entries = item.entries("a rule", "give its `type`").items()
    types = [value for key, value in entries if key.value == "type"]
    if not types:
        fix = f"add `type:` and one of {', '.join(RULES)}"
        raise item.error("a rule to have a type", fix, found="none")
    kind = RULES[types[0].choice(RULES)]
    needed, optional = kind.arguments()
    said = item.fields(["type", *needed], optional, f"the rule {kind.name}")
    if schema.get(ABOUT, {}).get("form") == "text":  # of bare words, categories are words too
        said |= {name: as_written(said[name]) for name in said if name == "categories_to_values"}
    given = {name: said[name] for name in needed}
    given |= {name: said[name] for name in optional if name in said and not said[name].is_null}
    rule = kind(**{name: ARGUMENTS[name](item) for name, item in given.items()})
    rule._check(said, places)
    if as_said and schema:
        check_path(said["input_path"], rule.input_path, schema)
    if isinstance(rule, Likelihood) and schema:
        keys: Any = said["categories_to_values"].value
        categories = [category for category, _ in rule.categories_to_values]
        check_categories(keys, categories, rule.input_path, schema)
    return rule
