"""How a question is written: its words, its options with their labels, and the orders that they are
asked in, so that no option gains by where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from string import ascii_uppercase
from typing import Final

from .questions import Choice, Predicate, Question, Score, content_text, option_text

MAX_LINES: Final = 64
"""The most lines of options that a question has in all its orders, unless the call says how many
orders; a line is some ten tokens to read. All orders of up to 8 options come to no more.
"""
MIN_ORDERS: Final = 2  # of two or more options

PLAIN_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}{{ message.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
"""The chat template of a base that has none: its messages as paragraphs, and what begins an answer.
"""

_YES_NO: Final = ("Yes", "No")
_ASKS: Final = {
    "noul": "Which of these is the case?",
    "choice": "Which of these options fits best?",
    "score": "Which of these levels fits best?",
}


@dataclass(frozen=True, slots=True)
class Line:
    """An option as it is shown, and its index in the question's own order."""

    text: str
    index: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question in one order of its options.

    text     what asks
    labels   what can be answered, in the order shown
    indices  of the options that the labels stand for, in the question's own order
    """

    text: str
    labels: tuple[str, ...]
    indices: tuple[int, ...]


def n_options(question: Question) -> int:
    """How many answers there are."""
    if isinstance(question, Predicate):
        return len(_YES_NO)
    return len(question.options if isinstance(question, Choice) else question.levels)


def described(question: Question) -> list[tuple[str | bool, str]]:
    """Each option with what it says, in the question's own order; "" where its name says it."""
    if isinstance(question, Predicate):
        pairs = ((name, getattr(question, name)) for name in question.options)
        return [(name, "" if said is None else content_text(said, name)) for name, said in pairs]
    if isinstance(question, Score):
        said = (content_text(level, "criteria") for level in question.levels)
        return [(str(i), text) for i, text in enumerate(said)]
    return [
        (name, "" if said is None else content_text(said, "criteria"))
        for name, said in dict(question.options).items()  # type: ignore[arg-type]  # a mapping now
    ]


def canonical(question: Question) -> tuple[Line, ...]:
    """The options in an order that depends on what they say alone: levels and yes, no in their own,
    those of a choice sorted.
    """
    lines = []
    for i, (name, said) in enumerate(described(question)):
        shown = "" if isinstance(question, (Predicate, Score)) else _flat(option_text(name))
        lines.append(Line(": ".join(filter(None, (shown, _flat(said)))), i))
    if not isinstance(question, Choice):
        return tuple(lines)
    names = list(question.options)
    return tuple(sorted(lines, key=lambda line: (line.text, repr(names[line.index]))))


def _flat(text: str) -> str:
    """Text on one line, without the blanks around it."""
    return " ".join(text.split())


def orders(n: int, wanted: int | None = None) -> list[tuple[int, ...]]:
    """In which orders `n` options are asked: all `n` rotations, in which each option has each place
    once; or, where fewer are `wanted`, evenly spaced ones, each of them forwards and backwards.
    """
    if wanted is None:
        wanted = max(MIN_ORDERS, MAX_LINES // n)
    if wanted >= n:
        return [_rotated(n, i) for i in range(n)]
    n_pairs = (wanted + 1) // 2
    both = [_rotated(n, i * n // n_pairs) for i in range(n_pairs)]
    return [each for one in both for each in (one, one[::-1])][:wanted]


def _rotated(n: int, by: int) -> tuple[int, ...]:
    return tuple((i + by) % n for i in range(n))


def labels(n: int, is_token: Callable[[str], bool]) -> tuple[str, ...]:
    """What `n` options are called: letters, or pairs of them, of which none begins another; those
    that are one token before others.
    """
    if n <= len(ascii_uppercase):
        return tuple(ascii_uppercase[:n])
    pairs = [a + b for a, b in product(ascii_uppercase, repeat=2)]
    short = [pair for pair in pairs if is_token(pair)]
    return tuple((short if len(short) >= n else pairs)[:n])


def prompts(
    question: Question,
    wanted: int | None,
    is_token: Callable[[str], bool],
    *,
    lettered: bool = False,
) -> list[Prompt]:
    """The question in each of its orders. What they begin with is the same in all of them. Yes and
    no are answered in words, unless all options are to be `lettered`.
    """
    lines = canonical(question)
    write = _yes_or_no if isinstance(question, Predicate) and not lettered else _labelled
    names = labels(len(lines), is_token)
    return [
        write(question, [lines[i] for i in order], names) for order in orders(len(lines), wanted)
    ]


def _yes_or_no(question: Question, lines: Sequence[Line], _: Sequence[str]) -> Prompt:
    words = [_YES_NO[line.index] for line in lines]
    meant = [f"{w}: {line.text}\n" for w, line in zip(words, lines, strict=True) if line.text]
    asks = question.asks.strip() or _ASKS[question.type]
    text = f"{asks}\n{''.join(meant)}Answer {' or '.join(words)}."
    return Prompt(text, tuple(words), tuple(line.index for line in lines))


def _labelled(question: Question, lines: Sequence[Line], names: Sequence[str]) -> Prompt:
    asks = question.asks.strip() or _ASKS[question.type]
    what = "level" if isinstance(question, Score) else "option"
    how = "letter" if len(names[0]) == 1 else "letters"
    shown = [f"{name}. {line.text}" for name, line in zip(names, lines, strict=True)]
    text = "\n".join((asks, f"Answer with the {how} of one {what}.", *shown))
    return Prompt(text, tuple(names), tuple(line.index for line in lines))
