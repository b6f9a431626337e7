"""Intrinsics asked in a chat: what comes of their replies, what they cost, whose contract it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.chat.asking import MAX_TOKENS, Question, changed_call, sampling_of
from alora_gguf.demo import script
from alora_gguf.intrinsics import Contract
from tests.support import tiny_base
from tests.support.chats import PLAIN, STRICT, YES_NO, assert_nothing_left, brief, says
from tests.support.files import EXACT, Files

RAW = "model: ~\nresponse_format: ~\ntransformations: "
QUESTION, ANSWER = "When does the Bomel library open?", "The Bomel library opens at 9:30."


def contract(text: str = YES_NO, **fields: str) -> Contract:
    return Contract.parse(text + "".join(f"\n{name}: {value}" for name, value in fields.items()))


@pytest.fixture(scope="module")
def played() -> Iterator[ag.Model]:
    """The demo's model with its five adapters."""
    with ag.Model(
        demo.base_path(),
        adapters=demo.adapter_paths(),
        n_ctx=8192,
        n_threads=1,
        options=EXACT,
    ) as model:
        yield model


@pytest.fixture
def tiny(files: Files) -> Iterator[ag.Model]:
    with files.model() as model:
        for name in ("sure", "other", "lora"):
            model.set_contract(name, contract())
        yield model


# The demo's intrinsics --------------------------------------------------------------------------


def test_the_demos_script_gets_the_verdicts_it_is_there_to_show(played: ag.Model) -> None:
    with played.chat(documents=script.DOCUMENTS) as chat:
        for i, turn in enumerate(script.TURNS):
            chat.add(turn.question)
            n = len(chat.tokens)
            before = {r.name: r for r in chat.invoke_many(list(turn.before))}
            assert (before["jailbreak"].value["jailbreak"] > 0.5) == (i == 2)
            if "answerability" in before:
                assert (before["answerability"].value["answerable"] > 0.5) == (i != 3)
                about = "Brosa dairy" if i == 4 else "Bomel library"
                assert about in before["query_rewrite"].value["rewritten_question"]
            reply = chat.reply(brief(64))
            assert turn.is_right(reply.text)
            after = {r.name: r for r in chat.invoke_many(list(turn.after))}
            if after:
                assert after["hallucination"].value["faithful"] > 0.9
                assert after["uncertainty"].value["certainty"] > 0.8
            for result in (*before.values(), *after.values()):
                assert result.error is None
                assert result.finish_reason == "stop"
                assert result.timings.reused >= n
                assert result.timings.evaluated < 12
                assert result.timings.reuse_note == ""


@pytest.mark.parametrize("name", demo.INTRINSICS)
def test_what_judges_a_question_is_asked_about_it_wherever_the_talk_is(
    played: ag.Model, name: str
) -> None:
    attack = script.TURNS[2].question
    said = [ag.Message("user", attack), ag.Message("assistant", "No, I will not do that.")]
    n = 1 if played.contract(name).judges == "question" else 2
    asked = ag.IntrinsicCall(name)
    with played.chat(messages=said, documents=script.DOCUMENTS) as chat:
        right = chat.invoke(name, upto=n)
        (many,) = chat.invoke_many([name])
        assert chat.invoke(name).text == many.text == right.text
        if played.contract(name).choices or name == "jailbreak":
            decided = chat.decide({"asked": asked})["asked"]
            there = chat.decide({"asked": replace(asked, upto=n)})["asked"]
            assert decided.probability == pytest.approx(there.probability, abs=1e-6)
        reply = chat.say(
            "Please!", brief(4), intrinsics=[name]
        )  # beside the reply: up to "Please!"
        (beside,) = reply.intrinsics
        assert beside.result().text == chat.invoke(name, upto=3).text
    with played.chat(messages=said[1:]) as chat:  # without any question
        assert chat.invoke(name).text == chat.invoke(name, upto=1).text


# What a result says -----------------------------------------------------------------------------


def test_a_cut_reply_is_an_error_of_its_own(played: ag.Model) -> None:
    with played.chat(documents=script.DOCUMENTS, messages=[QUESTION]) as chat:
        cut, whole = chat.invoke_many(
            [ag.IntrinsicCall("answerability", max_tokens=5), "query_rewrite"]
        )
        assert whole.error is None
        assert whole.value["rewritten_question"]
        assert cut.finish_reason == "length"
        assert cut.text
        assert cut.logprobs == ()
        with pytest.raises(ag.OutputError) as caught:
            _ = cut.value
        assert str(caught.value).startswith(
            f"{demo.adapter_path('answerability')}(io.yaml): the reply ends in the middle of its "
            "JSON, after "
        )
        assert str(caught.value).endswith(
            "it was probably cut off at its limit of 5 tokens: raise max_completion_tokens"
        )
        assert "_value" not in repr(cut)


def test_a_reply_whose_tokens_do_not_spell_it_is_one_too(tiny: ag.Model) -> None:
    """A stop string that ends within a token leaves a text that no tokens spell."""
    weighs = "\n  - {type: likelihood, input_path: [], categories_to_values: {true: 1, false: 0}}"
    tiny.set_contract("sure", contract(RAW + weighs, parameters='{stop: ["r"]}'))
    says_falser = ag.Sampling(
        temperature=0.0, grammar=says("falser").grammar, logit_bias={ord("e"): -100.0}
    )
    with tiny.chat(template=PLAIN, messages=["a"]) as chat:
        cut, whole = chat.invoke_many([ag.IntrinsicCall("sure", sampling=says_falser), "other"])
        assert cut.text == "false"
        assert isinstance(cut.error, ag.OutputError)
        assert str(cut.error) == (
            "io.yaml: the reply was ended by a stop string within a token, so that its "
            "probabilities are not known; choose other stop strings"
        )
        assert whole.value == pytest.approx(0.5, abs=0.5)


def test_times_and_counts(played: ag.Model) -> None:
    with played.chat(documents=script.DOCUMENTS, messages=[QUESTION]) as chat:
        n = chat.read().evaluated
        results = chat.invoke_many(["jailbreak", "answerability"])
        for result in results:
            timings = result.timings
            assert timings.reused == n
            assert timings.evaluated == len(played.adapter(result.name).invocation)
            assert timings.generated > 0
            assert 0 < (timings.first_token or 0) <= timings.total
            assert [t.token for t in result.logprobs]
            assert all(token.top for token in result.logprobs)
        assert chat.invoke_many([]) == []
        assert len(chat.tokens) == n


def test_limits_and_sampling_are_the_callers_or_the_contracts(tiny: ag.Model) -> None:
    text = contract(RAW + "~", parameters="{max_tokens: 7, temperature: 0.0, seed: 3}")
    tiny.set_contract("sure", text)
    tiny.set_contract("other", contract(RAW + "~"))
    with tiny.chat(template=PLAIN, messages=["a"]) as chat:
        mine, limited, unlimited = chat.invoke_many(
            [ag.IntrinsicCall("sure", max_tokens=3), "sure", "other"]
        )
        assert [r.timings.generated for r in (mine, limited, unlimited)] == [3, 7, MAX_TOKENS]
        said = chat.invoke(ag.IntrinsicCall("sure", sampling=says('"ok"')))
        assert said.value == "ok"
        twice = [
            chat.invoke(ag.IntrinsicCall("sure", sampling=ag.Sampling(seed=seed))).text
            for seed in (1, 1, 2)
        ]
        assert twice[0] == twice[1] != twice[2]
        for wrong in (0, -1, True, 2.0):
            with pytest.raises(ag.InputError, match="max_tokens must be an integer of at least 1"):
                chat.invoke(ag.IntrinsicCall("sure", max_tokens=wrong))  # type: ignore[arg-type]
        strong, weak = (
            chat.invoke(ag.IntrinsicCall("sure", scale=scale)).text for scale in (3.0, 0.0)
        )
        assert strong != weak


def test_a_contracts_parameters_become_sampling() -> None:
    plain = ag.Sampling(temperature=0.0, top_k=-1, top_p=1.0, min_p=0.0, repeat_last_n=MAX_TOKENS)
    assert sampling_of(contract(), MAX_TOKENS) == plain
    given = contract(
        parameters=(
            "{temperature: 0.5, top_p: 0.9, frequency_penalty: 0.1, presence_penalty: 0.2, "
            "max_completion_tokens: 33, extra_body: {top_k: 5, min_p: 0.02, seed: 9, "
            "repetition_penalty: 1.1}}"
        )
    )
    assert sampling_of(given, 33) == ag.Sampling(
        temperature=0.5, top_k=5, top_p=0.9, min_p=0.02, repeat_penalty=1.1, frequency_penalty=0.1,
        presence_penalty=0.2, repeat_last_n=33, seed=9,
    )  # fmt: skip


def test_only_the_first_messages_can_be_asked_about(played: ag.Model) -> None:
    """What judges a question, when it was answered already."""
    with played.chat(documents=script.DOCUMENTS, messages=[QUESTION]) as chat:
        asked = chat.invoke("answerability")
        n = len(chat.tokens)
        chat.add({"role": "assistant", "content": ANSWER})
        chat.add("Who runs it?")
        whole = len(chat.tokens)
        later = chat.invoke(ag.IntrinsicCall("answerability", upto=1))
        assert later.text == asked.text
        assert later.value["answerable"] == pytest.approx(asked.value["answerable"], abs=5e-3)
        assert later.timings.reused == n
        assert later.timings.evaluated == asked.timings.evaluated
        note = f"its prompt differs from the conversation from token {n} of {whole} on"
        assert later.timings.reuse_note == note
        assert chat.invoke(ag.IntrinsicCall("answerability", upto=3)).text != asked.text
        for wrong, wanted in ((4, r"in \[0, 3\]"), (-1, "of at least 0"), (True, "of at least 0")):
            with pytest.raises(ag.InputError, match=f"upto must be an integer {wanted}"):
                chat.invoke(ag.IntrinsicCall("answerability", upto=wrong))


def test_a_call_and_arguments_beside_it(tiny: ag.Model) -> None:
    tiny.set_contract("sure", contract(RAW + "~", instruction='"<certainty> {a}"'))
    with tiny.chat(template=PLAIN, messages=["a", {"role": "assistant", "content": "b"}]) as chat:
        call = ag.IntrinsicCall("sure", upto=1, scale=0.5, max_tokens=3, sampling=says("cde"))
        result = chat.invoke(call, {"a": "x"})
        assert (result.text, result.finish_reason) == ("cde", "length")
        assert result.timings.reused == len(tiny.tokenize("<|user|>a<|end|>"))
        assert call.arguments == {}


# Why not more was reused -------------------------------------------------------------------------


def test_notes_tell_what_a_contract_changed(tiny: ag.Model) -> None:
    numbers = contract(sentence_boundaries="{last_message: r}", instruction="<certainty>")
    moves = contract(docs_as_message="string", instruction="<certainty>")
    both = contract(docs_as_message="json", sentence_boundaries="{all_but_last_message: h}")
    said = ["hello there. and so on.", {"role": "assistant", "content": "the train. it ran."}]
    for chosen, documents, note in (
        (contract(), ["d"], ""),
        (contract(instruction="<certainty>"), ["d"], ""),
        (numbers, ["d"], ": its contract numbers sentences there"),
        (moves, ["d"], ": its contract puts the documents before the conversation"),
        (moves, [], ""),
        (both, ["d"], ": its contract puts the documents before the conversation"),
        (both, [], ": its contract numbers sentences there"),
    ):
        tiny.set_contract("sure", chosen)
        tiny.set_contract("lora", chosen)
        with tiny.chat(template=PLAIN, messages=said, documents=documents) as chat:
            n = chat.read().evaluated
            sure, lora = chat.invoke_many(["sure", "lora"])
            if note:
                assert sure.timings.reused < n - 1
                head = (
                    "its prompt differs from the conversation from token "
                    f"{sure.timings.reused} of {n} on"
                )
                assert sure.timings.reuse_note == head + note
            else:
                assert (sure.timings.reused, sure.timings.reuse_note) == (n, "")
            assert lora.timings.reused == 0
            assert lora.timings.reuse_note == ("'lora' is a plain LoRA: it recomputes every token")


def test_documents_that_a_contract_places_need_none_in_the_template(tiny: ag.Model) -> None:
    tiny.set_contract("sure", contract(docs_as_message="string", instruction="<certainty>"))
    alternates = STRICT.replace("loop.index0 % 2 == 0", "true")
    with tiny.chat(template=alternates, messages=["a"], documents=["d"]) as chat:
        result = chat.invoke("sure")
        assert result.text in ('"yes"', '"no"')
        assert result.timings.reused > 40  # the words before the documents are the same
        assert chat.documents_place == "user"  # for whoever asks without that contract


# Arguments and contracts ------------------------------------------------------------------------


def test_arguments(tiny: ag.Model) -> None:
    text = contract(instruction='"<certainty> {a} of {b}, {last_message}"')
    tiny.set_contract("sure", text)
    with tiny.chat(template=PLAIN, messages=["x"]) as chat:
        asked = chat.invoke("sure", {"a": "1", "b": "2"})
        call = ag.IntrinsicCall("sure", {"a": "1", "b": "2"})
        assert chat.invoke(call).text == asked.text
        assert asked.timings.evaluated == len(
            tiny.tokenize("<|user|><certainty> 1 of 2, x<|end|><|assistant|>")
        )
        tokens = chat.tokens
        for arguments, problem in (
            ({"a": "1"}, "the instruction needs the argument b; given: a"),
            (None, "the instruction needs the argument a, b; given: none"),
            ({"a": "1", "b": "2", "c": "3"}, "unknown argument c; the instruction takes a, b"),
            ({"a": 1, "b": "2"}, "the argument a is int, expected a string"),
            ({"a": "1", "b": "2", "last_message": "x"}, "unknown argument last_message"),
        ):
            with pytest.raises(ag.InputError) as caught:
                chat.invoke("sure", arguments)  # type: ignore[arg-type]
            assert str(caught.value).startswith(f"io.yaml: {problem}")
            with pytest.raises(ag.InputError):
                chat.invoke_many(["other", ag.IntrinsicCall("sure", arguments or {})])  # type: ignore[arg-type]
        assert chat.tokens == tokens
    with tiny.chat(template=PLAIN) as empty, pytest.raises(ag.InputError) as caught:
        empty.invoke("sure", {"a": "1", "b": "2"})
    assert "the instruction quotes the last message, but there is no message" in str(caught.value)


def test_one_intrinsic_is_asked_several_times_under_aliases(tiny: ag.Model) -> None:
    tiny.set_contract("sure", contract(instruction='"<certainty> {a}, {last_message}"'))
    with tiny.chat(template=PLAIN, messages=["x"]) as chat:
        alone = [chat.invoke("sure", {"a": a}).text for a in ("1", "2")]
        calls = [ag.IntrinsicCall("sure", {"a": a}, alias=f"no {a}") for a in ("1", "2")]
        assert [call.label for call in calls] == ["no 1", "no 2"]
        results = chat.invoke_many([*calls, ag.IntrinsicCall("sure", {"a": "2"})])
        assert [(each.name, each.label) for each in results] == [
            ("sure", "no 1"), ("sure", "no 2"), ("sure", "sure"),
        ]  # fmt: skip
        assert [each.text for each in results] == [*alone, alone[1]]
        assert chat.invoke("sure", {"a": "1"}, alias="it").label == "it"
        with pytest.raises(ag.InputError, match="two calls have the alias 'no 1'; give each its"):
            chat.invoke_many([*calls, calls[0]])
        with pytest.raises(ag.InputError, match="two calls have the alias 'no 2'; give each its"):
            chat.reply(intrinsics=[calls[1], *calls])
        with pytest.raises(ag.InputError, match=r"unknown argument aa \(did you mean a\?\); the "):
            chat.invoke("sure", {"aa": "1"})


def test_a_contract_is_given_found_and_forgotten(files: Files, tmp_path: Path) -> None:
    (tmp_path / "io.yaml").write_text(YES_NO)
    bare = (
        "holds no contract (alora.io_yaml); convert the adapter again with its io.yaml beside it, "
        "or give the contract as a file"
    )
    with files.model() as model, model.chat(template=PLAIN, messages=["a"]) as chat:
        with pytest.raises(ag.ContractError) as caught:
            chat.invoke("sure")
        assert str(caught.value) == f"{files.alora}: {bare}"
        for given in (contract(), tmp_path, tmp_path / "io.yaml", str(tmp_path / "io.yaml"),
                      demo.adapter_path("jailbreak")):  # fmt: skip
            model.set_contract("sure", given)
            assert model.contract("sure") is model.contract("sure")
        assert model.contract("sure").name == "jailbreak"
        with pytest.raises(ag.MissingFileError, match=r"nowhere: there is no such file, expected"):
            model.set_contract("sure", tmp_path / "nowhere")
        with pytest.raises(ag.UnknownAdapterError, match="no adapter named 'nobody' is loaded"):
            model.set_contract("nobody", contract())
        with pytest.raises(ag.UnknownAdapterError, match="no adapter named 'nobody' is loaded"):
            model.contract("nobody")
        assert model.contract("sure").name == "jailbreak"
        model.set_contract("sure", tmp_path)
        assert chat.invoke("sure").error is None
        model.unload_adapter("sure")
        with pytest.raises(ag.UnknownAdapterError):
            chat.invoke("sure")
        other = tiny_base.write_adapter(tmp_path / "n.gguf", seed=8, invocation=files.invocation)
        for weights in (other, files.alora):  # also the very same: it was given until the unloading
            model.load_adapter("sure", weights)
            with pytest.raises(ag.ContractError) as caught:
                chat.invoke("sure")
            assert str(caught.value) == f"{weights}: {bare}"
            model.unload_adapter("sure")
        chat.close()
        assert_nothing_left(model)


def test_a_conversation_of_nothing_can_be_asked_about(tiny: ag.Model) -> None:
    with tiny.chat(template=PLAIN) as chat:
        result = chat.invoke("sure")
        assert result.error is None
        assert (result.timings.reused, chat.tokens) == (0, [])


def test_cancelling_a_question(tiny: ag.Model) -> None:
    token = ag.CancelToken()
    token.cancel()
    with tiny.chat(template=PLAIN, messages=["a" * 40]) as chat:
        with pytest.raises(ag.CancelledError, match="the call was cancelled"):
            chat.invoke_many(["sure", "other"], cancel=token)
        assert chat.tokens == []
        chat.read()
        with pytest.raises(ag.CancelledError):
            chat.invoke("sure", cancel=token)
        assert chat.invoke("sure").error is None
    assert_nothing_left(tiny)


def test_penalties_count_the_tokens_that_the_call_allows(files: Files) -> None:
    """Not those that the contract would."""
    penal = contract(parameters="{frequency_penalty: 0.5, max_completion_tokens: 33}")
    with files.model() as model, model.chat(template=PLAIN, messages=["x"]) as chat:
        model.set_contract("sure", penal)
        for call, n in (
            (ag.IntrinsicCall("sure", max_tokens=7), 7),
            (ag.IntrinsicCall("sure"), 33),
        ):
            found = Question.about(chat._contracts, chat._dialogue(), call)
            assert found.invocation.max_tokens == found.invocation.sampling.repeat_last_n == n
            assert found.contract == penal


def test_keywords_change_what_the_contract_says(files: Files) -> None:
    with files.model() as model, model.chat(template=PLAIN, messages=["x"]) as chat:
        model.set_contract("sure", contract(parameters="{top_k: 5, max_completion_tokens: 33}"))
        call = changed_call(chat._contracts, ag.IntrinsicCall("sure"), {"seed": 4, "max_tokens": 6})
        assert (call.max_tokens, call.sampling) == (
            6, ag.Sampling(temperature=0.0, top_k=5, top_p=1.0, min_p=0.0, repeat_last_n=6, seed=4)
        )  # fmt: skip
        assert chat.invoke("sure", max_tokens=2, temperature=0).timings.generated <= 2
        with pytest.raises(ag.InputError, match="has no argument 'schema'"):
            chat.invoke("sure", schema={})  # type: ignore[call-arg]


def test_an_adapter_that_is_only_named_answers_with_text(files: Files) -> None:
    with files.model() as model, model.chat(template=PLAIN, messages=["x"]) as chat:
        model.set_contract("sure", ag.Contract.parse("name: sure\n"))
        answer = chat.invoke("sure", max_tokens=6)
        assert answer.value == answer.text
        assert answer.timings.generated == 6


# Contracts that cannot be used -------------------------------------------------------------------

UNUSABLE = {
    "model: [": "expected YAML",
    "name: x\nmodel: ~\ninstruction: ~\n": "expected a contract to have 'response_format'",
    "model: ~\ntransformations: ~\nresponse_format: {type: array, uniqueItems: true}\n": (
        "(io.yaml): field response_format: the JSON Schema cannot be used: Unimplemented keys"
    ),
}


@pytest.mark.parametrize("text", UNUSABLE)
def test_a_contract_that_cannot_be_used_is_told_when_its_adapter_is_loaded(
    files: Files, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"alora.io_yaml": text}
    path = files.write_adapter(tmp_path / "a.gguf", invocation=files.invocation, keys=keys)
    with files.model(adapters={"a": path, "plain": files.lora}) as model:
        model.load_adapter("b", path)
        with pytest.raises(ag.ContractError, match=re.escape(UNUSABLE[text])):
            model.contract("a")
        with pytest.raises(ag.ContractError, match=re.escape(UNUSABLE[text])):
            model.chat(template=PLAIN).invoke("a")
        with pytest.raises(ag.ContractError):
            model.set_contract("plain", path)
        session = model.session()
        assert session.invoke("a", max_tokens=1).tokens  # the adapter works
    told = [r.message for r in caplog.records if r.levelname == "WARNING"]
    start = "the adapter works, but cannot be asked as an intrinsic: "
    assert [(m.startswith(start), UNUSABLE[text] in m) for m in told] == [(True, True)] * 2
