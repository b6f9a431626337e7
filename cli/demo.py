"""`alora-gguf demo`: a conversation with the demo model, judged by five adapters as it goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from .demo_screen import Screen
from .demo_verdicts import Reading, read_verdict
from .render import colour

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from alora_gguf import Invocation, Session, Timings, Verdict
    from alora_gguf.demo.script import Turn

    from .demo_compare import Comparison

_CELLS: Final = 4096  # the conversation, and one copy of it for a plain LoRA
_ANSWER_TOKENS: Final = 64
_VERDICT_TOKENS: Final = 64


@click.command()
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, at the end.")
def command(threads: int | None, as_json: bool) -> None:
    """Chat with a small model while five adapters judge what is said.

    Base and adapters come with the package; the conversation is fixed. The adapters judge questions
    and answers on the cells that the base has computed. At the end all five are asked at once, and
    what that cost is compared with plain LoRAs, which read everything anew.
    """
    from alora_gguf import ContextOptions, Model
    from alora_gguf.demo import adapter_paths, base_path
    from alora_gguf.options import default_threads

    from .demo_compare import compare

    base, adapters = base_path(), adapter_paths()
    screen = Screen(quiet=as_json, colour=colour())
    options = ContextOptions(n_ctx=_CELLS, n_threads=threads, max_adapters=2 * len(adapters))
    with Model(base, adapters=adapters, options=options) as model, model.session() as session:
        setting = _Setting.read(base, adapters.values(), threads or default_threads())
        screen.opening(setting.n_parameters, setting.nbytes)

        play = _Play(session, screen)
        exchanges, questions = play.all()
        before = session.state()
        result = compare(session, questions)
        untouched = play.base_untouched and session.state() == before
        screen.comparison(result, threads=setting.threads, base_untouched=untouched)
    screen.next_commands(adapters["uncertainty"])
    if as_json:
        click.echo(_as_json(setting, exchanges, result, untouched))


@dataclass(frozen=True)
class _Setting:
    """What it runs on: the base's size, all files' bytes, the threads."""

    n_parameters: int
    nbytes: int
    threads: int

    @classmethod
    def read(cls, base: Path, adapters: Iterable[Path], threads: int) -> _Setting:
        from alora_gguf.gguf.inspection import inspect_gguf

        nbytes = sum(path.stat().st_size for path in (base, *adapters))
        return cls(inspect_gguf(base).n_parameters, nbytes, threads)


@dataclass(frozen=True)
class _Exchange:
    """A turn of the script, the model's answer, and what the intrinsics say of both."""

    turn: Turn
    answer: str
    timings: Timings
    verdicts: dict[str, tuple[Verdict, Reading]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "shows": self.turn.shows,
            "user": self.turn.question,
            "assistant": self.answer,
            "right": self.turn.is_right(self.answer),
            "timings": asdict(self.timings),
            "verdicts": {
                name: {
                    "text": verdict.text,
                    "value": reading.value,
                    "words": reading.words,
                    "timings": asdict(verdict.timings),
                }
                for name, (verdict, reading) in self.verdicts.items()
            },
        }


class _Play:
    """Plays the script on a session. `base_untouched`: whether the session's cells were, each time
    adapters were asked, the same bytes afterwards.
    """

    def __init__(self, session: Session, screen: Screen) -> None:
        self._session = session
        self._screen = screen
        self.base_untouched = True

    def all(self) -> tuple[list[_Exchange], dict[str, Invocation]]:
        """Returns the exchanges, and what all intrinsics were asked at the end."""
        from alora_gguf.demo.chat import turn
        from alora_gguf.demo.script import DOCUMENTS, N_SHOWN, TURNS

        pages = [turn(f"document {i}", text) for i, text in enumerate(DOCUMENTS, 1)]
        timings = self._session.append("".join(pages))
        n_more = len(DOCUMENTS) - N_SHOWN
        self._screen.documents(DOCUMENTS[:N_SHOWN], n_more, len(self._session.tokens), timings)
        exchanges = [self._exchange(turn) for turn in TURNS[:-1]]
        last, questions = self._last_exchange(TURNS[-1])
        return [*exchanges, last], questions

    def _exchange(self, turn: Turn) -> _Exchange:
        """The user's turn, verdicts on it, the answer, verdicts on that."""
        from alora_gguf.demo.chat import END_OF_TURN

        self._ask_user(turn)
        verdicts = self._ask({name: _invocation(name) for name in turn.before})
        self._screen.badges(verdicts.values())
        answer, timings = self._answer(self._session, turn)
        self._session.append(END_OF_TURN)
        more = self._ask({name: _invocation(name) for name in turn.after})
        self._screen.badges(more.values())
        return _Exchange(turn, answer, timings, {**verdicts, **more})

    def _last_exchange(self, turn: Turn) -> tuple[_Exchange, dict[str, Invocation]]:
        """The user's turn, a drafted answer, and all verdicts in one batch.

        The conversation ends with the user's turn then; what judges the answer reads it besides.
        """
        from alora_gguf.demo import INTRINSICS
        from alora_gguf.demo.chat import turn as whole_turn
        from alora_gguf.demo.script import OF_THE_ANSWER

        self._ask_user(turn)
        with self._session.fork() as draft:
            answer, timings = self._answer(draft, turn)
        read_too = whole_turn("assistant", answer)
        questions = {
            name: _invocation(name, read_too if name in OF_THE_ANSWER else None)
            for name in INTRINSICS
        }
        verdicts = self._ask(questions)
        self._screen.verdicts((name, *found) for name, found in verdicts.items())
        return _Exchange(turn, answer, timings, verdicts), questions

    def _ask_user(self, turn: Turn) -> None:
        from alora_gguf.demo.chat import turn as whole_turn

        self._screen.question(turn)
        self._session.append(whole_turn("user", turn.question))

    def _answer(self, session: Session, turn: Turn) -> tuple[str, Timings]:
        """The base's likeliest answer, as it comes."""
        from alora_gguf import Sampling
        from alora_gguf.demo.chat import role_marker

        self._screen.answer_begins()
        session.append(role_marker("assistant"))
        reply = session.generate(max_tokens=_ANSWER_TOKENS, sampling=Sampling(temperature=0.0))
        for piece in reply:
            self._screen.piece(piece)
        self._screen.answer_ends(turn, reply.text)
        return reply.text, reply.timings

    def _ask(self, questions: dict[str, Invocation]) -> dict[str, tuple[Verdict, Reading]]:
        before = self._session.state()
        verdicts = self._session.invoke_many(list(questions.values()))
        self.base_untouched &= self._session.state() == before
        return {
            name: (verdict, read_verdict(name, verdict.text))
            for name, verdict in zip(questions, verdicts, strict=True)
        }


def _invocation(name: str, suffix: str | None = None) -> Invocation:
    """The adapter's own invocation follows the suffix by itself."""
    from alora_gguf import Invocation

    return Invocation(name, suffix, max_tokens=_VERDICT_TOKENS)


def _as_json(
    setting: _Setting,
    exchanges: list[_Exchange],
    result: Comparison,
    base_untouched: bool,
) -> str:
    import json

    from alora_gguf.demo.script import DOCUMENTS

    return json.dumps(
        {
            **asdict(setting),
            "documents": list(DOCUMENTS),
            "transcript": [exchange.to_dict() for exchange in exchanges],
            "comparison": result.to_dict(),
            "base_untouched": base_untouched,
        },
        indent=2,
    )
