"""Adapters in chats: where invocations go, whose cells are reused, and that none are mixed up,
least of all where an invocation is the very marker that begins the assistant's turn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.tokens import BASE, Provenance
from alora_gguf.intrinsics import Contract
from tests.support import inside, tiny_base
from tests.support.chats import (
    GREEDY,
    PLAIN,
    YES_NO,
    assert_nothing_left,
    assert_sound,
    brief,
    close_to,
    role_adapter,
    saying,
)
from tests.support.files import EXACT, Files

U, A, END = tiny_base.USER, tiny_base.ASSISTANT, tiny_base.END
MARKED = (  # the marker is several tokens
    "{%- for m in messages -%}{{ '<|' + m.role + '|>: ' + m.content + '<|end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>: ' }}{%- endif -%}"
)


class World:
    """A model with adapters that begin at the assistant's marker, at a role, at a word."""

    def __init__(self, files: Files, template: str = PLAIN, **options: Any) -> None:
        self.template = template
        with ag.Model(files.base, n_ctx=64, n_threads=1) as model:
            marker = model.tokenize("<|assistant|>" + (": " if template == MARKED else ""))
        self.n_marker = len(marker)
        role = [tiny_base.BOS, ord("j")]
        adapters = {
            "sure": files.alora,
            "lora": files.lora,
            "marker": role_adapter(files.folder, f"marker{len(marker)}", marker, seed=21),
            "twin": role_adapter(files.folder, f"twin{len(marker)}", marker, seed=22),
            "role": role_adapter(files.folder, "role", role, seed=23),
        }
        self.model = files.model(adapters=adapters, **options)
        self.clean = files.model(adapters=adapters)
        for model in (self.model, self.clean):
            for name in ("sure", "marker", "twin", "role"):
                model.set_contract(name, Contract.parse(YES_NO))

    def chat(self, **more: Any) -> ag.Chat:
        return self.model.chat(template=self.template, **more)

    def reply(self, chat: ag.Chat, said: str | None = None, n: int = 5, **use: Any) -> ag.Reply:
        """A reply that is compared with a fresh context's."""
        options = brief(n, **use)
        start = chat.reply if said is None else lambda *a, **k: chat.say(said, *a, **k)
        reply = start(options, stream=True)
        prompt, logits = chat.tokens, inside.last_logits(chat.session)
        reply.read()
        with self.clean.session() as fresh:
            expected = fresh.generate(prompt=prompt, max_tokens=n, sampling=GREEDY, **use)
            assert close_to(logits, inside.last_logits(fresh))
            expected.read()
            assert reply.tokens == expected.tokens
        return reply

    def ask(self, chat: ag.Chat, name: str, **more: Any) -> ag.IntrinsicResult:
        """An intrinsic that is compared with a fresh chat's about the same tokens."""
        result = chat.invoke(ag.IntrinsicCall(name, **more))
        asked: list[Any] = []
        real = ag.Session.invoke_many

        def spy(session: ag.Session, invocations: Any, **options: Any) -> Any:
            asked.extend(invocations)
            return real(session, invocations, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ag.Session, "invoke_many", spy)
            chat.invoke(ag.IntrinsicCall(name, **more))
        with self.clean.session() as fresh:
            verdict = fresh.invoke(asked[0])
        assert verdict.text == result.text
        choice = next(t for t in verdict.logprobs or () if len(t.top) == 2)  # y or n
        (mine,) = result.logprobs
        assert [t.text for t in mine.top] == [t.text for t in choice.top]
        assert np.allclose(
            [t.logprob for t in mine.top], [t.logprob for t in choice.top], atol=1e-3
        )
        return result


@pytest.fixture(params=[PLAIN, MARKED], ids=["one token", "more tokens"])
def world(files: Files, request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(files, request.param)
    with world.model, world.clean:
        yield world


@pytest.fixture
def plain(files: Files) -> Iterator[World]:
    world = World(files)
    with world.model, world.clean:
        yield world


def by(model: ag.Model, name: str, scale: float = 1.0) -> Provenance:
    return Provenance(model.adapter(name).identity, scale)


# Where the invocation goes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["role", "sure"])
def test_a_missing_invocation_takes_the_markers_place(plain: World, name: str) -> None:
    chat, model = plain.chat(), plain.model
    invocation = list(model.adapter(name).invocation)
    chat.add("hello")
    n = len(chat.tokens)
    reply = plain.reply(chat, adapter=name)
    prompt = chat.tokens[: -len(reply.tokens)]
    assert prompt == [U, *model.tokenize("hello"), END, *invocation]
    assert (reply.timings.reused, reply.timings.evaluated) == (n, len(invocation))
    assert chat.session.provenance == ((0, BASE), (n, by(model, name)))
    assert chat.messages[-1] == ag.Message("assistant", reply.text)
    # what it said is the assistant's turn like any other, for the base to read
    after = plain.reply(chat, "and")
    assert after.timings.reused == n
    text = model.detokenize(chat.tokens, special=True)
    assert text.startswith(f"<|user|>hello<|end|><|assistant|>{reply.text}<|end|><|user|>and")
    assert chat.session.provenance == ((0, BASE),)


def test_one_in_the_users_last_message_stays_there(
    plain: World, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain.model
    monkeypatch.setattr(model, "_special_tokens_in_text", True)
    chat = plain.chat()
    plain.reply(chat, "sure of it: <certainty>")  # an earlier one
    n = len(chat.tokens)
    reply = plain.reply(chat, "is that so <certainty>?", adapter="sure")
    before = [END, U, *model.tokenize("is that so ")]
    assert reply.timings.reused == n
    at = n + len(before)
    assert chat.session.provenance == ((0, BASE), (at, by(model, "sure")))
    assert tuple(chat.tokens[at : at + len(files.invocation)]) == files.invocation
    assert chat.tokens[-len(reply.tokens) - 1] == A  # and the marker is where it always is


def test_one_that_the_user_quotes_does_not_count(plain: World, files: Files) -> None:
    chat = plain.chat()
    reply = plain.reply(chat, "is that so <certainty>?", adapter="sure")
    at = len(chat.tokens) - len(reply.tokens) - len(files.invocation)
    assert tuple(chat.tokens[at:][: len(files.invocation)]) == files.invocation
    assert chat.session.provenance == ((0, BASE), (at, by(plain.model, "sure")))


def test_one_in_an_earlier_message_does_not_count(plain: World, files: Files) -> None:
    chat = plain.chat()
    plain.reply(chat, "sure of it: <certainty>")
    reply = plain.reply(chat, "really", adapter="sure")
    tail = tuple(chat.tokens[: -len(reply.tokens)][-len(files.invocation) :])
    assert tail == files.invocation
    at = len(chat.tokens) - len(reply.tokens) - len(tail)
    assert chat.session.provenance[1] == (at, by(plain.model, "sure"))


def test_scales_are_different_adapters(plain: World) -> None:
    chat = plain.chat()
    chat.add("hello")
    n = len(chat.tokens)
    for scale in (1.0, 0.5, 0.0, 2.0):
        with chat.fork() as fork:
            plain.reply(fork, adapter="role", scale=scale)
            spans = fork.session.provenance
            assert spans == (
                ((0, BASE),) if not scale else ((0, BASE), (n, by(plain.model, "role", scale)))
            )


# Plain LoRAs -------------------------------------------------------------------------------------


def test_a_plain_lora_reads_all_once_and_nothing_twice(plain: World, files: Files) -> None:
    chat = plain.chat()
    plain.reply(chat, "hello")
    first = plain.reply(chat, "a", adapter="lora")
    assert first.timings.reused == 0
    assert "computed by the base" in first.timings.reuse_note
    for text in "bcd":
        before = len(chat.tokens)
        reply = plain.reply(chat, text, adapter="lora")
        assert reply.timings.reused == before
        assert chat.session.provenance == ((0, by(plain.model, "lora")),)
        assert chat.read().evaluated == 1  # the end of the turn, in its own cells
    assert_sound(chat, files, adapter="lora")
    other = plain.reply(chat, "e", adapter="lora", scale=0.5)
    assert other.timings.reused == 0
    back = plain.reply(chat, "f")
    assert back.timings.reused == 0
    assert_sound(chat, files)


# The assistant's marker is the invocation --------------------------------------------------------


def test_a_plain_and_an_adapted_reply_begin_with_the_same_tokens(world: World) -> None:
    """Every order of two, on forks of one beginning: nobody gets the other's marker."""
    chat, model = world.chat(), world.model
    chat.add("hello")
    n, m = len(chat.tokens), world.n_marker
    uses: list[dict[str, Any]] = [{}, {"adapter": "marker"}, {"adapter": "twin"}]
    for one in uses:
        for other in uses:
            with chat.fork() as fork:
                first = world.reply(fork, **one)
                assert (first.timings.reused, first.timings.evaluated) == (n, m)
                fork.rewind(0)
                said = fork.tokens
                second = world.reply(fork, "on", **other)
                kept = said[:n] if one else said
                assert second.timings.reused == len(kept)
                at = len(fork.tokens) - len(second.tokens) - m
                whose = by(model, other["adapter"]) if other else BASE
                assert fork.session.provenance[-1] == ((at, whose) if other else (0, BASE))


def test_asking_the_marker_amid_plain_and_adapted_replies(world: World) -> None:
    chat, m = world.chat(), world.n_marker
    chat.add("hello")
    n = len(chat.tokens)
    alone = world.ask(chat, "marker")
    assert (alone.timings.reused, alone.timings.evaluated) == (n, m)
    reply = chat.reply(brief(8), stream=True)
    assert len(chat.tokens) == n + m  # the base's marker is in the cells now
    amid = world.ask(chat, "marker")
    assert (amid.timings.reused, amid.timings.evaluated) == (n, m)
    assert amid.value == pytest.approx(alone.value, abs=1e-4)
    while len(reply.tokens) < 4 or world.model.detokenize(reply.tokens, special=True) != reply.text:
        next(reply)  # up to a whole character
    assert reply.finish_reason is None
    judged = world.ask(chat, "marker")
    assert (judged.timings.reused, judged.timings.evaluated) == (len(chat.tokens), 1 + m)
    reply.read()
    with world.chat(messages=["hello"]) as other:
        assert other.reply(brief(8)).text == reply.text
    world.reply(chat, "on", adapter="marker")
    for name in ("marker", "twin"):
        asked = world.ask(chat, name)
        assert asked.timings.reused + asked.timings.evaluated > len(chat.tokens)
        assert chat.session.provenance == ((0, BASE),)  # the base has read what it said


def test_an_adapted_reply_is_asked_about_while_it_runs(world: World) -> None:
    chat = world.chat()
    undisturbed = world.chat()
    whole = undisturbed.say("hello", brief(10, adapter="twin")).text
    reply = chat.say("hello", brief(10, adapter="twin"), stream=True)
    n = len(chat.tokens) - world.n_marker
    for k in (0, 3, 6):
        while len(reply.tokens) < k:
            next(reply)
        for name in ("marker", "twin", "role"):
            asked = world.ask(chat, name)
            # the base reads what the adapter has said: only what it did not touch is reused,
            # unless the very adapter is asked and nothing was said yet
            same = name == "twin" and k == 0
            assert asked.timings.reused == (len(chat.tokens) if same else n)
    assert reply.read() == whole
    assert reply.finish_reason == "length"


@pytest.mark.parametrize("first", [None, "marker"])
@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["one token", "more tokens"])
def test_closed_chats_leave_no_wrong_cells(files: Files, template: str, first: str | None) -> None:
    world = World(files, template, options=replace(EXACT, n_pooled=8))
    with world.model, world.clean:
        text, answer = "x" * 40, "b" * 30
        with world.chat() as chat:
            chat.add(text)
            n = len(chat.tokens)
            chat.reply(saying(answer, adapter=first))
        assert len(inside.prefix_cache(world.model).entries) == 1
        for second in ({"adapter": "marker"}, {}, {"adapter": "twin"}):
            with world.chat() as other:
                reply = world.reply(other, text, n=30, **second)
                # its own marker is there, but for the last token, which is read for its logits
                kept = world.n_marker - 1 if second.get("adapter") == first else 0
                assert reply.timings.reused == n + kept
                assert "shared with another conversation" in reply.timings.reuse_note
        with world.chat(messages=[text]) as other:
            for name in ("marker", "twin"):
                assert world.ask(other, name).timings.reused == n
        # what an adapter wrote is the base's to read, and what the base wrote is there
        told = [text, {"role": "assistant", "content": answer}]
        with world.chat(messages=told) as other:
            reply = world.reply(other, "on")
            by_the_base = n + world.n_marker  # the second of those above has read it
            whole = by_the_base + len(answer) + 1
            assert reply.timings.reused == (by_the_base if first else whole)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.slow
def test_random_walks_mix_nothing_up(files: Files, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    template = PLAIN if seed % 2 else MARKED
    world = World(files, template, n_ctx=4096, options=replace(EXACT, n_pooled=3))
    with world.model, world.clean:
        chats = [world.chat()]
        for _ in range(45):
            chat = rng.choice(chats)
            if len(chat.tokens) > 250:
                chat.rewind(rng.randint(1, 2))
            name = rng.choice(["marker", "marker", "twin", "role", "lora", None, None])
            use = {"adapter": name, "scale": rng.choice([1.0, 1.0, 0.5])} if name else {}
            said = rng.choice(["hello there", "and " * rng.randint(1, 9), "the <certainty>"])
            step = rng.randrange(8)
            if step < 3:
                world.reply(chat, said, n=rng.randint(1, 8), **use)
            elif step == 3:
                world.ask(chat, rng.choice(["marker", "twin", "role", "sure"]))
            elif step == 4:
                reply = chat.say(said, brief(6, **use), stream=True)
                next(reply, None)
                world.ask(chat, rng.choice(["marker", "twin"]))
            elif step == 5 and len(chats) < 5:
                chats.append(chat.fork())
            elif step == 6:
                chats.remove(chat)
                chat.close()
                chats.append(world.chat(messages=chat.messages))
            else:
                chat.save(tmp_path / "c")
                chats.append(world.model.restore(tmp_path / "c"))
                chats.remove(chat)
                chat.close()
        for chat in chats:
            chat.close()
        assert_nothing_left(world.model)
