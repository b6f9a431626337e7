"""Calls of tools in a reply: the form that a base writes them in, and the constraint that lets it
write freely up to a call, and then one that its tool's JSON Schema admits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine.special import SpecialTokens
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.options import Form

from .constraint import OPTIONS, Matcher, grammar_matcher
from .schema import json_rule

_Logits = NDArray[np.float32]
_Symbol = str | int
"""A character, or a token that no text contains."""

ID: Final = "[a-zA-Z0-9]{9}"
"""An id of a call, where a base writes one: Mistral's form, which templates may insist on."""


@dataclass(frozen=True, slots=True)
class CallForm:
    """How calls stand in a reply, in text with control tokens.

    opening   what is before the first call's first field
    order     of the fields: "name", "arguments", and "id" where it has one
    between   what stands between one field and the next
    joint     from the last field of a call to the first of the next; "" where there is one only
    closing   what follows the last field
    json      how arguments are written
    trigger   how `opening` begins: what nothing but calls has, or, where it `only_first`, has at
              the beginning of what is said
    lead      space before `opening`, where a turn begins with it
    """

    opening: str
    order: tuple[str, ...]
    between: tuple[str, ...]
    joint: str
    closing: str
    json: Form
    trigger: str
    only_first: bool = False
    lead: str = ""

    def write(self, calls: Sequence[tuple[str, str, str]]) -> str:
        """Calls, each as name, arguments and id, in this form."""
        written = []
        for name, arguments, call_id in calls:
            fields = {"name": name, "arguments": arguments, "id": call_id}
            parts = itertools.zip_longest((fields[each] for each in self.order), self.between)
            written.append("".join(part or "" for pair in parts for part in pair))
        return self.opening + self.joint.join(written) + self.closing


HERMES: Final = CallForm(
    opening='<tool_call>\n{"name": "',
    order=("name", "arguments"),
    between=('", "arguments": ',),
    joint='}\n</tool_call>\n<tool_call>\n{"name": "',
    closing="}\n</tool_call>",
    json="json.dumps",
    trigger="<tool_call>",
)
"""Hermes's form, for bases that have none."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """What calls a reply can have.

    form      how they are written
    schemas   of the tools' arguments, by the tools' names
    must      whether the reply is a call at once, and not free text up to one
    many      whether it can have several
    thinking  how a model's thinking begins and ends
    begun     whether the reply begins amid it
    """

    form: CallForm
    schemas: Mapping[str, Mapping[str, Any]]
    must: bool
    many: bool
    thinking: tuple[str, str]
    begun: bool

    def start(self, vocab: Vocabulary) -> CallMatcher:
        """The state of a reply that has not begun. Raises SchemaError."""
        return CallMatcher(self, vocab)

    def grammar(self, vocab: Vocabulary, special: Collection[int]) -> str:
        """Of the calls, from the trigger on."""
        form = self.form

        def symbols(text: str) -> list[_Symbol]:
            return _symbols(text, vocab, special)

        order = form.order
        lines, calls = [], []
        for i, (name, schema) in enumerate(self.schemas.items()):
            fields = {"name": json.dumps(name), "arguments": f"args{i}", "id": "ID"}
            parts = [fields[order[0]]]
            for literal, field in zip(form.between, order[1:], strict=True):
                parts += [_lark(symbols(literal)), fields[field]]
            calls.append(f"call{i}")
            lines += [
                f"call{i}: {' '.join(parts)}",
                f"args{i}: {json_rule(schema, form.json, OPTIONS)}",
            ]
        joint, closing = symbols(form.joint), symbols(form.closing)
        both, more = closing, ""
        if self.many and joint:
            both = _alike(joint, closing)
            more = f"({_lark(joint[len(both) :])} call {_lark(both)})*"
        lead = _lark(list(form.lead)) if self.must else ""
        lead = r"/[ \t\r\n]{0,4}/" if self.must and self.begun else lead
        start = f"{lead} {_lark(symbols(form.opening))} call {_lark(both)} {more}"
        rest = _lark(closing[len(both) :])
        return "\n".join(
            [
                '%llguidance {"no_forcing": true}',
                f"start: {start} {rest}",
                f"call: {' | '.join(calls)}",
                f"ID: /{ID}/",
                *lines,
            ]
        )


def _symbols(text: str, vocab: Vocabulary, special: Collection[int]) -> list[_Symbol]:
    found: list[_Symbol] = []
    for part, token in SpecialTokens.of(vocab).split(text):
        found += part if token is None or token not in special else [token]
    return found


def _lark(symbols: Sequence[_Symbol]) -> str:
    """Literals of a grammar: text, and tokens by their ids."""
    parts = []
    for is_text, run in itertools.groupby(symbols, key=lambda each: isinstance(each, str)):
        several = list(run)
        if is_text:
            parts.append(json.dumps("".join(map(str, several)), ensure_ascii=False))
        else:
            parts += [f"<[{token}]>" for token in several]
    return " ".join(parts)


def _alike(one: list[_Symbol], other: list[_Symbol]) -> list[_Symbol]:
    n = 0
    while n < min(len(one), len(other)) and one[n] == other[n]:
        n += 1
    return one[:n]


class CallMatcher:
    """How far a reply has come that may have calls: what a Matcher is for a schema.

    Up to the calls any token can come; what ends the marker that begins them must go on as their
    grammar says. A model's thinking is free, whatever it says.
    """

    def __init__(self, rules: CallRules, vocab: Vocabulary) -> None:
        self._rules, self._vocab = rules, vocab
        self._calls = grammar_matcher(lambda special: rules.grammar(vocab, special), vocab)
        self._anything: Matcher | None = None  # after the marker; made where it is needed
        self._thinking, self._engaged = rules.begun, rules.must and not rules.begun
        self._said = b""  # since the thinking began or ended; as much of it as matters
        self._first = True  # nothing was said yet
        self._never = self._ended = False

    @property
    def must_end(self) -> bool:
        """Whether nothing but an end token is possible."""
        return self._ended or (self._engaged and self._calls.must_end)

    def forced(self) -> bytes:
        """The bytes that must come next."""
        return self._calls.forced() if self._engaged else b""

    def copy(self) -> CallMatcher:
        """An independent one in the same state."""
        other = CallMatcher.__new__(CallMatcher)
        other.__dict__.update(self.__dict__, _calls=self._calls.copy())
        return other

    def mask(self, logits: _Logits) -> _Logits:
        """A row of logits, [n_vocab], with -inf for every token that cannot come next."""
        if self._engaged:
            return self._calls.mask(logits)
        if self._rules.must:
            return self._calls.without_ends(logits)
        for begun in () if self._thinking or self._never else self._begun():
            calls, anything = self._calls.copy(), self._any()
            if calls.spell(begun) and anything.spell(begun):
                wrong = anything.allowed() & ~calls.allowed()
                logits = np.where(wrong, np.float32(-np.inf), logits)
        return logits

    def accept(self, token: int) -> None:
        """Goes on by one token."""
        if self._engaged:
            self._calls.accept(token)
        elif self._vocab.is_end(token):
            self._ended = True
        else:
            self._said += self._vocab.piece(token, special=True)
            self._look()

    def _look(self) -> None:
        """Whether thinking has begun or ended, or calls have begun."""
        rules = self._rules
        begins, ends = (each.encode() for each in rules.thinking)
        if self._thinking:
            before, found, after = self._said.partition(ends)
            self._said = after if found else before[-len(ends) :]
            self._thinking, self._first = not found, False
            if not found:
                return
            if rules.must:
                self._engaged = True
                self._calls.spell(after)  # what is not a call is what the model makes of it
                return
        said = self._said.lstrip()
        if self._first and said.startswith(begins):
            self._thinking, self._said = True, said[len(begins) :]
            return
        self._first = self._first and begins.startswith(said)  # it may begin to think yet
        if not (self._never or (self._first and rules.form.only_first)):
            self._engage(said)

    def _engage(self, said: bytes) -> None:
        trigger, only_first = self._rules.form.trigger.encode(), self._rules.form.only_first
        at = said.find(trigger)
        if at == 0 or (at > 0 and not only_first):
            calls = self._calls.copy()
            if self._begins(calls) and calls.spell(said[at + len(trigger) :]):
                self._calls, self._engaged = calls, True
        if only_first:
            self._never = not trigger.startswith(said)
        if not self._first:
            self._said = said[-len(trigger) :]

    def _begins(self, calls: Matcher) -> bool:
        """Goes on by the marker, whichever tokens spelled it."""
        trigger = self._rules.form.trigger
        token = next((t for _, t in SpecialTokens.of(self._vocab).split(trigger)), None)
        if token is not None and calls.allows(token):
            calls.accept(token)
            return True
        return calls.spell(trigger.encode())

    def _begun(self) -> list[bytes]:
        """The ends of what was said with which the marker may have begun."""
        form, said = self._rules.form, self._said.lstrip()
        trigger = form.trigger.encode()
        if form.only_first:
            return [said] if trigger.startswith(said) and said else []
        longest = min(len(said), len(trigger) - 1)
        return [trigger[:n] for n in range(1, longest + 1) if said.endswith(trigger[:n])]

    def _any(self) -> Matcher:
        if self._anything is None:

            def write(special: Collection[int]) -> str:
                trigger = _lark(_symbols(self._rules.form.trigger, self._vocab, special))
                return f'%llguidance {{"no_forcing": true}}\nstart: {trigger} /(.|\\n)*/'

            self._anything = grammar_matcher(write, self._vocab)
        return self._anything.copy()
