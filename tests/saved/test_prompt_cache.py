"""Model(prompt_cache=): what a conversation begins with is read once, whatever process does it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.saved.prompt_cache import MIN_TOKENS
from tests.support import inside
from tests.support.chats import PLAIN, brief
from tests.support.files import Files, write_files, write_hybrid_files, write_window_files

BOOK = "the library opens at nine and closes at five; " * 12
NOTICE = "no dogs are allowed in the reading room today. " * 12


def told(model: ag.Model, question: str = "when?", **more: object) -> tuple[ag.Reply, ag.Chat]:
    chat = model.chat(template=PLAIN, **{"documents": [BOOK], **more})  # type: ignore[arg-type]
    return chat.say(question, brief(5)), chat


def kept(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)


def test_another_process_does_not_read_the_document(files: Files, tmp_path: Path) -> None:
    with files.model(prompt_cache=tmp_path) as model:
        first, chat = told(model)
        assert first.timings.reused == 0
        assert first.timings.evaluated >= MIN_TOKENS
        logits, tokens = inside.last_logits(chat.session), chat.tokens
        assert len(kept(tmp_path)) == 1
    with files.model(prompt_cache=tmp_path) as model:
        second, chat = told(model)
        assert second.text == first.text
        assert second.timings.evaluated < 20
        assert second.timings.reused + second.timings.evaluated == first.timings.evaluated
        assert chat.tokens == tokens
        assert np.array_equal(inside.last_logits(chat.session), logits)
        third, _ = told(model, "and what else?")  # from memory, now
        assert third.timings.evaluated < 30
        assert len(kept(tmp_path)) == 1


def test_whatever_was_read_ahead(files: Files, tmp_path: Path) -> None:
    for evaluated in (range(MIN_TOKENS, 2000), range(1)):
        with (
            files.model(prompt_cache=tmp_path) as model,
            model.chat(template=PLAIN, documents=[BOOK]) as chat,
        ):
            assert chat.read().evaluated in evaluated  # before anything is said
            assert chat.say("when?", brief(5)).timings.evaluated < 20


def test_other_documents_are_read_and_kept_beside(files: Files, tmp_path: Path) -> None:
    with files.model(prompt_cache=tmp_path) as model:
        told(model)
        chat = told(model, documents=[NOTICE])[1]
        assert len(kept(tmp_path)) == 2
    with files.model(prompt_cache=tmp_path) as model:
        chat = told(model, documents=[NOTICE])[1]
        chat.documents = [BOOK]
        reply = chat.say("and now?", brief(5))
        assert reply.timings.evaluated < 60  # the turns
        chat.documents = [BOOK + NOTICE]
        assert chat.say("and now?", brief(5)).timings.evaluated > MIN_TOKENS
        assert len(kept(tmp_path)) == 3


def test_short_beginnings_and_other_models_have_no_part(files: Files, tmp_path: Path) -> None:
    with files.model(prompt_cache=tmp_path) as model:
        told(model, documents=["short"], system="be brief")
        assert not kept(tmp_path)
        told(model)
    other = ag.ContextOptions(type_k="f16", type_v="f16", flash_attn="off")
    with files.model(prompt_cache=tmp_path, options=other) as model:
        assert told(model)[0].timings.reused == 0
    flash = ag.ContextOptions(flash_attn="on")
    with files.model(prompt_cache=tmp_path, options=flash) as model:
        assert told(model)[0].timings.reused == 0
    with files.model(prompt_cache=tmp_path, options=flash, attention="upstream") as model:
        assert told(model)[0].timings.reused == 0
    with files.model() as model:
        assert told(model)[0].timings.reused == 0


def test_a_plain_lora_reads_for_itself(files: Files, tmp_path: Path) -> None:
    with files.model(prompt_cache=tmp_path) as model:
        chat = model.chat(template=PLAIN, documents=[BOOK])
        chat.say("when?", brief(5, adapter="lora"))
        assert not kept(tmp_path)
        told(model, "when?")
        reply = model.chat(template=PLAIN, documents=[BOOK]).say("a?", brief(5, adapter="sure"))
        assert reply.timings.evaluated < 40  # an aLoRA takes the base's cells


@pytest.mark.parametrize("damage", ["empty", "cut", "bits", "another"])
def test_a_damaged_file_is_read_anew_and_replaced(
    files: Files, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    with files.model(prompt_cache=folder) as model:
        expected, _ = told(model)
        (file,) = kept(folder)
        good = file.read_bytes()
        if damage == "another":
            told(model, documents=[NOTICE])
            (other,) = set(kept(folder)) - {file}
            other.replace(file)
    if damage != "another":
        bits = bytearray(good)
        bits[-5] ^= 1
        file.write_bytes({"empty": b"", "cut": good[:-1], "bits": bytes(bits)}[damage])
    with files.model(prompt_cache=folder) as model, caplog.at_level(logging.WARNING):
        reply, _ = told(model)
    assert reply.text == expected.text
    assert reply.timings.reused == 0
    assert str(file) in caplog.text
    assert file.read_bytes() == good


def test_what_cannot_be_written_is_said_and_harms_nothing(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    with files.model(prompt_cache=folder) as model, caplog.at_level(logging.WARNING):
        folder.rmdir()
        folder.write_text("no folder any more")
        assert told(model)[0].text
    assert "does not keep" in caplog.text
    with pytest.raises(ag.InputError, match=f"prompt_cache: {folder}: expected a folder"):
        files.model(prompt_cache=folder)


def test_the_least_recently_used_gives_way(files: Files, tmp_path: Path) -> None:
    strange = tmp_path / "notes.session"
    strange.write_text("not ours")
    books = [BOOK, NOTICE, BOOK + NOTICE[:40]]
    with files.model(prompt_cache=tmp_path) as model:
        for book in books[:2]:
            told(model, documents=[book])
        one, two = [file for file in kept(tmp_path) if file != strange]
        os.utime(one, (1, 1))
        os.utime(two, (2, 2))
        room = 5 * one.stat().st_size // 2
    with files.model(prompt_cache=tmp_path) as model:
        inside.limit_prompt_cache(model, room)
        assert told(model, documents=[books[0]])[0].timings.reused  # which makes it the latest
        told(model, documents=[books[2]])
    left = set(kept(tmp_path))
    assert one in left
    assert two not in left
    assert strange in left
    assert len(left) == 3


def test_an_interrupted_reading_leaves_the_chat_as_it_was(files: Files, tmp_path: Path) -> None:
    with files.model(prompt_cache=tmp_path, n_batch=32) as model:
        chat = model.chat(template=PLAIN)
        chat.say("hello", brief(4))
        before = chat.messages
        cancel = ag.CancelToken()
        chat.documents = [BOOK]
        seen = list[tuple[int, int]]()

        def progress(done: int, total: int) -> None:
            seen.append((done, total))
            cancel.cancel()

        with pytest.raises(ag.CancelledError):
            chat.say("when?", brief(4), cancel=cancel, progress=progress)
        assert seen
        assert chat.messages == before
        assert not kept(tmp_path)
        told_ = list[tuple[int, int]]()
        reply = chat.say("when?", brief(4), progress=lambda *at: told_.append(at))
        assert told_[-1] == (reply.timings.evaluated, reply.timings.evaluated)
        assert sorted(told_) == told_
        assert len(kept(tmp_path)) == 1


def test_a_restored_conversation_keeps_its_cells(files: Files, tmp_path: Path) -> None:
    with files.model(prompt_cache=tmp_path / "cache") as model:
        _, chat = told(model)
        chat.save(tmp_path / "talk")
        n = chat.session.cached
    with files.model(prompt_cache=tmp_path / "cache") as model:
        chat = model.restore(tmp_path / "talk")
        reply = chat.say("and then?", brief(4))
        assert reply.timings.reused >= n
        assert chat.recall() == ag.Timings()  # there is nothing to do
        assert chat.session.cached >= n


@pytest.mark.parametrize(
    "write", [write_files, partial(write_window_files, window=32), write_hybrid_files]
)
def test_any_memory(write: Callable[[Path], Files], tmp_path: Path) -> None:
    """Cells of windows, and memories that cannot rewind: the next logits are the same bits."""
    files = write(tmp_path)
    beginning = [3 + i % 50 for i in range(MIN_TOKENS + 5)]
    tokens, found = [*beginning, 4, 5, 6], list[object]()
    for evaluated in (len(tokens), 3):
        with (
            ag.Model(files.base, n_ctx=1024, n_threads=1, prompt_cache=tmp_path / "c") as model,
            model.session() as session,
        ):
            session.append([9, 9, 9])  # which gives way
            read = inside.read_beginning(session, tokens, beginning)
            assert read.evaluated == evaluated
            assert session.tokens == tokens
            session.generate(max_tokens=1, sampling=ag.Sampling(temperature=0.0)).read()
            found.append(session.state())
    assert found[0] == found[1]


def sound(chat: ag.Chat) -> bool:
    """Whether the cells are those of the session's own tokens."""
    cached = inside.sequence(chat.session).cached
    return list(cached.tokens) == chat.tokens[: len(cached)]


def test_recalling_what_another_chat_has_makes_it_the_conversation(
    files: Files, tmp_path: Path
) -> None:
    with files.model(prompt_cache=tmp_path / "cache") as model:
        one, other = (model.chat(template=PLAIN, documents=[d]) for d in (BOOK, NOTICE))
        for chat in (one, other):
            chat.say("when?", brief(3))
        one.documents = [NOTICE]
        one.recall()
        assert sound(one)
        one.session.save(tmp_path / "talk")
        assert model.restore_session(tmp_path / "talk").tokens == one.tokens


def test_a_cancelled_reading_keeps_no_cells_of_others(files: Files) -> None:
    with files.model(n_batch=32) as model, model.session() as other, model.session() as session:
        other.append(BOOK)
        session.append("something else")
        before, cancel = session.tokens, ag.CancelToken()
        with pytest.raises(ag.CancelledError):
            session.sync(
                [*other.tokens, *range(3, 90)],
                cancel=cancel,
                progress=lambda *_: cancel.cancel(),
            )
        cached = inside.sequence(session).cached
        assert session.tokens == before
        assert list(cached.tokens) == before[: len(cached)]


LAST = (  # documents with the last message
    "{%- for m in messages -%}{{ '<|' + m.role + '|>' }}{%- if loop.last -%}"
    "{%- for d in documents or [] -%}{{ '[' + d.text + ']' }}{%- endfor -%}{%- endif -%}"
    "{{ m.content + '<|end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def test_documents_behind_the_history_are_no_beginning(files: Files, tmp_path: Path) -> None:
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    with files.model(prompt_cache=tmp_path) as model:
        chat = model.chat(template=LAST, documents=[BOOK], messages=history)
        reply = chat.say("when?", brief(3))
        assert reply.timings.evaluated + 3 >= len(chat.tokens)
        assert reply.timings.evaluated <= len(chat.tokens)  # read once
        assert not kept(tmp_path)


def test_what_does_not_fit_the_folder_pushes_nothing_out(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with files.model(prompt_cache=tmp_path) as model:
        told(model)
        (file,) = kept(tmp_path)
        inside.limit_prompt_cache(model, file.stat().st_size * 3 // 2)
        with caplog.at_level(logging.WARNING):
            told(model, documents=[BOOK + NOTICE])
    assert kept(tmp_path) == [file]
    assert "does not keep" in caplog.text


def test_what_killed_writers_left_is_removed(files: Files, tmp_path: Path) -> None:
    part = tmp_path / f".{'0' * 64}.session.deadbeef.part"
    part.write_bytes(b"half")
    with files.model(prompt_cache=tmp_path) as model:
        told(model)
    assert not part.exists()


def test_a_memory_that_cannot_rewind_asks_the_file_again(tmp_path: Path) -> None:
    files = write_hybrid_files(tmp_path)
    beginning = [3 + i % 50 for i in range(MIN_TOKENS + 5)]
    with (
        ag.Model(files.base, n_ctx=1024, n_threads=1, prompt_cache=tmp_path / "c") as model,
        model.session() as session,
    ):
        read = [
            inside.read_beginning(session, [*beginning, *end], beginning).evaluated
            for end in ((4, 5, 6), (7, 8), (9,))
        ]
    assert read == [len(beginning) + 3, 2, 1]
