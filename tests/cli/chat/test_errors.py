"""What can go wrong, in one sentence with the way out, and the status that it ends with."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from alora_gguf.cli.chat.arguments import file_path

from alora_gguf.demo import adapter_path, base_path
from tests.support.chatting import Chatting, Tiny

STORE = "add one with `alora-gguf pull`; or give the path of a GGUF"


def test_what_cannot_begin(chatting: Chatting, tiny: Tiny, tmp_path: Path, home: Path) -> None:
    (tmp_path / "plain.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "empty.gguf").write_text("")
    (tmp_path / "binary").write_bytes(b"text\0text")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4\n%\xe2\xe3")
    (tmp_path / "bad.jinja").write_text("{% if %}")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    (tmp_path / "my adapter.gguf").write_text("")
    base, sure = tiny.base, tiny.alora
    for arguments, said in [
        (["-m", "nope"], f"nothing named 'nope' is a base in the store {home}; {STORE}"),
        (["nope"], f"nothing named 'nope' is a base in the store {home}; {STORE}"),
        (["-m", tmp_path / "no.gguf"], f"base model {tmp_path}/no.gguf: there is no such file, "),
        (["-m", tmp_path], f"base model {tmp_path}: is a directory, expected a GGUF file; "),
        (["-m", tmp_path / "empty.gguf"], f"base model {tmp_path}/empty.gguf: the file is empty; "),
        (["-m", adapter_path("jailbreak")], f"{adapter_path('jailbreak')}: is an adapter ("),
        (["-m", tiny.bare], f"{tiny.bare}: has no chat template, so it does not say how a "
         "conversation is written; give one with --chat-template FILE, or use a base that was "
         "tuned to chat"),
        (["-m", tiny.bare, "--chat-template", tmp_path / "no"],
         f"{tmp_path}/no: cannot be read: No such file or directory"),
        (["--chat-template", tmp_path / "bad.jinja"],
         "template: the chat template cannot be parsed: Expected an expression, got "
         "'end of statement block'; pass another with --chat-template\n"),
        (["-a", "nope"], f"nothing named 'nope' is an adapter in the store {home}; {STORE}"),
        (["-a", "=x.gguf"], "'=x.gguf': expected NAME=PATH, a path, or a name in the store"),
        (["-a", "x="], "'x=': expected NAME=PATH, a path, or a name in the store"),
        (["-a", f"x={base_path()}"], f"{base_path()}: general.type is 'model', expected 'adapter'"),
        (["-a", f"x={sure}"], f"{sure}: was made for the architecture 'llama', but "),
        (["-a", f"jailbreak={sure}"], "--adapter: the demo model has an adapter named 'jailbreak'; "
         "write OTHER=PATH"),
        (["-a", f"help={sure}"], "'help': is a command's name; give it another one: NAME="),
        (["-a", tmp_path / "my adapter.gguf"], "'my adapter': cannot be typed as /NAME; give it "
         f"another one: NAME={tmp_path}/my adapter.gguf"),
        (["-a", "a\x1bb=x.gguf"], "'a\\x1bb': cannot be typed as /NAME; give it another one: "),
        (["--doc", tmp_path / "no"], f"{tmp_path}/no: cannot be read: No such file or directory"),
        (["--doc", tmp_path], f"{tmp_path}: cannot be read: Is a directory"),
        (["--doc", tmp_path / "empty"], f"{tmp_path}/empty: is empty"),
        (["--doc", tmp_path / "a.pdf"], f"{tmp_path}/a.pdf: is a PDF, expected a text; convert "),
        (["--doc", tmp_path / "binary"], f"{tmp_path}/binary: is not UTF-8 text (byte 4); "),
        (["--doc", tmp_path / "latin1.txt"], f"{tmp_path}/latin1.txt: is not UTF-8 text (byte 3"),
        (["--restore", tmp_path / "no"], f"{tmp_path}/no: cannot be read: No such file"),
        (["--restore", tmp_path], f"{tmp_path}: cannot be read: Is a directory"),
        (["--restore", tmp_path / "binary"], f"{tmp_path}/binary: is not a saved session, "),
        (["--watch", "nope"], "'nope': expected NAME, NAME@question, NAME@answer or a guard such "),
        (["--watch", "jailbreak,jailbreak!"], "'jailbreak!': 'jailbreak' is asked about the "),
        (["-m", base, "--watch", "x"], "no adapters are loaded; -a NAME=PATH or, in the chat, "
         "/load NAME=PATH loads one"),
        (["-m", base, "-a", f"sure={sure}", "--watch", "sure"],
         "sure: has no contract, which says how an adapter is asked; give one: /contract sure="),
    ]:  # fmt: skip
        found = chatting(*arguments, lines="never read\n")  # type: ignore[arg-type]
        assert found.err.startswith(f"Error: {said}"), (arguments, found)
        assert (found.status, found.out, found.err.count("\n")) == (1, "", 1), arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--restore", "x", "--system", "y"], "--restore brings its own system message, documents "
         "and template"),
        (["--restore", "x", "--doc", "y"], "--restore brings its own system message, documents "),
        (["--seed", "x"], "Invalid value for '--seed': 'x' is not a valid integer range."),
        (["--temperature", "-1"], "Invalid value for '--temperature' / '--temp': -P is not in"),
        (["--max-tokens", "0"], "Invalid value for '-n' / '--max-tokens': 0 is not in the range"),
        (["--nope"], "No such option"),
        (["a", "b"], "Got unexpected extra argument (b)"),
        (["a", "-m", "b"], "two bases are named: a and -m b"),
    ],
)  # fmt: skip
def test_wrong_usage(chatting: Chatting, arguments: list[str], said: str) -> None:
    found = chatting(*arguments)
    assert f"Error: {said}" in found.err
    assert found.err.startswith("Usage: alora-gguf chat [OPTIONS] [BASE]\n")
    assert (found.status, found.out) == (2, "")


@pytest.mark.slow
def test_what_goes_wrong_amid_a_chat(
    chatting: Chatting, tiny: Tiny, tmp_path: Path, home: Path
) -> None:
    """Is said, and the chat goes on."""
    (tmp_path / "notes.txt").write_text("my notes")
    (tmp_path / "long.txt").write_text("a word " * 3000)
    for line, said in [
        ("/nope", "there is no command /nope; see /help; to send a message that starts with a "
         "slash, type two"),
        ("/restor x", "there is no command /restor; did you mean /restore? Or see /help; to "),
        ("/", "there is no command /; see /help"),
        ("/rewind", "nothing was said yet"),
        ("/rewind x", "expected a number of turns, found 'x'"),
        ("/rewind 0", "expected a number of turns, found '0'"),
        ("/rewind ²", "expected a number of turns, found '²'"),
        ("/edit", "nothing was said yet"),
        ("/retry", "nothing was said yet"),
        ("/all", "nothing was said yet"),
        ("/all x", "'x': expected NAME, NAME@question, "),
        ("/quit now", "/quit takes no arguments, found 'now'"),
        ("/jailbreak", "nothing was said yet"),
        ("/jailbreak x", "jailbreak takes no arguments, found 'x'"),
        ("/jailbreak 'x", "''x': expected another ' where the text ends"),
        ("/watch nope", "'nope': expected NAME, NAME@question, NAME@answer or a guard such as "),
        ("/load", "/load needs an argument: /load NAME=PATH"),
        ("/load nope", f"nothing named 'nope' is an adapter in the store {home}; {STORE}"),
        (f"/load jailbreak={adapter_path('jailbreak')}", "an adapter named 'jailbreak' is loaded"),
        (f"/load quit={tiny.alora}", "'quit': is a command's name; give it another one: NAME="),
        (f"/load x={tiny.alora}", f"{tiny.alora}: was made for the architecture 'llama', but "),
        ("/unload", "/unload needs an argument: /unload NAME"),
        ("/unload nope", "no adapter named 'nope' is loaded; loaded: 'answerability', "),
        ("/set heat 1", "there is no setting 'heat'; there are temperature, top_k, top_p, min_p, "),
        ("/set temprature 1", "there is no setting 'temprature'; did you mean temperature? There "),
        ("/set temperature warm", "/set temperature: expected a number, found 'warm'"),
        ("/set top_k 1.5", "/set top_k: expected an integer, found 'P'"),
        ("/set temperature -1", "temperature "),
        ("/set temperature nan", "temperature "),
        ("/set seed -1", "seed "),
        ("/set max_tokens 0", "/set max_tokens: expected at least 1, found 0"),
        ("/set adapter nope", "no adapter named 'nope' is loaded"),
        ("/doc no.txt", "no.txt: cannot be read: No such file or directory"),
        (f"/doc {tmp_path}", f"{tmp_path}: cannot be read: Is a directory"),
        ("/doc a\0b", "a path cannot have a character 0"),
        ("/save", "/save needs an argument: /save FILE"),
        (f"/save {tmp_path}/no/talk", f"{tmp_path}/no/talk: its directory does not exist; create"),
        (f"/save {tmp_path}", f"{tmp_path}"),
        (f"/save {tmp_path}/notes.txt", f"{tmp_path}/notes.txt: exists and is not a saved "
         "conversation; choose another name"),
        ("/save a\0b", "a path cannot have a character 0"),
        ("/restore", "/restore needs an argument: /restore FILE"),
        (f"/restore {tmp_path}/no", f"{tmp_path}/no: there is no such file, expected a saved "),
        (f"/restore {tmp_path}/notes.txt", f"{tmp_path}/notes.txt: "),
        ("word " * 3000, "this does not fit the KV cache: "),
    ]:  # fmt: skip
        found = chatting(lines=f"{line}\n/set max_tokens\n")
        assert found.err.startswith(f"Error: {said}"), (line, found)
        assert (found.status, found.out, found.err.count("\n")) == (1, "max_tokens 256\n", 1), line
    assert (tmp_path / "notes.txt").read_text() == "my notes"
    lines = f"hi\n/doc {tmp_path}/long.txt\n/doc\n"
    found = chatting(lines=lines)
    assert re.fullmatch(
        r"Error: the documents have 9\d+ tokens, and the model was trained for 2048; give a part "
        r"of them\n",
        found.err,
    )
    assert "long.txt" not in found.out


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(chatting: Chatting, tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("a text")
    path.chmod(0)
    said = f"{path}: cannot be read: Permission denied"
    assert chatting("--doc", path).err == f"Error: {said}\n"
    assert chatting("--restore", path).err == f"Error: {said}\n"
    assert chatting(lines=f"/doc {path}\n").err == f"Error: {said}\n"


def test_a_conversation_that_does_not_fit(chatting: Chatting, tiny: Tiny) -> None:
    more = ["-m", tiny.base, "--temperature", 0, "--ctx", 256, "--max-tokens", 1000]
    found = chatting(*more, lines="hello\nand on\n/rewind\n/set max_tokens 2\nhello\n")
    room = "/ctx N makes room, /rewind takes turns back"
    cut, full, back, changed, *rest = found.err.splitlines()
    assert cut == f"(cut off: the KV cache is full; {room})"
    in_use = "tokens is needed, and 256 of its 256 are in use; "
    assert re.match(rf"Error: this does not fit the KV cache: room for \d+ {in_use}", full)
    assert back == "took back 1 turn; 0 messages left"
    assert changed == "max_tokens 2"
    assert rest == ["(cut off: /set max_tokens N, or -n N, for longer replies)"]
    assert found.status == 1
    found = chatting(*more, lines="x" * 400)
    assert found.err == (
        "Error: this does not fit the KV cache: room for 403 tokens is needed, and 0 of its 256 "
        "are in use; give it less to read (/doc off drops documents), or make room with /ctx N\n"
    )


def test_a_path_as_people_type_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for typed in ("~/my talk.alora", "'~/my talk.alora'", '"~/my talk.alora"'):
        assert file_path(typed) == tmp_path / "my talk.alora"
    assert file_path("~nobody_of_that_name/x") == Path("~nobody_of_that_name/x")
    assert file_path(r"C:\talks\it's.alora") == Path(r"C:\talks\it's.alora")
    assert file_path("'") == Path("'")


def test_a_path_with_an_equals_sign_is_one(chatting: Chatting, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "lr=1e-4"
    folder.mkdir()
    (folder / "sure.gguf").write_bytes(tiny.alora.read_bytes())
    found = chatting("-m", tiny.base, "-a", folder / "sure.gguf", lines="/adapters\n")
    assert found.status == 0
    assert "sure " in found.out
