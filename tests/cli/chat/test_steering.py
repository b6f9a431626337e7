"""/steer and --steer: which vectors act on replies, beside what else computes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.chat import _words
from alora_gguf.cli.chat.talk import Talk
from alora_gguf.cli.options import MAX_SCALE

import alora_gguf as ag
from alora_gguf import options
from tests.support.chatting import GREEDY, Chatting, Tiny
from tests.support.steers import write_steer
from tests.support.tiny_base import write_adapter

N = ("-n", "8", "--temp", "0")


@pytest.fixture
def given(tiny: Tiny, tmp_path: Path) -> tuple[str | Path, ...]:
    """A base, two vectors and an adapter."""
    for seed, name in enumerate(("formal", "terse")):
        write_steer(tmp_path / f"{name}.gguf", tiny.base, seed=seed)
    return (
        *("-m", tiny.base, *N),
        *("-a", f"formal={tmp_path / 'formal.gguf'}", "-a", tmp_path / "terse.gguf"),
        *("-a", f"plain={tiny.lora}"),
    )


@pytest.fixture
def replies(tiny: Tiny, given: tuple[Any, ...], tmp_path: Path) -> dict[str, str]:
    """What the library replies to "Hi", in a model of its own."""
    asked: dict[str, ag.AdapterLike | None] = {
        "base": None,
        "formal": "formal",
        "half": {"formal": 0.5},
        "both": {"formal": 0.5, "terse": -1.0},
        "plain": {"plain": 1.0, "formal": 0.5},
    }
    paths = {"formal": tmp_path / "formal.gguf", "terse": tmp_path / "terse.gguf"}
    found = {}
    with ag.Model(tiny.base, adapters={**paths, "plain": tiny.lora}, n_threads=1) as model:
        for name, adapter in asked.items():
            with model.chat() as chat:
                found[name] = chat.say("Hi", max_tokens=8, temperature=0, adapter=adapter).text
    assert len(set(found.values())) == len(found)
    return found


def told(out: str) -> list[str]:
    """The replies and what was shown, in order."""
    events = [json.loads(re.sub(r"(?<=: )P(?=[,}])", "0", line)) for line in out.splitlines()]
    fields = {"turn": "assistant", "shown": "result", "aside": "text"}
    return [each[fields[each["event"]]] for each in events if each["event"] in fields]


def test_replies_from_now_on(
    given: tuple[Any, ...], replies: dict[str, str], chatting: Chatting
) -> None:
    lines = [
        *("Hi", "/clear", "/steer", "/steer formal 0.5", "Hi", "/steer", "/clear"),
        *("/steer terse -1", "Hi", "/clear", "/steer terse 0", "/steer formal", "Hi", "/clear"),
        *("/steer off", "Hi"),
    ]
    found = chatting(*given, "--json", lines="\n".join(lines) + "\n")
    assert found.status == 0
    steered = "replies are steered by"
    assert told(found.out) == [
        replies["base"], "replies are not steered", replies["half"],
        f"{steered} formal at P", replies["both"], replies["formal"], replies["base"],
    ]  # fmt: skip
    assert found.err.splitlines() == [
        "a new conversation begins",
        f"{steered} formal at P",
        "a new conversation begins",
        f"{steered} formal at P + terse at -1",
        "a new conversation begins",
        f"{steered} formal at P",
        f"{steered} formal at 1",
        "a new conversation begins",
        "replies are not steered",
    ]


def test_beside_an_adapter_that_replies(
    given: tuple[Any, ...], replies: dict[str, str], chatting: Chatting
) -> None:
    found = chatting(*given, lines="/set adapter plain\n/steer formal 0.5\nHi\n")
    assert found.out == replies["plain"] + "\n"


def test_adapters_that_reply_together(
    given: tuple[Any, ...], tiny: Tiny, tmp_path: Path, chatting: Chatting
) -> None:
    tone = write_adapter(tmp_path / "tone.gguf", seed=8, rank=4)
    both = {"plain": 1.0, "tone": 0.5}
    paths = {"plain": tiny.lora, "tone": tone}
    with ag.Model(tiny.base, adapters=paths, n_threads=1) as model, model.chat() as chat:
        wanted = chat.say("Hi", max_tokens=8, temperature=0, adapter=both).text
    lines = ("/set adapter plain tone=0.5", "Hi", "/set adapter", "/unload tone", "/set adapter")
    found = chatting(*given, "-a", f"tone={tone}", lines="\n".join(lines) + "\n")
    assert found.status == 0, found.err
    shown = ["adapter plain at 1 + tone at P", "adapter plain at 1"]
    assert found.out.split("\n") == [wanted, *shown, ""]


def test_from_the_command_line(
    given: tuple[Any, ...], replies: dict[str, str], chatting: Chatting
) -> None:
    assert chatting(*given, "--steer", "formal", "-p", "Hi").out == replies["formal"] + "\n"
    both = chatting(*given, "--steer", "formal=0.5", "--steer", "terse=-1", "-p", "Hi")
    assert both.out == replies["both"] + "\n"
    assert chatting(*given, "--steer", "formal=0", "-p", "Hi").out == replies["base"] + "\n"


def test_a_vector_typed_as_a_command_is_an_aside(
    given: tuple[Any, ...], replies: dict[str, str], chatting: Chatting
) -> None:
    found = chatting(*given, "--json", lines="Hi\n/rewind\nHi\n/retry\n/formal\n/steer\n")
    assert found.status == 0
    assert told(found.out)[-1] == "replies are not steered"
    assert told(found.out)[0] == replies["base"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("/steer formel 1", "no adapter named 'formel' is loaded; loaded: 'formal', 'terse', "),
        ("/steer off formal", "/steer off ends all steering; /steer formal off ends that of 'form"),
        ("/steer formal much", "/steer formal: expected a scale from -1000 to 1000, found 'much'"),
        ("/steer formal 1001", "/steer formal: expected a scale from -1000 to 1000, found '1001'"),
        ("/steer formal nan", "/steer formal: expected a scale from -1000 to 1000, found 'nan'"),
        ("/set adapter plain=x formal", "/set adapter plain: expected a scale from -1000 to 1000"),
        ("/set adapter plain none", "no adapter named 'none' is loaded"),
        ("/steer formal 1 terse 1", "/steer takes a vector and a scale, found 'formal 1 terse 1'"),
        (
            "/steer plain 1",
            "'plain' is an adapter with weights, not a steering vector (there are: formal, terse); "
            "/set adapter plain has it reply",
        ),
        ("/all", "plain: has no contract"),
        ("/watch formal", "'formal' is a steering vector, which is not asked anything; /steer for"),
        ("/formal(a=b)", "'formal' is a steering vector, which is not asked anything; /steer for"),
    ],
)
def test_what_is_refused_in_a_sentence(
    line: str, text: str, given: tuple[Any, ...], chatting: Chatting
) -> None:
    found = chatting(*given, lines=f"/steer terse 1\n{line}\n/steer\n")
    assert found.status == 1
    assert text in found.err
    assert found.out == "replies are steered by terse at 1\n"  # as it was


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (("--steer", "formal="), "--steer formal=: expected NAME=SCALE, such as formal=P"),
        (("--steer", "=1"), "--steer =1: expected NAME=SCALE"),
        (("--steer", "formal=x"), "--steer formal: expected a scale from -1000 to 1000, found 'x'"),
        (("--steer", "formal", "--steer", "formal=2"), "--steer formal: is given twice"),
        (("--steer", "formel=1"), "no adapter named 'formel' is loaded"),
        (("--steer", "plain=1"), "'plain' is an adapter with weights, not a steering vector"),
    ],
)
def test_options_that_are_refused(
    option: tuple[str, ...], text: str, given: tuple[Any, ...], chatting: Chatting
) -> None:
    found = chatting(*given, *option, "-p", "Hi")
    assert (found.status, found.out) == (1, "")
    assert text in found.err


def test_unloading_one_ends_it(given: tuple[Any, ...], chatting: Chatting) -> None:
    lines = "/steer formal 1\n/steer terse 1\n/unload formal\n/steer\n"
    assert chatting(*given, lines=lines).out == "replies are steered by terse at 1\n"


def test_loading_one_says_how(
    tiny: Tiny, given: tuple[Any, ...], tmp_path: Path, chatting: Chatting
) -> None:
    lines = f"/load loud={tmp_path / 'formal.gguf'}\n/adapters\n/all\n"
    found = chatting("-m", tiny.base, lines=lines)
    assert found.err.splitlines()[0] == (
        "loaded 'loud', steering vector, rank 1; steer replies by it with /steer loud 1"
    )
    assert [*map(str.split, found.out.splitlines())][1] == [
        "loud", "vector", "1", "no", "the", "reply",
    ]  # fmt: skip
    assert "Error: no adapters are loaded; -a NAME=PATH" in found.err


def test_what_was_steered_is_saved(
    given: tuple[Any, ...], tmp_path: Path, chatting: Chatting, tiny: Tiny
) -> None:
    path = tmp_path / "talk.alora"
    saving = f"Hi\n/steer formal 0.5\nThere\n/save {path}\n"
    before = chatting(*given, "--json", lines=saving + "Go on\n")
    turns = told(before.out)
    after = chatting(*given, "--json", "--restore", path, lines="Go on\n")
    assert told(after.out) == turns[-1:]  # the same words, by the same vector
    assert "replies are steered by formal at P\n" in after.err
    within = chatting(*given, "--json", lines=f"/restore {path}\nGo on\n")
    assert told(within.out)[-1] == turns[-1]
    without = chatting("-m", tiny.base, *N, "--restore", path)
    assert "cells were computed by the adapter 'formal'" in without.err
    chatting(*given, lines=f"Hi\n/steer formal 0.5\n/save {path}\n")  # with the base's cells
    without = chatting("-m", tiny.base, *N, "--json", "--restore", path, lines="/steer\n")
    assert "not steered, as it was when it was saved: no adapter named 'formal'" in without.err
    assert told(without.out) == ["replies are not steered"]
    other = chatting(*given, "--json", "--restore", path, "--steer", "terse", lines="/steer\n")
    assert told(other.out) == ["replies are steered by terse at 1"]


def test_another_cache_keeps_it(
    given: tuple[Any, ...], replies: dict[str, str], chatting: Chatting
) -> None:
    found = chatting(*given, "--ctx", "128", "--json", lines="/steer formal 0.5\n/ctx 256\nHi\n")
    assert told(found.out) == [replies["half"]]


def test_the_cache_map_names_the_vector(given: tuple[Any, ...], chatting: Chatting) -> None:
    lines = "/steer formal 0.5\n/steer terse 2\nHi\n/cache\n"
    assert "formal at P + terse at 2" in chatting(*given, lines=lines).out


def test_what_can_be_completed(tiny: Tiny, given: tuple[Any, ...], tmp_path: Path) -> None:
    paths = {"formal": tmp_path / "formal.gguf", "plain": tiny.lora}
    with ag.Model(tiny.base, adapters=paths, n_threads=1) as model, model.chat() as chat:
        talk = Talk(model, chat, GREEDY)
        assert _words(talk, "steer") == {"formal": "vector", "off": "steer no more"}
        assert "formal" not in _words(talk, "watch")
        assert _words(talk, "unload") == {"formal": "vector", "plain": "adapter"}
        assert _words(talk, "")["steer"].startswith("show or change the vectors")


def test_the_limit_is_the_packages() -> None:
    assert MAX_SCALE == options.MAX_SCALE
