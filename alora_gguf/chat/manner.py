"""How a base writes tools, calls of them, and its thinking: found out from its chat template, by
what it makes of small conversations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from alora_gguf.engine.special import SpecialTokens
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.errors import InputError
from alora_gguf.generate.calls import HERMES, CallForm
from alora_gguf.messages import Message
from alora_gguf.options import Form
from alora_gguf.tools import Tool, ToolCall

Fields = dict[str, Any]
Write = Callable[[Sequence[Fields], "list[Fields] | None"], str]
"""What a template makes of messages and tools. Raises InputError."""

THINKING: Final = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""How models' thinking begins and ends."""

# words that no template has
_ASKED, _SAID, _THEN, _THOUGHT = "qzquestionq", "qzsaidq", "qzthenq", "qzthoughtq"
_ARGUMENTS: Final = {"qzkeyq": "qzvalueq", "qzlistq": [1, 2]}
_IDS: Final = ("qzidoneq1", "qzidtwoq2")  # of nine letters and digits, as Mistral's must be
_ANY: Final = "qztoolq"
_NAMES: Final = ("qznameone", "qznametwo")
_SPELLINGS: Final[Mapping[Form, tuple[str, str]]] = {
    "json.dumps": (", ", ": "),
    "compact": (",", ":"),
}
_LIKE: Final = 6  # characters that an end of a turn without a token of its own is known by
_TAG: Final = re.compile(r"[<\[][^<>\[\]\s\"'{}]{2,40}[>\]]")
_LIST: Final = CallForm(
    opening='<|tool_call|>[{"name": "',
    order=("name", "arguments"),
    between=('", "arguments": ',),
    joint='}, {"name": "',
    closing="}]",
    json="json.dumps",
    trigger="<|tool_call|>",
)
"""Granite 3's form, which its template asks for and does not write."""


def thinking_of(write: Write, source: str, vocab: Vocabulary) -> tuple[str, str]:
    """How a base's thinking begins and ends."""
    if "reasoning_content" in source:
        said = Message("assistant", _SAID, reasoning=_THOUGHT).fields()
        text = _written(write, [_user(_ASKED), said])
        before, found, after = text.partition(_ASKED)[2].partition(_THOUGHT)
        begins, ends = _TAG.findall(before), _TAG.findall(after.partition(_SAID)[0])
        if found and begins and ends and _are_pair(begins[-1], ends[0]):
            return begins[-1], ends[0]
    known = SpecialTokens.of(vocab).texts
    return next((pair for pair in THINKING if pair[1] in source or pair[1] in known), THINKING[0])


def _are_pair(begins: str, ends: str) -> bool:
    """Whether two markers stand around thinking, and not around all that is said."""
    named = all(re.search("think|thought|reason", each, re.IGNORECASE) for each in (begins, ends))
    return named or ends.replace("/", "", 1) == begins


def writes_tools(write: Write) -> bool:
    """Whether a template writes which tools there are."""
    tool = Tool(_NAMES[0], _THEN).fields()
    return _NAMES[0] in _written(write, [_user(_ASKED)], [tool])


def takes_answers(write: Write) -> bool:
    """Whether a template writes what tools answer in turns of theirs."""
    turns = (_called(1, as_text=False), _called(1, as_text=True), _said(_SAID))
    return any(_THEN in _written(write, [_user(_ASKED), turn, _answer(0)]) for turn in turns)


def writes_calls(write: Write) -> tuple[bool, bool]:
    """Whether a template writes calls, and whether it wants their arguments as text."""
    for as_text in (False, True):
        if _NAMES[0] in _conversation(write, 1, as_text):
            return True, as_text
    return False, False


def call_form(write: Write, source: str, vocab: Vocabulary) -> CallForm:
    """How a base writes calls; Hermes's form where the template does not show it."""
    written, as_text = writes_calls(write)
    form = _form(write, vocab, as_text) if written else None
    if form is None and not written and _LIST.trigger in source:
        return _LIST
    return form or HERMES


def _form(write: Write, vocab: Vocabulary, as_text: bool) -> CallForm | None:
    plain = _written(write, [_user(_ASKED), _said(_SAID), _user(_THEN)])
    head, found, tail = plain.partition(_ASKED)[2].partition(_SAID)
    one = _conversation(write, 1, as_text).partition(_ASKED)[2]
    header = next((h for h in (head, head.rstrip()) if one.startswith(h)), None)
    if not found or header is None or not tail:
        return None
    one = one[len(header) :]
    spelling = next((s for s in _SPELLINGS if _json(s) in one), None)
    if spelling is None:
        return None
    places = {"name": one.find(_NAMES[0]), "arguments": one.find(_json(spelling))}
    stop = _end_of_turn(one, max(places.values()), tail, vocab)
    if stop is None or places["name"] < 0:
        return None
    if 0 <= (at := one.find(_IDS[0])) < stop:
        places["id"] = at
    order = tuple(sorted(places, key=lambda each: places[each]))
    opening, between, closing = _pieces(one[:stop], order, 0, spelling)
    joint = _joint(_conversation(write, 2, as_text), order, spelling, between)
    begins = opening.lstrip()
    lead = opening[: len(opening) - len(begins)]
    symbol, special = next(SpecialTokens.of(vocab).split(begins), ("", None))
    tag = _TAG.match(begins)
    trigger = symbol if special is not None else tag.group() if tag else begins
    only_first = special is None and tag is None
    form = CallForm(begins, order, between, joint, closing, spelling, trigger, only_first, lead)
    return form if trigger and _is_sound(form, vocab) else None


def _end_of_turn(text: str, at: int, tail: str, vocab: Vocabulary) -> int | None:
    """Where what begins `tail`, the end of a turn in which something is said, or a token that ends
    replies, stands in `text` behind `at`.
    """
    special = SpecialTokens.of(vocab)
    part, token = next(special.split(tail))
    found = [text.find(part if token is not None else tail[:_LIKE], at)]
    begin = at
    for part, token in special.split(text[at:]):
        found += [begin] if token is not None and vocab.is_end(token) else []
        begin += len(part)
    return min((index for index in found if index >= 0), default=None)


def _is_sound(form: CallForm, vocab: Vocabulary) -> bool:
    """Whether nothing of the probes, and no token that ends replies, is in a form."""
    pieces = (form.opening, *form.between, form.joint, form.closing)
    words = (_ASKED, _SAID, _THEN, *_NAMES, *_IDS)
    if any(word in piece for word in words for piece in pieces):
        return False
    tokens = (token for piece in pieces for _, token in SpecialTokens.of(vocab).split(piece))
    return not any(token is not None and vocab.is_end(token) for token in tokens)


def _pieces(
    text: str, order: Sequence[str], i: int, spelling: Form
) -> tuple[str, tuple[str, ...], str]:
    """What is before, between and behind the fields of the i-th call."""
    fields = {"name": _NAMES[i], "arguments": _json(spelling), "id": _IDS[i]}
    pieces = []
    for name in order:
        piece, _, text = text.partition(fields[name])
        pieces.append(piece)
    return pieces[0], tuple(pieces[1:]), text


def _joint(text: str, order: Sequence[str], spelling: Form, between: tuple[str, ...]) -> str:
    """What stands between two calls; "" where a template writes one only, or numbers them."""
    rest = _pieces(text.partition(_ASKED)[2], order, 0, spelling)[2]
    joint, others, _ = _pieces(rest, order, 1, spelling)
    return joint if others == between and _NAMES[1] in rest else ""


def _conversation(write: Write, n: int, as_text: bool) -> str:
    """What is made of a conversation with `n` calls in a turn; "" where it is refused."""
    start = [_user(_ASKED), _called(n, as_text=as_text), *map(_answer, range(n))]
    return _written(write, [*start, _said(_SAID), _user(_THEN)]) or _written(write, start)


def _called(n: int, *, as_text: bool) -> Fields:
    calls = [ToolCall(_IDS[i], _NAMES[i], _ARGUMENTS) for i in range(n)]
    return said(Message("assistant", "", calls), as_text=as_text)


def said(message: Message, *, as_text: bool) -> Fields:
    """A message as a template gets it, with calls' arguments as an object or `as_text`."""
    fields = message.fields()
    for call in fields.get("tool_calls", ()) if as_text else ():
        call["function"]["arguments"] = as_json(call["function"]["arguments"])
    return fields


def as_json(value: object) -> str:
    """As Hugging Face's templates write it."""
    return json.dumps(value, ensure_ascii=False)


def _answer(i: int) -> Fields:
    return Message("tool", _THEN, tool_call_id=_IDS[i], name=_NAMES[i]).fields()


def _user(text: str) -> Fields:
    return {"role": "user", "content": text}


def _said(text: str) -> Fields:
    return {"role": "assistant", "content": text}


def _json(spelling: Form) -> str:
    return json.dumps(_ARGUMENTS, separators=_SPELLINGS[spelling])


def _written(write: Write, messages: Sequence[Fields], tools: list[Fields] | None = None) -> str:
    for given in (tools, [Tool(_ANY).fields()]):  # a template may not do without any
        with suppress(InputError):
            return write(messages, given)
    return ""


# Where a template has no place for them -----------------------------------------------------------


def tools_as_text(tools: Sequence[Fields], form: CallForm) -> str:
    """What a model is told about tools and how to call them."""
    listed = "\n".join(map(as_json, tools))
    shown = form.write([("NAME", '{"ARGUMENT": "VALUE"}', "123456789")])
    return (
        "You can call tools. They are described here, each by a JSON object:\n"
        f"<tools>\n{listed}\n</tools>\n\n"
        "To call one, write its name and its arguments as a JSON object, like this:\n"
        f"{shown}"
    )


def calls_in_text(message: Message, form: CallForm) -> Message:
    """A message whose calls stand in what it says."""
    calls = [(c.name, json_of(c, form), c.id) for c in message.tool_calls]
    text = "\n".join(filter(None, (message.content, form.write(calls))))
    return Message(message.role, text, name=message.name, reasoning=message.reasoning)


def json_of(call: ToolCall, form: CallForm) -> str:
    """A call's arguments as that form has them."""
    separators = _SPELLINGS.get(form.json, (", ", ": "))
    return json.dumps(
        call.fields()["function"]["arguments"], ensure_ascii=False, separators=separators
    )


def answers_in_text(messages: Sequence[Message]) -> list[Message]:
    """Messages in which the user says what tools answered: those of one turn together."""
    out: list[Message] = []
    before = ""
    for message in messages:
        if message.role == "tool":
            text = f"<tool_response>\n{message.content}\n</tool_response>"
            if before == "tool":
                text = f"{out.pop().content}\n{text}"
            out.append(Message("user", text))
        else:
            out.append(message)
        before = message.role
    return out
