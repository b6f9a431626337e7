"""What a person sees of the demo, in 80 columns; colour only where a terminal can show it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from .render import duration, plural, printable, wrapped
from .verdicts import is_good, number_in

if TYPE_CHECKING:
    from pathlib import Path

    from alora_gguf import IntrinsicResult, Model, Timings
    from alora_gguf.demo import Turn

    from .demo_compare import Comparison

_WIDTH: Final = 80
_LABEL: Final = 13  # of a line of the conversation: "  assistant  "
_NAME: Final = 17  # of a line of a table: "  answerability  "
_COLOURS: Final = {True: "green", False: "yellow", None: "cyan"}


_SURE: Final = 0.5

# intrinsic -> the badge and the sentence for a high number, and for a low one
_WORDS: Final[dict[str, tuple[tuple[str, str], tuple[str, str]]]] = {
    "answerability": (
        ("answerable", "the documents answer the question"),
        ("not in the documents", "the documents do not answer it"),
    ),
    "hallucination": (
        ("supported by the documents", "the documents support the answer"),
        ("not supported", "the documents do not support the answer"),
    ),
    "jailbreak": (
        ("jailbreak attempt", "the user tries to break the rules"),
        ("harmless", "the user keeps to the rules"),
    ),
}


@dataclass(frozen=True)
class Reading:
    """What a verdict says.

    value    what a program would go on with: whether the question is answerable, the answer
             faithful, the user on a jailbreak; the certainty, 0 to 1; the question on its own. None
             if the answer cannot be understood
    badge    in a word or two
    words    in a sentence
    good     False for what an application should act on, None where nothing is good or bad
    text     the adapter's answer as it is
    timings  what that took
    """

    value: bool | float | str | None
    badge: str
    words: str
    good: bool | None
    text: str
    timings: Timings

    @classmethod
    def of(cls, model: Model, result: IntrinsicResult) -> Reading:
        """Reads the result of one of the demo's intrinsics."""
        name, rest = result.name, (result.text, result.timings)
        if result.error is not None:
            return cls(None, "not understood", "this answer cannot be understood", False, *rest)
        number = number_in(result.value)
        if number is None:
            question = result.value["rewritten_question"]
            words = "on its own the question reads"
            return cls(question, f'means "{question}"', words, None, *rest)
        good = is_good(result.value, model.contract(name).good)
        if name not in _WORDS:
            words = f"the answer is right with {number:.0%} certainty"
            return cls(number, f"{number:.0%} certain", words, good, *rest)
        high = number >= _SURE
        badge, words = _WORDS[name][not high]
        return cls(high, badge, words, good, *rest)


class Screen:
    """Prints the demo as it happens. A `quiet` one prints nothing."""

    def __init__(self, *, quiet: bool = False, colour: bool | None = None) -> None:
        """`colour` None: if the output is a terminal."""
        self._quiet = quiet
        self._colour = colour
        self._words = ""
        self._column = 0

    # The conversation ----------------------------------------------------------------------------

    def opening(self, n_parameters: int, nbytes: int) -> None:
        """What is going to be seen."""
        self._line("A small chat model, and five adapters that judge what is said.", bold=True)
        self._paragraph(
            f"Base and adapters come with alora-gguf: {nbytes / 1e6:.1f} MB, of which the base has "
            f"{n_parameters / 1e6:.1f} million parameters. It was trained from scratch to chat "
            "about short documents, and sometimes it errs. Answers and times are made now, on this "
            "machine. Under each turn: what adapters say of it, and how long they took."
        )

    def documents(self, shown: Sequence[str], n_more: int, n_tokens: int, timings: Timings) -> None:
        """The documents that the conversation is about."""
        self._line()
        self._line("The documents", bold=True)
        for number, text in enumerate(shown, 1):
            self._wrapped(f"  {number:<3}", text)
        more = f"and {n_more} more; " if n_more else ""
        self._line(
            f"     {more}{n_tokens} tokens, read once, in {duration(timings.total)}", dim=True
        )

    def question(self, turn: Turn) -> None:
        """The user's turn."""
        self._line()
        self._line(turn.shows, bold=True)
        self._wrapped(f"{'  user':{_LABEL}}", turn.question)

    def answer_begins(self) -> None:
        """The assistant's turn, whose pieces follow."""
        label = f"{'  assistant':{_LABEL}}"
        self._echo(label)
        self._column = len(label)

    def piece(self, text: str) -> None:
        """A piece of the assistant's answer; words appear when they are whole."""
        *words, self._words = f"{self._words}{printable(text)}".split(" ")
        for word in words:
            self._word(word)

    def answer_ends(self, turn: Turn, answer: str) -> None:
        """The end of the answer, and the truth if that was another."""
        self._word(self._words)
        self._words = ""
        self._line()
        if not turn.is_right(answer):
            self._line(f"{'':{_LABEL}}(The base errs: {turn.truth}.)", fg="yellow")

    def badges(self, readings: Iterable[Reading]) -> None:
        """Verdicts in a word or two, and the time until the last was complete."""
        shown = list(readings)
        if shown:
            took = duration(max(reading.timings.total for reading in shown))
            self._echo(f"{took:>{_LABEL - 2}}  ", dim=True)
            self._flow([(reading.badge, _COLOURS[reading.good]) for reading in shown])

    # The evidence --------------------------------------------------------------------------------

    def verdicts(self, readings: Mapping[str, Reading]) -> None:
        """All five: in a sentence, with the adapter's answer as it is."""
        self._line()
        for name, reading in readings.items():
            raw = printable(reading.text)
            self._echo(f"  {name:{_NAME - 2}}")
            self._echo(reading.words, fg=_COLOURS[reading.good])
            gap = max(2, 60 - _NAME - len(reading.words))
            if _NAME + len(reading.words) + gap + len(raw) <= _WIDTH:
                self._line(f"{'':{gap}}{raw}", dim=True)
            else:
                self._line()
                self._wrapped(f"{'':{_NAME}}", raw, dim=True)

    def comparison(self, result: Comparison, *, threads: int, base_untouched: bool) -> None:
        """What those five cost, and would have cost with plain LoRAs."""
        alora, lora = result.alora, result.lora
        self._line()
        self._line(f"What these five verdicts cost, on {plural(threads, 'thread')}", bold=True)
        head = f"{'reused':>7}{'read':>6}{'first token':>13}"
        self._line(
            f"{'':{_NAME}}{'aLoRA, all in one batch':>{len(head)}}"
            f"{'plain LoRA, one by one':>{len(head) + 4}}"
        )
        self._line(f"{'':{_NAME}}{head}    {head}", dim=True)
        for name in alora.timings:
            cells = [_costs(side.timings[name]) for side in (alora, lora)]
            self._line(f"  {name:{_NAME - 2}}{cells[0]}    {cells[1]}")
        cells = [f"{side.evaluated:>13}{duration(side.seconds):>13}" for side in (alora, lora)]
        self._line(f"  {'all, to the end':{_NAME - 2}}{cells[0]}    {cells[1]}", bold=True)
        self._line()
        ratio = result.times_as_fast
        self._line(
            f"{ratio:.{0 if ratio >= 10 else 1}f} times as fast, reading {alora.evaluated} tokens "
            f"instead of {lora.evaluated}.",
            fg="green",
            bold=True,
        )
        self._paragraph(
            "An aLoRA changes the model from its invocation on, so what the base has read serves "
            "it. A plain LoRA changes every token, and must re-read everything: the longer the "
            "conversation, the longer that takes. (Timed with these adapters' weights, on from the "
            f"first token; medians of {result.runs} runs.)"
        )
        if base_untouched:
            self._paragraph(
                f"The conversation's {result.n_tokens} cells are byte for byte what they were."
            )
        else:
            self._line(
                f"The conversation's {result.n_tokens} cells are NOT what they were.", fg="red"
            )

    def next_commands(self, adapter: Path) -> None:
        """Where to go from here."""
        self._line()
        self._line("Next", bold=True)
        self._line("  alora-gguf convert --help    adapters of your own")
        self._line(f"  alora-gguf inspect {shlex.quote(str(adapter))}")

    # Lines ---------------------------------------------------------------------------------------

    def _echo(
        self, text: str, *, fg: str | None = None, bold: bool = False, dim: bool = False
    ) -> None:
        if not self._quiet:
            if fg or bold or dim:
                text = click.style(text, fg=fg, bold=bold or None, dim=dim or None)
            click.echo(text, nl=False, color=self._colour)

    def _line(
        self, text: str = "", *, fg: str | None = None, bold: bool = False, dim: bool = False
    ) -> None:
        if text:
            self._echo(text, fg=fg, bold=bold, dim=dim)
        self._echo("\n")

    def _word(self, word: str) -> None:
        """A word of the answer, on the next line if it does not fit on this one."""
        while word:
            if self._column > _LABEL and self._column + 1 + len(word) > _WIDTH:
                self._echo(f"\n{'':{_LABEL}}")
                self._column = _LABEL
            room = _WIDTH - _LABEL  # what is longer than a whole line is broken
            text = f" {word}" if self._column > _LABEL else word[:room]
            word = "" if self._column > _LABEL else word[room:]
            self._echo(text)
            self._column += len(text)

    def _flow(self, parts: Sequence[tuple[str, str]]) -> None:
        """Texts and their colours behind a label, side by side as far as they fit."""
        column = _LABEL
        for i, (part, colour) in enumerate(parts):
            text = printable(part)
            if i and column + 2 + len(text) > _WIDTH:
                self._echo(f",\n{'':{_LABEL}}")
                column = _LABEL
            elif i:
                self._echo(", ")
                column += 2
            self._echo(text, fg=colour)
            column += len(text)
        self._line()

    def _wrapped(self, start: str, text: str, *, dim: bool = False) -> None:
        for line in wrapped(text, _WIDTH, start, long_words=True) or [start.rstrip()]:
            self._line(line, dim=dim)

    def _paragraph(self, text: str) -> None:
        for line in wrapped(text, _WIDTH):
            self._line(line)


def _costs(timings: Timings) -> str:
    return f"{timings.reused:>7}{timings.evaluated:>6}{duration(timings.first_token or 0.0):>13}"
