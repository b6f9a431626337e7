"""Typed questions asked in a chat and about a state: what is read, what does not matter, what the
answers are next to the model's own logits and the intrinsics' own values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.intrinsics import Contract
from tests.support import inside
from tests.support.chats import PLAIN
from tests.support.files import EXACT, Files

TICKET = "I was charged twice for my March invoice and want my money back today."
QUESTIONS: Mapping[str, Any] = {
    "refund": ag.Predicate("Is the customer asking for money back?"),
    "team": ag.Choice("Which team?", {"Billing": "invoices", "Sales": None, "Technical": "bugs"}),
    "anger": ag.Score("How frustrated is the customer?", ["Calm", "Frustrated", "Very angry"]),
}
CLOSE = 1e-4  # of batches of other shapes


@pytest.fixture(scope="module")
def played() -> Iterator[ag.Model]:
    """The demo's model with its five adapters."""
    with ag.Model(
        demo.base_path(), adapters=demo.adapter_paths(), n_ctx=8192, n_threads=1, options=EXACT
    ) as model:
        yield model


@pytest.fixture
def chat(played: ag.Model) -> Iterator[ag.Chat]:
    with played.chat(messages=[TICKET]) as opened:
        yield opened


@pytest.fixture
def tiny(files: Files) -> Iterator[ag.Model]:
    with files.model(n_ctx=4096) as model:
        yield model


def numbers(answer: Any) -> list[float]:
    """All that an answer commits to, in the canonical order."""
    if isinstance(answer, ag.PredicateAnswer):
        return [answer.probability]
    if isinstance(answer, ag.ScoreAnswer):
        return [*answer.probabilities, answer.score, answer.confidence]
    assert isinstance(answer, ag.ChoiceAnswer), answer
    return [*(answer.probabilities[k] for k in sorted(answer.probabilities)), answer.confidence]


# Answers ------------------------------------------------------------------------------------------


def test_a_state_is_asked_several_questions(played: ag.Model) -> None:
    found = played.decide(TICKET, QUESTIONS)
    assert list(found.answers) == list(QUESTIONS)
    refund, team, anger = found.answers.values()
    assert isinstance(refund, ag.PredicateAnswer)
    assert 0 < refund.probability < 1
    assert isinstance(team, ag.ChoiceAnswer)
    assert isinstance(anger, ag.ScoreAnswer)
    assert list(team.probabilities) == ["Billing", "Sales", "Technical"]
    assert sum(team.probabilities.values()) == pytest.approx(1)
    assert team.choice == max(team.probabilities, key=lambda name: team.probabilities[name])
    assert anger.score == pytest.approx(sum(i * p for i, p in enumerate(anger.probabilities)))
    assert anger.legend == ("Calm", "Frustrated", "Very angry")
    assert found["team"] is team


@pytest.mark.parametrize(
    "state",
    [
        {"subject": "Charged twice", "customer": {"plan": "pro", "tickets": 3}},
        ["Charged twice.", "Refund promised."],
        "배송이 3일째 안 와요 😡",
        "",
        [],
    ],
)
def test_a_state_is_text_or_json(played: ag.Model, state: Any) -> None:
    assert 0 < numbers(played.decide(state, {"q": QUESTIONS["refund"]})["q"])[0] < 1


def test_a_state_of_messages_is_the_conversation(played: ag.Model) -> None:
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    with played.chat(messages=said) as chat:
        wanted = numbers(chat.decide(QUESTIONS)["team"])
    for state in (said, {"messages": said}):
        assert numbers(played.decide(state, QUESTIONS)["team"]) == pytest.approx(wanted, abs=CLOSE)


def test_the_order_of_the_options_does_not_matter_to_the_last_bit(chat: ag.Chat) -> None:
    options = {"Billing": "invoices", "Sales": None, "Technical": "bugs", "Other": "the rest"}
    first = None
    for shift in range(4):
        names = [*options][shift:] + [*options][:shift]
        asked = ag.Choice("Which team?", {f" {name} ": options[name] for name in names})
        found = numbers(chat.decide({"team": asked})["team"])
        first = first or found
        assert found == first


def test_together_or_alone_the_answers_are_the_same(chat: ag.Chat) -> None:
    together = chat.decide({**QUESTIONS, "judged": ag.IntrinsicCall("jailbreak")})
    for name, question in QUESTIONS.items():
        alone = chat.decide({"another name": question})["another name"]
        assert numbers(alone) == pytest.approx(numbers(together[name]), abs=CLOSE)


def test_the_conversations_cells_are_only_read(chat: ag.Chat) -> None:
    chat.read()
    before = chat.session.state(), chat.tokens
    chat.decide({**QUESTIONS, "judged": {**vars_of_noul(), "adapter": "jailbreak"}})
    assert (chat.session.state(), chat.tokens) == before


def vars_of_noul() -> dict[str, Any]:
    return {"type": "noul", "instructions": "Is it rude?"}


def test_a_reply_that_is_not_over_goes_on(played: ag.Model) -> None:
    with played.chat() as chat:
        reply = chat.say("Hello.", stream=True, max_tokens=8, temperature=0)
        next(reply)
        assert 0 < numbers(chat.decide({"q": QUESTIONS["refund"]})["q"])[0] < 1
        assert reply.finish_reason is None
        reply.read()


def test_usage_counts_the_state_once(played: ag.Model) -> None:
    inside.forget_prefixes(played)
    with played.chat(messages=[TICKET]) as chat:
        first = chat.decide(QUESTIONS)
        n = len(chat.tokens)
        assert (first.usage.kept, first.usage.reused, first.usage.written) == (n, 0, 0)
        assert first.usage.read >= n + sum(a.timings.evaluated for a in first.answers.values())
        again = chat.decide({**QUESTIONS, "judged": ag.IntrinsicCall("jailbreak")})
        assert (again.usage.kept, again.usage.reused) == (0, n)
        assert again.usage.written > 0
        assert all(each.timings.reused >= n - 1 for each in again.answers.values())


# Adapters and intrinsics --------------------------------------------------------------------------


def test_an_intrinsic_decides_what_it_answers(chat: ag.Chat) -> None:
    for name, field in (("jailbreak", "jailbreak"), ("answerability", "answerable")):
        value = chat.invoke(name).value[field]
        found = chat.decide({"q": {"intrinsic": name}})["q"]
        assert isinstance(found, ag.PredicateAnswer)
        assert found.probability == value


def test_choices_of_a_contract_are_a_choice(files: Files) -> None:
    contract = "model: ~\nchoices: [low, mid, high]\ntransformations: ~\nresponse_format: ~"
    with files.model() as model:
        model.set_contract("sure", Contract.parse(contract))
        with model.chat(messages=["a"], template=PLAIN) as chat:
            found = chat.decide({"q": ag.IntrinsicCall("sure")})["q"]
            assert isinstance(found, ag.ChoiceAnswer)
            assert found.choice == chat.invoke("sure").value
            assert list(found.probabilities) == ["low", "mid", "high"]
            assert sum(found.probabilities.values()) == pytest.approx(1)


def test_an_intrinsic_that_answers_wrong_is_an_error_of_its_own_only(chat: ag.Chat) -> None:
    cut = ag.IntrinsicCall("answerability", max_tokens=1)
    found = chat.decide({"q": cut, **QUESTIONS})
    assert isinstance(found["q"], ag.FailedAnswer)
    assert isinstance(found["q"].error, ag.OutputError)
    assert numbers(found["team"])


def test_an_activated_lora_sees_the_bases_cells(chat: ag.Chat) -> None:
    chat.read()
    found = chat.decide({"q": ag.Predicate("Is it rude?", adapter="jailbreak")})
    assert found.usage.read < 200
    assert found["q"].timings.reused >= len(chat.tokens) - 1
    assert found["q"].timings.reuse_note == ""
    plain = chat.decide({"q": ag.Predicate("Is it rude?")})
    assert numbers(found["q"]) != numbers(plain["q"])
    nothing = chat.decide({"q": ag.Predicate("Is it rude?", adapter="jailbreak", scale=0.0)})
    assert numbers(nothing["q"]) != numbers(found["q"])


def test_a_plain_lora_reads_the_state_for_itself_and_says_so(tiny: ag.Model) -> None:
    with tiny.chat(messages=["What is in the box?"], template=PLAIN) as chat:
        found = chat.decide({"q": ag.Predicate("Is it a cat?", adapter="lora")})
        assert found["q"].timings.reused == 0
        assert "'lora' is a plain LoRA" in found["q"].timings.reuse_note
        assert "'lora' is a plain LoRA" in found.timings.reuse_note


# What is refused ----------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused_by_name(chat: ag.Chat) -> None:
    with pytest.raises(ag.UnknownAdapterError, match=r"no adapter named 'jailbrake'.*jailbreak"):
        chat.decide({"q": ag.Predicate("?", adapter="jailbrake")})
    with pytest.raises(ag.UnknownAdapterError, match="no adapter named 'nobody'"):
        chat.decide({"q": {"intrinsic": "nobody"}})
    with pytest.raises(ag.InputError, match=r"query_rewrite.*its answer is no decision: expected"):
        chat.decide({"q": {"intrinsic": "query_rewrite"}})
    with pytest.raises(ag.InputError, match="unknown argument colour"):
        chat.decide({"q": {"intrinsic": "jailbreak", "arguments": {"colour": "red"}}})
    with pytest.raises(ag.FieldError, match=r"^questions\.urgent\.criteria is missing"):
        chat.decide({"urgent": {"type": "choice", "instructions": "?"}})
    with pytest.raises(ag.InputError, match="temperature has 'yes', expected noul, choice, score"):
        chat.decide(QUESTIONS, temperature={"yes": 1.0})
    with pytest.raises(ag.InputError, match="temperature of noul must be"):
        chat.decide(QUESTIONS, temperature={"noul": 0.0})
    with pytest.raises(ag.InputError, match=r"orders must be"):
        chat.decide(QUESTIONS, orders=0)


def test_a_state_that_is_none_is_refused(played: ag.Model) -> None:
    for state in (None, 7, {"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(ag.InputError, match="state"):
            played.decide(state, QUESTIONS)  # type: ignore[arg-type]


def test_a_cancelled_call_leaves_the_chat_as_it_was(chat: ag.Chat) -> None:
    token = ag.CancelToken()
    token.cancel()
    with pytest.raises(ag.CancelledError):
        chat.decide(QUESTIONS, cancel=token)
    assert numbers(chat.decide(QUESTIONS)["team"])
