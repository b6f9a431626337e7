"""`alora-gguf demo`: a conversation with the demo model, judged by five adapters as it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
from alora_gguf.cli import options

import alora_gguf as ag
from alora_gguf.demo import (
    DOCUMENTS,
    INTRINSICS,
    OF_THE_ANSWER,
    TURNS,
    Turn,
    adapter_paths,
    base_path,
)

if TYPE_CHECKING:
    from .demo_screen import Reading, Screen

_CELLS: Final = 4096  # the conversation, and one copy of it for a plain LoRA
_ANSWER_TOKENS: Final = 64


@click.command()
@options.threads
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, at the end.")
def command(n_threads: int | None, as_json: bool) -> None:
    """Chat with a small model while five adapters judge what is said.

    Base and adapters come with the package; the conversation is fixed. The adapters judge questions
    and answers on the cells that the base has computed. At the end all five are asked at once, and
    what that cost is compared with plain LoRAs, which re-read everything.
    """
    from .demo_compare import compare
    from .demo_screen import Screen

    base, adapters = base_path(), adapter_paths()
    screen = Screen(quiet=as_json)
    how = ag.ContextOptions(
        n_ctx=_CELLS, n_threads=n_threads or options.DEMO_THREADS, max_adapters=2 * len(adapters)
    )
    with (
        ag.Model(base, adapters=adapters, options=how) as model,
        model.chat(documents=DOCUMENTS) as chat,
    ):
        nbytes = sum(path.stat().st_size for path in (base, *adapters.values()))
        n_parameters = ag.inspect_gguf(base).n_parameters
        screen.opening(n_parameters, nbytes)
        play = _Play(chat, screen)
        calls = play.all()
        before = chat.session.state()
        result = compare(chat, calls)
        untouched = play.base_untouched and chat.session.state() == before
        n_threads = model.n_threads
        screen.comparison(result, threads=n_threads, base_untouched=untouched)
    screen.next_commands(adapters["uncertainty"])
    if as_json:
        found = {
            "n_parameters": n_parameters,
            "nbytes": nbytes,
            "threads": n_threads,
            "documents": list(DOCUMENTS),
            "transcript": play.transcript,
            "comparison": result.to_dict(),
            "base_untouched": untouched,
        }
        click.echo(json.dumps(found, indent=2))


class _Play:
    """Plays the script in a chat.

    transcript      what was said, as JSON has it
    base_untouched  whether the chat's cells were, each time adapters were asked, the same bytes
                    afterwards
    """

    def __init__(self, chat: ag.Chat, screen: Screen) -> None:
        self._chat, self._screen = chat, screen
        self.transcript: list[dict[str, Any]] = []
        self.base_untouched = True

    def all(self) -> list[ag.IntrinsicCall]:
        """Plays it; returns what all intrinsics were asked at the end."""
        timings = self._chat.read()
        self._screen.documents(len(self._chat.tokens), timings)
        for turn in TURNS[:-1]:
            self._screen.question(turn)
            self._chat.add(turn.question)
            verdicts = self._ask(turn.before)
            self._screen.badges(verdicts.values())
            reply = self._answer(turn)
            more = self._ask(turn.after)
            self._screen.badges(more.values())
            self._note(turn, reply, {**verdicts, **more})
        # the last time all verdicts in one batch: those on the question are about what was said
        # before the answer
        turn = TURNS[-1]
        self._screen.question(turn)
        self._chat.add(turn.question)
        n = len(self._chat.messages)
        reply = self._answer(turn)
        calls = [
            ag.IntrinsicCall(name, upto=None if name in OF_THE_ANSWER else n) for name in INTRINSICS
        ]
        verdicts = self._ask(calls)
        self._screen.verdicts(verdicts)
        self._note(turn, reply, verdicts)
        return calls

    def _answer(self, turn: Turn) -> ag.Reply:
        """The base's likeliest answer, as it comes."""
        self._screen.answer_begins()
        options = ag.GenerateOptions(
            max_tokens=_ANSWER_TOKENS, sampling=ag.Sampling(temperature=0.0)
        )
        reply = self._chat.reply(options, stream=True)
        for piece in reply:
            self._screen.piece(piece)
        self._screen.answer_ends(turn, reply.text)
        return reply

    def _ask(self, calls: Sequence[str | ag.IntrinsicCall]) -> dict[str, Reading]:
        from .demo_screen import Reading

        chat = self._chat
        before = chat.session.state()
        results = chat.invoke_many(calls)
        self.base_untouched &= chat.session.state() == before
        return {result.name: Reading.of(chat.model, result) for result in results}

    def _note(self, turn: Turn, reply: ag.Reply, verdicts: dict[str, Reading]) -> None:
        said = {
            name: {
                "text": reading.result.text,
                "value": reading.value,
                "words": reading.words,
                "timings": asdict(reading.result.timings),
            }
            for name, reading in verdicts.items()
        }
        self.transcript.append({
            "shows": turn.shows,
            "user": turn.question,
            "assistant": reply.text,
            "right": turn.is_right(reply.text),
            "timings": asdict(reply.timings),
            "verdicts": said,
        })  # fmt: skip
