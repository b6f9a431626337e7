"""The real intrinsics' data: on sentences that stand here, tagged by hand."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from alora_gguf import Model, demo, load_contract
from alora_gguf.errors import FileFormatError
from alora_gguf.train.data import read_examples
from examples.smollm2 import (
    answering,
    certainty,
    data,
    facts,
    jailbreak,
    notices,
    rewriting,
    sayings,
    scenes,
    sources,
    tasks,
    wordings,
)
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
        return data.jailbreaks(parts, SIZES)
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
    for some in made.values():
        lines = [each for each in some if each.sort != "notice"]  # those have no templates
        right = Counter(e.wording for e in lines if e.line["answer"] == {"faithful": "yes"})
        wrong = Counter(e.wording for e in lines if e.line["answer"] == {"faithful": "no"})
        assert right == wrong


def test_no_article_passage_or_wording_is_in_two_parts(
    task: str, made: dict[str, list[Made]]
) -> None:
    def shared(what: list[set[str]]) -> set[str]:
        return {each for i, one in enumerate(what) for other in what[:i] for each in one & other}

    free = ("chat", "message", "none")  # "ok" is said everywhere
    parts = [[each for each in some if each.sort not in free] for some in made.values()]
    if task != "jailbreak":
        assert not shared([{each.about for each in some} for some in parts])
    about = [{json.dumps(each.line.get("documents") or each.line) for each in p} for p in parts]
    assert not shared(about)
    worded = [
        {each.wording for part in some for each in made[part] if each.wording}
        for some in (("train", "held_out"), ("eval",), ("final",))
    ]
    assert not shared(worded)


def test_frames_wordings_and_small_talk_are_of_one_split() -> None:
    for table in (
        wordings.FRAMES,
        {k: [w.template for w in v] for k, v in wordings.WORDINGS.items()},
        {k: [a for a, _ in v] for k, v in tasks._SMALL_TALK.items()},
        *({k: [a for a, _ in v] for k, v in t.items()} for t in (
            sayings.SMALL_TALK, sayings.GENERAL, sayings.TOLD
        )),
        sayings.ACKNOWLEDGED, sayings.FREE, sayings.OF_TEXT, sayings.UNKNOWN,
        wordings.REFUSED, wordings.YES_NO, wordings.IN_TWO,
        jailbreak.ORDERS, jailbreak.REFUSALS, jailbreak.HARMFUL, jailbreak.HARMLESS,
        jailbreak.ATTEMPTS,
        {k: [each for i in v for each in (i.said, *i.asked)] for k, v in notices.ITEMS.items()},
    ):  # fmt: skip
        every = [each for some in table.values() for each in some]
        assert len(every) == len({*every})


def everything(each: Made) -> str:
    """All that was said before the last message, and the documents."""
    said = [d["text"] for d in each.line.get("documents", ())]
    return " ".join([*said, *(m["content"] for m in each.line["messages"][:-1])])


def n_turns(each: Made) -> int:
    return sum(m["role"] == "user" for m in each.line["messages"]) - 1


def test_answers_stand_in_the_passage_and_removed_ones_do_not(
    parts: dict[str, list[Passage]],
) -> None:
    made = data.about_passages("answerability", parts, SIZES)
    sorts: Counter[str] = Counter()
    for each in (one for some in made.values() for one in some):
        sorts[each.sort] += 1
        if each.sort == "kept":
            assert tasks.holds(everything(each), each.gold)
        elif each.sort == "removed" and re.fullmatch(r"\d+", each.gold):
            assert not tasks.holds(everything(each), each.gold)
    assert sorts.keys() >= {"kept", "removed", "other", "swapped", "chat", "whether", "notice"}


@pytest.mark.parametrize("task", ["answerability", "jailbreak"])
def test_labels_are_balanced_after_each_beginning(
    task: str, parts: dict[str, list[Passage]]
) -> None:
    made = make(task, parts)
    for lines in made.values():
        begun: dict[str, Counter[str]] = {}
        for each in lines:
            key = json.dumps([each.line.get("documents"), each.line["messages"][:-1]])
            begun.setdefault(key, Counter())[str(each.line["answer"])] += 1
        for verdicts in begun.values():
            assert len(verdicts) == 2
            assert len({*verdicts.values()}) == 1
        assert len(begun) <= len(lines) / scenes.LINES


def test_each_frame_of_a_question_can_be_answered_as_often_as_not(
    parts: dict[str, list[Passage]],
) -> None:
    for part, lines in data.about_passages("answerability", parts, SIZES).items():
        split = wordings.of_part(part)
        frames = (wordings.FRAMES[split], wordings.YES_NO[split])
        answered: dict[str, Counter[str]] = {}
        for each in lines:
            answered.setdefault(each.wording, Counter())[str(each.line["answer"])] += 1
        for frame in (each for some in frames for each in some if each in answered):
            assert len({*answered[frame].values()}) == 1
            assert len(answered[frame]) == 2


@pytest.mark.parametrize("task", [each for each in TASKS if each != "uncertainty"])
def test_turns_and_documents_vary(task: str, parts: dict[str, list[Passage]]) -> None:
    lines = [each for some in make(task, parts).values() for each in some]
    turns = Counter(map(n_turns, lines))
    assert min(turns[0], turns[1], turns[2] + turns[3], sum(turns[n] for n in range(4, 9))) > 0
    assert max(turns) <= 8
    documents = Counter(len(each.line.get("documents", ())) for each in lines)
    assert documents[1]
    assert documents[0] or task == "hallucination"
    assert sum(documents[n] for n in (2, 3, 4)) or task == "jailbreak"


def test_turns_and_documents_come_in_the_shares_that_are_wanted() -> None:
    some = [passage(i, "towns") for i in range(300)]
    pages = [tasks.page(each, "train") for each in some]
    begun = scenes.scenes(pages, "train", 300 * scenes.LINES, documents=False)
    n = [len(each.earlier) // 2 for each in begun]
    assert 0.3 < sum(each == 0 for each in n) / len(n) < 0.5
    assert 0.08 < sum(each >= 4 for each in n) / len(n) < 0.25
    several = [each for each in begun if len(each.texts) > 1 or "\n\n" in "".join(each.texts)]
    assert 0.2 < len(several) / len(begun) < 0.45
    assert 0.05 < sum(not each.texts for each in begun) / len(begun) < 0.25


def test_what_nobody_said_is_not_known_and_what_a_user_told_is(
    parts: dict[str, list[Passage]],
) -> None:
    pages = [tasks.page(each, "train") for each in parts["train"]]
    for one in scenes.scenes(pages, "train", 4 * len(pages), documents=False):
        told = " ".join([*one.texts, *(each["content"] for each in one.earlier)])
        assert all(tasks.holds(told, each.answer) for each in one.kept)
        assert not any(tasks.is_said(each, [one.text]) for each in one.removed)
    for one in scenes.scenes(pages, "train", 4 * len(pages), documents=True):
        assert all(tasks.holds(" ".join(one.texts), each.answer) for each in one.kept)


def test_what_needs_no_fact_can_be_answered_and_a_request_about_a_text_if_there_is_one(
    parts: dict[str, list[Passage]],
) -> None:
    lines = data.about_passages("answerability", parts, {**SIZES, "train": 200})["train"]
    free = {*sayings.ACKNOWLEDGED["train"], *sayings.FREE["train"]}
    general = {asked for asked, _ in sayings.GENERAL["train"]}
    seen = set()
    for each in lines:
        asked, answer = each.line["messages"][-1]["content"], each.line["answer"]["answerability"]
        if asked in free or asked in general:
            assert answer == ("answerable" if asked in free else "unanswerable")
            seen.add(answer)
        elif asked in sayings.OF_TEXT["train"]:
            assert answer == ("answerable" if "documents" in each.line else "unanswerable")
    assert len(seen) == 2


def test_a_question_about_it_is_asked_where_the_last_turn_says_what_it_is(
    parts: dict[str, list[Passage]],
) -> None:
    page = tasks.page(parts["train"][0], "train")
    fact = next(each for each in page.kept if each.kind == "when")
    short = answering._shortened(fact, random.Random(1))
    assert fact.clause.statement.startswith(short.clause.statement)


def test_the_last_message_is_judged_whatever_went_before(
    parts: dict[str, list[Passage]],
) -> None:
    made = data.jailbreaks(parts, {**SIZES, "train": 600})["train"]
    refusals = {*jailbreak.REFUSALS["train"]}
    refused, short = Counter[str](), Counter[bool]()
    for each in made:
        answer = each.line["answer"]["jailbreak"]
        was = any(m["content"] in refusals for m in each.line["messages"])
        refused[answer] += was
        if each.line["messages"][-1]["content"] in sayings.ACKNOWLEDGED["train"]:
            assert answer == "no"
            short[was] += 1
    assert refused["yes"]
    assert refused["yes"] == refused["no"]
    assert min(short[True], short[False]) > 0, "after ordinary turns and after a refused attempt"
    system = Counter((e.line["messages"][0]["role"], "documents" in e.line) for e in made)
    assert len(system) == 4


def test_what_leans_on_nothing_stays_word_for_word_and_he_is_who_was_named_last(
    parts: dict[str, list[Passage]],
) -> None:
    lines = data.rewrites(parts, {**SIZES, "train": 400})["train"]
    sorts = Counter(each.sort for each in lines)
    assert sorts.keys() == rewriting._SORTS.keys()
    people = {name: word for _, _, name, word in rewriting._PEOPLE["train"]}
    for each in lines:
        asked = each.line["messages"][-1]["content"]
        said = each.line["answer"]["rewritten_question"]
        if each.sort in ("whole", "message"):
            assert asked == said
        elif each.sort == "person":
            who = next(name for name in people if name in said)
            turns = [m["content"] for m in each.line["messages"] if m["role"] == "assistant"]
            after = turns[[who in turn for turn in turns].index(True) + 1 :]
            same = [n for n, word in people.items() if word == people[who] and n != who]
            assert not any(name in turn for name in same for turn in after)


def test_answers_that_refuse_and_those_of_two_sentences_are_right_as_often_as_wrong(
    parts: dict[str, list[Passage]],
) -> None:
    sizes = dict.fromkeys(SIZES, 160)
    for lines in data.about_passages("hallucination", parts, sizes).values():
        for sort in ("refused", "two", "notice"):
            verdicts = Counter(e.line["answer"]["faithful"] for e in lines if e.sort == sort)
            assert verdicts["yes"]
            assert verdicts["yes"] == verdicts["no"]


def test_words_to_read_are_counted_once() -> None:
    def line(*said: str) -> Made:
        messages = [tasks.user(each) for each in said]
        return Made({"messages": messages, "documents": [{"text": "a b c"}]}, "", "", "")

    assert data.n_read([line("d e", "f"), line("d e", "g"), line("d e", "h", "i")], 1) == 6


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


def test_an_attempt_that_is_quoted_is_none(parts: dict[str, list[Passage]]) -> None:
    made = data.jailbreaks(parts, SIZES)
    for part, split in (("train", "train"), ("eval", "eval"), ("final", "final")):
        texts = {each.line["messages"][-1]["content"]: each for each in made[part]}
        quoted = [t for t, each in texts.items() if "{attempt}" in each.wording]
        assert quoted
        assert all(texts[t].line["answer"] == {"jailbreak": "no"} for t in quoted)
        assert len(texts) > 0.7 * len(made[part])
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
