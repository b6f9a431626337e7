"""Arguments of intrinsics in a chat, wherever one can be named; contracts that are given, missing
or broken.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alora_gguf import Model
from alora_gguf.demo import adapter_path, io_yaml_path
from tests.support import tiny_base
from tests.support.chatting import Chatting, Tiny

QUESTION = "When does the Bomel library open?"
ANSWER = "The opening time of the Bomel library is 9:30."
INSTRUCTION = 'instruction: "Does it meet {criteria} by {role}?"\n'


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    """One with two arguments."""
    text = io_yaml_path("jailbreak").read_text().replace("instruction: ~\n", INSTRUCTION)
    (tmp_path / "io.yaml").write_text(text)
    return tmp_path / "io.yaml"


@pytest.fixture
def one(contract: Path, tmp_path: Path) -> Path:
    """One with one argument."""
    path = tmp_path / "one.yaml"
    path.write_text(contract.read_text().replace(" by {role}", ""))
    return path


def events(text: str, kind: str) -> list[dict[str, object]]:
    """Those of a kind; numbers are masked, and so no JSON."""
    found = [json.loads(re.sub(r"\bP\b", "0", line)) for line in text.splitlines()]
    return [each for each in found if each["event"] == kind]


# Arguments ---------------------------------------------------------------------------------------


def test_one_intrinsic_guards_and_watches_under_aliases(chatting: Chatting, contract: Path) -> None:
    guard = 'jb=jailbreak(criteria="jailbreak, (any)", role=user)<0.9'
    given = ("--contract", f"jailbreak={contract}", "-w", guard)
    found = chatting(*given, "-w", "tone=jailbreak(criteria=tone role=user)@answer", "-p", QUESTION)
    assert (found.status, found.out) == (0, f"{ANSWER}\n")
    verdict = "(no )?jailbreak attempt P%"
    assert re.match(rf"jb: {verdict} · tone: {verdict} · T ms, ", found.err)
    never = chatting(*given[:2], "-w", guard.replace("<", ">"), "-p", QUESTION)
    assert (never.status, never.out) == (1, "")
    assert never.err.startswith("Withheld by jb: your message was taken back.\njb: ")
    (turn,) = events(chatting(*given, "--json", "-p", QUESTION).out, "turn")
    (verdict,) = turn["verdicts"]  # type: ignore[misc, attr-defined]
    assert (verdict["name"], verdict["intrinsic"]) == ("jb", "jailbreak")


def test_arguments_in_every_command(chatting: Chatting, one: Path) -> None:
    lines = [
        QUESTION,
        "/jailbreak a jailbreak",
        "/jailbreak criteria=a jailbreak",
        '/jailbreak {"criteria": "a jailbreak"}',
        "/jailbreak(criteria=a jailbreak)",
        "/jb=jailbreak(a jailbreak)",
        "/watch jb=jailbreak(criteria=a jailbreak)",
        "/all tone=jailbreak(tone)",
        "/watch off",
        "/all",
    ]
    found = chatting("--contract", f"jailbreak={one}", lines="\n".join(lines))
    reply, *answers, together, alone = found.out.splitlines()
    assert reply == ANSWER
    assert answers == ['{"jailbreak": P}'] * 4
    demo = ["answerability", "uncertainty", "query_rewrite", "hallucination"]
    assert list(json.loads(together.replace(" P", " 0"))) == [*demo, "jb", "tone"]
    assert list(json.loads(alone.replace(" P", " 0"))) == demo
    no_command, *told = found.err.splitlines()
    assert no_command.startswith("Error: there is no command /jb=jailbreak(a; did you mean ")
    assert told == [
        "watching jb=jailbreak(criteria=a jailbreak) at each question",
        "no longer watched: jb=jailbreak(criteria=a jailbreak)",
        "watching nothing",
        "not asked, for they need arguments: jailbreak(criteria=…)",
    ]


def test_what_takes_which_arguments_is_shown(chatting: Chatting, contract: Path) -> None:
    found = chatting("--contract", f"jailbreak={contract}", lines="/help\n")
    assert re.search(r"\n/jailbreak\(criteria=…, role=…\) +ask about the conversation\s", found.out)
    assert re.search(r"\n/answerability +ask about the conversation\s", found.out)


@pytest.mark.parametrize("line", ["/jailbreak {}", "/watch jailbreak({})", "/all jailbreak({})"])
def test_misspelt_arguments_are_refused_wherever_they_stand(
    chatting: Chatting, one: Path, line: str
) -> None:
    unknown = "unknown argument critera (did you mean criteria?); the instruction takes criteria"
    quotes = "; put a text that begins like that in quotes"
    given = ("--contract", f"jailbreak={one}")
    for arguments, said in [
        ("critera=x", f"Error: {one}: {unknown}{quotes}\n"),
        ('{"critera": "x"}', f"Error: {one}: {unknown}{quotes}\n"),
        ("criteria=x, role=y", f"Error: {one}: unknown argument role; the instruction takes "),
        ("{}", "needs criteria; write jailbreak(criteria=…)\n"),
    ]:
        found = chatting(*given, lines=f"{QUESTION}\n{line.replace('{}', arguments)}\n")
        assert found.out == f"{ANSWER}\n"
        assert said in found.err
        assert found.err.count("\n") == 1


def test_refusals_of_calls(chatting: Chatting, contract: Path, tiny: Tiny) -> None:
    given = ("--contract", f"jailbreak={contract}")
    for line, said in [
        ("/jailbreak", "'jailbreak': needs criteria and role; write jailbreak(criteria=…, role=…)"),
        ("/jailbreak x", "jailbreak takes criteria=… and role=…, found 'x'"),
        ("/jailbreak(criteria=x, role=y)!", "'jailbreak(criteria=x, role=y)!': expected one "
         "NAME(ARGUMENTS), and nothing behind it"),
        ("/jailbreak(criteria=x, role=y) uncertainty", "'jailbreak(criteria=x, role=y) uncertai"),
        ("/answerability x", "answerability takes no arguments, found 'x'"),
        ("/all answerability!", "'answerability!': is a guard, for /watch; /all asks once"),
        ("/watch jailbreak!", "'jailbreak!': needs criteria and role; write jailbreak(criteria=…"),
        ("/watch jailbreak(x!", "'jailbreak(x!': expected ) at the end"),
        ("/watch ,", "',': expected NAME, NAME@question, "),
        ("/load a,b=x.gguf", "'a,b': cannot be typed as /NAME; give it another one: NAME=x.gguf"),
        ("/load a(b)=x.gguf", "'a(b)': cannot be typed as /NAME; "),
    ]:  # fmt: skip
        found = chatting(*given, lines=f"{line}\n")
        assert found.err.startswith(f"Error: {said}"), (line, found)
        assert (found.status, found.out, found.err.count("\n")) == (1, "", 1), line
    options = ("-m", tiny.base, "-a", f"sure={tiny.alora}", "--contract", f"sure={contract}")
    assert chatting(*options, lines="hello\n/all\n").err.splitlines()[-1] == (
        "Error: no adapter here can be asked without arguments; ask it with them: "
        "/all sure(criteria=…, role=…)"
    )


# Contracts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny base with an io.yaml that nobody can read."""
    with Model(tiny.base, n_ctx=256, n_threads=1) as model:
        invocation = model.tokenize("<certainty>")
    path = tmp_path_factory.mktemp("broken") / "broken.gguf"
    keys = {"alora.io_yaml": "model: ["}
    return tiny_base.write_adapter(path, invocation=invocation, keys=keys)


def test_a_broken_contract_is_told_and_never_taken_for_none(
    chatting: Chatting, tiny: Tiny, broken: Path, contract: Path
) -> None:
    given = ("-m", tiny.base, "-a", f"st={broken}", "--temperature", 0, "--max-tokens", 3)
    where = f"{broken}(io.yaml):1: "
    for line in ("/st", "/watch st", "/watch st(x=1)!", "/all"):
        found = chatting(*given, lines=f"hello\n{line}\n")
        assert found.out.count("\n") == 1  # the reply
        assert f"\nError: {where}" in f"\n{found.err}", line
        assert found.err.endswith("; or give it another: /contract st=FILE\n")
        assert found.status == 1
    assert chatting(*given, "-w", "st", lines="hello\n").err.startswith(f"Error: {where}")
    assert re.search(r"\nst +aLoRA +8 +broken ", chatting(*given, lines="/adapters\n").out)
    loaded = chatting(*given, lines=f"/load x={broken}\n/load y={tiny.alora}\n").err.splitlines()
    assert loaded[-2:] == [
        "loaded 'x', aLoRA, rank 8; its contract is broken, /contract x=FILE gives it another",
        "loaded 'y', aLoRA, rank 8; ask it with /y",
    ]
    mended = chatting(*given, lines=f"/contract st={contract}\n/adapters\n")
    assert re.search(r"\nst +aLoRA +8 +yes ", mended.out)
    assert mended.err.splitlines()[-1] == (f"st(criteria=…, role=…) is asked as {contract} says")


def test_where_there_is_no_contract_one_can_be_given(
    chatting: Chatting, tiny: Tiny, one: Path
) -> None:
    given = ("-m", tiny.base, "-a", f"sure={tiny.alora}", "--temperature", 0, "--max-tokens", 3)
    way_out = (
        "sure: has no contract, which says how an adapter is asked; give one: /contract "
        "sure=io.yaml, or --contract sure=io.yaml when the chat begins"
    )
    for line in ("/watch sure", "/watch sure(x)!", "/all", "/sure x", "/sure(x)"):
        assert chatting(*given, lines=f"hello\n{line}\n").err.splitlines()[-1] == (
            f"Error: {way_out}"
        ), line
    assert chatting(*given, "-w", "sure").err == f"Error: {way_out}\n"
    asked = f"hello\n/contract sure={one}\n/sure x\n/watch sure(x)\n/contract sure={one}\n/watch\n"
    found = chatting(*given, lines=asked)
    assert found.err.splitlines()[-2:] == [
        "no longer watched: sure(criteria=x)",
        "watching nothing",
    ]


@pytest.mark.parametrize(
    "gone", ["/unload jailbreak", "/watch uncertainty", "/watch off", "/contract jailbreak={}"]
)
def test_nobody_is_left_unguarded_without_a_word(
    chatting: Chatting, gone: str, contract: Path
) -> None:
    found = chatting(lines=f"/watch jailbreak!\n{gone.format(contract)}\n").err.splitlines()
    assert "no longer guarded by jailbreak" in found, found


def test_a_guard_says_that_its_answer_is_no_number(chatting: Chatting, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"found": {"anyOf": [{"enum": ["none of it"]}]}}}
    schema |= {"required": ["found"], "additionalProperties": False}
    schema["x-alora"] = {"judges": "question"}
    (tmp_path / "io.yaml").write_text(
        f"model: ~\nresponse_format: |\n  {json.dumps(schema)}\ntransformations: ~\n"
    )
    found = chatting("--contract", f"jailbreak={tmp_path}", "-w", "jailbreak<0.5", lines="Hi\n")
    assert found.err.splitlines()[0] == (
        "Withheld by jailbreak: its answer is no number, which lets nothing pass; your message was "
        "taken back."
    )
    assert chatting("-w", "query_rewrite<0.5").err.startswith(
        "Error: 'query_rewrite<P': a guard goes by a number, and none comes of query_rewrite: "
    )


def test_contracts_that_cannot_be_given(chatting: Chatting, tmp_path: Path, contract: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: [")
    for text, said in [
        ("jailbreak", "'jailbreak': expected NAME=PATH, an adapter's name and an io.yaml"),
        ("=x", "'=x': expected NAME=PATH"),
        ("jailbreak=", "'jailbreak=': expected NAME=PATH"),
        (f"jailbreak={tmp_path}/no.yaml", f"{tmp_path}/no.yaml: "),
        (f"jailbreak={tmp_path}/bad.yaml", f"{tmp_path}/bad.yaml:1: "),
        ("jailbreak=a\0b", "a\\x00b: cannot be read: "),
    ]:
        for found in (
            chatting("--contract", text, lines="never read\n"),
            chatting(lines=f"/contract {text}\n"),
        ):
            assert found.err.startswith(f"Error: {said}"), (text, found)
            assert (found.status, found.out, found.err.count("\n")) == (1, "", 1), text
    assert chatting("--contract", f"nope={contract}").err == (
        "Error: --contract: is for 'nope', which is no adapter here (there are: answerability, "
        "uncertainty, query_rewrite, hallucination, jailbreak); name its file too: -a nope=PATH\n"
    )
    assert chatting(lines=f"/contract nope={contract}\n").err.startswith(
        "Error: no adapter named 'nope' is loaded; loaded: "
    )
    assert chatting("--contract", f"jailbreak={adapter_path('uncertainty')}").status == 0
