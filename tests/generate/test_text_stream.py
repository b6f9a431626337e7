"""Streaming text: whole characters, and no part of a stop string ever shown."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alora_gguf import InputError
from alora_gguf.generate.sampling import SampledReply, TextStream
from alora_gguf.options import GREEDY, GenerateOptions, check_stops


def test_characters_come_whole() -> None:
    stream = TextStream()
    euro = "€".encode()
    assert [stream.push(euro[:1]), stream.push(euro[1:2]), stream.push(euro[2:])] == ["", "", "€"]
    assert stream.tokens_in_text() == 3


def test_what_never_becomes_a_character_is_shown_at_the_end() -> None:
    stream = TextStream()
    assert stream.push(b"a\xe2") == "a"
    assert stream.finish() == "\ufffd"
    assert stream.text == "a\ufffd"


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    stream = TextStream(("END", "###"))
    assert stream.push(b"one E") == "one "
    assert stream.push(b"N") == ""
    assert stream.push(b"X #") == "ENX "
    assert stream.push(b"##tail") == ""
    assert stream.stopped
    assert stream.text == "one ENX "
    assert stream.finish() == ""
    assert stream.tokens_in_text() == 2  # "X #" reaches into the stop string


def test_the_earliest_of_several_stops_counts() -> None:
    stream = TextStream(("late", "ear"))
    stream.push(b"x ear late")
    assert stream.text == "x "


def test_a_held_back_beginning_is_text_after_all() -> None:
    stream = TextStream(("END",))
    assert stream.push(b"the EN") == "the "
    assert stream.finish() == "EN"
    assert stream.tokens_in_text() == 1


def test_stop_strings_are_checked() -> None:
    assert check_stops("END") == ("END",)
    assert check_stops(["a", "b"]) == ("a", "b")
    with pytest.raises(InputError, match="must not be empty"):
        check_stops(["a", ""])


TEXT = st.text("abé€", max_size=20)


@given(TEXT, st.lists(st.text("abé", min_size=1, max_size=3), max_size=3), st.data())
def test_any_split_into_tokens_gives_the_text_before_the_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    raw = text.encode()
    stream, shown, pushed = TextStream(tuple(stops)), "", []
    while raw and not stream.stopped:
        n = data.draw(st.integers(1, len(raw)))
        pushed.append(raw[:n])
        shown += stream.push(raw[:n])
        raw = raw[n:]
    shown += stream.finish()
    cuts = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert shown == stream.text
    assert stream.stopped == bool(cuts)
    if len(stops) < 2:
        assert shown == text[: min(cuts, default=len(text))]
    else:  # the one that is complete first ends the text, not the one that begins first
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
    kept = b"".join(pushed[: stream.tokens_in_text()])
    assert shown.encode().startswith(kept)


class Words:
    """A vocabulary of letters; token 0 ends a reply."""

    n_tokens = 27

    def piece(self, token: int) -> bytes:
        return bytes([96 + token])

    def is_end(self, token: int) -> bool:
        return token == 0


class Scripted:
    """A sampler that gives the logits it is given: token ids, here."""

    must_end = False

    def sample(self, logits: Any) -> int:
        return int(logits)


def sampled(tokens: list[int], *, stops: tuple[str, ...] = (), n: int = 99) -> SampledReply:
    """A reply that chose these tokens, or the first of them that ended it."""
    how = GenerateOptions(max_tokens=n, stop=stops, sampling=GREEDY)
    reply = SampledReply(how, cast("Any", Words()), 0.0)
    reply.sampler = cast("Any", Scripted())
    for each in tokens:
        token = reply.choose(cast("Any", each))
        if token is not None:
            reply.push(token)
        if reply.ended is not None:
            break
    return reply


@pytest.mark.parametrize(
    ("tokens", "options", "text", "ended", "n"),
    [
        ([1, 2, 0, 3], {}, "ab", "stop", 3),
        ([1, 2, 3], {"n": 2}, "ab", "length", 2),
        ([1, 2, 3, 4], {"stops": ("bc",)}, "a", "stop", 3),
        ([1, 2, 3], {"stops": ("bc",), "n": 3}, "a", "stop", 3),
        ([1, 2], {}, "ab", None, 2),
    ],
)
def test_why_a_reply_ends(
    tokens: list[int], options: dict[str, Any], text: str, ended: str | None, n: int
) -> None:
    reply = sampled(tokens, **options)
    assert (reply.stream.text, reply.ended, reply.n_sampled) == (text, ended, n)
    assert reply.first_token is not None


def test_a_schema_that_is_complete_ends_it() -> None:
    reply = sampled([1])
    reply.sampler.must_end = True  # type: ignore[misc]
    reply.push(2)
    assert reply.ended == "stop"
