"""Intrinsics: asked on forks, all at once, and never a trace of them in the conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.context import Engine
from alora_gguf.engine.llama_context import Run
from alora_gguf.engine.tokens import find_last
from tests.support import inside, tiny_base
from tests.support.files import EXACT, Files

GREEDY = ag.Sampling(temperature=0.0)
TEXT = "<|user|>Is the answer certain?<|end|><|assistant|>It is.<|end|>"


@pytest.fixture
def session(model: ag.Model) -> ag.Session:
    opened = model.session()
    opened.append(TEXT)
    return opened


def from_scratch(
    files: Files, tokens: list[int], adapter: str | None, scale: float = 1.0, n: int = 16
) -> list[int]:
    """The greedy reply of a model that has seen nothing else."""
    with files.model() as model:
        session = model.session()
        session.sync(tokens, adapter=adapter, scale=scale)
        reply = session.generate(max_tokens=n, sampling=GREEDY, adapter=adapter, scale=scale)
        reply.read()
        return reply.tokens


# The proof: nothing moved ------------------------------------------------------------------------


def test_eight_invocations_leave_the_base_cells_as_they_were(
    session: ag.Session, model: ag.Model, files: Files
) -> None:
    engine = inside.engine(model)
    state, used, tokens = session.state(), engine.cells.used(), session.tokens
    logits = inside.last_logits(session).copy()
    names = ["sure", "other", "lora", None] * 2
    verdicts = session.invoke_many([ag.Invocation(n, "Well? ", max_tokens=8) for n in names])
    assert [v.adapter for v in verdicts] == names
    assert session.state() == state
    assert engine.cells.used() == used
    assert session.tokens == tokens
    assert np.array_equal(inside.last_logits(session), logits)
    # and the next tokens are bit-equal to those of a model that never invoked any
    session.append([5, 6, 7])
    with files.model(adapters={}) as never:
        other = never.session()
        other.append(TEXT)
        other.append([5, 6, 7])
        assert np.array_equal(inside.last_logits(session), inside.last_logits(other))


def test_activating_never_reserves(session: ag.Session, model: ag.Model) -> None:
    names = ["sure", "other", "lora", None]
    session.invoke_many([ag.Invocation(n, max_tokens=2) for n in names[:3]])
    before = model.stats().n_reserves
    for i in range(100):
        session.invoke(ag.Invocation(names[i % 3], scale=1.0 + i % 2, max_tokens=1))
    session.invoke_many([ag.Invocation(n, "a", max_tokens=3) for n in names[:3] * 3])
    assert model.stats().n_reserves == before


# What it computes --------------------------------------------------------------------------------


def test_each_answer_is_that_of_its_adapter_alone(session: ag.Session, files: Files) -> None:
    base = session.tokens
    asked = [
        ("sure", 1.0),
        ("other", 1.0),
        ("lora", 1.0),
        (None, 1.0),
        ("sure", 0.5),
        ("lora", 2.0),
    ]
    verdicts = session.invoke_many(
        [ag.Invocation(name, [9, 8], scale=scale) for name, scale in asked]
    )
    together = [list(v.tokens) for v in verdicts]
    alone = [
        list(session.invoke(ag.Invocation(name, [9, 8], scale=scale)).tokens)
        for name, scale in asked
    ]
    assert together == alone
    for (name, scale), tokens in zip(asked, together, strict=True):
        suffix = list(files.invocation) if name in ("sure", "other") else []
        assert tokens == from_scratch(files, [*base, 9, 8, *suffix], name, scale)
    assert len({tuple(t) for t in together}) == len(together)  # or the adapters do nothing


def test_the_adapter_is_on_from_the_invocations_first_token(
    session: ag.Session, model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = Engine.activate

    def spy(self: Engine, seq: int, first: int, slot: int, scale: float) -> None:
        real(self, seq, first, slot, scale)
        at = [self.native.slot_at(self.ctx, seq, p)[0] for p in (first - 1, first)]
        seen.append((first, slot, scale, at))

    monkeypatch.setattr(Engine, "activate", spy)
    n = len(session.tokens)
    session.invoke(ag.Invocation("sure", [1, 2], scale=0.5))
    ((first, slot, scale, at),) = seen
    assert first == n + 2
    assert scale == 0.5
    assert at == [0, slot]


def test_timings_say_what_was_reused(session: ag.Session, files: Files) -> None:
    n = len(session.tokens)
    sure, lora, base = session.invoke_many(
        [ag.Invocation("sure", [1, 2, 3]), ag.Invocation("lora", [1]), ag.Invocation(None)]
    )
    assert (sure.timings.reused, sure.timings.evaluated) == (n, 3 + len(files.invocation))
    assert sure.timings.reuse_note == ""
    assert (lora.timings.reused, lora.timings.evaluated) == (0, n + 1)
    assert lora.timings.reuse_note == "'lora' is a plain LoRA: it recomputes every token"
    assert (base.timings.reused, base.timings.evaluated) == (n, 0)
    for verdict in (sure, lora, base):
        assert verdict.timings.generated == 16
        assert 0 < (verdict.timings.first_token or 0) <= verdict.timings.total


def test_the_invocation_is_appended_only_if_it_is_not_there(
    session: ag.Session, files: Files
) -> None:
    appended = session.invoke(ag.Invocation("sure", "Well? "))
    written = session.invoke(ag.Invocation("sure", "Well? <certainty>"))
    demanded = session.invoke(ag.Invocation("sure", "Well? <certainty>", append_invocation=False))
    assert appended.tokens == written.tokens == demanded.tokens
    assert appended.timings.evaluated == written.timings.evaluated
    later = session.invoke(ag.Invocation("sure", "<certainty> so?"))
    assert later.timings.evaluated == len(files.invocation) + 4
    assert later.tokens != appended.tokens


def test_the_last_of_several_occurrences_counts(session: ag.Session, files: Files) -> None:
    base = session.tokens
    suffix = [*files.invocation, 65, *files.invocation, 66]
    verdict = session.invoke(ag.Invocation("sure", suffix))
    assert list(verdict.tokens) == from_scratch(files, [*base, *suffix], "sure")
    assert find_last([*base, *suffix], files.invocation) == len(base) + 1 + len(files.invocation)


def test_an_invocation_may_begin_in_the_conversations_end(model: ag.Model, files: Files) -> None:
    session = model.session()
    head, tail = list(files.invocation[:4]), list(files.invocation[4:])
    session.append([*range(40), *head])
    verdict = session.invoke(ag.Invocation("sure", tail))
    assert verdict.timings.reused == 40
    assert verdict.timings.evaluated == len(files.invocation)
    assert "is on from token 40 of the conversation's 44" in verdict.timings.reuse_note
    assert list(verdict.tokens) == from_scratch(files, [*range(40), *files.invocation], "sure")


def test_an_earlier_turns_invocation_does_not_count_as_the_suffixs(
    model: ag.Model, files: Files
) -> None:
    session = model.session()
    session.append([*range(20), *files.invocation, 1, 2])
    n = len(session.tokens)
    appended = session.invoke(ag.Invocation("sure", [3]))
    assert appended.timings.reused == n
    demanded = session.invoke(ag.Invocation("sure", [3], append_invocation=False))
    assert demanded.timings.reused == 20
    tokens = [*session.tokens, 3]
    assert list(demanded.tokens) == from_scratch(files, tokens, "sure")


def test_a_missing_invocation_is_an_error_that_shows_the_nearest(session: ag.Session) -> None:
    with pytest.raises(
        ag.InvocationNotFoundError, match=r"agree \(token 6 is 66, expected"
    ) as caught:
        session.invoke(ag.Invocation("sure", "<certainB", append_invocation=False))
    assert "'sure'" in str(caught.value)
    with pytest.raises(ag.InvocationNotFoundError, match="split into other tokens"):
        # in single bytes, which its tokens are not
        session.invoke(ag.Invocation("sure", list(b"<certainty>"), append_invocation=False))


def test_an_invocation_in_other_tokens_is_not_silently_doubled(session: ag.Session) -> None:
    with pytest.raises(ag.InvocationNotFoundError, match="leave it out and let it be appended"):
        session.invoke(ag.Invocation("sure", "so <certainty>>"))  # ">>" is one token


def test_a_conversation_an_adapter_wrote_is_read_again_once_for_all(
    model: ag.Model, files: Files
) -> None:
    session = model.session()
    session.append(TEXT + "<certainty>", adapter="sure")
    session.generate(max_tokens=10, sampling=GREEDY, adapter="sure").read()
    tokens, provenance = session.tokens, session.provenance
    state = session.state()
    at = provenance[1][0]
    verdicts = session.invoke_many([ag.Invocation(n, [1]) for n in ("other", None, "lora")])
    other, base, _ = verdicts
    assert other.timings.reused == at
    assert "read again for 2 invocations together" in other.timings.reuse_note
    assert base.timings.reused == len(tokens)
    suffix = [1, *files.invocation]
    assert list(other.tokens) == from_scratch(files, [*tokens, *suffix], "other")
    assert list(base.tokens) == from_scratch(files, [*tokens, 1], None)
    assert session.provenance == provenance
    assert session.state() == state


def test_a_reply_by_a_plain_lora_serves_the_same_lora(model: ag.Model, files: Files) -> None:
    session = model.session()
    session.append(TEXT, adapter="lora")
    n = len(session.tokens)
    verdict = session.invoke(ag.Invocation("lora", [1, 2]))
    assert verdict.timings.reused == n
    assert list(verdict.tokens) == from_scratch(files, [*session.tokens, 1, 2], "lora")


# Sampling, stops, streaming ----------------------------------------------------------------------


def test_each_has_its_own_stops_sampling_and_length(session: ag.Session) -> None:
    def says(text: str) -> ag.Sampling:
        return ag.Sampling(temperature=0.0, grammar=f'root ::= "{text}"')

    verdicts = session.invoke_many(
        [
            ag.Invocation("sure", sampling=says("yes"), max_tokens=99),
            ag.Invocation("other", sampling=says("no. But"), stop=".", max_tokens=99),
            ag.Invocation(None, max_tokens=2, sampling=says("maybe")),
        ]
    )
    assert [v.text for v in verdicts] == ["yes", "no", "ma"]
    assert [v.finish_reason for v in verdicts] == ["stop", "stop", "length"]
    assert [len(v.tokens) for v in verdicts] == [3, 2, 2]


def test_streaming_gives_the_text_as_it_becomes_certain(session: ag.Session) -> None:
    shown: dict[int, str] = {0: "", 1: ""}

    def on_text(index: int, piece: str) -> None:
        shown[index] += piece

    verdicts = session.invoke_many([ag.Invocation("sure"), ag.Invocation("lora")], on_text=on_text)
    assert [shown[0], shown[1]] == [v.text for v in verdicts]


@pytest.mark.parametrize("error", [RuntimeError("full disk"), KeyboardInterrupt()])
def test_an_error_in_the_callback_drops_the_forks(
    session: ag.Session, model: ag.Model, error: BaseException
) -> None:
    engine = inside.engine(model)
    state, used = session.state(), engine.cells.used()
    calls = 0

    def on_text(_index: int, _piece: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise error

    with pytest.raises(type(error)):
        session.invoke_many([ag.Invocation("sure"), ag.Invocation("lora")], on_text=on_text)
    assert engine.cells.used() == used
    assert engine.cells.free_sequences == engine.cells.n_seqs - 1
    assert session.state() == state
    model.unload_adapter("sure")  # no activation is left behind
    session.append("go on")


# Limits ------------------------------------------------------------------------------------------


def test_more_than_the_free_sequences_take_turns_in_order(files: Files) -> None:
    names = ["sure", "other", "lora", None, "sure", "lora", "other"]
    results = []
    for n_seq_max in (3, 17):
        with files.model(n_seq_max=n_seq_max) as model:
            session = model.session()
            session.append(TEXT)
            verdicts = session.invoke_many([ag.Invocation(n, [4], max_tokens=6) for n in names])
            results.append([v.tokens for v in verdicts])
            assert inside.cells(model).free_sequences == n_seq_max - 1
    assert results[0] == results[1]


def test_more_than_the_cells_hold_take_turns(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    real = Engine.decode

    def spy(self: Engine, work: list[Run], **options: object) -> object:
        runs.append(len(work))
        return real(self, work, **options)  # type: ignore[arg-type]

    with files.model(n_ctx=256) as model:
        session = model.session()
        session.sync(list(range(180)))
        monkeypatch.setattr(Engine, "decode", spy)
        verdicts = session.invoke_many([ag.Invocation("sure", max_tokens=15)] * 7)
    assert len({v.tokens for v in verdicts}) == 1
    assert runs[0] == 3  # 23 cells each, 76 free
    assert max(runs) == 3


def test_a_suffix_longer_than_the_room_says_what_is_needed(files: Files) -> None:
    with files.model(n_ctx=256) as model:
        session = model.session()
        session.sync(list(range(200)))
        state = session.state()
        with pytest.raises(ag.CacheFullError, match=r"'sure': .*109 cells needed, 56 of 256 free"):
            session.invoke(ag.Invocation("sure", list(range(100))))
        with pytest.raises(ag.CacheFullError, match=r"'lora': .*201 cells needed, 56 of 256 free"):
            session.invoke_many([ag.Invocation("lora", [1])])
        assert session.state() == state


def test_a_cache_that_fills_up_in_the_middle(files: Files) -> None:
    with files.model(n_ctx=256) as model:
        session = model.session()
        session.sync(list(range(200)))
        state = session.state()
        with pytest.raises(
            ag.CacheFullError, match=r"'sure': dropped after 48 tokens, the conversation is as it"
        ):
            session.invoke(ag.Invocation("sure", max_tokens=100))
        assert session.state() == state
        assert session.invoke(ag.Invocation("sure", max_tokens=20)).finish_reason == "length"
        session.append([1, 2, 3])


def test_no_sequence_is_left_to_fork(files: Files) -> None:
    with files.model(n_seq_max=1) as model:
        session = model.session()
        session.append(TEXT)
        with pytest.raises(ag.CacheFullError, match=r"'sure': .*all 1 sequences are in use"):
            session.invoke(ag.Invocation("sure"))


def test_suffixes_longer_than_a_batch(files: Files) -> None:
    options = replace(EXACT, n_batch=16, n_ubatch=8, n_seq_max=5)
    results = []
    for given in (options, None):
        with files.model(options=given, n_ctx=1024) as model:
            session = model.session()
            session.append(TEXT)
            suffix = [i % 200 for i in range(45)]
            asked = [ag.Invocation(n, suffix) for n in ("sure", "other", "lora", None)]
            results.append([v.tokens for v in session.invoke_many(asked)])
    assert results[0] == results[1]


def test_wrong_arguments_are_refused_before_anything_is_read(
    session: ag.Session, model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Engine, work: list[Run]) -> None:
        raise AssertionError("something was read")

    monkeypatch.setattr(Engine, "decode", never)
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ("nobody", {}, ag.UnknownAdapterError, "no adapter named 'nobody' is loaded"),
        ("sure", {"max_tokens": 0}, ag.InputError, "max_tokens must be"),
        ("sure", {"suffix": [tiny_base.N_VOCAB]}, ag.InputError, "suffix: token 0"),
        ("sure", {"stop": ""}, ag.InputError, "stop string must not be empty"),
        ("lora", {"scale": float("nan")}, ag.InputError, "scale must be"),
    ]
    for bad, options, error, text in cases:
        with pytest.raises(error, match=text):
            session.invoke_many(["sure", ag.Invocation(bad, **options)])
    assert session.invoke_many([]) == []


def test_an_empty_conversation_can_be_asked_with_a_suffix(model: ag.Model) -> None:
    session = model.session()
    with pytest.raises(ag.InputError, match="conversation and suffix are empty"):
        session.invoke(ag.Invocation(None))
    assert session.invoke(ag.Invocation("lora", "Hello")).timings.evaluated == 6
    assert session.invoke(ag.Invocation("sure")).finish_reason == "length"
    assert session.tokens == []


def test_nothing_to_read_after_a_rewind(session: ag.Session, files: Files) -> None:
    """The logits after the last token are gone, so that one is read again."""
    n = len(session.tokens) - 3
    session.rewind(n)
    verdict = session.invoke(ag.Invocation(None))
    assert (verdict.timings.reused, verdict.timings.evaluated) == (n - 1, 1)
    assert list(verdict.tokens) == from_scratch(files, session.tokens, None)


def test_a_scale_of_zero_is_the_base(session: ag.Session) -> None:
    suffix = "ab <certainty>"
    zero = session.invoke(ag.Invocation("sure", suffix, scale=0.0))
    assert zero.tokens == session.invoke(ag.Invocation(None, suffix)).tokens


def test_many_invocations_leak_nothing(session: ag.Session, model: ag.Model) -> None:
    used = inside.cells(model).used()
    ask: Callable[[], object] = lambda: session.invoke_many(  # noqa: E731
        [ag.Invocation("sure", max_tokens=2), ag.Invocation("lora", max_tokens=2)]
    )
    for _ in range(100):
        ask()
    assert inside.cells(model).used() == used
    assert inside.cells(model).free_sequences == inside.cells(model).n_seqs - 1
