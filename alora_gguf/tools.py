"""Tools that a model may call, as a program describes them, and the calls that it makes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ._calls import checked
from .errors import InputError
from .options import FrozenDict

MAX_TOOLS: Final = 128
"""The most tools of a chat: OpenAI's limit; each is an alternative in the grammar of a call."""
MAX_TEXT: Final = 256 * 1024
"""Characters of all descriptions of tools as JSON, or of a call's arguments: more than a context
holds.
"""
MAX_DEPTH: Final = 64
"""Levels of objects and arrays in a call's arguments or a tool's description, which templates and
Python's json go into recursively.
"""
NAME: Final = r"[a-zA-Z0-9_.-]{1,64}"
"""A tool's name: OpenAI's form, and a dot, as names of MCP servers have."""
RESERVED: Final = ("auto", "none", "required")
"""What tool_choice says beside names."""


@checked
@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: its `name`, its `arguments` (what a JSON object holds), and the `id` that
    the tool's answer refers to.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", FrozenDict(self.arguments))

    @classmethod
    def of(cls, value: object, what: str = "the call") -> ToolCall:
        """`value` if it is a ToolCall, or what OpenAI's mapping says: id, and function with name
        and arguments (JSON text or an object), or these two beside the id. Raises InputError,
        which calls it `what`.
        """
        if isinstance(value, ToolCall):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{what} is {value!r:.60}, expected a ToolCall or a mapping")
        if value.get("type", "function") != "function":
            kind = value["type"]
            raise InputError(f"{what}: its type is {kind!r:.60}, expected 'function'")
        function = value.get("function", value)
        if not isinstance(function, Mapping):
            raise InputError(f"{what}: its function is {function!r:.60}, expected a mapping")
        name, call_id = function.get("name"), value.get("id")
        if not isinstance(name, str) or not name:
            raise InputError(f"{what}: its name is {name!r:.60}, expected a tool's name")
        if call_id is not None and not isinstance(call_id, str):
            raise InputError(f"{what}: its id is {call_id!r:.60}, expected text")
        return cls(call_id or "", name, _arguments(function.get("arguments"), what))

    def fields(self) -> dict[str, Any]:
        """OpenAI's mapping, with arguments as an object, as Hugging Face's templates expect it."""
        function = {"name": self.name, "arguments": plain(self.arguments)}
        named = {"id": self.id} if self.id else {}
        return {**named, "type": "function", "function": function}


def _arguments(value: object, what: str) -> Mapping[str, Any]:
    """A call's arguments; none for nothing, or a text of spaces, as some clients send it."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise InputError(
                f"{what}: its arguments have {len(value)} characters, expected at most {MAX_TEXT}"
            )
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{what}: its arguments are not JSON: {error}") from None
    if not isinstance(value, Mapping):
        raise InputError(f"{what}: its arguments are {value!r:.60}, expected an object")
    check_json(value, f"{what}: its arguments")
    return value


@checked
@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: its `name`, what it is for, and the JSON Schema of its arguments, an object's;
    `source` is OpenAI's mapping that says so, which templates get.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=FrozenDict)
    source: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name) or self.name in RESERVED:
            raise InputError(
                f"a tool is named {self.name!r:.80}, expected 1 to 64 letters, digits or _.- and "
                f"none of {', '.join(RESERVED)}"
            )
        check_json(self.parameters, f"tool '{self.name}': its parameters")
        if self.parameters.get("type", "object") != "object":
            kind = self.parameters["type"]
            raise InputError(
                f"tool '{self.name}': its parameters are a schema of {kind!r:.40}, expected one of "
                'an object: {"type": "object", "properties": {...}}'
            )
        object.__setattr__(self, "parameters", FrozenDict(self.parameters))
        if self.source is not None:
            object.__setattr__(self, "source", FrozenDict(self.source))

    @classmethod
    def of(cls, value: object, what: str = "the tool") -> Tool:
        """`value` if it is a Tool, or what OpenAI's mapping says: type "function", and function
        with name and perhaps description and parameters. Raises InputError, which calls it `what`.
        """
        if isinstance(value, Tool):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{what} is {value!r:.60}, expected a Tool or a mapping")
        function = value.get("function")
        if value.get("type", "function") != "function" or not isinstance(function, Mapping):
            raise InputError(
                f"{what} is {value!r:.60}, expected "
                '{"type": "function", "function": {"name": ..., "parameters": ...}}'
            )
        check_json(value, what)
        name, about = function.get("name"), function.get("description")
        parameters = function.get("parameters")
        if not isinstance(name, str):
            raise InputError(f"{what}: its name is {name!r:.60}, expected text")
        if about is not None and not isinstance(about, str):
            raise InputError(f"{what}: its description is {about!r:.60}, expected text")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise InputError(f"{what}: its parameters are {parameters!r:.60}, expected a schema")
        return cls(name, about or "", parameters or {}, value)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema that a call's arguments match."""
        whole = plain(self.parameters)
        return {"type": "object", **whole} if whole else {"type": "object", "properties": {}}

    def fields(self) -> dict[str, Any]:
        """OpenAI's mapping."""
        if self.source is not None:
            whole = plain(self.source)
            return {"type": "function", **whole}
        about = {"description": self.description} if self.description else {}
        function = {"name": self.name, **about, "parameters": self.schema}
        return {"type": "function", "function": function}


ToolLike = Tool | Mapping[str, object]
"""A tool: a Tool, or OpenAI's mapping."""


def as_tools(tools: Iterable[ToolLike]) -> tuple[Tool, ...]:
    """`tools` as Tools. Raises InputError for too many or too much, and two of one name."""
    if isinstance(tools, (str, Mapping, Tool)):
        raise InputError(f"tools must be a list, got {tools!r:.60}")
    found = tuple(Tool.of(each, f"tools[{i}]") for i, each in enumerate(tools))
    if len(found) > MAX_TOOLS:
        raise InputError(f"there are {len(found)} tools, expected at most {MAX_TOOLS}")
    names = [tool.name for tool in found]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"two tools are named '{twice[0]}'; give each its own name")
    size = sum(len(json.dumps(tool.fields())) for tool in found)
    if size > MAX_TEXT:
        raise InputError(f"the tools have {size} characters of JSON, expected at most {MAX_TEXT}")
    return found


def check_json(value: object, what: str) -> None:
    """Raises InputError for what JSON cannot hold, or goes deeper than MAX_DEPTH."""
    level: Sequence[object] = [value]
    for _ in range(MAX_DEPTH):
        below = list[object]()
        for each in level:
            if isinstance(each, Mapping):
                if bad := [key for key in each if not isinstance(key, str)]:
                    raise InputError(f"{what}: a key is {bad[0]!r:.60}, expected text")
                below += each.values()
            elif isinstance(each, (list, tuple)):
                below += each
            elif isinstance(each, float) and not math.isfinite(each):
                raise InputError(f"{what}: has {each}, which JSON cannot hold")
            elif not isinstance(each, (str, int, float, bool, type(None))):
                raise InputError(f"{what}: has {each!r:.60}, which JSON cannot hold")
        level = below
        if len(level) > MAX_TEXT:
            break
    if level:
        raise InputError(f"{what}: more than {MAX_DEPTH} levels, or {MAX_TEXT} values of one")


def plain(value: Any) -> Any:
    """JSON in dicts and lists, for json.dumps() and templates."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value
