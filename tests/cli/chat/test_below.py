"""The line below the prompt, which a pseudo-terminal of the tests does not get to see."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from alora_gguf.cli.chat import _below
from alora_gguf.cli.chat.talk import Talk

from tests.support.chatting import watching

from .test_talk import QUESTION, say

DEMO = SimpleNamespace(is_demo=True)
OTHER = SimpleNamespace(is_demo=False)


def below(talk: Talk, width: int, given: SimpleNamespace = DEMO) -> str:
    return _below(given, talk, width)  # type: ignore[arg-type]


def test_where_one_is(talk: Talk) -> None:
    assert below(talk, 80) == " demo model · 0 of 2048 tokens · /help"
    say(talk, QUESTION)
    assert below(talk, 80) == " demo model · 273 of 2048 tokens · /help"
    name = Path(talk.model.path).stem
    assert below(talk, 80, OTHER) == f" {name} · 273 of 2048 tokens · /help"


@pytest.mark.parametrize("width", [40, 67, 68, 140])
def test_what_is_watched_by_names_where_there_is_room(talk: Talk, width: int) -> None:
    talk.watched = [
        watching("jailbreak", "question", "!", good="low"),
        watching("uncertainty", "answer", alias="certain", arguments={"x": "a long one"}),
    ]
    names = "jailbreak! certain" if width > 67 else "2"
    line = below(talk, width)
    assert line == f" demo model · 0 of 2048 tokens · watching {names} · /help"
    assert len(line) <= max(width, 55)


def test_by_what_replies_are_steered(talk: Talk) -> None:
    talk.steering = {"formal": 0.8, "terse": -1.0}
    line = " demo model · 0 of 2048 tokens · formal at 0.8 + terse at -1 · /help"
    assert below(talk, 80) == line
