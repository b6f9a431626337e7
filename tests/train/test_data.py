"""What is read of JSON lines, and what is refused, by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.train import read_examples

from .conftest import WriteLines, example

GOOD = example(1)


def test_a_tenth_is_held_out_documents_together(lines: WriteLines) -> None:
    many = [example(i, documents=[f"about {i // 4}"]) for i in range(400)]
    found = read_examples(lines(many))
    assert len(found.held_out) == 40
    assert len(found.train) == 360
    sources = [{each.source for each in part} for part in (found.train, found.held_out)]
    assert not sources[0] & sources[1]
    assert read_examples(lines(many)) == found
    assert read_examples(lines(many), seed=1).held_out != found.held_out


def test_what_all_conversations_begin_with_keeps_none_together(lines: WriteLines) -> None:
    """As a system message does, or one document."""
    for about in ({"documents": ["the same"]}, {"documents": []}):
        said = [
            example(
                i,
                messages=[
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "hello"},
                    {"role": "user", "content": f"so {i}"},
                ],
                **about,
            )
            for i in range(50)
        ]
        assert len(read_examples(lines(said)).held_out) == 5


def test_splits_that_are_given_are_kept(lines: WriteLines) -> None:
    given = [example(i, split="held_out" if i == 2 else "train") for i in range(4)]
    found = read_examples(lines([given[0], "", *given[1:]]))
    assert [each.line for each in found.train] == [1, 3, 5]
    assert [each.line for each in found.held_out] == [4]


def test_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    text = "\n".join(json.dumps(example(i)) for i in range(30))
    file.write_text(text, encoding="utf-8-sig")
    assert len(read_examples(file).train) == 27


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is '{', expected an object as JSON"),
        ("[" * 10_000, "expected an object as JSON"),
        ("text,category", "is 'text,category', expected an object as JSON"),
        ("3", "holds 3, expected an object"),
        ({**GOOD, "anwser": 1}, "has a field 'anwser'; known are messages, "),
        ({"messages": GOOD["messages"]}, "has no answer"),
        ({"answer": "yes"}, "has no messages"),
        ({**GOOD, "messages": []}, "expected a list of at least one"),
        ({**GOOD, "messages": "hello"}, "expected a list of at least one"),
        ({**GOOD, "messages": [{"role": "user"}]}, "has no content"),
        ({**GOOD, "documents": "one"}, "documents must be a list"),
        ({**GOOD, "documents": [3]}, r"documents\[0\]"),
        ({**GOOD, "arguments": {"x": 1}}, "expected an object of texts"),
        ({**GOOD, "split": "test"}, "expected train or held_out"),
        ({**GOOD, "split": "train"}, "has no split, but line 2 has one"),
        ({**GOOD, "answer": ""}, "empty answer"),
        ({**GOOD, "answer": None}, "empty answer"),
    ],
)
def test_a_bad_line_is_named(lines: WriteLines, line: Any, problem: str) -> None:
    file = lines([GOOD, line, GOOD])
    wanted = "line 1 " if "has no split" in problem else "line 2 "
    with pytest.raises(ag.FileFormatError, match=f"x.jsonl: {wanted}.*{problem}"):
        read_examples(file)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([], "has no lines"),
        ([GOOD], "no line is in the split 'held_out'"),
        ([GOOD] * 30, "no line is in the split 'held_out'"),
        ([{**GOOD, "split": "held_out"}], "no line is in the split 'train'"),
    ],
)
def test_both_splits_must_have_lines(lines: WriteLines, values: Any, problem: str) -> None:
    with pytest.raises((ag.InputError, ag.FileFormatError), match=problem):
        read_examples(lines(values))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ag.MissingFileError, match="no such file"):
        read_examples(tmp_path / "x.jsonl")
    with pytest.raises(ag.FileFormatError, match="is a directory"):
        read_examples(tmp_path)
