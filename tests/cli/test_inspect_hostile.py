"""`alora-gguf inspect` of hostile and damaged files: no escape sequences, no tracebacks."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from alora_gguf.cli.inspect import _cut, table
from alora_gguf.cli.render import printable

from alora_gguf import cli
from alora_gguf.errors import FileFormatError
from alora_gguf.gguf.inspection import inspect_gguf
from tests.support.gguf_bytes import gguf_bytes
from tests.support.inspect_command import inspect, shown
from tests.support.inspected import ADAPTER, pairs
from tests.support.peft_files import sound_case


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the first line is the same everywhere."""
    monkeypatch.chdir(tmp_path)


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\b\x00\x7f\u202e\u2028\ud7ff\n\tend"


def harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def test_no_escape_sequence_reaches_the_terminal() -> None:
    metadata = {
        **ADAPTER,
        "general.architecture": EVIL,
        "general.name": EVIL,
        "alora.invocation_text": EVIL,
        "general.tags": [EVIL],
        f"general.{EVIL}": EVIL,
        "adapter.type": EVIL,
    }
    tensors = pairs([0], f"q{EVIL}"[:20], 64, 64, 8) | {f"x{EVIL}"[:30]: ("F32", (8,))}
    result = inspect(metadata, tensors)
    assert result.exit_code == 0
    assert harmless(result.output)
    assert (
        "  name           \\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\r\\x08\\x00\\x7f\\u202e"
        in result.output
    )
    whole = inspect(metadata, tensors, "--json").output
    assert harmless(whole)
    assert json.loads(whole)["name"] == EVIL
    base = dict.fromkeys(("general.size_label", "tokenizer.ggml.model", "tokenizer.ggml.pre"), EVIL)
    result = inspect({"general.architecture": "llama", **base}, {"x": ("F32", (8,))})
    assert result.output.count("x1b]0;owned") == 2  # the last one is cut off
    assert harmless(result.output)


def test_nor_by_way_of_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    data = gguf_bytes({EVIL: 1}, {})
    Path("file.gguf").write_bytes(data.replace(EVIL.encode() + b"\4", EVIL.encode() + b"\x63"))
    with pytest.raises(FileFormatError) as caught:
        inspect_gguf("file.gguf")
    assert not harmless(str(caught.value))  # or the next line would prove nothing
    assert cli.run(["inspect", "file.gguf"]) == 1
    message = capsys.readouterr().err
    assert harmless(message)
    assert message.startswith("Error: file.gguf: metadata key '\\x1b]0;owned\\x07")
    assert message.endswith("has the unknown type 99\n")


def test_long_and_wide_texts_are_cut_to_the_screen() -> None:
    wide = "愛" * 100
    text = shown(
        {
            **ADAPTER,
            "general.name": "n" * 10_000,
            "general.description": "d" * 10_000,
            "alora." + "k" * 100: "v" * 10_000,
            "general.author": wide,
            "general.architecture": wide,
            "adapter.alora.invocation_tokens": [*range(10_000)],
        },
        pairs([*range(0, 200, 2)], "t" * 30, 64, 64, 8),
    )
    lines = text.splitlines()
    assert "  name           " + "n" * 62 + "…" in lines
    assert "  architecture   " + "愛" * 31 + "…" in lines
    assert f"    alora.{'k' * 33}…: " + "v" * 33 + "…" in lines
    assert "    general.author: " + "愛" * 29 + "…" in lines
    assert any(line.startswith("  " + "t" * 19 + "…     8  F16") for line in lines)
    assert sum("layers 0, 2, 4" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("text", "width", "cut"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("愛愛", 4, "愛愛"),
        ("愛愛愛", 4, "愛…"),
        ("愛愛", 3, "愛…"),
        ("\x1b", 4, "\\x1b"),
        ("\x1b", 3, "\\x…"),
        ("", 0, ""),
    ],
)
def test_cut(text: str, width: int, cut: str) -> None:
    assert _cut(text, width) == cut


def test_printable() -> None:
    assert printable("plain, Grüße 愛") == "plain, Grüße 愛"
    assert printable("a\tb\x1b\u202e\udc80") == "a\\tb\\x1b\\u202e\\udc80"


def test_damaged_files_never_break_the_table() -> None:
    path, rng = Path("file.gguf"), random.Random(11)
    data = gguf_bytes({**ADAPTER, "general.tags": ["a"]}, pairs([0, 1], "attn_q", 8, 8, 2))
    described = 0
    for _ in range(1000):
        copy = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
        path.write_bytes(copy)
        try:
            text = table(inspect_gguf(path))
        except FileFormatError:
            continue
        described += 1
        assert harmless(text)
        assert max(map(len, text.splitlines())) <= 80
    assert described > 100


def test_truncated_at_every_page_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    case = sound_case(Path.cwd())
    case.convert()
    data = case.out.read_bytes()
    assert len(data) > 2 * 4096
    for size in range(0, len(data), 4096):
        case.out.write_bytes(data[:size])
        assert cli.run(["inspect", str(case.out)]) == 1
        out, message = capsys.readouterr()
        assert out == ""
        assert message.startswith(f"Error: {case.out}: ")
        assert ("truncated" if size else "the file is empty") in message
        assert message.count("\n") == 1


def test_what_is_no_gguf(capsys: pytest.CaptureFixture[str]) -> None:
    expected = "expected a GGUF file; check the path\n"
    assert cli.run(["inspect", "none.gguf"]) == 1
    assert capsys.readouterr().err == f"Error: none.gguf: there is no such file, {expected}"
    assert cli.run(["inspect", "."]) == 1
    assert capsys.readouterr().err == f"Error: .: is a directory, {expected}"
    Path("page.gguf").write_text("<!doctype html><html>")
    assert cli.run(["inspect", "page.gguf"]) == 1
    assert "an HTML page saved under this name" in capsys.readouterr().err
