"""Vectors and combinations in chats: what reads the history, who computed a reply, and what is read
again for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.engine.tokens import BASE, Provenance
from tests.support import inside, steered, tiny_base
from tests.support.chats import GREEDY, PLAIN, YES_NO, brief, role_adapter, saying
from tests.support.files import Files

U, A, END = tiny_base.USER, tiny_base.ASSISTANT, tiny_base.END
ROLE = [tiny_base.BOS, ord("j")]


@pytest.fixture
def model(files: Files, tmp_path: Path) -> Iterator[ag.Model]:
    adapters = {
        "sure": files.alora,
        "lora": files.lora,
        "role": role_adapter(tmp_path, "role", ROLE),
        **steered.write_all(tmp_path),
    }
    with files.model(adapters=adapters) as opened:
        yield opened


def chat_of(model: ag.Model, **more: Any) -> ag.Chat:
    return model.chat(template=PLAIN, **more)


def by(model: ag.Model, **scales: float) -> Provenance:
    return Provenance.of_parts((model.adapter(name).identity, s) for name, s in scales.items())


def fresh(model: ag.Model, prompt: list[int], n: int, **use: Any) -> list[int]:
    """A reply to tokens that no cell is shared for."""
    inside.give_back(model)
    with model.session() as session:
        session.append([1])  # another beginning
        made = session.generate(prompt=prompt, max_tokens=n, sampling=GREEDY, **use)
        made.read()
        return made.tokens


def test_a_name_that_goes_once_its_reply_began(
    model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread unloads it as soon as nothing keeps it: the reply goes on."""
    model.combine("calm", {"add": 1.0, "out": 0.5})
    with chat_of(model) as chat:
        chat.add("hello")
        real = chat.session._generate

        def generate(*given: Any) -> Any:
            begun = real(*given)
            model.unload_adapter("calm")
            return begun

        monkeypatch.setattr(chat.session, "_generate", generate)
        reply = chat.reply(brief(6, adapter="calm"))
        assert len(reply.tokens) == 6


def test_a_reply_with_a_vector_is_the_bases_to_read(model: ag.Model) -> None:
    with chat_of(model) as chat:
        chat.add("hello")
        n = len(chat.tokens)
        reply = chat.reply(brief(6, adapter="add", scale=1.5))
        assert (reply.timings.reused, reply.timings.evaluated) == (n, 1)  # the marker
        assert chat.session.provenance == ((0, BASE), (n, by(model, add=1.5)))
        assert chat.messages[-1] == ag.Message("assistant", reply.text)
        prompt, said = chat.tokens[: n + 1], chat.tokens[n:]
        after = chat.say("and", brief(6))
        assert after.timings.reused == n  # what it wrote is read again, and nothing else
        assert after.timings.evaluated == len(said) + 1 + len([U, *model.tokenize("and"), END, A])
        assert chat.session.provenance == ((0, BASE),)
        assert "computed by an adapter at scale 1.5" in after.timings.reuse_note
        again = chat.say("so", brief(4, adapter={"add": 1.0, "norm": 0.5}))
        assert again.timings.reused >= len(chat.tokens) - len(again.tokens) - 6
        before = chat.tokens[: -len(again.tokens)]
    assert fresh(model, prompt, 6, adapter="add", scale=1.5) == reply.tokens
    assert fresh(model, before, 4, adapter={"norm": 0.5, "add": 1.0}) == again.tokens


def test_an_alora_and_a_vector_on_one_reply(model: ag.Model) -> None:
    with chat_of(model) as chat:
        chat.add("hello")
        n = len(chat.tokens)
        reply = chat.reply(brief(5, adapter={"role": 1.0, "out": 2.0}))
        assert chat.tokens[n : n + 2] == ROLE  # its invocation begins the turn
        assert (reply.timings.reused, reply.timings.evaluated) == (n, 2)
        both = by(model, role=1.0, out=2.0)
        assert chat.session.provenance == ((0, BASE), (n, by(model, role=1.0)), (n + 1, both))
        assert chat.say("and", brief(3)).timings.reused == n


def test_a_plain_lora_with_a_vector_reads_the_history_alone(
    model: ag.Model, tmp_path: Path
) -> None:
    use = {"adapter": {"lora": 0.5, "add": 1.0}, "scale": 2.0}
    with chat_of(model) as chat:
        chat.add("hello")
        n = len(chat.tokens)
        first = chat.reply(brief(5, **use))
        assert first.timings.reused == 0
        lora, both = by(model, lora=1.0), by(model, lora=1.0, add=2.0)
        assert chat.session.provenance == ((0, lora), (n, both))
        chat.read()
        assert chat.session.provenance == ((0, lora),)
        n = len(chat.tokens)
        assert chat.say("well?", saying("ok", **use)).finish_reason == "stop"
        at = n + len([U, *model.tokenize("well?"), END])
        assert chat.session.provenance == ((0, lora), (at, both))  # nothing is read in advance
        assert chat.read().reused == at
        read = len(chat.tokens)
        second = chat.say("and", brief(5, **use))
        assert second.timings.reused == read
        start = len(chat.tokens) - len(second.tokens) - 1
        assert chat.session.provenance == ((0, lora), (start, both))
        chat.save(tmp_path / "talk.alora")
        with model.restore(tmp_path / "talk.alora") as restored:
            assert restored.session.provenance == chat.session.provenance
            third = restored.say("so", brief(3, **use))
            assert third.timings.reused == start
    whole = model.combine("both", {"lora": 1.0, "add": 2.0})
    assert whole.begins == "start"
    with chat_of(model) as chat:
        chat.say("hello", brief(5, adapter="both"))
        read = chat.read()
        assert chat.session.provenance == ((0, lora),)
        model.unload_adapter("both")
        model.unload_adapter("lora")  # then the base reads
        chat.add("and")
        assert chat.session.provenance == ((0, BASE),)


def test_an_intrinsic_beside_the_lora_that_reads(
    model: ag.Model, files: Files, tmp_path: Path
) -> None:
    """Both act on it, and nothing that the LoRA has read is read again; the base reads for itself
    as ever.
    """
    path = files.write_adapter(
        tmp_path / "own.gguf", invocation=files.invocation, keys={"alora.io_yaml": YES_NO}
    )
    model.load_adapter("own", path)
    made = model.combine("judge", {"lora": 1.0, "own": 1.0})
    assert (made.io_yaml, made.begins) == (YES_NO, "start")
    with chat_of(model) as chat:
        chat.say("is it so?", saying("ok", adapter="lora"))
        chat.read()
        n = len(chat.tokens)
        assert chat.session.provenance == ((0, by(model, lora=1.0)),)
        judged, alone = chat.invoke_many(["judge", "own"])
        assert judged.timings.reused == n
        assert judged.value != pytest.approx(alone.value, rel=1e-3)
        with chat_of(model, messages=chat.messages) as fresh_one:
            again = fresh_one.invoke("judge")
        assert again.value == pytest.approx(judged.value, rel=1e-4)
    with chat_of(model) as chat:  # two that write together, turn after turn
        model.load_adapter("tone", files.write_adapter(tmp_path / "t.gguf", seed=7, rank=4))
        use = {"adapter": {"lora": 0.5, "tone": 1.0}}
        chat.say("hello", brief(5, **use))
        chat.read()
        n = len(chat.tokens)
        assert chat.session.provenance == ((0, by(model, lora=0.5, tone=1.0)),)
        assert chat.say("and", brief(4, **use)).timings.reused == n
        chat.save(tmp_path / "talk.alora")
        with model.restore(tmp_path / "talk.alora") as restored:
            assert restored.session.provenance == chat.session.provenance


def test_from_the_start_a_vector_reads_all(model: ag.Model, tmp_path: Path) -> None:
    path = steered.write(tmp_path / "all.gguf", seed=6)
    model.load_adapter("all", path, from_start=True)
    with chat_of(model) as chat:
        chat.say("hello", brief(4, adapter="all"))
        n = len(chat.tokens)
        reply = chat.say("and", brief(4, adapter="all"))
        assert reply.timings.reused == n
        assert chat.session.provenance == ((0, by(model, all=1.0)),)


def test_what_is_asked_about_a_steered_reply_sees_the_bases_cells(
    model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sure", "role"):
        model.set_contract(name, ag.Contract.parse(YES_NO))
    with chat_of(model) as chat:
        chat.say("is it so?", brief(6, adapter={"add": 1.0, "half": 1.0}))
        asked: list[Any] = []
        real = ag.Session.invoke_many

        def spy(session: ag.Session, invocations: Any, **options: Any) -> Any:
            asked.extend(invocations)
            return real(session, invocations, **options)

        monkeypatch.setattr(ag.Session, "invoke_many", spy)
        results = chat.invoke_many(["sure", "role"])
        monkeypatch.undo()
        inside.give_back(model)
        with model.session() as clean:  # the same tokens, all read by the base
            verdicts = [clean.invoke(each) for each in asked]
        for found, verdict in zip(results, verdicts, strict=True):
            (mine,) = found.logprobs
            theirs = next(t for t in verdict.logprobs or () if len(t.top) == 2)  # y or n
            assert [t.text for t in mine.top] == [t.text for t in theirs.top]
            for one, other in zip(mine.top, theirs.top, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
    # beside a reply that is being made
    with chat_of(model) as chat:
        reply = chat.say("is it so?", brief(6, adapter="add"), intrinsics=["sure"])
        inside.give_back(model)
        with chat_of(model, messages=["is it so?"]) as other:
            value = other.invoke("sure").value
            assert reply.intrinsics[0].result().value == pytest.approx(value, abs=1e-4)
            assert other.reply(brief(6, adapter="add")).tokens == reply.tokens


def test_a_combination_is_asked_as_the_intrinsic_in_it(
    model: ag.Model, files: Files, tmp_path: Path
) -> None:
    path = files.write_adapter(
        tmp_path / "own.gguf", invocation=files.invocation, keys={"alora.io_yaml": YES_NO}
    )
    own = model.load_adapter("own", path)
    made = model.combine("calm", {"own": 1.0, "add": 2.0})
    assert made.io_yaml == own.io_yaml == YES_NO
    with chat_of(model, messages=["is it so?"]) as chat:
        alone, together, none = chat.invoke_many(
            ["own", "calm", ag.IntrinsicCall("calm", scale=0.0, alias="none")]
        )
        assert together.value != pytest.approx(alone.value, rel=0.5)
        assert together.timings.reused == alone.timings.reused
        assert none.value != pytest.approx(alone.value, rel=0.5)
        with pytest.raises(ag.ContractError, match="holds no contract"):
            chat.invoke("add")
        model.unload_adapter("calm")
        with pytest.raises(ag.UnknownAdapterError, match="'calm'"):
            chat.invoke("calm")


def test_what_supervises_a_combination_begins_with_the_first_of_it(
    model: ag.Model, files: Files, tmp_path: Path
) -> None:
    path = files.write_adapter(
        tmp_path / "own.gguf", invocation=files.invocation, keys={"alora.io_yaml": YES_NO}
    )
    own = model.load_adapter("own", path)
    model.load_adapter("always", tmp_path / "add.gguf", from_start=True)
    model.combine("calm", {"own": 1.0, "add": 2.0})
    model.combine("calm throughout", {"own": 1.0, "always": 2.0})
    with chat_of(model, messages=["is it so?"]) as chat:
        alone, calm, throughout = (
            chat.supervise(name, "yes") for name in ("own", "calm", "calm throughout")
        )
    assert calm == alone
    assert alone.prompt[alone.first :][: len(own.invocation)] == own.invocation
    assert throughout.prompt == alone.prompt
    assert throughout.first == 0 < alone.first


def test_decisions_with_vectors_share_the_state(model: ag.Model) -> None:
    state = "The train to the coast leaves at nine, and it is nine now. " * 3
    asked = {
        "base": ag.Predicate("Is it late?"),
        "add": ag.Predicate("Is it late?", adapter="add"),
        "two": ag.Predicate("Is it late?", adapter={"add": 1.0, "norm": 1.0}, scale=0.5),
        "sure": ag.Predicate("Is it late?", adapter={"sure": 1.0, "out": 1.0}),
    }
    together = model.decide(state, asked, template=PLAIN)
    alone = {}
    for name, question in asked.items():
        inside.give_back(model)
        alone[name] = model.decide(state, {name: question}, template=PLAIN).answers[name]
    for name, answer in together.answers.items():
        assert isinstance(answer, ag.PredicateAnswer)
        assert answer.probability == pytest.approx(alone[name].probability, abs=1e-4)  # type: ignore[union-attr]
    assert len({round(each.probability, 5) for each in alone.values()}) == 4  # type: ignore[union-attr]
    n = len(model.tokenize(state))
    assert together.usage.read < n + 4 * 45  # the state once, and the questions
    read = model.decide(
        state, {"x": {"type": "noul", "instructions": "Is it late?", "adapter": {"add": 1.0}}},
        template=PLAIN,
    )  # fmt: skip
    assert read.answers["x"].probability == pytest.approx(alone["add"].probability, abs=1e-4)  # type: ignore[union-attr]
    with pytest.raises(ag.FieldError, match=r"questions\.x\.adapter"):
        model.decide(state, {"x": {"type": "noul", "instructions": "?", "adapter": 3}})


def test_sizes_of_replies_count_the_invocation(model: ag.Model, files: Files) -> None:
    with ag.Tokenizer(files.base, template=PLAIN, adapters=model.adapters) as tokenizer:

        def most(adapter: Any) -> int:
            how = ag.GenerateOptions(max_tokens=4, adapter=adapter)
            return tokenizer.size(["hello"], reply=how).most

        assert most("add") == most(None) == most({"add": 1.0, "out": 1.0})
        assert most({"role": 1.0, "add": 1.0}) == most("role")
        with pytest.raises(ag.UnknownAdapterError, match="'nope' was given"):
            most({"nope": 1.0})
    with chat_of(model, messages=["hello"]) as chat:
        chat.reserve(9, adapter={"role": 1.0, "add": 1.0})
        promised = sum(each.promised for each in model.cache_report().holders)
        used = model.cache_report().used
        assert used + promised == len(chat.tokens) + len([U, *b"hello", END, *ROLE]) + 9
