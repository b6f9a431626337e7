"""The rules that move what a reply says from one shape into another."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from .json_offsets import JsonValue, Path
from .paths import PathPattern, replace_at, show_path, show_value
from .reply import Reply

Record = dict[str, JsonValue]
_FIX = "the contract's response_format must say so, and no earlier rule may change it"


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
