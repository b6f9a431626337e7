"""The demo model's data: what is held out, and whether examples are what they claim to be."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import fields

import pytest

from examples.demo_model import chat, conversations, entities, tasks, wordings
from examples.demo_model.conversations import Talk
from examples.demo_model.wordings import Relation, Wordings

SAMPLED = ("answerability", "query_rewrite", "hallucination", "jailbreak")


def talks(split: str, n: int) -> list[Talk]:
    return [
        conversations.talk(random.Random(f"test {split} {i}"), split, n_turns=4)  # type: ignore[arg-type]
        for i in range(n)
    ]


def all_wordings() -> dict[str, Wordings]:
    found = {name: w for name, w in vars(wordings).items() if isinstance(w, Wordings)}
    for relation in wordings.RELATIONS:
        for field in fields(Relation):
            value = getattr(relation, field.name)
            if isinstance(value, Wordings):
                found[f"{relation.key}.{field.name}"] = value
    return found


# Held out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(entities.MAKERS))
def test_no_name_is_in_both_halves(kind: str) -> None:
    make = entities.MAKERS[kind]  # type: ignore[index]
    names = {
        split: {make(random.Random(i), split).name for i in range(3000)}
        for split in ("train", "eval")
    }
    assert len(names["eval"]) > 50
    assert not names["train"] & names["eval"]


@pytest.mark.parametrize("invent", [entities.surname, entities.town])
def test_no_invented_name_is_in_both_halves(
    invent: Callable[[random.Random, entities.Split], str],
) -> None:
    train = {invent(random.Random(i), "train") for i in range(3000)}
    held_out = {invent(random.Random(i), "eval") for i in range(3000)}
    assert len(held_out) > 200
    assert not train & held_out


@pytest.mark.parametrize("name", sorted(all_wordings()))
def test_no_wording_is_in_both_halves(name: str) -> None:
    here = all_wordings()[name]
    everywhere = {text for w in all_wordings().values() for text in w.train}
    assert here.train
    assert here.eval
    assert not set(here.eval) & everywhere


def masked(text: str, names: set[str]) -> set[str]:
    """The sentences of a text with names and numbers taken out."""
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(re.escape(name), "_", text, flags=re.IGNORECASE)
    return {re.sub(r"\d+", "0", s) for s in re.split(r"(?<=[.?!]) ", text)}


@pytest.mark.slow
def test_what_is_said_in_evaluation_was_never_said_in_training() -> None:
    """Whole sentences of documents and users, names and numbers aside."""
    said = {}
    for split, n in (("train", 3000), ("eval", 300)):
        sentences = set()
        for talk in talks(split, n):
            names = {f.subject.name for f in talk.facts} | {f.value for f in talk.facts}
            names |= {t.question.subject.name for t in talk.turns if t.question}
            texts = [*talk.documents]
            texts += [
                t.message.content for t in talk.turns if t.message.role == "user" and t.question
            ]
            for text in texts:
                sentences |= masked(text, names)
        said[split] = sentences
    assert len(said["eval"]) > 300
    assert not said["eval"] & said["train"]


@pytest.mark.slow
def test_no_entity_of_evaluation_occurs_in_training() -> None:
    train = {f.subject.name for talk in talks("train", 3000) for f in talk.facts}
    held_out = {f.subject.name for talk in talks("eval", 500) for f in talk.facts}
    assert len(held_out) > 500
    assert not train & held_out


# Talks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "eval"])
def test_answers_to_be_learned_are_in_the_documents(split: str) -> None:
    n_answers = 0
    for talk in talks(split, 300):
        text = " ".join(talk.documents)
        for turn in talk.turns:
            if turn.message.role != "assistant" or turn.question is None:
                continue
            fact, said = turn.question.fact, turn.message.content
            if turn.learn and fact is not None:
                n_answers += 1
                assert fact.value in said
                assert fact.value.lower() in text.lower()
            if not turn.learn and fact is not None:
                assert not tasks.Question((), (), fact.value).is_right(said), said
    assert n_answers > 500


def test_a_survey_tells_every_fact_and_nothing_else() -> None:
    for i in range(200):
        talk = conversations.start(random.Random(i), "train", n_documents=3)
        conversations.survey(talk)
        turn = talk.turns[-1]
        values = [turn.message.content[first:end] for first, end in turn.values]
        known = [value for value in values if value != wordings.UNKNOWN]
        assert sorted(known) == sorted(fact.value for fact in talk.facts)
        for fact in talk.facts:
            question = conversations.Question("", fact.relation, fact.subject, fact)
            assert conversations.answer_text(question, fact.value) in turn.message.content


def test_a_review_says_of_every_claim_whether_it_is_right() -> None:
    verdicts = []
    for i in range(200):
        talk = conversations.start(random.Random(i), "train", n_documents=3)
        conversations.review(talk)
        asked, told = (turn.message.content for turn in talk.turns[-2:])
        found = re.findall(r"(The [^.]+\.) (Yes, that was right|No, that was wrong)\.", told)
        known = {
            conversations.sentence(conversations.Question("", f.relation, f.subject, f), f.value)
            for f in talk.facts
        }
        claims = [text + "." for text in asked[asked.index("The ") :].removesuffix(".").split(". ")]
        assert len(claims) == len(found)
        for claim, (right, verdict) in zip(claims, found, strict=True):
            assert right in known or wordings.UNKNOWN in right
            assert (claim == right) == (verdict == "Yes, that was right"), told
            verdicts.append(verdict)
    assert 0.4 < verdicts.count("Yes, that was right") / len(verdicts) < 0.6


def test_a_doubt_is_answered_with_what_is_right_and_whether_that_was_said() -> None:
    as_json = 0
    for i in range(200):
        talk = conversations.start(random.Random(i), "train", n_documents=3)
        question = conversations.ask(talk, answerable=i % 3 > 0)
        (conversations.answer if i % 2 else conversations.answer_wrongly)(talk)
        conversations.doubt(talk)
        turn = talk.turns[-1]
        said = turn.message.content
        value = question.fact.value if question.fact else wordings.UNKNOWN
        verdict = " Yes" if i % 2 else " No"
        assert [said[first:end] for first, end in turn.values] == [value, verdict]
        as_json += said.startswith("{") and len(json.loads(said)) == 1
    assert 20 < as_json < 60


def test_a_seed_gives_the_same_talk() -> None:
    assert [t.messages for t in talks("eval", 20)] == [t.messages for t in talks("eval", 20)]


def test_no_hole_of_a_wording_is_left() -> None:
    for talk in [*talks("train", 500), *talks("eval", 500)]:
        for text in [*talk.documents, *(m.content for m in talk.messages)]:
            assert not re.search(r"\{\w\}", text), text
            assert text[0] == text[0].upper() or text[0] == "{", text


@pytest.mark.parametrize(
    ("wording", "said"),
    [
        ("How much does {s} cost?", "How much does it cost?"),
        ("What is the price of {s}?", "What is its price?"),
        ("For how much is {s} sold?", "For how much is it sold?"),
    ],
)
def test_a_pronoun_takes_the_place_of_a_thing(wording: str, said: str) -> None:
    kettle = entities.Entity("item", "the kettle", "it", "its")
    assert conversations.fill_pronoun(wording, kettle) == said


@pytest.mark.parametrize(
    ("wording", "said"),
    [
        ("Where does {s} live?", "Where does she live?"),
        ("How can I reach {s}?", "How can I reach her?"),
        ("Tell me the home town of {s}.", "Tell me her home town."),
    ],
)
def test_a_pronoun_takes_the_place_of_a_person(wording: str, said: str) -> None:
    mara = entities.Entity("person", "Mara Tellin", "she", "her")
    assert conversations.fill_pronoun(wording, mara) == said


# The intrinsics' examples -------------------------------------------------------------------------


@pytest.mark.parametrize("task", SAMPLED)
def test_both_verdicts_are_common(task: str) -> None:
    targets = [e.target for e in tasks.examples(task, "eval", 300)]
    most = max(targets.count(t) for t in set(targets))
    assert most < 0.6 * len(targets)


@pytest.mark.parametrize("task", SAMPLED)
def test_examples_end_with_the_turn_that_is_judged(task: str) -> None:
    role = "assistant" if task == "hallucination" else "user"
    assert {e.messages[-1].role for e in tasks.examples(task, "train", 100)} == {role}


@pytest.mark.parametrize("task", SAMPLED)
def test_a_lesson_asks_as_the_examples_do(task: str) -> None:
    lessons = tasks.lessons(task, 100)
    role = "assistant" if task == "hallucination" else "user"
    targets = []
    for lesson in lessons:
        assert 3 <= len(lesson.asked) <= 6
        for n_messages, target in lesson.asked:
            assert lesson.messages[n_messages - 1].role == role
            assert lesson.prompt.startswith(lesson.prompt_of(n_messages))
            targets.append(target)
        assert lesson.prompt == lesson.prompt_of(lesson.asked[-1][0])
    most = max(targets.count(t) for t in set(targets))
    assert most < 0.6 * len(targets)
    assert {type(json.loads(t)) for t in targets} == {
        type(json.loads(e.target)) for e in tasks.examples(task, "eval", 20)
    }


@pytest.mark.parametrize("task", SAMPLED)
def test_training_and_evaluation_share_no_conversation(task: str) -> None:
    train = {e.prompt for e in tasks.examples(task, "train", 500)}
    assert not train & {e.prompt for e in tasks.examples(task, "eval", 500)}


def test_a_rewrite_names_what_the_question_left_out() -> None:
    left_out = 0
    for example in tasks.examples("query_rewrite", "eval", 300):
        asked = example.messages[-1].content
        rewritten = json.loads(example.target)["rewritten_question"]
        found = re.fullmatch(r"(?:Who|What) is the [a-z ]+? of (.+)\?", rewritten)
        assert found, rewritten
        assert found[1] not in ("it", "her", "him")
        left_out += found[1] not in asked
    assert 0.25 < left_out / 300 < 0.6


@pytest.mark.parametrize(
    ("value", "answer", "right"),
    [
        ("5 euros", "It costs 5 euros.", True),
        ("5 euros", "It costs 25 euros.", False),
        ("7:30", "At 7:30.", True),
        ("7:30", "At 17:30.", False),
        (None, f"The price of the kettle is {wordings.UNKNOWN}.", True),
        (None, "It costs 5 euros.", False),
    ],
)
def test_right_answers_are_told_from_wrong_ones(
    value: str | None, answer: str, right: bool
) -> None:
    assert tasks.Question((), (), value).is_right(answer) is right


def test_prompts_are_what_the_template_renders() -> None:
    example = tasks.examples("answerability", "eval", 1)[0]
    assert example.prompt == chat.render(example.documents, example.messages)
    assert example.prompt.endswith(chat.END_TEXT + "\n")
