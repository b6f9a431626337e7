"""A talk's turns: what stays, and what comes back when something goes wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.chat import talk as talk_module
from alora_gguf.cli.chat.asking import Failed, Turn, Watched, ask_each
from alora_gguf.cli.chat.tables import place_note
from alora_gguf.cli.chat.talk import Talk

import alora_gguf as ag
from alora_gguf.demo import adapter_paths
from alora_gguf.demo.script import DOCUMENTS
from tests.support.chats import PLAIN, brief
from tests.support.chatting import GREEDY, Tiny, watching

QUESTION = "When does the Bomel library open?"
ANSWER = "The opening time of the Bomel library is 9:30."


def nothing(*_: object) -> None:
    """For views that show none."""


class Ear:
    """Hears what is told while a turn is made."""

    def __init__(
        self,
        piece: Callable[[str], None] = nothing,
        reading: Callable[[int, int], None] = nothing,
        over: Callable[[str], None] = nothing,
    ) -> None:
        self.piece, self.reading, self.reply_over = piece, reading, over
        self.waits: list[str] = []

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        self.waits.append(what)
        yield


def say(
    talk: Talk,
    text: str,
    ear: Ear | None = None,
    *,
    cancel: ag.CancelToken | None = None,
    instead: bool = False,
) -> Turn:
    return talk.say(text, ear or Ear(), cancel or ag.CancelToken(), instead=instead)


def state(talk: Talk) -> tuple[Any, ...]:
    chat = talk.chat
    return (
        chat.messages, chat.documents, chat.system, chat.tokens, chat.session.cached,
        tuple(talk.turns),
    )  # fmt: skip


@pytest.fixture
def endless(tiny: Tiny) -> Iterator[Talk]:
    """One that is cut off when its cache of 256 cells is full."""
    with ag.Model(tiny.base, adapters={"plain": tiny.lora}, n_ctx=256, n_threads=1) as model:
        yield Talk(model, model.chat(), brief(100_000))


# Turns -------------------------------------------------------------------------------------------


def test_a_turn(talk: Talk) -> None:
    pieces: list[str] = []
    turn = say(talk, QUESTION, Ear(pieces.append))
    assert "".join(pieces) == turn.reply == ANSWER
    assert len(pieces) > 3
    assert (turn.user, turn.finish_reason, turn.verdicts) == (QUESTION, "stop", ())
    assert talk.turns == [turn]
    before = talk.chat.session.cached
    again = say(talk, "Who runs it?")
    assert again.timings.reused == talk.reused == before
    assert [m.content for m in talk.chat.messages] == [QUESTION, ANSWER, again.user, again.reply]


def test_reading_a_long_text_is_told(talk: Talk) -> None:
    told: list[tuple[int, int]] = []
    say(talk, QUESTION, Ear(reading=lambda *done: told.append(done)))
    assert told
    assert told[-1][0] == told[-1][1] > 200


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_nothing_cannot_be_said(talk: Talk, text: str) -> None:
    with pytest.raises(ag.InputError, match=r"^there is nothing to say in an empty message$"):
        say(talk, text)


def test_one_that_is_stopped_keeps_what_was_said(talk: Talk) -> None:
    cancel = ag.CancelToken()
    turn = say(talk, QUESTION, Ear(lambda _: cancel.cancel()), cancel=cancel)
    assert turn.finish_reason == "cancelled"
    assert 0 < len(turn.reply) < len(ANSWER)
    assert talk.chat.messages[-1] == ag.Message("assistant", turn.reply)
    assert say(talk, "Who runs it?").finish_reason == "stop"


@pytest.mark.parametrize("watched", [[], [watching("answerability", "question")]])
def test_one_that_is_stopped_before_it_began_was_not(
    talk: Talk, watched: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it was read already: a question without an answer would stay, and some templates
    would refuse the next one.
    """
    say(talk, QUESTION)
    talk.watched = watched
    before = state(talk)
    cancel = ag.CancelToken()
    cancel.cancel()
    with pytest.raises(ag.CancelledError):
        say(talk, "Who runs it?", cancel=cancel)
    assert state(talk) == before
    real, cancel = ag.Chat.reply, ag.CancelToken()

    def reply(chat: ag.Chat, *arguments: Any, **options: Any) -> ag.Reply:
        begun = real(chat, *arguments, **options)
        cancel.cancel()
        return begun

    monkeypatch.setattr(ag.Chat, "reply", reply)
    monkeypatch.setattr(
        ag.Chat, "say", lambda c, text, *a, **o: (c.add(text), reply(c, *a, **o))[1]
    )
    with pytest.raises(ag.CancelledError):
        say(talk, "Who runs it?", cancel=cancel)
    assert state(talk) == before


def test_one_that_fills_the_cache_keeps_what_was_said(endless: Talk) -> None:
    turn = say(endless, "hello")
    assert turn.finish_reason == "full"
    assert endless.chat.session.cached == 256
    assert endless.chat.messages[-1] == ag.Message("assistant", turn.reply)
    before = state(endless)
    with pytest.raises(ag.CacheFullError):
        say(endless, "and on")
    assert state(endless) == before
    endless.rewind(1)
    assert say(endless, "hello again").finish_reason == "full"


def test_what_is_waited_for_is_told_and_the_reply_before_what_is_said_of_it(talk: Talk) -> None:
    """Or its last word would come with the verdicts only."""
    heard: list[str] = []
    ear = Ear(heard.append, over=lambda reply: heard.append(f"over {reply}"))
    talk.watched = [
        watching("jailbreak", "question", "!", good="low"),
        watching("answerability", "question"),
        watching("uncertainty", "answer"),
    ]
    real_waiting = ear.waiting
    ear.waiting = lambda what: heard.append(what) or real_waiting(what)  # type: ignore
    say(talk, QUESTION, ear)
    assert heard[0] == "waiting for jailbreak"
    assert heard[-3:] == [f"over {ANSWER}", "asking answerability", "asking uncertainty"]
    assert "".join(heard[1:-3]) == ANSWER
    heard.clear()
    talk.watched = []
    say(talk, "Who runs it?", ear)
    assert heard[0] == "waiting for the reply"
    assert heard[-1] == "over The manager of the Bomel library is Ruth Covin."


# Turns in place of the last ----------------------------------------------------------------------


def test_another_turn_takes_the_last_ones_place(talk: Talk) -> None:
    first = say(talk, QUESTION)
    say(talk, "Who runs it?")
    turn = say(talk, "And the Brosa dairy?", instead=True)
    assert talk.turns == [first, turn]
    assert [m.content for m in talk.chat.messages] == [QUESTION, ANSWER, turn.user, turn.reply]


def too_long(talk: Talk, _: pytest.MonkeyPatch) -> Turn:
    return say(talk, "the " * 3000, instead=True)


def stopped(talk: Talk, _: pytest.MonkeyPatch) -> Turn:
    cancel = ag.CancelToken()
    cancel.cancel()
    return say(talk, "Who runs it?", cancel=cancel, instead=True)


def torn_off(talk: Talk, _: pytest.MonkeyPatch) -> Turn:
    def piece(_: str) -> None:
        raise BrokenPipeError

    return say(talk, "Who runs it?", Ear(piece), instead=True)


def interrupted(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> Turn:
    from alora_gguf.generate.sampling import Sampler
    from tests.support.chats import interrupt_at

    monkeypatch.setattr(Sampler, "sample", interrupt_at(3))
    return say(talk, "Who runs it?", instead=True)


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        (too_long, ag.CacheFullError),
        (stopped, ag.CancelledError),
        (torn_off, BrokenPipeError),
        (interrupted, KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("watched", [[], [watching("jailbreak", "question", "!", good="low")]])
def test_the_old_one_comes_back_if_the_new_one_fails(
    talk: Talk,
    monkeypatch: pytest.MonkeyPatch,
    watched: list[Watched],
    fails: Callable[[Talk, pytest.MonkeyPatch], Turn],
    error: type[BaseException],
) -> None:
    say(talk, QUESTION)
    talk.watched = watched
    before = state(talk)
    with monkeypatch.context() as patch, pytest.raises(error):
        fails(talk, patch)
    assert state(talk) == before
    talk.watched = []
    again = say(talk, "Who runs it?")
    assert again.reply == "The manager of the Bomel library is Ruth Covin."
    assert again.timings.reused == before[4]


@pytest.mark.parametrize("watched", [[], [watching("answerability", "question")]])
def test_one_in_place_of_a_long_one_needs_no_room_beside_it(
    demo: ag.Model, watched: list[Watched]
) -> None:
    """The last turn fills the cache; both together would not fit."""
    with ag.Model(demo.path, adapters=adapter_paths(), n_ctx=512, n_threads=1) as model:
        documents = [ag.Document(text) for text in DOCUMENTS]
        talk = Talk(model, model.chat(documents=documents), GREEDY)
        say(talk, QUESTION)
        talk.rewind(1)
        kept = talk.chat.session.cached
        n = (model.n_ctx - kept) * 3 // 5 // len(model.tokenize("Who? " * 10)) * 10
        first = say(talk, "Who? " * n)
        talk.watched = watched
        again = say(talk, "When? " * n, instead=True)
        assert again.finish_reason == first.finish_reason == "stop"
        assert talk.turns == [again]
        before = state(talk)
        with pytest.raises(ag.CacheFullError):
            say(talk, "Why? " * 4 * n, instead=True)
        assert state(talk) == before
        assert say(talk, "Who? " * n, instead=True).finish_reason == "stop"


def test_one_in_place_of_one_that_filled_the_cache_is_as_long(endless: Talk) -> None:
    first = say(endless, "hello")
    assert first.finish_reason == "full"
    for _ in range(3):
        again = say(endless, "hello", instead=True)
        assert (again.reply, again.finish_reason) == (first.reply, "full")


def test_there_must_be_one(talk: Talk) -> None:
    with pytest.raises(ag.InputError, match=r"^nothing was said yet$"):
        say(talk, QUESTION, instead=True)
    with pytest.raises(ag.InputError, match=r"^nothing was said yet$"):
        talk.last_said()


# Taking back -------------------------------------------------------------------------------------


def test_rewinding(talk: Talk) -> None:
    first = say(talk, QUESTION)
    after_one = state(talk)
    say(talk, "Who runs it?")
    say(talk, "And the Brosa dairy?")
    assert talk.last_said() == "And the Brosa dairy?"
    with pytest.raises(ag.InputError, match=r"^there are only 3 turns$"):
        talk.rewind(4)
    assert len(talk.turns) == 3
    talk.rewind(2)
    assert state(talk) == after_one
    assert talk.turns == [first]
    talk.rewind(1)
    assert (talk.chat.messages, talk.turns) == ([], [])
    with pytest.raises(ag.InputError, match=r"^nothing was said yet$"):
        talk.rewind(1)


def test_rewinding_beyond_what_was_restored(talk: Talk, tmp_path: Any) -> None:
    say(talk, QUESTION)
    talk.chat.save(tmp_path / "talk.alora")
    talk.replace_chat(talk.model.restore(tmp_path / "talk.alora"))
    assert talk.turns == []
    turn = say(talk, "Who runs it?")
    assert turn.timings.reused == 273
    assert talk.turns == [turn]
    talk.rewind(2)
    assert (talk.chat.messages, talk.turns) == ([], [])


# Changing the ground -----------------------------------------------------------------------------


def with_system(talk: Talk, text: str) -> dict[str, Any]:
    return {"messages": [ag.Message("system", text), *talk.chat.messages]}


def with_document(talk: Talk, text: str) -> dict[str, Any]:
    return {"documents": [*talk.chat.documents, ag.Document(text)]}


def test_what_was_said_is_read_anew(talk: Talk) -> None:
    more = with_document(talk, "The Olma mill opens at 8.")
    assert talk.change(nothing, None, **more) == ag.Timings()
    say(talk, QUESTION)
    n = talk.chat.session.cached
    timings = talk.change(nothing, None, **with_document(talk, "Ada Lorn has a cat."))
    assert timings.reused + timings.evaluated == talk.chat.session.cached > n
    assert timings.evaluated < n  # only from there on
    assert talk.reused == timings.reused
    assert len(talk.chat.documents) == len(DOCUMENTS) + 2
    assert [m.content for m in talk.chat.messages] == [QUESTION, ANSWER]
    talk.change(nothing, None, **with_system(talk, "Be brief."))
    assert talk.chat.system == "Be brief."


def test_a_change_that_does_not_fit_is_none(talk: Talk) -> None:
    say(talk, QUESTION)
    before = state(talk)
    for change in (with_document(talk, "word " * 3000), with_system(talk, "word " * 3000)):
        with pytest.raises((ag.CacheFullError, ag.InputError), match=r"KV cache|trained for 2048"):
            talk.change(nothing, None, **change)
        assert state(talk) == before
    cancel = ag.CancelToken()
    cancel.cancel()
    with pytest.raises(ag.CancelledError):
        talk.change(nothing, cancel, **with_document(talk, "Ada Lorn has a cat."))
    assert state(talk) == before
    assert say(talk, "Who runs it?").timings.reused == before[4]


def test_a_template_that_takes_no_documents(tiny: Tiny) -> None:
    template = PLAIN.partition("endfor -%}")[2]  # without the documents
    with ag.Model(tiny.base, n_ctx=256, n_threads=1) as model:
        talk = Talk(model, model.chat(template=template), brief())
        assert place_note(talk.chat) is None
        talk.change(nothing, None, **with_document(talk, "a text"))
        assert place_note(talk.chat) == (
            "the model's chat template takes no documents: they stand in the system message"
        )


# Asking ------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ag.IntrinsicCall]:
    """The calls of intrinsics."""
    found: list[ag.IntrinsicCall] = []

    def spy(chat: ag.Chat, calls: Sequence[ag.IntrinsicCall], cancel: Any) -> Any:
        found.extend(calls)
        return ask_each(chat, calls, cancel)

    monkeypatch.setattr(talk_module, "ask_each", spy)
    return found


def test_each_is_asked_about_what_it_judges(talk: Talk) -> None:
    with pytest.raises(ag.InputError, match=r"^nothing was said yet$"):
        talk.ask(["jailbreak"])
    say(talk, QUESTION)
    verdicts = talk.ask(["jailbreak", "answerability", "uncertainty"])
    places = [1, 1, 2]
    for verdict, n in zip(verdicts, places, strict=True):
        assert isinstance(verdict, ag.IntrinsicResult)
        assert verdict.text == talk.chat.invoke(verdict.name, upto=n).text
    assert [verdict.name for verdict in verdicts] == ["jailbreak", "answerability", "uncertainty"]
    assert all(isinstance(v, ag.IntrinsicResult) and v.error is None for v in verdicts)


def test_where_it_is_said_what_to_judge_that_counts(
    talk: Talk, asked: list[ag.IntrinsicCall]
) -> None:
    talk.watched = [
        watching("answerability", "answer"),
        watching("uncertainty", "answer"),
    ]
    turn = say(talk, QUESTION)
    assert [(call.name, call.upto) for call in asked] == [
        ("answerability", 2), ("uncertainty", 2),
    ]  # fmt: skip
    assert [verdict.name for verdict in turn.verdicts] == ["answerability", "uncertainty"]


def test_one_that_cannot_be_asked_does_not_keep_the_others_from_it(talk: Talk) -> None:
    say(talk, QUESTION)
    failed, uncertainty = talk.ask(["nope", "uncertainty"])
    assert isinstance(failed, Failed)
    assert str(failed.error).startswith("no adapter named 'nope' is loaded; loaded: ")
    assert isinstance(uncertainty, ag.IntrinsicResult)
    (failed,) = talk.ask([ag.IntrinsicCall("uncertainty", {"x": "1"})])
    assert isinstance(failed, Failed)
    assert "x" in str(failed.error)


def test_a_turn_stays_if_judging_it_is_stopped(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise ag.CancelledError("the call was cancelled")

    monkeypatch.setattr(talk_module, "ask_each", stop)
    talk.watched = [
        watching("uncertainty", "answer"),
        watching("hallucination", "answer"),
    ]
    turn = say(talk, QUESTION)
    assert talk.turns == [turn]
    assert (turn.reply, turn.finish_reason) == (ANSWER, "stop")
    assert [(v.name, str(v.error)) for v in turn.verdicts] == [
        ("uncertainty", "stopped before it answered"),
        ("hallucination", "stopped before it answered"),
    ]


def test_a_plain_lora_reads_all_of_it_beside_the_base(endless: Talk, tmp_path: Path) -> None:
    """The words that it replies to were read with the base before."""
    (tmp_path / "io.yaml").write_text(CONTRACT)
    endless.model.set_contract("plain", tmp_path / "io.yaml")
    endless.options = brief(5, adapter="plain")
    endless.watched = [watching("plain", "question")]
    turn = say(endless, "hello")
    words, prompt = 7, 8  # and the marker that begins the reply
    assert len(endless.chat.tokens) == prompt + turn.timings.generated
    assert (turn.timings.reused, turn.timings.evaluated) == (0, words + prompt)
    assert say(endless, "and on").timings.reused == 13


CONTRACT = """
model: ~
response_format: |
  {"type": "object", "properties": {"x": {"type": "string", "enum": ["a", "b"]}}, "required": ["x"]}
transformations: ~
"""
