"""`alora-gguf run` on other bases than the demo's: names, contracts, arguments, templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alora_gguf import Model, Store
from tests.support import tiny_base
from tests.support.chats import PLAIN, STRICT
from tests.support.running import CONTRACT, Runner, Tiny
from tests.support.stored import add

HELLO = [{"role": "user", "content": "Hello!"}]
REPLY = ("--reply", "--value", "--max-tokens", "12")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny.write(tmp_path_factory.mktemp("tiny"))


def test_a_base_and_an_adapter_with_a_contract_beside_it(run: Runner, tiny: Tiny) -> None:
    for arguments in ({"what": "polite"}, {"sure": {"what": "polite"}}):
        given = {"messages": HELLO, "arguments": arguments}
        outcome = run(*tiny.options, "--intrinsic", "sure", "--value", given=given)
        assert outcome.status == 0, outcome
        assert outcome.json["ok"] in ("y", "n")
    with Model(tiny.base, adapters={"sure": tiny.alora}, n_ctx=512, n_threads=1) as model:
        model.set_contract("sure", tiny.contract)
        with model.chat(messages=["Hello!"]) as chat:
            assert chat.invoke("sure", {"what": "polite"}).value == outcome.json


def test_a_template_in_place_of_the_base_s_own(run: Runner, tiny: Tiny, tmp_path: Path) -> None:
    bare = tiny_base.write_base(tmp_path / "bare.gguf")
    jinja = tmp_path / "plain.jinja"
    jinja.write_text(PLAIN)
    adapter = tmp_path / "sure=1.gguf"  # a path with a sign in it, and without a name
    adapter.write_bytes(tiny.alora.read_bytes())
    options = ("-m", bare, "-a", adapter, "--chat-template", jinja)
    with_bare = run(*options, *REPLY, "--reply-adapter", "sure=1", given=HELLO)
    assert with_bare.out == run(*tiny.options, *REPLY, "--reply-adapter", "sure", given=HELLO).out
    jinja.write_text("{% if %}")
    assert run(*options, *REPLY, given=HELLO).error.startswith(
        "template: the chat template cannot be parsed: "
    )
    jinja.unlink()
    assert run(*options, *REPLY, given=HELLO).error == (
        f"{jinja}: cannot be read: No such file or directory"
    )


def test_arguments_that_do_not_fit(run: Runner, tiny: Tiny) -> None:
    def error(arguments: object) -> str:
        given = {"messages": HELLO, "arguments": arguments}
        return run(*tiny.options, "--intrinsic", "sure", given=given).error

    source = f"stdin: {tiny.contract}: "
    assert error({}) == f"{source}the instruction needs the argument what; given: none"
    assert error({"what": "x", "who": "y"}) == (
        f"{source}unknown argument who; the instruction takes what"
    )
    assert error({"what": 3}) == f"{source}the argument what is int, expected a string"
    assert error(["what"]) == "stdin: arguments: is an array, expected an object"
    assert error({"other": {"what": "x"}}) == (
        "stdin: arguments: are for 'other', which is not asked; asked: sure"
    )


def test_arguments_on_the_command_line(run: Runner, tiny: Tiny) -> None:
    def values(*intrinsics: str, arguments: object = None) -> Any:
        asked = [word for each in intrinsics for word in ("--intrinsic", each)]
        given = {"messages": HELLO, "arguments": arguments}
        outcome = run(*tiny.options, *asked, "--value", given=given)
        return outcome.json if outcome.status == 0 else outcome.error

    polite, x = (values("sure", arguments={"what": each}) for each in ("polite, so?", "x"))
    for one in ('sure(what="polite, so?")', "sure(polite, so?)", 'sure({"what": "polite, so?"})'):
        assert values(one) == polite
    both = values("a=sure(polite, so?)", "b=sure(x)", "sure", arguments={"sure": {"what": "x"}})
    assert (list(both), both["a"], both["b"]) == (["a", "b", "sure"], polite, x)
    each_line = {"a": {"what": "x"}, "b": {"what": "polite, so?"}}
    assert values("a=sure", "b=sure", arguments=each_line) == {"a": x, "b": polite}
    for intrinsics, said in [
        (["sure(wat=x)"], f"{tiny.contract}: unknown argument wat (did you mean what?); the "),
        (["sure(x)!"], "'sure(x)!': expected one NAME(ARGUMENTS), and nothing behind it"),
        (["sure(x) sure(y)"], "'sure(x) sure(y)': expected one NAME(ARGUMENTS), and nothing behi"),
        (["sure(x"], "'sure(x': expected ) at the end"),
    ]:
        assert values(*intrinsics).startswith(said)
    assert values("sure(x)", arguments={"what": "y"}) == (
        "stdin: arguments: what of sure is given by --intrinsic as well; leave it out of one of "
        "them"
    )
    twice = ("--intrinsic", "sure(x)", "--intrinsic", "sure(y)")
    assert run(*tiny.options, *twice, given=HELLO).err.endswith(
        "--intrinsic sure is given twice; with other arguments it needs an alias: "
        "ALIAS=sure(what=…)\n"
    )


def test_what_was_asked_with_other_arguments_is_asked_anew(
    run: Runner, tiny: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    for lines, asked in enumerate(("sure(x)", "sure(y)", "a=sure(y)"), 1):
        for _ in range(2):
            outcome = run(*tiny.options, "--intrinsic", asked, "-o", out, given=HELLO)
            assert outcome.status == 0, outcome.err
            assert out.read_text().count("\n") == lines


def test_arguments_of_several_say_whose_they_are(run: Runner) -> None:
    asked = ("--intrinsic", "jailbreak", "--intrinsic", "uncertainty")
    error = run(*asked, given={"messages": HELLO, "arguments": {"what": "x"}}).error
    assert error == (
        'stdin: arguments: write {"NAME": {...}} to say for which of the intrinsics they are'
    )


def test_seeds_and_the_adapter_of_a_reply(run: Runner, tiny: Tiny) -> None:
    def reply(*more: str) -> str:
        outcome = run(*tiny.options, "-a", f"lora={tiny.lora}", *REPLY, *more, given=HELLO)
        assert outcome.status == 0, outcome.err
        return outcome.out

    hot = ("--temperature", "3", "--seed")
    assert reply(*hot, "1") == reply(*hot, "1") != reply(*hot, "2")
    assert len({reply(), reply("--reply-adapter", "sure"), reply("--reply-adapter", "lora")}) == 3


def test_names_of_the_store(
    run: Runner, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALORA_GGUF_HOME", str(tmp_path / "store"))
    add(Store(), "small", tiny.base.read_bytes(), kind="base")
    add(Store(), "kept", tiny.alora.read_bytes())
    given = {"messages": HELLO, "arguments": {"what": "polite"}}
    by_path = run(*tiny.options, "--intrinsic", "sure", "--value", given=given)
    for name, more in {"kept": (), "Kept": ("-a", "Kept"), "mine": ("-a", "mine=kept")}.items():
        contract = ("--contract", f"{name}={tiny.contract}")
        asked = ("-m", "small", *more, *contract, "--intrinsic", name, "--value")
        assert run(*asked, given=given).out == by_path.out
    assert run("-m", "small", "--intrinsic", "kept", given=HELLO).error.startswith(
        f"{Store().path(Store().get('kept'))}: holds no contract (alora.io_yaml)"
    )
    assert run("-m", "smell", "--intrinsic", "kept", given=HELLO).error == (
        f"nothing named 'smell' is a base in the store {tmp_path / 'store'}; its bases are small; "
        "or give the path of a GGUF; did you mean small?"
    )


def test_a_template_that_refuses(run: Runner, tiny: Tiny, tmp_path: Path) -> None:
    strict = tiny_base.write_base(tmp_path / "strict.gguf", template=STRICT)
    asked = ("-m", strict, *tiny.options[2:], "--reply")
    assert run(*asked, given=[*HELLO, *HELLO]).error == (
        f"stdin: {strict}: the chat template refused the conversation: roles must alternate"
    )
    assert run(*asked, given={"messages": HELLO, "documents": ["x"]}).status == 0


def test_an_answer_that_is_not_what_its_contract_says(
    run: Runner, tiny: Tiny, tmp_path: Path
) -> None:
    short = tmp_path / "io.yaml"
    short.write_text(CONTRACT.replace("60", "2").replace(" {what}", ""))
    asked = ("-m", tiny.base, "-a", f"sure={tiny.alora}", "--contract", f"sure={short}")
    outcome = run(*asked, "--intrinsic", "sure", given=HELLO)
    result = outcome.json["results"]["sure"]
    assert outcome.status == 1
    assert list(result) == ["error", "text", "finish_reason", "timings"]
    assert result["finish_reason"] == "length"
    assert outcome.err == f"Error: stdin: sure: {result['error']}\n"
    value = run(*asked, "--intrinsic", "sure", "--value", given=HELLO)
    assert (value.status, value.error) == (1, f"stdin: sure: {result['error']}")
