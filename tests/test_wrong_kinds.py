"""Every public callable with what does not belong there, in each place: a sentence of ours, or the
right answer.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import _calls, intrinsics
from alora_gguf.llama import Llama
from tests.support.chats import PLAIN
from tests.support.files import Files

VALUES: list[Any] = [None, 3, -2.5, True, "text", b"bytes", [1, "a"], {"a": 1}, object()]
CONTRACT = ag.Contract.parse("model: ~\nresponse_format: ~\ntransformations: ~\n")
SKIPPED = {"close", "read", "check_open"}  # take nothing, or end what others need
BASE = {  # what a call needs beside the place that is tried
    "text": "hello", "message": "hello", "name": "sure", "path": "nothing", "source": "nothing",
    "n": 0, "call": "sure", "calls": ["sure"], "invocation": "sure", "invocations": ["sure"],
    "contract": CONTRACT, "tokens": [1], "messages": ["hello"], "request": intrinsics.Request(()),
    "base": "nothing", "adapter": "sure", "logprobs": None, "reference": "nothing", "kind": None,
    "out": "nothing", "function": len, "description": None, "base_path": "nothing",
}  # fmt: skip


def methods(thing: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, _ in inspect.getmembers(type(thing), inspect.isroutine):
        if not name.startswith("_") and name not in SKIPPED:
            yield name, getattr(thing, name)


def calls(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Keywords with one wrong value each."""
    parameters = [
        each
        for each in inspect.signature(function).parameters.values()
        if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and each.name[0] != "_"
    ]
    needed = {each.name: BASE.get(each.name) for each in parameters if each.default is each.empty}
    options: dict[str, Any] = {}
    if getattr(function, "__name__", "") in ("say", "reply", "generate", "invoke"):
        options = {"max_tokens": 1}
    for each in parameters:
        for value in VALUES:
            yield {**needed, **options, each.name: value}


def assert_told(function: Callable[..., Any]) -> None:
    for given in calls(function):
        problem = told(function, given)
        assert problem is None, f"{function} with {given}: {problem!r}"


def told(function: Callable[..., Any], given: dict[str, Any]) -> Exception | None:
    """What is raised that is not ours."""
    try:
        function(**given)
    except ag.AloraError:
        return None
    except Exception as error:
        return error
    return None


@pytest.fixture(scope="module")
def model(files: Files) -> Iterator[ag.Model]:
    with files.model() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # files named "text" are written here


def test_a_models_methods(model: ag.Model) -> None:
    for name, method in methods(model):
        if name != "unload_adapter":
            assert_told(method)


def test_a_sessions_methods(model: ag.Model) -> None:
    with model.session() as session:
        for _, method in methods(session):
            session.sync([1, 2, 3])
            assert_told(method)


def test_a_chats_methods_and_setters(model: ag.Model) -> None:
    with model.chat(template=PLAIN) as chat:
        for _, method in methods(chat):
            chat.replace(["hello"])
            assert_told(method)
        for name in ("documents", "system"):
            for value in VALUES:
                assert told(lambda: setattr(chat, name, value), {}) is None  # noqa: B023
        chat.documents = []


@pytest.mark.parametrize(
    "function",
    [
        ag.Model, ag.Tokenizer, ag.Store, ag.load_contract, ag.inspect_gguf, ag.verify,
        ag.convert_adapter, ag.AdapterFile.read, ag.Contract.parse, ag.Contract.read,
        intrinsics.rewrite, intrinsics.transform,
    ],
    ids=lambda function: function.__qualname__,
)  # fmt: skip
def test_functions_and_classes(function: Callable[..., Any]) -> None:
    assert_told(function)


def test_a_stores_methods(tmp_path: Path) -> None:
    for name, method in methods(ag.Store(tmp_path / "store")):
        if not inspect.isgeneratorfunction(inspect.unwrap(method)) and name != "adding":
            assert_told(method)


def test_messages_name_the_call_the_place_and_what_there_is(model: ag.Model) -> None:
    cases: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
        (model.chat, {"documents": "x"}, "Model.chat(): documents must be a list, got 'x'"),
        (model.set_contract, {"name": "sure", "contract": 3},
         "Model.set_contract(): contract must be a Contract, a string or a path, got 3"),
        (model.tokenize, {"text": None}, "Model.tokenize(): text must be a string, got None"),
        (model.session().invoke, {"invocation": 3},
         "Session.invoke(): invocation must be a string, a mapping, an Invocation or None, got 3"),
        (model.chat(template=PLAIN).say, {"text": "x", "options": {"max_tokens": 3}},
         "Chat.say(): options must be a GenerateOptions or None, got {'max_tokens': 3}"),
        (model.chat(template=PLAIN).say, {"text": "x", "temprature": 0},
         "Chat.say() has no argument 'temprature'; did you mean 'temperature', of Sampling?"),
        (ag.GenerateOptions, {"temperature": 0},
         "GenerateOptions() has no argument 'temperature'; it is a field of Sampling"),
        (ag.Sampling, {"top": 3}, "Sampling() has no argument 'top'; did you mean 'top_p'?"),
        (model.session().append, {"text": "x", "max_tokens": 3},
         "Session.append() has no argument 'max_tokens'; it is a field of GenerateOptions"),
        (ag.Model, {"path": "x", "cancel": True},
         "Model(): cancel must be a CancelToken or None, got True"),
    ]  # fmt: skip
    for function, given, text in cases:
        with pytest.raises(ag.InputError) as caught:
            function(**given)
        assert str(caught.value) == text


HALF = "a\ud800"
REFUSED = "has half of a surrogate pair.*character 1"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda _: ag.Message("user", HALF), "content"),
        (lambda _: ag.Document("x", HALF), "title"),
        (lambda _: ag.Sampling(grammar=HALF), "grammar"),
        (lambda _: ag.IntrinsicCall("x", {"a": HALF}), r"arguments\['a'\]"),
        (lambda _: ag.IntrinsicCall("x", {HALF: "a"}), "arguments: a key"),
        (lambda _: ag.Invocation("x", stop=["b", HALF]), r"stop\[1\]"),
        (lambda m: m.tokenize(HALF), "text"),
        (lambda m: m.session().append(HALF), "append"),
        (lambda m: m.session().save("x", notes={"a": [HALF]}), r"notes\['a'\]\[0\]"),
        (lambda m: m.session().invoke("sure", "x", stop=[HALF]), r"stop\[0\]"),
        (lambda m: m.chat(system=HALF), "system"),
        (lambda m: m.chat(template=PLAIN).say(HALF), "text"),
        (lambda m: m.chat(template=PLAIN).say("a", stop=[HALF]), r"stop\[0\]"),
        (lambda m: m.chat(template=PLAIN).say("a", schema={"enum": [HALF]}), r"schema\['enum'\]"),
        (lambda m: m.chat(template=PLAIN).replace([{"role": "user", "content": HALF}]), "content"),
        (lambda m: m.chat(template=PLAIN, documents=[HALF]), r"documents\[0\]"),
        (lambda m: m.chat(template=PLAIN, documents=[{"text": HALF}]), r"documents\[0\]"),
        (
            lambda m: m.chat(template="{{x}}", template_arguments={"x": [{"y": HALF}]}),
            r"template_arguments\['x'\]\[0\]\['y'\]",
        ),
        (lambda m: m.chat(template=r"{{'a\ud800'}}").say("a"), "the chat template writes"),
        (lambda m: m.load_adapter(HALF, "x"), "name"),
        (lambda m: ag.Model(m.path, adapters={HALF: "x"}), "adapters: a key"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_by_name(files: Files, call: Any, name: str) -> None:
    with files.model() as model, pytest.raises(ag.InputError, match=rf"{name}.* {REFUSED}"):
        call(model)


def test_what_refers_to_itself_or_is_deep_is_looked_through() -> None:
    ring: list[Any] = ["a"]
    ring.append(ring)
    deep: Any = HALF
    for _ in range(100_000):
        deep = [deep]
    twice: Any = ["a"]
    for _ in range(200):  # 2^200 paths
        twice = [twice, twice]
    _calls.check_texts([ring, twice, {"tokens": [1] * 10}, 3, None, b"\xff"], "x")
    with pytest.raises(ag.InputError, match=REFUSED):
        _calls.check_texts({"a": deep}, "x")


def test_a_file_whose_name_is_no_text_is_opened(files: Files, tmp_path: Path) -> None:
    odd = tmp_path / "base\udcff.gguf"
    try:
        shutil.copy(files.base, odd)
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error!r}")
    with ag.Model(odd, n_ctx=64, n_threads=1) as model:
        assert model.tokenize("so")
    with pytest.raises(ag.InputError, match="model_path has half of a surrogate pair"):
        Llama(odd, verbose=False)


def test_what_needs_a_name_is_told(model: ag.Model) -> None:
    with pytest.raises(
        ag.InputError, match=r"Model.chat\(\) got 'You are' without a name; .*system="
    ):
        model.chat("You are")  # type: ignore[misc]
    with pytest.raises(ag.ModelError, match="Jinja template, got 'chatml'"):
        model.chat(template="chatml")
