"""YAML with the line of everything in it, and only as much of YAML as a contract needs.

PyYAML's safe loader decides what a scalar is, so that files mean what they mean elsewhere. Tags,
aliases and merge keys are refused: contracts need none, and small files can be made huge by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import yaml

from alora_gguf._calls import is_text
from alora_gguf.errors import ContractError

from .reply import JsonValue, show_value

MAX_BYTES: Final = 64 << 10
MAX_NODES: Final = 10_000
MAX_DEPTH: Final = 40
_MAX_SCALAR: Final = 100  # characters of what is not a string: numbers of 60,000 digits take time
_TAG: Final = "tag:yaml.org,2002:"

Scalar: TypeAlias = "bool | int | float | str | None"


@dataclass(frozen=True, slots=True)
class Item:
    """A value of a YAML file: a scalar, the items of a sequence, or the entries of a mapping, whose
    keys are scalars.

    `source` and `line` (from 1) say where it stands, `field` what it is; `literal` is true for a
    block scalar of the style "|", whose lines are the file's; `spelled` is how a scalar is
    written.
    """

    source: str
    line: int
    field: str
    value: Scalar | tuple[Item, ...] | dict[Item, Item]
    literal: bool = False
    spelled: str = ""

    def error(
        self, expected: str, fix: str, *, found: str | None = None, line: int | None = None
    ) -> ContractError:
        """What to raise about this value, at another line than its own if it has several."""
        what = f"field {self.field}: " if self.field else ""
        if found is None:
            found = show_value(self.value)
            if isinstance(self.value, (tuple, dict)):
                kind = "list" if isinstance(self.value, tuple) else "mapping"
                found = f"a {kind}" if self.value else f"an empty {kind}"
        return refusal(self.source, line or self.line, f"{what}expected {expected}", found, fix)

    def line_of(self, offset: int) -> int:
        """The line of a character of a string; only a literal block keeps its lines."""
        if not self.literal or not isinstance(self.value, str):
            return self.line
        return self.line + 1 + self.value.count("\n", 0, offset)

    @property
    def is_null(self) -> bool:
        """Whether there is no value."""
        return self.value is None

    def text(self, fix: str = "put it in quotes") -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error("a text", fix)
        return self.value

    def choice(self, words: Iterable[str], fix: str = "correct it", also: str = "") -> str:
        """One of the words; `also` says what else there could have been."""
        if not isinstance(self.value, str) or self.value not in words:
            raise self.error(f"one of {', '.join(words)}{also}", fix)
        return self.value

    def elements(self, expected: str, fix: str) -> tuple[Item, ...]:
        """A sequence's items, at least one."""
        if not isinstance(self.value, tuple) or not self.value:
            raise self.error(expected, fix)
        return self.value

    def entries(self, expected: str, fix: str) -> dict[Item, Item]:
        """A mapping's keys and values, at least one."""
        if not isinstance(self.value, dict) or not self.value:
            raise self.error(expected, fix)
        return self.value

    def fields(
        self, required: Iterable[str], optional: Iterable[str], what: str
    ) -> dict[str, Item]:
        """The values of a mapping that must have the required keys and may have the others."""
        known = (*required, *optional)
        wanted = f"a mapping with {', '.join(known)}"
        entries = self.entries(wanted, f"see docs/intrinsics.md for {what}")
        fix = f"{what} has no such field: remove it"
        out = {key.choice(known, fix): value for key, value in entries.items()}
        for name in required:
            if name not in out:
                raise self.error(f"{what} to have '{name}'", f"add '{name}:'", found="none")
        return out

    def plain(self) -> JsonValue:
        """The value as JSON has it; keys must be strings."""
        if isinstance(self.value, tuple):
            return [item.plain() for item in self.value]
        if isinstance(self.value, dict):
            return {key.text(): item.plain() for key, item in self.value.items()}
        if isinstance(self.value, float) and not math.isfinite(self.value):
            raise self.error("a finite number", "JSON has no other")
        return self.value


def refusal(source: str, line: int, expected: str, found: str, fix: str) -> ContractError:
    """What to raise about a line; text from the file is shown without what a terminal obeys."""
    text = f"{expected}, found {found}; {fix}"
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return ContractError(f"{source}:{line}: {''.join(shown)}")


def read_yaml(text: str | bytes, source: str) -> Item:
    """The one value of a YAML file. Raises ContractError with the line of what is wrong."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_BYTES:
        fix = "was another file saved under this name?"
        raise refusal(source, 1, f"expected at most {MAX_BYTES} bytes", str(len(data)), fix)
    try:
        loader = _Loader(data.decode(), source)
        node = loader.get_single_node()
        if node is None:
            fix = "see docs/intrinsics.md for an example"
            raise refusal(source, 1, "expected the fields of a contract", "an empty file", fix)
        return loader.item(node, "")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"the byte {data[error.start]:#04x}"
        raise refusal(source, line, "expected UTF-8", found, "save the file as UTF-8") from None
    except yaml.reader.ReaderError as error:
        line = data.decode().count("\n", 0, error.position) + 1
        fix = "remove it, or write it in double quotes as an escape"
        found = f"the character {error.character:#04x}"
        raise refusal(source, line, "expected printable text", found, fix) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        fix = "check the indentation, quotes and brackets around this line"
        if "\\t" in problem:
            fix = "indent with blanks, never with tabs"
        elif "single document" in str(error.context):
            fix = "a contract is one document: remove the others"
        line = 1 if mark is None else mark.line + 1
        raise refusal(source, line, "expected YAML", f"a problem: {problem}", fix) from None


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # PyYAML has no types
    """Composes nodes within the limits, and makes items of them."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.source = source
        self.depth = 0
        self.nodes = 0

    def refuse(self, at: Any, expected: str, found: str, fix: str) -> ContractError:
        """What to raise about a node or event."""
        line = at.start_mark.line + 1
        return refusal(self.source, line, f"expected {expected}", found[:80], fix)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            mark = "*" if isinstance(event, yaml.AliasEvent) else "&"
            fix = "write it out where it is used"
            raise self.refuse(event, "a plain value", f"{mark}{event.anchor}", fix)
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            limits = f"at most {MAX_NODES} values, {MAX_DEPTH} deep"
            raise self.refuse(event, limits, "more", "a contract needs far fewer")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def item(self, node: yaml.Node, field: str) -> Item:
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            value, literal = self.scalar(node), node.style == "|"
            return Item(self.source, line, field, value, literal, str(node.value))
        if node.tag == f"{_TAG}seq":
            parts = [self.item(part, f"{field}[{i}]") for i, part in enumerate(node.value)]
            return Item(self.source, line, field, tuple(parts))
        if node.tag != f"{_TAG}map":
            raise self.tag_refused(node)
        entries: dict[Item, Item] = {}
        lines: dict[tuple[type, object], int] = {}  # True would equal 1
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.refuse(key_node, "a plain key", "a list or a mapping", "use a text")
            name = f"{field}.{key_node.value[:40]}".removeprefix(".")
            key = self.item(key_node, name)
            known = (type(key.value), key.value)
            if known in lines:
                fix = f"remove one of them: the first is in line {lines[known]}"
                raise key.error("each key once", fix, found="it twice")
            lines[known] = key.line
            entries[key] = self.item(value_node, name)
        return Item(self.source, line, field, entries)

    def scalar(self, node: yaml.ScalarNode) -> Scalar:
        kind = node.tag.removeprefix(_TAG)
        make = {
            "str": self.construct_scalar,
            "int": self.construct_yaml_int,
            "float": self.construct_yaml_float,
            "bool": self.construct_yaml_bool,
            "null": self.construct_yaml_null,
        }.get(kind)
        if make is None:
            raise self.tag_refused(node)
        if kind != "str" and len(node.value) > _MAX_SCALAR:
            raise self.refuse(node, "a number of common size", node.value, "put texts in quotes")
        try:
            value: Scalar = make(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            expected = f"what its tag says, {kind}"
            raise self.refuse(node, expected, repr(node.value), "remove the tag") from None
        if isinstance(value, str) and not is_text(value):
            fix = "write the character itself"
            raise self.refuse(node, "a text", "half of a surrogate pair in it", fix)
        return value

    def tag_refused(self, node: yaml.Node) -> ContractError:
        if node.tag == f"{_TAG}timestamp":
            return self.refuse(node, "a text", f"the date {node.value}", "put it in quotes")
        if node.tag in (f"{_TAG}merge", f"{_TAG}value"):
            return self.refuse(node, "a key", node.value, "quote it, or write the fields out")
        tag = node.tag.replace(_TAG, "!!")
        return self.refuse(node, "a value without a tag", f"the tag {tag}", "remove the tag")
