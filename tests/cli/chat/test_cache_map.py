"""The map of the cache: a row that adds up, each adapter in its colour, the numbers below it."""

from __future__ import annotations

import pytest
from alora_gguf.cli.chat.tables import cache_map
from alora_gguf.cli.chat.talk import Talk
from rich.text import Text

from tests.support.chats import PLAIN, brief
from tests.support.chatting import GREEDY
from tests.support.files import Files

from .test_talk import say


def row(text: Text) -> list[tuple[str, str]]:
    """The characters of the map, each with its style."""
    n = text.plain.index("\n")
    styles = ["" for _ in range(n)]
    for span in text.spans:
        for i in range(span.start, min(span.end, n)):
            styles[i] = str(span.style)
    return list(zip(text.plain[:n], styles, strict=True))[2:]


def mapped(talk: Talk, width: int = 80) -> Text:
    shown = cache_map(talk.chat, talk.model.cache_report(), talk.reused, width).people
    assert isinstance(shown, Text)
    return shown


@pytest.mark.parametrize("width", [8, 20, 64, 80, 140])
def test_the_row_adds_up(files: Files, width: int) -> None:
    with files.model() as model, model.chat(template=PLAIN) as chat:
        talk = Talk(model, chat, brief(40))
        say(talk, "hello")
        say(talk, "and on")
        n = talk.chat.session.cached
        other = model.chat(template=PLAIN, messages=["x" * 300])
        other.read()
        text = mapped(talk, width)
        cells = row(text)
        report = model.cache_report()
        per = -(-report.n_cells // max(8, min(width - 2, 96)))
        assert len(cells) == -(-report.n_cells // per) <= max(8, width - 2)
        assert f"one character is {per} cells of {report.n_cells}\n" in text.plain
        signs = "".join(sign for sign, _ in cells)
        assert signs == "".join(sorted(signs, key="█▓▒▫·".index))
        assert signs.count("▓") + signs.count("█") == -(-n // per)
        assert signs.count("·") == len(cells) - -(-report.used // per)
        assert "▒" in signs
        reused = talk.turns[-1].timings.reused
        assert f"█ {reused} reused by the last reading, ▓ {n - reused} read or" in text.plain
        assert f"▒ {report.used - n} left over from what ended" in text.plain
        assert text.plain.endswith(f"{report.free} cells free")
        other.close()


def test_cells_of_adapters_have_colours_of_their_own(files: Files) -> None:
    with files.model() as model, model.chat(template=PLAIN) as chat:
        talk = Talk(model, chat, brief(60))
        say(talk, "hello")
        for name, colour in (("sure", "magenta"), ("other", "magenta"), ("lora", "magenta")):
            talk.options = brief(60, adapter=name)
            say(talk, "and on")
            text = mapped(talk)
            styles = {style for sign, style in row(text) if sign in "█▓"}
            assert styles == {"cyan", colour} if name != "lora" else {colour}
            spans = talk.chat.session.provenance
            begin = 0 if name == "lora" else spans[-1][0]
            end = talk.chat.session.cached
            assert f"{begin:>6} to {end:<6} {name}\n" in text.plain
        model.unload_adapter("lora")
        assert model.adapters.keys() == {"sure", "other"}
        identity = talk.chat.session.provenance[0][1].identity
        assert identity is not None
        assert f"     0 to {end:<6} {identity[:12]}\n" in mapped(talk).plain


def test_before_and_after_reading(talk: Talk) -> None:
    assert "this conversation\n    nothing is read yet\n" in mapped(talk).plain
    say(talk, "When does the Bomel library open?")
    n = talk.chat.session.cached
    assert f"█ 0 reused by the last reading, ▓ {n} read or" in mapped(talk).plain
    say(talk, "Who runs it?")
    assert f"█ {n} reused by the last reading, ▓ " in mapped(talk).plain
    talk.rewind(1)
    assert f"█ {talk.chat.session.cached} reused by the last reading, ▓ 0 " in mapped(talk).plain
    assert "others" not in mapped(talk).plain
    say(talk, "Who?", instead=True)
    left = n - talk.turns[-1].timings.reused  # the old turn's cells, behind what both begin with
    assert f"▒ {left} left over from what ended; freed when" in mapped(talk).plain


def test_what_is_restored_was_not_read(talk: Talk, tmp_path: object) -> None:
    say(talk, "When does the Bomel library open?")
    talk.chat.save(f"{tmp_path}/talk.alora")
    n = talk.chat.session.cached
    talk.replace_chat(talk.model.restore(f"{tmp_path}/talk.alora"))
    assert f"█ {n} reused by the last reading, ▓ 0 read" in mapped(talk).plain
    assert talk.options == GREEDY
    assert talk.turns == []
