"""A contract made of the answers: what replies look like, and which of them are decisions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from alora_gguf.errors import FileFormatError, InputError

from .data import Example

_MOST: Final = 20  # different answers of an enumeration
_SEEN: Final = 3  # times that each of them occurs, on average, at least; fewer are warned of
_LONGEST: Final = 200  # characters of one of them: more is a text, no category
_YES: Final = ("yes", "true", "1", "y", "positive", "good", "correct", "right", "pass")
_NOT: Final = ("un", "in", "im", "non-", "not ", "not_", "non", "dis", "ir")


def made_contract(name: str, answers: Sequence[Any], instruction: str | None = None) -> str:
    """The text of an io.yaml for answers that are all texts, numbers, booleans or objects with the
    same fields.

    Two different answers, or few numbers, become a JSON Schema with one field of that `name` and a
    `likelihood` rule; a few words become `choices`; other texts need no schema. `instruction` is
    its template. Raises InputError for answers of several kinds.
    """
    import yaml

    fields: dict[str, Any] = {"name": name, "model": None}
    if instruction is not None:
        fields["instruction"] = instruction
    if all(isinstance(each, dict) for each in answers):
        schema, rules = _object(answers)
    elif words := _enumeration(answers):
        if all(isinstance(each, str) for each in words) and not _numbers(words):
            text = {**fields, "choices": list(words), "response_format": None}
            return _yaml(yaml, {**text, "transformations": None})
        schema, rules = _object([{name: each} for each in answers])
    elif all(isinstance(each, str) for each in answers):
        return _yaml(yaml, {**fields, "response_format": None, "transformations": None})
    else:
        schema, rules = _object([{name: each} for each in answers])
    about = {"x-alora": {"form": "json.dumps"}}
    whole = {**fields, "response_format": {**schema, **about}, "transformations": rules or None}
    return _yaml(yaml, whole)


def check_words(file: Path, examples: Sequence[Example]) -> None:
    """Warns, through `logging`, of words that made_contract() would have as categories and that are
    seen less than three times. Raises FileFormatError, with the lines, for two that differ in
    nothing but case and spaces.
    """
    for what, answers in _texts(examples):
        if not _enumeration(list(answers.values())):
            continue
        seen: dict[str, dict[str, list[int]]] = {}
        for line, word in answers.items():
            alike = seen.setdefault(" ".join(word.casefold().split()), {})
            alike.setdefault(word, []).append(line)
        for alike in seen.values():
            word, *others = sorted(alike, key=lambda each: len(alike[each]))
            lines = alike[word]
            if others:
                raise FileFormatError(
                    f"{file}: line {lines[0]} has {what} {_shown(word)}, and line "
                    f"{alike[others[-1]][0]} has {_shown(others[-1])}; write them alike, or give a "
                    "contract with --contract"
                )
            if len(lines) < _SEEN:
                logging.getLogger("alora_gguf").warning(
                    "%s: line %d has %s %s, which %d of %d lines have; correct it if it is a typo",
                    *(file, lines[0], what, _shown(word), len(lines), len(answers)),
                )


def _texts(examples: Sequence[Example]) -> Iterator[tuple[str, dict[int, str]]]:
    """What is answered in texts, the answer or a field of it, in words; and the texts by line."""
    answers = {each.line: each.answer for each in examples}
    if all(isinstance(each, str) for each in answers.values()):
        yield "the answer", answers
    elif all(isinstance(each, dict) for each in answers.values()):
        for name in next(iter(answers.values())):
            values = {line: answer.get(name) for line, answer in answers.items()}
            if all(isinstance(each, str) for each in values.values()):
                yield f"'{name}'", values


def fitted(answer: Any, schema: Mapping[str, Any] | None) -> Any:
    """An answer as a reply to a schema has it: where that is an object of one field, its value
    alone will do.
    """
    properties = (schema or {}).get("properties")
    if isinstance(answer, dict) or not isinstance(properties, Mapping) or len(properties) != 1:
        return answer
    return {next(iter(properties)): answer}


def _yaml(yaml: Any, fields: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)
    return f"# Made of the answers that the adapter was trained on.\n{text}"


def _object(answers: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A schema, and the rules of its one decision if it has just one."""
    names = list(answers[0])
    for each in answers:
        if list(each) != names:
            raise InputError(
                f"answers have different fields, or in another order: {_shown(answers[0])} and "
                f"{_shown(each)}; make them alike, or give a contract"
            )
    properties, decided = {}, {}
    for name in names:
        values = [each[name] for each in answers]
        properties[name] = _property(name, values)
        if numbers := _numbers(_enumeration(values)):
            decided[name] = numbers
    schema = {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }
    rules = [
        {"type": "likelihood", "input_path": [name], "categories_to_values": numbers}
        for name, numbers in decided.items()
    ]
    return schema, rules if len(rules) == 1 else []


def _property(name: str, values: Sequence[Any]) -> dict[str, Any]:
    kinds = {"boolean": (bool,), "integer": (int,), "number": (int, float), "string": (str,)}
    for kind, types in kinds.items():
        alike = all(
            isinstance(v, types) and (kind == "boolean") == isinstance(v, bool) for v in values
        )
        if alike:
            few = _enumeration(values) if kind != "boolean" else ()
            return {"type": kind, **({"enum": list(few)} if few else {})}
    if all(isinstance(v, list) and all(isinstance(each, str) for each in v) for v in values):
        return {"type": "array", "items": {"type": "string"}}
    raise InputError(
        f"answers have values of several kinds in '{name}', such as {_shown(values[0])} and "
        f"{_shown(values[-1])}; give a contract with --contract"
    )


def _enumeration(values: Sequence[Any]) -> tuple[Any, ...]:
    """The different values, if they are few and each is seen often."""
    if not all(
        isinstance(each, (str, int, float)) and len(str(each)) <= _LONGEST for each in values
    ):
        return ()
    found = tuple(dict.fromkeys(values))
    several = 1 < len(found) <= _MOST and len(values) >= _SEEN * len(found)
    if not several or len({type(each) for each in found}) > 1:
        return ()
    return tuple(sorted(found, key=lambda each: (-_is_yes(each, found), str(each))))


def _numbers(values: Sequence[Any]) -> dict[Any, float]:
    """What each of a decision's categories counts."""
    if len(values) == 2:
        return {values[0]: 1.0, values[1]: 0.0}
    numbers = {each: _number(each) for each in values}
    return (
        {k: v for k, v in numbers.items() if v is not None} if None not in numbers.values() else {}
    )


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except ValueError:
        return None


def _is_yes(value: Any, among: Sequence[Any]) -> bool:
    """Whether a value is the one of two that means yes: so named, or the other one negates it."""
    text = str(value).lower()
    others = [str(each).lower() for each in among if each != value]
    return text in _YES or any(other == prefix + text for other in others for prefix in _NOT)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
