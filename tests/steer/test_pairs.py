"""Contrast pairs and questions: what lines mean, what is held out, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.steer import read_pairs, read_questions
from alora_gguf.steer.pairs import read_before

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}


def write(path: Path, *lines: Any) -> Path:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def pair(i: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"q{i}", "positive": f"yes {i}", "negative": f"no {i}", **more}


def test_what_lines_mean(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be formal."}, USER]
    other = [{"role": "system", "content": "Be casual."}, USER]
    file = write(
        tmp_path / "p.jsonl",
        pair(0),
        "",
        {"prompt": [*talk, REPLY, USER], "positive": "a", "negative": "b"},
        {"positive": talk, "negative": other},
        {"positive": [*talk, REPLY], "negative": [*other, REPLY]},
        {"positive": "A text.", "negative": "Another one."},
    )
    found = read_pairs(file)
    answers, long, systems, replied, texts = found
    assert [each.line for each in found] == [1, 3, 4, 5, 6]
    assert answers.prompt == (ag.Message("user", "q0"),)
    assert (answers.positive, answers.negative) == ("yes 0", "no 0")
    assert [each.answers for each in found] == [True, True, False, True, False]
    assert long.question == long.prompt
    assert systems.question == tuple(map(ag.Message.of, other))
    assert replied.question == tuple(map(ag.Message.of, other))
    assert texts.question is None


def test_a_quarter_is_held_out_and_prompts_stay_together(tmp_path: Path) -> None:
    lines = [pair(i // 2, negative=f"no {i}") for i in range(40)]
    file = write(tmp_path / "p.jsonl", *lines)
    found = read_pairs(file, seed=3)
    assert Counter(each.split for each in found) == {"train": 30, "held_out": 10}
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first.split == second.split
    assert read_pairs(file, seed=3) == found
    assert read_pairs(file, seed=4) != found


def test_the_files_own_splits_are_kept(tmp_path: Path) -> None:
    splits = ["held_out", "train", "held_out", "train", "train"]
    file = write(tmp_path / "p.jsonl", *(pair(i, split=s) for i, s in enumerate(splits)))
    assert [each.split for each in read_pairs(file)] == splits


def test_four_are_enough(tmp_path: Path) -> None:
    for prompts in ([0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 0, 0]):
        lines = [pair(p, positive=f"yes {i}") for i, p in enumerate(prompts)]
        found = read_pairs(write(tmp_path / "p.jsonl", *lines))
        assert Counter(each.split for each in found) == {"train": 2, "held_out": 2}


def test_equal_pairs_stay_together(tmp_path: Path) -> None:
    """Those that were learnt from would be told by heart."""
    for kinds in ([0, 0, 0, 1, 2, 3], [0] * 9 + [1] * 9 + [2, 3], [*range(4)] * 5):
        for same_prompt in (False, True):
            lines = [pair(0 if same_prompt else i, positive=f"yes {i}") for i in kinds]
            for seed in range(5):
                found = read_pairs(write(tmp_path / "p.jsonl", *lines), seed=seed)
                split = dict(zip(kinds, (each.split for each in found), strict=True))
                assert [split[i] for i in kinds] == [each.split for each in found]
                assert min(Counter(each.split for each in found).values()) >= 2
    file = write(tmp_path / "p.jsonl", *(pair(i) for i in [0, 0, 0, 1, 2]))
    with pytest.raises(ag.InputError, match="has 3 different pairs, expected at least 4"):
        read_pairs(file)
    splits = ["train", "train", "train", "held_out", "held_out"]
    lines = [pair(i, split=s) for i, s in zip([0, 1, 2, 3, 1], splits, strict=True)]
    with pytest.raises(ag.FileFormatError, match="line 5 is what line 2 is, but in the other spl"):
        read_pairs(write(tmp_path / "p.jsonl", *lines))


def test_prompts_stay_together_whatever_is_answered(tmp_path: Path) -> None:
    lines = [pair(i // 2, positive=f"yes {i}", negative=f"no {i}") for i in range(40)]
    found = read_pairs(write(tmp_path / "p.jsonl", *lines))
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first.split == second.split


def test_pairs_serve_as_questions(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *map(pair, range(3)), {"prompt": [USER]})
    found = read_questions(file)
    assert found[0].messages == (ag.Message("user", "q0"),)
    assert found[3].messages == (ag.Message("user", "Hi"),)


FIELDS = "prompt, positive, negative, split"
BAD_LINES = {
    "no json": ("{", "is '{', expected an object as JSON: "),
    "a list": ("[1]", "holds [1], expected an object"),
    "unknown": ({**pair(0), "answer": 1}, f"has a field 'answer'; known are {FIELDS}"),
    "no negative": (
        {"prompt": "q", "positive": "a"},
        "has no negative, expected the fields positive and negative",
    ),
    "empty": (pair(0, positive=" "), "has an empty positive, expected text"),
    "same": (
        {"positive": "a", "negative": "a"},
        "has the same on both sides, which shows no difference",
    ),
    "unequal": (
        {"positive": "a", "negative": [USER]},
        "has a text and a conversation, expected two of a kind",
    ),
    "one reply": (
        {"positive": [USER, REPLY], "negative": [USER]},
        "ends with a reply on one side alone; give both, or neither",
    ),
    "messages beside a prompt": (
        pair(0, positive=[USER]),
        "has positive [{'role': 'user', 'content': 'Hi'}] beside a prompt, expected the answer's "
        "text",
    ),
    "a number": ({"positive": 1, "negative": "b"}, "has positive 1, expected messages"),
    "no messages": (
        {"prompt": [], "positive": "a", "negative": "b"},
        "has prompt [], expected text or messages",
    ),
    "answered prompt": (
        {"prompt": [USER, REPLY], "positive": "a", "negative": "b"},
        "has a prompt that ends with a reply, expected what is to be replied to",
    ),
    "empty message": (
        {"prompt": [{"role": "user", "content": ""}], "positive": "a", "negative": "b"},
        "has an empty message of the user in prompt, expected text",
    ),
    "no role": (
        {"prompt": [{"content": "x"}], "positive": "a", "negative": "b"},
        "messages[0] has no role, expected a word such as 'user'",
    ),
    "split": (pair(0, split="test"), "has the split 'test', expected train or held_out"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, case: str) -> None:
    line, problem = BAD_LINES[case]
    file = write(tmp_path / "p.jsonl", pair(1), line, pair(2), pair(3), pair(4))
    with pytest.raises(ag.FileFormatError) as caught:
        read_pairs(file)
    assert str(caught.value).startswith(f"{file}: line 2 {problem}")


def test_a_bad_question_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", {"positive": "a", "negative": "b"})
    with pytest.raises(ag.FileFormatError, match="line 1 has no prompt, expected what the user"):
        read_questions(file)


def test_too_few(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *map(pair, range(3)))
    with pytest.raises(ag.InputError) as caught:
        read_pairs(file)
    assert str(caught.value) == (
        f"{file}: has 3 pairs, expected at least 4, as some are held out to tell how well it "
        "works; give more"
    )
    file = write(tmp_path / "p.jsonl", *(pair(i, split="train") for i in range(5)))
    with pytest.raises(ag.InputError, match="0 pairs are in the split 'held_out', expected at "):
        read_pairs(file)
    file = write(tmp_path / "p.jsonl", pair(0, split="train"), *map(pair, range(1, 5)))
    with pytest.raises(ag.FileFormatError, match="line 2 has no split, but line 1 has one; give"):
        read_pairs(file)
    with pytest.raises(ag.MissingFileError):
        read_pairs(tmp_path / "none.jsonl")


def test_what_stands_before_questions(tmp_path: Path) -> None:
    text, shots = tmp_path / "s.txt", tmp_path / "s.json"
    text.write_text("Be brief.\n")
    assert read_before(text) == (ag.Message("system", "Be brief."),)
    shots.write_text(json.dumps([USER, REPLY]))
    assert read_before(shots) == (ag.Message("user", "Hi"), ag.Message("assistant", "Hello"))
    text.write_text(" \n")
    with pytest.raises(ag.FileFormatError, match="is empty, expected a system prompt's text"):
        read_before(text)
    shots.write_text("{}")
    with pytest.raises(ag.FileFormatError, match=r"expected messages, \[\{"):
        read_before(shots)
