"""Cells that conversations reserve: more of them than fit take turns, and none ends half-way."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import alora_gguf as ag
from tests.support import inside
from tests.support.chats import GREEDY, PLAIN, assert_nothing_left
from tests.support.files import FOREVER, Files

N, MORE = 6, 80  # conversations, tokens of each reply: 512 cells hold five at most


def tokens(model: ag.Model, i: int) -> list[int]:
    return model.tokenize(f"<|user|>{i}, what is it?<|end|><|assistant|>")


def reply(model: ag.Model, i: int, meet: Callable[[], object], *, reserves: bool) -> int:
    with model.session() as session:
        prompt = tokens(model, i)
        if reserves:
            session.reserve(MORE, prompt=prompt)
        going = session.generate(
            prompt=prompt, max_tokens=MORE, sampling=GREEDY, logit_bias=never_ends(model)
        )
        next(going)
        meet()
        going.read()
        return len(going.tokens)


def never_ends(model: ag.Model) -> dict[int, float]:
    return {token: float("-inf") for token in model.end_tokens}


def at_once(n: int, work: Callable[[int], object]) -> list[object]:
    """What `work` returned or raised in each of `n` threads."""
    found: list[object] = [None] * n

    def run(i: int) -> None:
        try:
            found[i] = work(i)
        except ag.AloraError as error:
            found[i] = type(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(FOREVER)
        assert not each.is_alive()
    return found


def test_replies_that_reserve_their_cells_all_come_out_whole(files: Files) -> None:
    with files.model(n_ctx=256) as model:
        found = at_once(N, lambda i: reply(model, i, lambda: None, reserves=True))
        assert found == [MORE] * N
        assert_nothing_left(model)


def test_without_it_some_find_the_cache_full_half_way(files: Files) -> None:
    with files.model(n_ctx=256) as model:
        begun = threading.Barrier(N, timeout=FOREVER)
        found = at_once(N, lambda i: reply(model, i, begun.wait, reserves=False))
        assert ag.CacheFullError in found
        assert_nothing_left(model)


def test_what_is_shared_needs_no_cells(files: Files) -> None:
    with files.model(n_ctx=256) as model:
        prompt = model.tokenize("<|user|>" + "word " * 20)
        with model.session() as first, model.session() as second:
            first.reserve(20, prompt=prompt)
            first.sync(prompt)
            cells = inside.cells(model)
            free = cells.free()
            second.reserve(20, prompt=prompt)
            assert free - cells.free() == 21  # and the last token, for its logits
            second.sync(prompt)
            assert free - cells.free() == 21
        assert_nothing_left(model)


def test_more_than_there_can_be_is_refused_at_once(files: Files) -> None:
    with files.model(n_ctx=256) as model, model.session() as session:
        with pytest.raises(ag.CacheFullError, match="257 cells needed"):
            session.reserve(257)
        with pytest.raises(ag.InputError, match="n must be an integer of at least 0"):
            session.reserve(-1)
        session.reserve(200)
        session.reserve(250)  # 50 more
        assert inside.cells(model).free() == 6
        # this thread would have to give its own back first
        with model.session() as other, pytest.raises(ag.CacheFullError):
            other.reserve(7)
        session.release(0)
        assert inside.cells(model).free() == 256


def test_who_waits_can_be_cancelled(files: Files) -> None:
    with files.model(n_ctx=256) as model, model.session() as session:
        session.reserve(250)
        token = ag.CancelToken()

        def wait(_: int) -> None:
            with model.session() as other:
                other.reserve(20, cancel=token)

        threading.Timer(0.1, token.cancel).start()
        assert at_once(1, wait) == [ag.CancelledError]
        assert inside.cells(model).promised() == 250


def test_forks_borrow_of_what_their_conversation_reserved(files: Files) -> None:
    with files.model(n_ctx=256) as model, model.session() as session:
        session.append("What is it?")
        session.reserve(256 - len(session.tokens))
        cells = inside.cells(model)
        assert cells.free() == 0
        asked = [ag.Invocation(name, max_tokens=4) for name in ("sure", "other")]
        alone = [str(each) for each in session.invoke_many(asked)]
        assert cells.free() == 0
        # on another thread too, which must not wait for the conversation to end
        elsewhere = at_once(1, lambda _: [str(each) for each in session.invoke_many(asked)])
        assert elsewhere == [alone]
        assert cells.promised() == 256 - len(session.tokens)
        session.append(" More of it.")
        session.rewind(2)
        assert cells.promised() == 256 - 2
    assert cells.free() == 256


def test_a_chat_reserves_what_its_reply_needs(files: Files) -> None:
    with files.model(n_ctx=256) as model:
        chat = model.chat(messages=["What is it?"], template=PLAIN)
        n = chat.count()
        chat.reserve(30)
        assert inside.cells(model).promised() == n + 30
        chat.reply(max_tokens=30, sampling=GREEDY, logit_bias=never_ends(model))
        assert inside.cells(model).promised() in (0, 1)  # the last token was not decoded
        with pytest.raises(ag.UnknownAdapterError):
            chat.reserve(1, adapter="none")


def test_replies_and_what_is_asked_about_them_share_a_full_cache(files: Files) -> None:
    """Each thread reserves for both; closed conversations' cells give way, and nothing is left."""
    options = ag.ContextOptions(n_pooled=4)

    def converse(i: int) -> int:
        whole = 0
        for turn in range(3):
            said = [f"a beginning that some of them have, word for word, {(i + turn) % 3}"]
            with model.chat(messages=said, template=PLAIN) as chat:
                chat.reserve(40 + 2 * 30)
                bias = never_ends(model)
                reply = chat.reply(max_tokens=40, sampling=GREEDY, logit_bias=bias)
                asked = [ag.Invocation(name, max_tokens=4) for name in ("sure", "other")]
                whole += len(reply.tokens) == 40 and len(chat.session.invoke_many(asked)) == 2
        return whole

    with files.model(n_ctx=256, options=options) as model:
        assert at_once(5, converse) == [3] * 5
        assert_nothing_left(model)
