"""`alora-gguf demo`: a conversation with the demo model, judged by five adapters as it goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from .demo_screen import Reading, Screen
from .render import colour

if TYPE_CHECKING:
    from alora_gguf import Chat, IntrinsicCall, Timings
    from alora_gguf.demo import Turn

_CELLS: Final = 4096  # the conversation, and one copy of it for a plain LoRA
_ANSWER_TOKENS: Final = 64


@click.command()
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, at the end.")
def command(threads: int | None, as_json: bool) -> None:
    """Chat with a small model while five adapters judge what is said.

    Base and adapters come with the package; the conversation is fixed. The adapters judge questions
    and answers on the cells that the base has computed. At the end all five are asked at once, and
    what that cost is compared with plain LoRAs, which re-read everything.
    """
    from alora_gguf import ContextOptions, Model, inspect_gguf
    from alora_gguf.demo import DOCUMENTS, adapter_paths, base_path

    from .demo_compare import compare

    base, adapters = base_path(), adapter_paths()
    screen = Screen(quiet=as_json, colour=colour())
    options = ContextOptions(n_ctx=_CELLS, n_threads=threads, max_adapters=2 * len(adapters))
    with (
        Model(base, adapters=adapters, options=options) as model,
        model.chat(documents=DOCUMENTS) as chat,
    ):
        nbytes = sum(path.stat().st_size for path in (base, *adapters.values()))
        n_parameters = inspect_gguf(base).n_parameters
        screen.opening(n_parameters, nbytes)
        play = _Play(chat, screen)
        exchanges, calls = play.all()
        before = chat.session.state()
        result = compare(chat, calls)
        untouched = play.base_untouched and chat.session.state() == before
        n_threads = model.n_threads
        screen.comparison(result, threads=n_threads, base_untouched=untouched)
    screen.next_commands(adapters["uncertainty"])
    if as_json:
        import json

        found = {
            "n_parameters": n_parameters,
            "nbytes": nbytes,
            "threads": n_threads,
            "documents": list(DOCUMENTS),
            "transcript": [exchange.to_dict() for exchange in exchanges],
            "comparison": result.to_dict(),
            "base_untouched": untouched,
        }
        click.echo(json.dumps(found, indent=2))


@dataclass(frozen=True)
class _Exchange:
    """A turn of the script, the model's answer, and what the intrinsics say of both."""

    turn: Turn
    answer: str
    timings: Timings
    verdicts: dict[str, Reading]

    def to_dict(self) -> dict[str, Any]:
        return {
            "shows": self.turn.shows,
            "user": self.turn.question,
            "assistant": self.answer,
            "right": self.turn.is_right(self.answer),
            "timings": asdict(self.timings),
            "verdicts": {
                name: {
                    "text": reading.text,
                    "value": reading.value,
                    "words": reading.words,
                    "timings": asdict(reading.timings),
                }
                for name, reading in self.verdicts.items()
            },
        }


class _Play:
    """Plays the script in a chat. `base_untouched`: whether the chat's cells were, each time
    adapters were asked, the same bytes afterwards.
    """

    def __init__(self, chat: Chat, screen: Screen) -> None:
        self._chat = chat
        self._screen = screen
        self.base_untouched = True

    def all(self) -> tuple[list[_Exchange], list[IntrinsicCall]]:
        """Returns the exchanges, and what all intrinsics were asked at the end."""
        from alora_gguf.demo import DOCUMENTS, N_SHOWN, TURNS

        timings = self._chat.read()
        shown, n_more = DOCUMENTS[:N_SHOWN], len(DOCUMENTS) - N_SHOWN
        self._screen.documents(shown, n_more, len(self._chat.tokens), timings)
        exchanges = [self._exchange(turn) for turn in TURNS[:-1]]
        last, calls = self._last_exchange(TURNS[-1])
        return [*exchanges, last], calls

    def _exchange(self, turn: Turn) -> _Exchange:
        """The user's turn, verdicts on it, the answer, verdicts on that."""
        from alora_gguf import IntrinsicCall

        self._ask_user(turn)
        verdicts = self._ask([IntrinsicCall(name) for name in turn.before])
        self._screen.badges(verdicts.values())
        answer, timings = self._answer(turn)
        more = self._ask([IntrinsicCall(name) for name in turn.after])
        self._screen.badges(more.values())
        return _Exchange(turn, answer, timings, {**verdicts, **more})

    def _last_exchange(self, turn: Turn) -> tuple[_Exchange, list[IntrinsicCall]]:
        """The user's turn, the answer, and all verdicts in one batch: those on the question are
        asked about what was said before the answer.
        """
        from alora_gguf import IntrinsicCall
        from alora_gguf.demo import INTRINSICS, OF_THE_ANSWER

        self._ask_user(turn)
        n = len(self._chat.messages)
        answer, timings = self._answer(turn)
        calls = [
            IntrinsicCall(name, upto=None if name in OF_THE_ANSWER else n) for name in INTRINSICS
        ]
        verdicts = self._ask(calls)
        self._screen.verdicts(verdicts)
        return _Exchange(turn, answer, timings, verdicts), calls

    def _ask_user(self, turn: Turn) -> None:
        self._screen.question(turn)
        self._chat.add(turn.question)

    def _answer(self, turn: Turn) -> tuple[str, Timings]:
        """The base's likeliest answer, as it comes."""
        from alora_gguf import GenerateOptions, Sampling

        self._screen.answer_begins()
        options = GenerateOptions(max_tokens=_ANSWER_TOKENS, sampling=Sampling(temperature=0.0))
        reply = self._chat.reply(options, stream=True)
        for piece in reply:
            self._screen.piece(piece)
        self._screen.answer_ends(turn, reply.text)
        return reply.text, reply.timings

    def _ask(self, calls: list[IntrinsicCall]) -> dict[str, Reading]:
        chat = self._chat
        before = chat.session.state()
        results = chat.invoke_many(calls)
        self.base_untouched &= chat.session.state() == before
        return {result.name: Reading.of(chat.model, result) for result in results}
