"""Which tools a reply may, or must, call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from alora_gguf.errors import InputError, SchemaError, did_you_mean
from alora_gguf.generate.calls import CallForm, CallRules
from alora_gguf.generate.constraint import check_schema
from alora_gguf.options import GenerateOptions
from alora_gguf.tools import Tool, ToolLike, as_tools


def usable_tools(tools: Iterable[ToolLike]) -> tuple[Tool, ...]:
    """`tools`, whose schemas can constrain the calls of any model. Raises InputError, SchemaError,
    naming the one that cannot be used.
    """
    found = as_tools(tools)
    for tool in found:
        _check(tool)
    return found


def _check(tool: Tool) -> None:
    try:
        check_schema(tool.schema)
    except SchemaError as error:
        raise SchemaError(f"tool '{tool.name}': its parameters: {error}") from error


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools that a reply may call, whether it `must`, and whether it can call several times."""

    tools: tuple[Tool, ...]
    must: bool
    many: bool

    @classmethod
    def of(cls, tools: tuple[Tool, ...], choice: str, how: GenerateOptions) -> ToolUse | None:
        """What `choice` says; None if no tool can be called. Raises InputError for one that cannot
        be kept.
        """
        taken = "a schema" if how.schema is not None else "a grammar"
        free = how.schema is None and how.sampling.grammar is None
        if choice == "none" or (choice == "auto" and (not tools or not free)):
            return None
        names = [tool.name for tool in tools]
        if choice not in ("auto", "required", *names):
            raise InputError(
                f"tool_choice is {choice!r:.80}, expected auto, none, required or a tool's name: "
                f"{', '.join(names) or 'there are none'}{did_you_mean(choice, names)}"
            )
        if not tools:
            raise InputError("tool_choice is 'required', but the chat has no tools")
        if not free:
            raise InputError(
                f"tool_choice is {choice!r}, but the reply is to follow {taken}; give one of them"
            )
        chosen = tuple(tool for tool in tools if tool.name == choice) or tools
        return cls(chosen, choice != "auto", choice not in names)

    def rules(self, form: CallForm, thinking: tuple[str, str], *, begun: bool) -> CallRules:
        """For a base that writes calls in a form, and thinking between two markers; `begun` says
        that the prompt ends amid it.
        """
        schemas = {tool.name: tool.schema for tool in self.tools}
        return CallRules(form, schemas, self.must, self.many, thinking, begun)
