"""The rules there are, and from the entries of `transformations` to them, with everything checked
that needs no reply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeAlias

from .fields import is_number
from .records import (
    OUTPUTS,
    Category,
    DecodeSentences,
    DropDuplicates,
    Explode,
    Likelihood,
    MergeSpans,
    Nest,
    Project,
)
from .reply import PathPattern
from .sentences import DOCUMENTS, HISTORY, LAST_MESSAGE, PLACES
from .yaml_file import Item

Rule: TypeAlias = (
    Likelihood | Nest | Project | Explode | DropDuplicates | DecodeSentences | MergeSpans
)

_NAMES: Final = "a list of fields' names, each once"


def read_rules(item: Item, places: Collection[str]) -> tuple[Rule, ...]:
    """The rules of a contract whose `sentence_boundaries` number the sentences of `places`.

    Raises ContractError, with the line, for what is unknown, missing or of the wrong kind.
    """
    if item.is_null or item.value == ():
        return ()
    elements = item.elements("a list of rules, or null", "begin each rule with `- type:`")
    return tuple(_read_rule(element, places) for element in elements)


def _read_rule(item: Item, places: Collection[str]) -> Rule:
    listed = ", ".join(sorted(READERS))
    types = [value for key, value in item.entries("a rule", "give its `type`")
             if key.value == "type"]  # fmt: skip
    if not types:
        raise item.error("a rule to have a type", f"add `type:` and one of {listed}", found="none")
    kind = types[0].value
    if not isinstance(kind, str) or kind not in READERS:
        raise types[0].error(f"one of {listed}", "correct it")
    arguments, optional, make = READERS[kind]
    fields = item.fields(("type", "input_path", *arguments), optional, f"the rule {kind}")
    rule = make(fields, _path(fields["input_path"]))
    if isinstance(rule, DecodeSentences):
        _check_decoding(fields, rule, places)
    return rule


def _path(item: Item) -> PathPattern:
    wanted = "a list of fields' names, indices from 0 and null for any, such as [score]"
    if not isinstance(item.value, tuple):
        raise item.error(wanted, "[] is the whole reply")
    out: list[str | int | None] = []
    for step in item.value:
        match step.value:
            case bool():
                raise step.error(wanted, "correct it")
            case None | str() as name:
                out.append(name)
            case int(index) if index >= 0:
                out.append(index)
            case _:
                raise step.error(wanted, "correct it")
    return tuple(out)


def _likelihood(fields: Mapping[str, Item], path: PathPattern) -> Rule:
    item = fields["categories_to_values"]
    wanted = 'a mapping from categories to numbers, such as {"yes": 1.0, "no": 0.0}'
    categories: list[tuple[Category, float]] = []
    for key, number in item.entries(wanted, "without categories there is nothing to weigh"):
        category = key.value
        if isinstance(category, (tuple, dict)) or category == "":
            raise key.error("a text, a number, true, false or null", "correct it")
        if isinstance(category, float) and not math.isfinite(category):
            raise key.error("a finite number", "put it in quotes if it is a word")
        if not is_number(number.value):
            raise number.error("a number", "correct it")
        value = float(number.value)  # type: ignore[arg-type] # it is a number
        if not math.isfinite(value):
            raise number.error("a finite number", "correct it")
        categories.append((category, value))
    return Likelihood(path, tuple(categories))


def _project(fields: Mapping[str, Item], path: PathPattern) -> Rule:
    item = fields["retained_fields"]
    if not isinstance(item.value, dict):
        return Project(path, tuple((name, name) for name in _names(item)))
    retained: list[tuple[str, str]] = []
    for key, value in item.entries(f"{_NAMES}, or a mapping from old to new ones", "name some"):
        old, new = key.text(), value.text("give the field's new name")
        if new in [name for _, name in retained]:
            raise value.error("each new name once", "rename one of them", found=f"{new!r} twice")
        retained.append((old, new))
    return Project(path, tuple(retained))


def _merge_spans(fields: Mapping[str, Item], path: PathPattern) -> Rule:
    groups = fields["group_fields"]
    names = () if groups.value == () else _names(groups)
    begin, end = (_field(fields[name]) for name in ("begin_field", "end_field"))
    text = fields.get("text_field")
    said = None if text is None or text.is_null else _field(text)
    all_names = [*names, begin, end, *([] if said is None else [said])]
    twice = [name for name in all_names if all_names.count(name) > 1]
    if twice:
        raise groups.error("each field in one part", "correct it", found=f"{twice[0]!r} in two")
    return MergeSpans(path, names, begin, end, said)


def _decode_sentences(fields: Mapping[str, Item], path: PathPattern) -> Rule:
    source = fields["source"]
    wanted = f"one of {', '.join(PLACES)}, or a list of them"
    parts = source.value if isinstance(source.value, tuple) and source.value else (source,)
    places: list[str] = []
    for part in parts:
        place = part.value
        if not isinstance(place, str) or place not in PLACES or place in places:
            raise part.error(wanted, "name each place once")
        places.append(place)
    if LAST_MESSAGE in places and len(places) > 1:
        raise source.error(
            f"{LAST_MESSAGE} alone, or {DOCUMENTS} and {HISTORY}",
            "the last message's sentences are numbered apart, so that a number would be ambiguous: "
            "use two rules",
        )
    outputs: list[tuple[str, str]] = []
    needs = {"document_id": DOCUMENTS, "message_index": HISTORY}
    for key, value in fields["output_names"].entries(
        f"a mapping from {', '.join(OUTPUTS)} to fields' names", "name at least one"
    ):
        what = key.value
        if not isinstance(what, str) or what not in OUTPUTS:
            raise key.error(f"one of {', '.join(OUTPUTS)}", "remove it")
        if needs.get(what, places[0]) not in places:
            raise key.error(f"{needs[what]} among the sources", "remove it, or add the source")
        if not value.is_null:
            name = value.text("give the field's name")
            if name in [other for _, other in outputs]:
                raise value.error("each name once", "rename one", found=f"{name!r} twice")
            outputs.append((what, name))
    outputs.sort(key=lambda output: OUTPUTS.index(output[0]))
    if not path or isinstance(path[-1], int):
        raise fields["input_path"].error(
            "a path to a field of an object", "the new fields are put beside it"
        )
    return DecodeSentences(path, tuple(places), tuple(outputs))


def _check_decoding(
    fields: Mapping[str, Item], rule: DecodeSentences, places: Collection[str]
) -> None:
    for place in rule.source:
        if place not in places:
            raise fields["source"].error(
                f"places that sentence_boundaries has, {', '.join(places) or 'which are none'}",
                f"add '{place}' to sentence_boundaries",
                found=place,
            )


def _field(item: Item) -> str:
    return item.text("name the field")


def _names(item: Item) -> tuple[str, ...]:
    out: list[str] = []
    for element in item.elements(_NAMES, "name at least one"):
        name = element.text("put the name in quotes")
        if name in out:
            raise element.error("each name once", "remove it", found=f"{name!r} twice")
        out.append(name)
    return tuple(out)


_Make = Callable[[Mapping[str, Item], PathPattern], Rule]
# each rule's required and optional arguments, besides type and input_path
READERS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...], _Make]]] = {
    Likelihood.name: (("categories_to_values",), (), _likelihood),
    Nest.name: (("field_name",), (), lambda f, path: Nest(path, _field(f["field_name"]))),
    Project.name: (("retained_fields",), (), _project),
    Explode.name: (("target_field",), (), lambda f, path: Explode(path, _field(f["target_field"]))),
    DropDuplicates.name: (
        ("target_fields",),
        (),
        lambda f, path: DropDuplicates(path, _names(f["target_fields"])),
    ),
    DecodeSentences.name: (("source", "output_names"), (), _decode_sentences),
    MergeSpans.name: (("group_fields", "begin_field", "end_field"), ("text_field",), _merge_spans),
}
