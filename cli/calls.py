r"""How a call of an intrinsic is written, wherever one can be named: one grammar, read here alone.

    CALLS      CALL …            with blanks or commas between them
    CALL       [ALIAS=]NAME[(ARGUMENTS)][REST]    what REST may be, such as a guard, is the caller's
    ARGUMENTS  NAME=VALUE …      with commas or blanks between them, or one JSON object, or
               TEXT              where one argument alone is wanted
    VALUE      "…" or '…' with \ before such a quote or a \; or text without , ( ) " that ends
               before a comma or the next NAME=
    TEXT       in quotes as well, or as it is, to the end or the closing parenthesis

What begins with NAME= or { is never a TEXT, so that a misspelt name is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from alora_gguf.cli.render import shortened

import alora_gguf as ag

NOT_IN_NAMES: Final = re.compile(r"""[\s,=@<>!(){}"']""")
"""What no name that is typed can have."""

_PLAIN: Final = r"""[^\s,=@<>!(){}"']"""
_HEAD: Final = re.compile(rf"(?:(?P<alias>{_PLAIN}+)=)?(?P<name>{_PLAIN}*)")
# a number with a comma is one wrong bound, not a bound and a name
_REST: Final = re.compile(r"[<>]\d*,\d+(?![^\s,])|[^\s,]*")
_BETWEEN: Final = re.compile(r"[\s,]*")
_KEY: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=(?!=)\s*")
_QUOTED: Final = re.compile(r"""(["'])((?:\\.|(?!\1)[^\\])*)\1""", re.DOTALL)
_ESCAPED: Final = re.compile(r"""\\([\\"'])""")
_STOP: Final = re.compile(r'[,()"]|(?<=\s)[A-Za-z_][A-Za-z0-9_]*\s*=(?!=)')
_BARE: Final = re.compile(r"[\w.:;/+-]+(?: [\w.:;/+-]+)*")  # a value that needs no quotes
_SHOWN: Final = 60  # characters of what is wrong, in a message


@dataclass(frozen=True, slots=True)
class Written:
    """A call as it was written.

    text       all of it, for messages
    arguments  by name, or a text where the only one is meant
    rest       what stands behind
    """

    text: str
    name: str
    alias: str | None = None
    arguments: Mapping[str, str] | str | None = None
    rest: str = ""

    def call(self, contract: ag.Contract) -> ag.IntrinsicCall:
        """The call, with its arguments as the contract names them. Raises InputError for one that
        is missing or unknown.
        """
        given = self.arguments_for(contract)
        if missing := [each for each in contract.arguments if each not in given]:
            form = usage(self.name, contract)
            raise _wrong(self.text, f"needs {' and '.join(missing)}; write {form}")
        return ag.IntrinsicCall(self.name, given, alias=self.alias)

    def arguments_for(self, contract: ag.Contract) -> Mapping[str, str]:
        """The arguments as the contract names them, perhaps not all. Raises InputError for one that
        is unknown.
        """
        given, wanted = self.arguments, contract.arguments
        if isinstance(given, str):
            if len(wanted) != 1:
                takes = " and ".join(f"{each}=…" for each in wanted) or "no arguments"
                found = shortened(given, _SHOWN)
                raise ag.InputError(f"{self.name} takes {takes}, found '{found}'")
            given = {wanted[0]: given}
        given = {} if given is None else given
        try:
            contract.check_arguments({**dict.fromkeys(wanted, ""), **given})
        except ag.InputError as error:
            text = "; put a text that begins like that in quotes" if len(wanted) == 1 else ""
            raise ag.InputError(f"{error}{text}") from None
        return given


def read_calls(text: str) -> list[Written]:
    """All calls in a text; whether the names are known is for others to say. Raises InputError."""
    found, at = list[Written](), _after(_BETWEEN, text, 0)
    while at < len(text):
        begin, head = at, _HEAD.match(text, at)
        assert head is not None  # noqa: S101 - it matches nothing, too
        arguments, at = None, head.end()
        if head["name"] and text.startswith("(", at):
            arguments, at = _arguments(text, at + 1, ")", begin)
        rest = _REST.match(text, at)
        assert rest is not None  # noqa: S101
        whole = text[begin : rest.end()]
        found.append(Written(whole, head["name"], head["alias"], arguments, rest[0]))
        at = _after(_BETWEEN, text, rest.end())
    return found


def read_call(text: str) -> Written:
    """The one call that a text is. Raises InputError for several, none, or one with a rest."""
    calls = read_calls(text)
    if len(calls) != 1 or calls[0].rest or not calls[0].name:
        raise _wrong(text, "expected one NAME(ARGUMENTS), and nothing behind it")
    return calls[0]


def read_arguments(text: str) -> Mapping[str, str] | str | None:
    """What stands behind a name as its arguments, without parentheses; None for nothing. Raises
    InputError.
    """
    return _arguments(text, 0, "")[0]


def written(call: ag.IntrinsicCall) -> str:
    """A call as read_calls() reads it."""
    alias = "" if call.alias is None else f"{call.alias}="
    arguments = ", ".join(f"{name}={_value(value)}" for name, value in call.arguments.items())
    return f"{alias}{call.name}" + (f"({arguments})" if arguments else "")


def usage(name: str, contract: ag.Contract) -> str:
    """How a call of `name` is written, with … for each value."""
    arguments = ", ".join(f"{each}=…" for each in contract.arguments)
    return f"{name}({arguments})" if arguments else name


def _value(value: str) -> str:
    if _BARE.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# Reading -----------------------------------------------------------------------------------------


def _arguments(
    text: str, at: int, end: str, call: int = 0
) -> tuple[Mapping[str, str] | str | None, int]:
    """ARGUMENTS, and where `end` behind them ends: a parenthesis, or "" for the text's end. The
    call begins at `call`.
    """
    begin = at = len(text) - len(text[at:].lstrip())
    found: Mapping[str, str] | str | None
    if text.startswith("{", at):
        found, at = _object(text, at)
    elif _KEY.match(text, at):
        found, at = _pairs(text, at, end)
    elif text.startswith(("'", '"'), at):
        found, at = _quoted(text, at)
    else:
        closing = text.find(end, at) if end else len(text)
        at = len(text) if closing < 0 else closing
        found = text[begin:at].rstrip() or None
        if end and found and "(" in found:
            raise _wrong(found, "put a text that has a parenthesis in quotes here")
    at = len(text) - len(text[at:].lstrip())
    if end and at == len(text):
        raise _wrong(text[call:], f"expected {end} at the end")
    if end and not text.startswith(end, at):
        raise _wrong(text[at:], f"expected {end} behind '{shortened(text[begin:at], _SHOWN)}'")
    if not end and at < len(text):
        raise _wrong(text[at:], "expected nothing more, or NAME=VALUE; put a text that begins "
                     "with a quote in quotes as a whole")  # fmt: skip
    return found, at + len(end)


def _pairs(text: str, at: int, end: str) -> tuple[Mapping[str, str], int]:
    found = dict[str, str]()
    while (key := _KEY.match(text, at)) is not None:
        value, at = _value_at(text, key.end(), end)
        if key[1] in found:
            raise _wrong(text, f"the argument {key[1]} occurs twice")
        found[key[1]] = value
        at = _after(_BETWEEN, text, at)
    return found, at


def _value_at(text: str, at: int, end: str) -> tuple[str, int]:
    if text.startswith(("'", '"'), at):
        return _quoted(text, at)
    stop = _STOP.search(text, at)
    until = len(text) if stop is None else stop.start()
    if stop is not None and (stop[0] in '("' or stop[0] == ")" != end):
        raise _wrong(text[at:], f"put a value that has {stop[0]} in quotes")
    return text[at:until].strip(), until


def _quoted(text: str, at: int) -> tuple[str, int]:
    match = _QUOTED.match(text, at)
    if match is None:
        raise _wrong(text[at:], f"expected another {text[at]} where the text ends")
    return _ESCAPED.sub(r"\1", match[2]), match.end()


def _object(text: str, at: int) -> tuple[Mapping[str, str], int]:
    def strings(pairs: list[tuple[str, Any]]) -> dict[str, str]:
        found = dict[str, str]()
        for name, value in pairs:
            if not isinstance(value, str):
                raise _wrong(text[at:], f"the argument {name} must be a text in quotes")
            if name in found:
                raise _wrong(text[at:], f"the argument {name} occurs twice")
            found[name] = value
        return found

    try:
        return json.JSONDecoder(object_pairs_hook=strings).raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _wrong(
            text[at:],
            f"is not JSON: {error.msg} (character {error.pos - at + 1}); put a text that begins "
            "with { in quotes",
        ) from None
    except RecursionError:
        raise _wrong(text[at:], "is nested too deeply") from None


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return at if match is None else match.end()


def _wrong(text: str, problem: str) -> ag.InputError:
    return ag.InputError(f"'{shortened(text, _SHOWN)}': {problem}")
