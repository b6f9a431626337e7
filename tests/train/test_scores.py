"""What an adapter is worth, on the demo's model and intrinsics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.train import figures, scores
from alora_gguf.train.data import Example
from alora_gguf.train.scores import ADAPTER, BASE, BLIND, SAME, score
from examples.demo_model import tasks


def lines(task: str, n: int, split: Any = "eval") -> list[Example]:
    return [
        Example(
            tuple(ag.Message(each.role, each.content) for each in example.messages),
            json.loads(example.target),
            tuple(map(ag.Document, example.documents)),
            line=i,
        )
        for i, example in enumerate(tasks.examples(task, split, n), 1)
    ]


@pytest.fixture(scope="module")
def model() -> Iterator[ag.Model]:
    with ag.Model(
        demo.base_path(), adapters=demo.adapter_paths(), n_ctx=4096, n_threads=1
    ) as opened:
        yield opened


def test_a_decision_has_figures_beside_the_base_and_never_looking(model: ag.Model) -> None:
    held_out, training = lines("jailbreak", 5), lines("jailbreak", 9, "train")
    calls: list[tuple[int, int]] = []
    found = score(
        model,
        "jailbreak",
        held_out,
        shots=training[:2],
        training=training,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert (found.kind, found.n, found.categories) == ("decision", 5, ("no", "yes"))
    assert list(found.rows) == [ADAPTER, BASE, "base, 2 examples", BLIND]
    assert calls == [(i, 10) for i in range(1, 11)]
    right = [each.answer["jailbreak"] == "yes" for each in held_out]
    said = [each.shares[1] for each in found.said[ADAPTER]]
    for example, p in zip(held_out[:2], said, strict=False):
        with model.chat(messages=example.messages, documents=example.documents) as chat:
            value = chat.invoke("jailbreak").value["jailbreak"]
        assert p == pytest.approx(value, abs=1e-3)
    hits = sum((p > 0.5) == so for p, so in zip(said, right, strict=True))
    assert found.rows[ADAPTER].figures["accuracy"] == figures.wilson(hits, 5)
    assert hits >= 4
    # who never looks says what most of the training examples say, as often as they say it
    share = sum(each.answer["jailbreak"] == "yes" for each in training) / 9
    assert found.said[BLIND][0].shares == pytest.approx((1 - share, share))
    blind = sum(so == (share > 0.5) for so in right)
    assert found.rows[BLIND].figures["accuracy"] == figures.wilson(blind, 5)
    gap = found.rows[BLIND].behind["accuracy"]
    assert gap.value == pytest.approx((hits - blind) / 5)
    assert found.rows[ADAPTER].behind == {}
    assert found.rows[ADAPTER].read < found.rows[BASE].read
    assert found.temperature is None  # of so few
    again = json.loads(json.dumps(found.to_dict()))
    assert again["rows"][BASE]["figures"].keys() == found.rows[BASE].figures.keys()


def test_shots_are_earlier_turns_and_their_answers_are_the_labels(model: ag.Model) -> None:
    held_out, training = lines("uncertainty", 1), lines("uncertainty", 3)[1:]
    asked = scores.asking(model, "uncertainty", "How certain?", held_out)
    turns = asked.turns(training, held_out[0])
    assert turns[-len(held_out[0].messages) + 1 :] == list(held_out[0].messages[1:])
    assert held_out[0].documents[0].text in turns[-len(held_out[0].messages)].content
    labels = []
    for shot in training:
        n = len(shot.messages)
        question, answer = turns[n : n + 2]
        turns = turns[n + 2 :]
        assert question.content.startswith("How certain?\n")
        assert f"\n{answer.content}. {shot.answer['certainty']}" in question.content
        labels.append(question.content.index(answer.content + ". "))
    assert len(set(labels)) == 2 or training[0].answer != training[1].answer


def test_a_text_is_matched_and_counted_by_words(model: ag.Model) -> None:
    held_out, training = lines("query_rewrite", 3), lines("query_rewrite", 3, "train")
    found = score(model, "query_rewrite", held_out, shots=training[:1], training=training)
    assert (found.kind, list(found.rows[ADAPTER].figures)) == ("text", ["exact_match", "token_f1"])
    assert found.rows[ADAPTER].figures["exact_match"].value >= 2 / 3
    assert found.said[SAME][0].value == held_out[0].messages[-1].content
    assert found.said[BLIND][0].value == training[0].answer["rewritten_question"]
    assert "token F1, %" in str(found)


def test_other_json_is_matched_as_a_value_and_by_field(model: ag.Model) -> None:
    known = model.contract("answerability")
    model.set_contract("answerability", replace(known, transformations=()))
    try:
        held_out = lines("answerability", 2)
        found = score(model, "answerability", held_out, training=held_out)
    finally:
        model.set_contract("answerability", known)
    assert list(found.rows[ADAPTER].figures) == ["exact_match", "answer", "answerable"]
    assert list(found.rows) == [ADAPTER, BASE, BLIND]
    unread = [each for each in found.said[BASE] if not isinstance(each.value, dict)]
    assert found.rows[BASE].unreadable == len(unread)  # cut off


def test_examples_that_begin_alike_are_read_once(model: ag.Model) -> None:
    a, b = lines("jailbreak", 2)
    # told apart by their last messages only, and far from each other
    alike = [
        replace(one, messages=(*one.messages[:-1], ag.Message("user", f"{text}?")))
        for text in ("Where", "When")
        for one in (a, b)
    ]
    found = score(model, "jailbreak", alike, training=alike)
    read, reused = found.conversation
    assert reused > 0.35 * (read + reused)
    alone = [score(model, "jailbreak", [each], training=alike) for each in alike]
    assert [each.value for each in found.said[ADAPTER]] == [
        each.said[ADAPTER][0].value
        for each in alone  # in the order that they were given in
    ]


def test_one_class_only_and_a_constant_have_figures(model: ag.Model) -> None:
    held_out = [each for each in lines("jailbreak", 8) if each.answer["jailbreak"] == "no"][:2]
    found = score(model, "jailbreak", held_out, training=held_out)
    assert "auroc" not in found.rows[ADAPTER].figures
    assert found.rows[BLIND].figures["log_loss"].value == pytest.approx(0.0)
    assert str(found).startswith("jailbreak on 2 held-out examples")


def said(shares: Sequence[float]) -> list[scores.Said]:
    return [scores.Said(int(p > 0.5), (1 - p, p)) for p in shares]


def test_a_temperature_is_told_only_where_it_helps(model: ag.Model) -> None:
    asked = scores.asking(model, "jailbreak", None, lines("jailbreak", 1))
    assert isinstance(asked, scores.Deciding)
    # right three times of four: 0.99 is too sure, 0.75 is not
    right = [1, 1, 1, 0] * 20
    found = scores._temperature(asked, right, said([0.99] * 80))
    assert found is not None
    assert (found.kind, found.value) == ("noul", pytest.approx(4.18, abs=0.05))  # ln 99 / ln 3
    # not 0: an example that was left out of a fit lacks in the share that the fit has right
    assert found.figures["ece"].value < 0.12
    assert found.figures["log_loss"].value == pytest.approx(0.57, abs=0.02)  # 1.16 without
    assert scores._temperature(asked, right, said([0.75] * 80)) is None
    assert scores._temperature(asked, right[:8], said([0.99] * 8)) is None
    # without a mistake nothing says how sure is too sure
    assert scores._temperature(asked, [1] * 80, said([0.75] * 80)) is None


def test_bad_input_is_refused_before_anything_is_asked(model: ag.Model) -> None:
    some = lines("jailbreak", 1)
    with pytest.raises(ag.InputError, match="there are no examples to score on; give at least one"):
        score(model, "jailbreak", [], training=some)
    with pytest.raises(ag.InputError, match="there are no training examples"):
        score(model, "jailbreak", some, training=[])
    with pytest.raises(
        ag.InputError, match=r"the example of line 7: its answer is 'maybe'.*no, yes"
    ):
        score(model, "jailbreak", [replace(some[0], answer="maybe", line=7)], training=some)
    with pytest.raises(ag.UnknownAdapterError):
        score(model, "nobody", some, training=some)
    cancel = ag.CancelToken()
    cancel.cancel()
    with pytest.raises(ag.CancelledError):
        score(model, "jailbreak", some, training=some, cancel=cancel)
