"""The real intrinsics' data: on sentences that stand here, tagged by hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from alora_gguf import Model, demo, load_contract
from alora_gguf.errors import FileFormatError
from alora_gguf.train.data import read_examples
from examples.smollm2 import certainty, data, facts, jailbreak, rewriting, sources, tasks, wordings
from examples.smollm2.passages import Passage, Sentence, is_clean, sentence, with_small_beginnings
from examples.smollm2.tasks import Made

INTRINSICS = Path(data.__file__).with_name("intrinsics")
TASKS = (*data.ABOUT_PASSAGES, "query_rewrite", "jailbreak", "uncertainty")
SIZES = {"train": 60, "held_out": 16, "eval": 40, "final": 24}

NAMES = (
    "Arlon", "Besk", "Calder", "Dunmor", "Elvas", "Farne", "Gorin", "Halden", "Ister",
    "Jurat", "Keswin", "Lomar", "Medina", "Narvik", "Orlan", "Pesko", "Quillan", "Rostov",
    "Selby", "Tarn", "Ulver", "Varna", "Weston", "Yarrow", "Zadar", "Abery", "Brod",
    "Corvin",
)  # fmt: skip
THINGS = ["harbour", "castle", "railway", "college", "market", "bridge", "temple", "garden"]


def tagged(text: str) -> Sentence:
    """ "Arlon/PROPN fell/VERB:fall ./PUNCT" as a sentence."""
    words = []
    for i, each in enumerate(text.split()):
        word, tag = each.rsplit("/", 1)
        tag, _, lemma = tag.partition(":")
        space = " " if i and word not in ".," else ""
        words.append([word, space, tag, lemma or word.lower(), ""])
    return sentence(words)


def passage(i: int, source: str) -> Passage:
    a, b, c = (NAMES[(i * k + k) % len(NAMES)] + f"e{i}" for k in (1, 3, 5))
    thing = THINGS[i % len(THINGS)]
    said = [
        f"{a}/PROPN became/VERB:become an/DET independent/ADJ state/NOUN of/ADP {b}/PROPN in/ADP "
        f"{1500 + i}/NUM ./PUNCT",
        f"The/DET {thing}/NOUN of/ADP {c}/PROPN was/AUX destroyed/VERB:destroy in/ADP {1700 + i}"
        "/NUM ./PUNCT",
        f"{b}/PROPN founded/VERB:found the/DET old/ADJ {thing}/NOUN in/ADP {c}/PROPN ./PUNCT",
        f"The/DET navy/NOUN of/ADP {a}/PROPN lost/VERB:lose {30 + i}/NUM ships/NOUN:ship near/ADP "
        f"{b}/PROPN ./PUNCT",
        "It/PRON has/AUX rained/VERB:rain there/ADV ./PUNCT",
    ]
    return Passage(source, f"{source} {i}", tuple(tagged(each) for each in said))


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Passage]]:
    return data.parted(
        [passage(i, "towns") for i in range(90)], [passage(i, "isles") for i in range(90, 110)]
    )


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(task: str, parts: dict[str, list[Passage]]) -> dict[str, list[Made]]:
    return make(task, parts)


def make(task: str, parts: dict[str, list[Passage]]) -> dict[str, list[Made]]:
    if task == "query_rewrite":
        return data.rewrites(parts, SIZES)
    if task == "jailbreak":
        return data.jailbreaks(SIZES)
    if task == "uncertainty":
        return certainty.lines(parts, answers(parts))
    return data.about_passages(task, parts, SIZES)


def answers(parts: dict[str, list[Passage]]) -> list[certainty.Answer]:
    """As if the base had answered every second question right."""
    found = []
    for part, some in parts.items():
        for each in some:
            page = tasks.page(each, wordings.of_part(part))
            for i, one in enumerate(certainty.asked(page, part)):
                text = f"It was {one.gold}." if i % 2 else "I cannot say."
                right = certainty.is_right(one, text)
                found.append(certainty.Answer(one.key, part, text, 4, -1.5, right))
    return found


def question(fact: facts.Fact, asked: str) -> str:
    return wordings.worded(fact, "{Direct}?", asked)


def test_questions_and_statements_that_are_made_of_a_sentence() -> None:
    one = tagged(
        "Norway/PROPN left/VERB:leave the/DET old/ADJ union/NOUN with/ADP Sweden/PROPN in/ADP "
        "1905/NUM ./PUNCT"
    )
    found = {each.kind: each for each in facts.of_sentence(one)}
    assert question(found["when"], "when") == "When did Norway leave the old union with Sweden?"
    assert found["when"].answer == "1905"
    assert found["when"].with_answer("1906") == ("Norway left the old union with Sweden in 1906")
    assert question(found["subject"], "who") == "Who left the old union with Sweden in 1905?"
    assert question(found["object"], "what") == "What did Norway leave with Sweden in 1905?"
    assert wordings.worded(found["when"], "Tell me {indirect}.", "when") == (
        "Tell me when Norway left the old union with Sweden."
    )


@pytest.mark.parametrize(
    "text",
    [
        "It/PRON was/AUX founded/VERB:found in/ADP 1905/NUM ./PUNCT",
        "This/DET town/NOUN fell/VERB:fall in/ADP 1905/NUM ./PUNCT",
        "A/DET language/NOUN produced/VERB:produce by/ADP Meyer/PROPN in/ADP 1985/NUM ./PUNCT",
        "Norway/PROPN said/VERB:say that/SCONJ it/PRON left/VERB:leave in/ADP 1905/NUM ./PUNCT",
        'Norway/PROPN left/VERB:leave "/PUNCT early/ADV "/PUNCT in/ADP 1905/NUM ./PUNCT',
        "./PUNCT",
    ],
)
def test_a_sentence_that_does_not_stand_alone_is_not_asked_about(text: str) -> None:
    assert list(facts.of_sentence(tagged(text))) == []


def test_leftovers_are_no_clean_sentences() -> None:
    assert is_clean(tagged("Norway/PROPN left/VERB the/DET old/ADJ union/NOUN ./PUNCT"))
    for text in ("see/VERB http://x/NOUN now/ADV please/ADV ./PUNCT", "A/DET title/NOUN only/ADV"):
        assert not is_clean(tagged(text))


def test_a_word_is_small_at_the_beginning_only_if_it_is_no_name() -> None:
    told = [
        tagged("Trade/NOUN grew/VERB ./PUNCT"),
        tagged("The/DET trade/NOUN with/ADP Norway/PROPN fell/VERB ./PUNCT"),
        tagged("Norway/PROPN fell/VERB ./PUNCT"),
    ]
    small = [each.begins_lower for each in with_small_beginnings([told])[0]]
    assert small == [True, False, False]


def test_the_same_is_made_each_time(
    task: str, parts: dict[str, list[Passage]], made: dict[str, list[Made]]
) -> None:
    assert make(task, parts) == made


def test_sizes_and_balance(task: str, made: dict[str, list[Made]]) -> None:
    for part, lines in made.items():
        if task == "uncertainty":  # as many as the base has answered
            assert lines
            continue
        assert abs(len(lines) - SIZES[part]) <= 4
        verdicts = Counter(str(each.line["answer"]) for each in lines)
        if task != "query_rewrite":
            assert len(verdicts) == 2
            assert len({*verdicts.values()}) == 1, "as many of each"


def test_each_wording_of_an_answer_is_as_often_right_as_wrong(
    parts: dict[str, list[Passage]],
) -> None:
    made = data.about_passages("hallucination", parts, SIZES)
    for lines in made.values():
        right = Counter(e.wording for e in lines if e.line["answer"] == {"faithful": "yes"})
        wrong = Counter(e.wording for e in lines if e.line["answer"] == {"faithful": "no"})
        assert right == wrong


def test_no_article_passage_or_wording_is_in_two_parts(
    task: str, made: dict[str, list[Made]]
) -> None:
    def shared(what: list[set[str]]) -> set[str]:
        return {each for i, one in enumerate(what) for other in what[:i] for each in one & other}

    parts = list(made.values())
    if task != "jailbreak":
        assert not shared([{each.about for each in some} for some in parts])
    about = [{json.dumps(each.line.get("documents") or each.line) for each in p} for p in parts]
    assert not shared(about)
    worded = [
        {each.wording for part in some for each in made[part]}
        for some in (("train", "held_out"), ("eval",), ("final",))
    ]
    assert not shared(worded)


def test_frames_wordings_and_small_talk_are_of_one_split() -> None:
    for table in (
        wordings.FRAMES,
        {k: [w.template for w in v] for k, v in wordings.WORDINGS.items()},
        {k: [a for a, _ in v] for k, v in tasks._SMALL_TALK.items()},
    ):
        every = [each for some in table.values() for each in some]
        assert len(every) == len({*every})


def test_answers_stand_in_the_passage_and_removed_ones_do_not(
    parts: dict[str, list[Passage]],
) -> None:
    made = data.about_passages("answerability", parts, SIZES)
    sorts: Counter[str] = Counter()
    for each in (one for some in made.values() for one in some):
        text = each.line["documents"][0]["text"]
        sorts[each.sort] += 1
        if each.sort == "kept":
            assert tasks.holds(text, each.gold)
        elif each.sort == "removed" and re.fullmatch(r"\d+", each.gold):
            assert not tasks.holds(text, each.gold)
    assert {*sorts} == {"kept", "removed", "other", "swapped"}


def test_a_fact_that_another_sentence_says_too_is_not_removed() -> None:
    fact = next(facts.of_sentence(tagged(
        "Norway/PROPN left/VERB:leave the/DET old/ADJ union/NOUN in/ADP 1905/NUM ./PUNCT"
    )))  # fmt: skip
    assert tasks.is_said(fact, ["In 1905 the union was left by Norway, which was old."])
    assert not tasks.is_said(fact, ["Sweden was sorry."])


def test_the_reader_of_a_training_takes_each_line_and_the_contract_each_answer(
    task: str, made: dict[str, list[Made]], tmp_path: Path
) -> None:
    data.write(tmp_path, task, made)
    read = read_examples(tmp_path / f"{task}.jsonl")
    assert (len(read.train), len(read.held_out)) == (len(made["train"]), len(made["held_out"]))
    contract = load_contract(INTRINSICS / task / "io.yaml")
    for name in (task, f"{task}.eval", f"{task}.final"):
        lines = (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()
        notes = (tmp_path / f"{name}.notes.jsonl").read_text("utf-8").splitlines()
        assert len(lines) == len(notes)
        for line in lines:
            answer = json.loads(line)["answer"]
            assert contract.response_format is not None
            fields = contract.response_format["properties"]
            assert answer.keys() == fields.keys()
            assert all(v in fields[k].get("enum", [v]) for k, v in answer.items())


def test_the_base_answers_a_pages_questions_and_each_answer_finds_its_line(
    parts: dict[str, list[Passage]],
) -> None:
    some = next(each for each in parts["train"] if certainty.asked(tasks.page(each, "train"), ""))
    page = tasks.page(some, "train")
    with Model(demo.base_path(), n_threads=1, n_seq_max=20) as model:
        found = certainty.answers(model, page, "train")
    assert len(found) == len(certainty.asked(page, "train"))
    assert all(each.log_probability < 0 < each.tokens for each in found)
    made = certainty.lines({"train": [some]}, found)["train"]
    assert [each.line["messages"][-1]["content"] for each in made] == [
        each.answer for each in found if each.answer
    ]
    assert {each.notes["log_probability"] for each in made} <= {e.log_probability for e in found}


def test_answers_that_are_kept_count_and_those_of_the_folder_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, *said: tuple[str, str]) -> None:
        answers = [certainty.Answer(key, "eval", text, 1, -1.0, True) for key, text in said]
        path.write_text("".join(json.dumps(asdict(each)) + "\n" for each in answers))

    monkeypatch.setattr(certainty, "KEPT", tmp_path / "kept.jsonl")
    assert certainty.read(tmp_path) == []
    write(tmp_path / "kept.jsonl", ("a", "old"), ("b", "kept"))
    write(tmp_path / certainty.FILE, ("a", "new"))
    assert [each.answer for each in certainty.read(tmp_path)] == ["new", "kept"]


def test_every_kept_answer_can_be_read_and_is_of_a_part() -> None:
    for line in certainty.KEPT.read_text("utf-8").splitlines():
        answer = certainty.Answer(**json.loads(line))
        assert answer.part in SIZES
        assert answer.log_probability <= 0 < answer.tokens


def test_an_answer_is_right_if_the_gold_one_is_in_it_and_could_be_known(
    parts: dict[str, list[Passage]],
) -> None:
    page = tasks.page(parts["train"][0], "train")
    one = certainty.Asked(page, "When?", "", "the old harbour", "kept", 0.0)
    assert certainty.is_right(one, "It was an Old Harbour, I think.")
    assert not certainty.is_right(one, "It was an old harbourmaster.")
    assert not certainty.is_right(replace(one, sort="removed"), "The old harbour.")


def test_an_attempt_that_is_quoted_is_none() -> None:
    made = data.jailbreaks(SIZES)
    for part, split in (("train", "train"), ("eval", "eval"), ("final", "final")):
        texts = {each.line["messages"][-1]["content"]: each for each in made[part]}
        quoted = [t for t, each in texts.items() if "{attempt}" in each.wording]
        assert quoted
        assert all(texts[t].line["answer"] == {"jailbreak": "no"} for t in quoted)
        assert len(texts) > 0.8 * len(made[part])
        assert not any("{" in text for text in texts), "nothing is left unfilled"
        assert len(jailbreak.ATTEMPTS[split]) >= 6
    n_framings = [sum(map(len, t.values())) for t in (jailbreak.ATTEMPTS, jailbreak.PLAIN)]
    n_aims = [sum(map(len, t.values())) for t in (jailbreak.HARMFUL, jailbreak.HARMLESS)]
    assert min(n_framings) >= 40
    assert min(n_aims) >= 60


@pytest.mark.parametrize(
    ("text", "kind", "short", "whole"),
    [
        (
            "Norway/PROPN left/VERB:leave the/DET union/NOUN in/ADP 1905/NUM ./PUNCT",
            "when", "When did it leave the union?", "When did Norway leave the union?",
        ),
        (
            "the/DET kings/NOUN:king left/VERB:leave Norway/PROPN in/ADP 1905/NUM ./PUNCT",
            "when", "When did they leave Norway?", "When did the kings leave Norway?",
        ),
    ],
)  # fmt: skip
def test_a_rewritten_question_has_what_the_pronoun_stands_for(
    text: str, kind: str, short: str, whole: str
) -> None:
    fact = next(each for each in facts.of_sentence(tagged(text)) if each.kind == kind)
    assert question(fact, "when") == whole
    word = rewriting.pronoun(fact.clause)
    pronoun = replace(fact, clause=replace(fact.clause, subject=word))
    assert question(pronoun, "when") == short


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    package = sources.PACKAGES["dict-foldoc"]
    (tmp_path / package.file).write_bytes(b"another")
    with pytest.raises(FileFormatError, match="delete it to fetch dict-foldoc"):
        sources.fetch(package, tmp_path)
