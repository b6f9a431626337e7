"""What a person sees of the demo, in 80 columns; colour only where a terminal can show it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

import alora_gguf as ag
from alora_gguf.demo import DOCUMENTS, N_SHOWN

from .flow import Flow, side_by_side
from .render import colour, duration, plural, printable, wrapped
from .verdicts import SURE, Badge, badges_of, number_in

if TYPE_CHECKING:
    from pathlib import Path

    from alora_gguf.demo import Turn

    from .demo_compare import Comparison

_WIDTH: Final = 80
_LABEL: Final = 13  # of a line of the conversation: "  assistant  "
_NAME: Final = 17  # of a line of a table: "  answerability  "
_STYLES: Final = {True: "green", False: "yellow", None: "cyan"}

# intrinsic -> the sentence for a high number, and for a low one
_WORDS: Final = {
    "answerability": ("the documents answer the question", "the documents do not answer it"),
    "hallucination": (
        "the documents support the answer",
        "the documents do not support the answer",
    ),
    "jailbreak": ("the user tries to break the rules", "the user keeps to the rules"),
}


@dataclass(frozen=True)
class Reading:
    """What a verdict says.

    result  the adapter's answer as it is
    value   what a program would go on with: whether the question is answerable, the answer
            faithful, the user on a jailbreak; the certainty, 0 to 1; the question on its own. None
            if the answer cannot be understood
    badges  in a word or two
    words   in a sentence
    """

    result: ag.IntrinsicResult
    value: bool | float | str | None
    badges: list[Badge]
    words: str

    @classmethod
    def of(cls, model: ag.Model, result: ag.IntrinsicResult) -> Reading:
        """Reads the result of one of the demo's intrinsics."""
        if result.error is not None:
            badges = [Badge("not understood", good=False)]
            return cls(result, None, badges, "this answer cannot be understood")
        name, number = result.name, number_in(result.value)
        badges = badges_of(name, result.value, model.contract(name).good)
        if number is None:
            question = result.value["rewritten_question"]
            return cls(result, question, badges, "on its own the question reads")
        if name not in _WORDS:
            words = f"the answer is right with {number:.0%} certainty"
            return cls(result, number, badges, words)
        high = number >= SURE
        return cls(result, high, badges, _WORDS[name][not high])


class Screen:
    """Prints the demo as it happens. A `quiet` one prints nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        colours = None if colour() is False else "auto"
        self._console = Console(color_system=colours, quiet=quiet, highlight=False)  # type: ignore[arg-type]
        self._flow = Flow(_WIDTH - _LABEL)

    # The conversation ----------------------------------------------------------------------------

    def opening(self, n_parameters: int, nbytes: int) -> None:
        """What is going to be seen."""
        self._line("A small chat model, and five adapters that judge what is said.", "bold")
        self._wrapped(
            f"Base and adapters come with alora-gguf: {nbytes / 1e6:.1f} MB, of which the base has "
            f"{n_parameters / 1e6:.1f} million parameters. It was trained from scratch to chat "
            "about short documents, and it sometimes makes mistakes. Answers and times are made "
            "now, on this machine. Under each turn: what adapters say of it, and how long they "
            "took."
        )

    def documents(self, n_tokens: int, timings: ag.Timings) -> None:
        """The documents that the conversation is about."""
        self._line()
        self._line("The documents", "bold")
        for number, text in enumerate(DOCUMENTS[:N_SHOWN], 1):
            self._wrapped(text, f"  {number:<3}")
        more = f"and {len(DOCUMENTS) - N_SHOWN} more"
        took = duration(timings.total)
        self._line(f"     {more}; {n_tokens} tokens, read once, in {took}", "dim")

    def question(self, turn: Turn) -> None:
        """The user's turn."""
        self._line()
        self._line(turn.shows, "bold")
        self._wrapped(turn.question, f"{'  user':{_LABEL}}")

    def answer_begins(self) -> None:
        """The assistant's turn, whose pieces follow."""
        self._line(f"{'  assistant':{_LABEL}}", end="")
        self._flow = Flow(_WIDTH - _LABEL)

    def piece(self, text: str) -> None:
        """A piece of the assistant's answer; words appear when they are whole."""
        flowed = self._flow.add(printable(text))
        self._line(flowed.replace("\n", f"\n{'':{_LABEL}}"), end="")

    def answer_ends(self, turn: Turn, answer: str) -> None:
        """The end of the answer, and the truth if that was another."""
        self._line(self._flow.end().replace("\n", f"\n{'':{_LABEL}}").rstrip(" "), end="")
        if not turn.is_right(answer):
            self._line(f"{'':{_LABEL}}(The base errs: {turn.truth}.)", "yellow")

    def badges(self, readings: Iterable[Reading]) -> None:
        """Verdicts in a word or two, and the time until the last was complete."""
        shown = list(readings)
        if shown:
            took = duration(max(reading.result.timings.total for reading in shown))
            badges = [badge for reading in shown for badge in reading.badges]
            parts = [(printable(badge.text), _STYLES[badge.good]) for badge in badges]
            for i, line in enumerate(side_by_side(parts, _WIDTH - _LABEL)):
                self._line(f"{'' if i else took:>{_LABEL - 2}}  ", "dim", end="")
                self._console.print(line, soft_wrap=True)

    # The evidence --------------------------------------------------------------------------------

    def verdicts(self, readings: Mapping[str, Reading]) -> None:
        """All five: in a sentence, with the adapter's answer as it is."""
        self._line()
        for name, reading in readings.items():
            raw = printable(reading.result.text)
            self._line(f"  {name:{_NAME - 2}}", end="")
            self._line(reading.words, _STYLES[reading.badges[0].good], end="")
            gap = max(2, 60 - _NAME - len(reading.words))
            if _NAME + len(reading.words) + gap + len(raw) <= _WIDTH:
                self._line(f"{'':{gap}}{raw}", "dim")
            else:
                self._line()
                self._wrapped(raw, f"{'':{_NAME}}", "dim")

    def comparison(self, result: Comparison, *, threads: int, base_untouched: bool) -> None:
        """What those five cost, and would have cost with plain LoRAs."""
        alora, lora = result.alora, result.lora
        self._line()
        self._line(f"What these five verdicts cost, on {plural(threads, 'thread')}", "bold")
        head = f"{'reused':>7}{'read':>6}{'first token':>13}"
        sides = (
            f"{'aLoRA, all in one batch':>{len(head)}}{'plain LoRA, one by one':>{len(head) + 4}}"
        )
        self._line(f"{'':{_NAME}}{sides}")
        self._line(f"{'':{_NAME}}{head}    {head}", "dim")
        for name in alora.timings:
            cells = [_costs(side.timings[name]) for side in (alora, lora)]
            self._line(f"  {name:{_NAME - 2}}{cells[0]}    {cells[1]}")
        cells = [f"{side.evaluated:>13}{duration(side.seconds):>13}" for side in (alora, lora)]
        self._line(f"  {'all, to the end':{_NAME - 2}}{cells[0]}    {cells[1]}", "bold")
        self._line()
        ratio = result.times_as_fast
        self._line(
            f"{ratio:.{0 if ratio >= 10 else 1}f} times as fast, reading {alora.evaluated} tokens "
            f"instead of {lora.evaluated}.",
            "bold green",
        )
        self._wrapped(
            "An aLoRA changes the model from its invocation on, so what the base has read serves "
            "it. A plain LoRA changes every token, and must re-read everything: the longer the "
            "conversation, the longer that takes. (Timed with these adapters' weights, on from the "
            f"first token; medians of {result.runs} runs.)"
        )
        cells_are = f"The conversation's {result.n_tokens} cells are"
        if base_untouched:
            self._line(f"{cells_are} byte for byte what they were.")
        else:
            self._line(f"{cells_are} NOT what they were.", "red")

    def next_commands(self, adapter: Path) -> None:
        """Where to go from here."""
        self._line()
        self._line("Next", "bold")
        self._line("  alora-gguf convert --help    adapters of your own")
        self._line(f"  alora-gguf inspect {shlex.quote(str(adapter))}")

    # Lines ---------------------------------------------------------------------------------------

    def _line(self, text: str = "", style: str = "", *, end: str = "\n") -> None:
        self._console.print(Text(text, style), soft_wrap=True, end=end)

    def _wrapped(self, text: str, start: str = "", style: str = "") -> None:
        for line in wrapped(text, _WIDTH, start, long_words=True) or [start.rstrip()]:
            self._line(line, style)


def _costs(timings: ag.Timings) -> str:
    return f"{timings.reused:>7}{timings.evaluated:>6}{duration(timings.first_token or 0.0):>13}"
