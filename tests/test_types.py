"""The package's types as its users' checkers see them: mypy --strict on two small programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

GOOD = """
import asyncio
from pathlib import Path
from typing import assert_type

import numpy as np

import alora_gguf as ag
from alora_gguf import aio
from alora_gguf.intrinsics import Contract, load_contract


def sessions(model: ag.Model, token: ag.CancelToken) -> list[int]:
    with model.session() as session:
        timings: ag.Timings = session.append("a", cancel=token, progress=lambda done, total: None)
        session.append([1, 2], adapter="x", scale=0.5)
        reply: ag.Generation = session.generate(sampling=ag.Sampling(temperature=0.0), stop=["x"])
        for piece in reply:
            print(piece.upper(), timings.reused + 1)
        verdict: ag.Verdict = session.invoke(ag.Invocation("x", "?", schema={"type": "boolean"}))
        verdicts = session.invoke_many([ag.Invocation("x"), "y", ag.Invocation(None, [1])])
        verdict = session.invoke("x", " why?", max_tokens=3, temperature=0.5)
        print(verdict.text, verdicts[0].timings.tokens_per_second, reply.finish_reason)
        session.save(Path("s"), notes={"a": 1})
        other = session.fork()
        return other.tokens


def chats(model: ag.Model) -> str:
    options = ag.GenerateOptions(max_tokens=5, adapter="x", logprobs=2, schema={"type": "null"})
    with model.chat(
        system="s",
        documents=["one", ag.Document("two", title="t"), {"text": "three"}],
        messages=["a", {"role": "assistant", "content": "b"}, ag.Message("user", "c")],
        template_arguments={"mood": "good"},
    ) as chat:
        reply = chat.say("x", options)
        reply = chat.say("x", options, max_tokens=6, temperature=0, stop="\\n")
        assert_type(reply, ag.Reply)
        for asked in chat.say("x", intrinsics=["a", ag.IntrinsicCall("b")]).intrinsics:
            assert_type(asked.result(), ag.IntrinsicResult)
        assert_type(chat.replace(["x"], documents=["d"]), ag.Timings)
        for piece in chat.say("y", stream=True, cancel=ag.CancelToken()):
            assert_type(piece, str)
        with chat.reply(stream=True) as running:
            print(running.read(), running.timings.total, running.tokens)
        for token in reply.logprobs or ():
            assert_type(token, ag.TokenLogprob)
            tops: tuple[ag.TopLogprob, ...] = token.top
            print(token.logprob + sum(each.logprob for each in tops))
        chat.add({"role": "user", "content": "z"})
        chat.documents = ["four"]
        chat.system = None
        taken: list[ag.Message] = chat.rewind(2)
        chat.save("c")
        assert_type(model.restore("c"), ag.Chat)
        result = chat.invoke("uncertainty", {"a": "b"}, max_tokens=5, seed=1)
        assert_type(result, ag.IntrinsicResult)
        number: float = result.value["certainty"] * 2
        if result.error is not None:
            raise result.error
        call = ag.IntrinsicCall("a", {"b": "c"}, upto=1, scale=0.5, max_tokens=3)
        for each in chat.invoke_many([call, "d"]):
            print(each.name, each.value, each.timings.reuse_note, number, taken)
        return chat.fork().messages[-1].content


def contracts(model: ag.Model) -> None:
    model.set_contract("a", "io.yaml")
    model.set_contract("a", Contract.parse("model: ~"))
    contract: Contract = model.contract("a")
    print(contract.max_tokens, load_contract(Path("x")).name)
    file: ag.Loaded = model.adapters["a"]
    assert isinstance(file, ag.AdapterFile)
    print(file.rank, file.pairs, model.stats())


def steering(model: ag.Model, chat: ag.Chat, use: ag.AdapterLike) -> None:
    both = model.combine("both", {"a": 1.0, "v": 0.5})
    assert_type(both, ag.Combination)
    made = model.load_adapter("v", Path("v.gguf"), from_start=True)
    print(made.begins, made.rank, made.targets, made.invocation, made.identity, made.io_yaml)
    reply = chat.say("x", adapter={"a": 1, "v": 0.5}, scale=2)
    with model.session() as session:
        session.append([1], adapter=use)
        verdict = session.invoke({"v": 0.5})
        session.invoke_many([{"a": 1, "v": 2.0}, "v", None, ag.Invocation({"v": 1})])
        print(verdict.adapter, reply.text, session.spans[0].adapter)
    part = ag.Directions(3, "block", "add", 1.0, np.ones(64, np.float32))
    assert_type(ag.write_vector("v.gguf", [part], architecture="llama"), ag.VectorFile)


def dropin() -> None:
    with ag.Llama("m.gguf", n_ctx=512, adapters={"a": "a.gguf"}) as llm:
        answer = llm("hello", max_tokens=3)
        print(answer)
        print(llm.create_chat_completion([{"role": "user", "content": "x"}]))


async def later() -> None:
    model = await aio.call(ag.Model, "m.gguf", n_ctx=512)
    assert_type(model, ag.Model)
    chat = await aio.call(model.chat, documents=["d"])
    reply = await aio.call(chat.say, "x", stream=True)
    assert_type(reply, ag.Reply)
    async for piece in reply:
        assert_type(piece, str)
    result = await aio.call(chat.invoke, "a")
    assert_type(result, ag.IntrinsicResult)
    results = await asyncio.gather(aio.call(chat.invoke, "a"), aio.call(chat.invoke_many, ["b"]))
    print(result.text, results)


def main() -> int:
    try:
        options = ag.ContextOptions(n_ctx=512, type_k="q8_0")
        with ag.Model("m.gguf", adapters={"a": Path("a.gguf")}, options=options) as model:
            print(sessions(model, ag.CancelToken()), chats(model))
    except (ag.ModelError, ag.InputError) as error:
        base: ag.AloraError = error
        print(base)
    asyncio.run(later())
    return 0
"""

# each line with the code of its error
BAD = """
import numpy as np

import alora_gguf as ag
from alora_gguf import aio

model = ag.Model("m.gguf", n_ctx="512")  # arg-type
model = ag.Model("m.gguf", n_gpu=1)  # call-arg
chat = model.chat(documents=[3])  # list-item
chat.say(3)  # arg-type
chat.say("x", max_tokens="3")  # arg-type
chat.say("x", max_token=3)  # call-arg
chat.invoke("x", logprobs=3)  # call-arg
chat.say("x", ag.GenerateOptions(3))  # call-arg
chat.say("x", ag.GenerateOptions(schema="{}"))  # arg-type
chat.messages = []  # misc
chat.invoke("a", {"b": 3})  # dict-item
chat.invoke(["a"])  # arg-type
chat.invoke_many(3)  # arg-type
ag.IntrinsicCall("a", {}, 1)  # call-arg
ag.Message("user")  # call-arg
number: int = chat.say("x")  # assignment
text: int = chat.say("x").text  # assignment
for piece in chat.invoke("a"):  # attr-defined
    pass
chat.invoke("a").nothing  # attr-defined
ag.nothing()  # attr-defined
model.set_contract("a", 3)  # arg-type
chat.invoke("a").timings.reused = 3  # misc


async def later() -> None:
    for piece in await aio.call(chat.invoke, "a"):  # attr-defined
        pass
    await aio.call(chat.say)  # call-arg
    await aio.call(chat.say, "x", steam=True)  # call-arg
    other: ag.Chat = await aio.call(chat.invoke, "a")  # arg-type
    async for piece in chat.invoke("a"):  # attr-defined
        pass
    for letter in aio.call(chat.say, "x"):  # attr-defined
        pass
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """Lines and codes of mypy's errors in both programs."""
    folder = tmp_path_factory.mktemp("types")
    # as it is installed: cli/ and convert/ are parts of the package
    package = folder / "site" / "alora_gguf"
    package.mkdir(parents=True)
    for path in (ROOT / "alora_gguf").iterdir():
        if path.suffix in (".py", ".typed") or (path / "__init__.py").is_file():
            (package / path.name).symlink_to(path)
    for name in ("cli", "convert"):
        (package / name).symlink_to(ROOT / name)
    (folder / "good.py").write_text(GOOD)
    (folder / "bad.py").write_text(BAD)
    command = [
        sys.executable, "-m", "mypy", "--strict", "--python-version", "3.11", "--follow-imports",
        "silent", "--config-file", "", "--cache-dir", str(folder / "cache"), "--no-error-summary",
        "good.py", "bad.py",
    ]  # fmt: skip
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(folder / "site")},
    )
    assert run.stderr == ""
    out: dict[str, list[tuple[int, str]]] = {"good.py": [], "bad.py": []}
    for line in run.stdout.splitlines():
        match = re.fullmatch(r"([^:]+):(\d+): error: (.*)  \[([a-z-]+)\]", line)
        if match:
            assert match[1] in out, line
            out[match[1]].append((int(match[2]), match[4]))
        else:
            assert ": note: " in line, line
    return out


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "alora_gguf" / "py.typed").is_file()


def test_a_users_program_is_without_errors(found: dict[str, list[tuple[int, str]]]) -> None:
    assert found["good.py"] == []


def test_a_users_mistakes_are_told(found: dict[str, list[tuple[int, str]]]) -> None:
    wanted = [
        (n, line.rpartition("# ")[2])
        for n, line in enumerate(BAD.splitlines(), 1)
        if "  # " in line
    ]
    assert sorted(set(found["bad.py"])) == wanted
