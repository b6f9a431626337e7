"""Adapters on the drop-in: the same text as the Session API gives, in every form of a call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.llama import Llama
from examples.demo_model.chat import turn
from tests.support import steered
from tests.support.files import EXACT, Files

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
PAGE = "The Bomel library opens at 9:30. It is in Castle Street."
QUESTION = "Who runs the Bomel library?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def llm(files: Files) -> Iterator[Llama]:
    adapters = {"sure": files.alora, "other": files.other, "lora": files.lora}
    with Llama(
        files.base, n_ctx=1024, type_k=0, type_v=0, verbose=False, n_threads=1, adapters=adapters
    ) as llm:
        yield llm


@pytest.fixture
def chatty() -> Iterator[Llama]:
    with Llama(
        demo.base_path(), n_ctx=1024, verbose=False, n_threads=1, adapters=demo.adapter_paths()
    ) as llm:
        yield llm


def expected(files: Files, prompt: list[int], adapter: str | None, scale: float = 1.0) -> str:
    with files.model(options=EXACT) as model, model.session() as session:
        session.sync(prompt, adapter=adapter, scale=scale)
        return session.generate(
            max_tokens=12, sampling=ag.Sampling(temperature=0.0), adapter=adapter, scale=scale
        ).read()


@pytest.mark.parametrize(
    ("adapter", "scale"), [("sure", 1.0), ("other", 1.0), ("sure", 0.5), ("lora", 1.0), (None, 1.0)]
)
def test_text_is_that_of_a_session(
    llm: Llama, files: Files, adapter: str | None, scale: float
) -> None:
    prompt = [*llm.tokenize(b"the rain in the plain"), *files.invocation]
    text = expected(files, prompt, adapter, scale)
    options = {**GREEDY, "adapter": adapter, "adapter_scale": scale}
    whole = clean(llm(prompt, **options)["choices"][0]["text"])
    assert whole.startswith(clean(text))
    assert len(whole) - len(clean(text)) <= 3  # as stock does, max_tokens waits for a character
    chunks = llm.create_completion(prompt, stream=True, **options)
    assert clean("".join(c["choices"][0]["text"] for c in chunks)) == whole
    tokens = llm.generate(prompt, temp=0.0, adapter=adapter, adapter_scale=scale)
    taken = [next(tokens) for _ in range(12)]
    assert clean(llm.detokenize(taken).decode("utf-8", "ignore")) == clean(text)


def clean(text: str) -> str:
    """Without what stands for broken characters; how many there are is a matter of taste."""
    return text.replace("\ufffd", "")


def test_vectors_act_on_the_reply(llm: Llama, files: Files, tmp_path: Path) -> None:
    vectors = steered.write_all(tmp_path)
    for name, path in vectors.items():
        llm.load_adapter(name, path)
    prompt = [*llm.tokenize(b"the rain in the plain"), *files.invocation]
    n = len(prompt)
    uses: list[tuple[Any, float]] = [
        ("add", 2.0), ({"add": 1.0, "out": 0.5}, 1.0), ({"sure": 1.0, "norm": 1.0}, 1.5),
        ({"lora": 0.5, "add": 1.0}, 1.0),
    ]  # fmt: skip
    llm(prompt, **GREEDY)
    for adapter, scale in uses:
        with files.model(options=EXACT) as model, model.session() as session:
            for name, path in vectors.items():
                model.load_adapter(name, path)
            session.append(prompt)
            reply = session.generate(
                max_tokens=12,
                sampling=ag.Sampling(temperature=0.0),
                adapter=adapter,
                scale=scale,
            )
            text = reply.read()
        whole = llm(prompt, adapter=adapter, adapter_scale=scale, **GREEDY)["choices"][0]["text"]
        assert clean(whole).startswith(clean(text))
        assert llm.last_timings.reused == (n - 1 if "sure" not in adapter else n - 9) * (
            "lora" not in adapter
        )
        sequence = llm._sequence
        spans, row = sequence.cached.spans, sequence.last_logits().copy()
        sequence.logits = None  # as where a cache was cut back
        llm.sample(temp=0.0)
        assert sequence.cached.spans == spans
        assert np.allclose(row, sequence.last_logits(), atol=1e-4)
    llm(prompt, adapter={"add": 1.0, "out": 1.0}, **GREEDY)
    saved = llm.save_state()
    llm.unload_adapter("out")
    with pytest.raises(ag.SavedSessionError, match="'out'"):
        llm.load_state(saved)
    llm.load_adapter("other name", vectors["out"])
    llm.load_state(saved)
    with pytest.raises(ag.UnknownAdapterError, match="'nope'"):
        llm(prompt, adapter={"nope": 1.0}, **GREEDY)


def test_a_mapping_that_is_changed_meanwhile_changes_nothing(llm: Llama, tmp_path: Path) -> None:
    llm.load_adapter("add", steered.write_all(tmp_path)["add"])
    given = {"add": 1.0}
    tokens = llm.generate(llm.tokenize(b"the rain in the plain"), adapter=given, temp=0.0)
    next(tokens)
    given["add"] = 500.0
    next(tokens)
    assert llm._sequence.cached.spans[-1][1].scale == 1.0


def test_a_stream_keeps_its_slot(llm: Llama, files: Files, tmp_path: Path) -> None:
    """What several come to is looked up and given a slot once, not for each token."""
    vectors = steered.write_all(tmp_path)
    both = {"add": 1.0, "out": 0.5}
    for name in both:
        llm.load_adapter(name, vectors[name])
    bank, prompt = llm._runtime.bank, llm.tokenize(b"the rain in the plain")
    stream = llm.generate(prompt, temp=0.0, adapter=both)
    next(stream)
    (kept,) = bank._mixed.values()
    next(stream)
    next(stream)
    assert next(iter(bank._mixed.values())) is kept
    assert kept.users == 1
    llm(prompt, **GREEDY)  # ends it, whoever still has it
    assert not bank._mixed
    llm.unload_adapter("add")
    with pytest.raises(ag.InputError, match="ended by another call"):
        next(stream)
    assert not +bank._in_use
    stream = llm.generate(prompt, temp=0.0, adapter={"out": 1.0})
    next(stream)
    assert +bank._in_use == {"out": 1}
    del stream
    assert not +bank._in_use


def test_switching_reuses_what_the_base_computed(llm: Llama, files: Files) -> None:
    text = llm.tokenize(b"the rain in the plain, a long prefix that is computed once")
    prompt = [*text, *files.invocation]
    answers = [llm(prompt, adapter=name, **GREEDY) for name in ("sure", "other", None, "sure")]
    assert llm.last_timings.reused == len(text)
    assert llm.last_timings.generated == 12
    assert answers[0]["choices"] == answers[3]["choices"]
    assert len({a["choices"][0]["text"] for a in answers}) == 3
    llm(prompt, adapter="lora", **GREEDY)
    assert llm.last_timings.reused == 0


def test_loading_and_unloading(llm: Llama, files: Files) -> None:
    prompt = [*llm.tokenize(b"the rain"), *files.invocation]
    with pytest.raises(ag.AdapterInUseError, match="loaded already"):
        llm.load_adapter("sure", files.other)
    before = llm(prompt, adapter="sure", **GREEDY)
    llm.unload_adapter("sure")
    assert set(llm.adapters) == {"other", "lora"}
    with pytest.raises(ag.UnknownAdapterError):
        llm(prompt, adapter="sure", **GREEDY)
    llm.load_adapter("again", files.alora)
    assert llm(prompt, adapter="again", **GREEDY)["choices"] == before["choices"]
    with pytest.raises(ag.AdapterError):
        llm.load_adapter("bad", files.base)


def test_unloading_ends_a_stream_that_uses_it(llm: Llama, files: Files) -> None:
    prompt = [*llm.tokenize(b"the rain"), *files.invocation]
    stream = llm(prompt, adapter="sure", stream=True, **GREEDY)
    next(stream)
    llm.unload_adapter("sure")
    with pytest.raises(ag.InputError, match="ended by another call"):
        list(stream)


def test_a_stream_left_alone_uses_no_adapter(llm: Llama, files: Files) -> None:
    prompt = [*llm.tokenize(b"the rain"), *files.invocation]
    plain = llm(prompt, **GREEDY)
    stream = llm(prompt, adapter="sure", stream=True, **GREEDY)
    next(stream)
    del stream
    assert llm(prompt, **GREEDY)["choices"] == plain["choices"]


def test_a_prompt_without_the_invocation(llm: Llama) -> None:
    with pytest.raises(ag.InvocationNotFoundError):
        llm("the rain", adapter="sure", **GREEDY)
    assert llm("the rain", **GREEDY)["choices"]


def test_logits_all_with_an_adapter(files: Files) -> None:
    options: dict[str, Any] = {
        "n_ctx": 512,
        "verbose": False,
        "n_threads": 1,
        "adapters": {"sure": files.alora},
    }
    with Llama(files.base, logits_all=True, **options) as llm:
        prompt = [*llm.tokenize(b"the rain in"), *files.invocation]
        whole = llm(prompt, adapter="sure", logprobs=2, echo=True, **GREEDY)
        rows = llm._scores.shape[0]
        assert rows == llm.n_tokens == len(prompt) + 11
    with Llama(files.base, **options) as llm:
        again = llm(prompt, adapter="sure", logprobs=2, echo=True, **GREEDY)
    one, other = (a["choices"][0]["logprobs"]["token_logprobs"] for a in (whole, again))
    assert one[0] is other[0] is None
    assert one[1:] == pytest.approx(other[1:], abs=1e-2)  # read in batches of another shape


# Chats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", demo.INTRINSICS)
def test_in_a_chat_the_invocation_takes_the_markers_place(chatty: Llama, name: str) -> None:
    text = turn("document 1", PAGE) + turn("user", QUESTION) + demo.invocation_of(name)
    with (
        ag.Model(
            demo.base_path(),
            n_ctx=1024,
            adapters=demo.adapter_paths(),
            options=ag.ContextOptions(flash_attn="off"),
        ) as model,
        model.session() as session,
    ):
        session.append(text, adapter=name)
        wanted = session.generate(
            max_tokens=24, sampling=ag.Sampling(temperature=0.0), adapter=name
        ).read()
    options = {"temperature": 0.0, "max_tokens": 24, "documents": [PAGE], "adapter": name}
    answer = chatty.create_chat_completion(MESSAGES, **options)
    assert answer["choices"][0]["message"]["content"] == wanted
    assert answer["usage"]["prompt_tokens"] == len(chatty.tokenize(text.encode(), special=True))
    chunks = chatty.create_chat_completion(MESSAGES, stream=True, **options)
    texts = [c["choices"][0]["delta"].get("content") or "" for c in chunks]
    assert "".join(texts) == wanted


def test_an_invocation_in_the_last_turn_counts_and_one_before_does_not(chatty: Llama) -> None:
    marker = demo.invocation_of("uncertainty")
    chatty._special_tokens_in_text = True
    plain = chatty.create_chat_completion(MESSAGES, adapter="uncertainty", max_tokens=1)
    typed = [{"role": "user", "content": f"{QUESTION} {marker}"}]
    there = chatty.create_chat_completion(typed, adapter="uncertainty", max_tokens=1)
    bare = chatty.create_chat_completion(typed, max_tokens=1)
    assert there["usage"]["prompt_tokens"] == bare["usage"]["prompt_tokens"]  # marker and all
    earlier = [*typed, {"role": "assistant", "content": "No."}, *MESSAGES]
    late = chatty.create_chat_completion(earlier, adapter="uncertainty", max_tokens=1)
    text = "".join(turn(m["role"], m["content"]) for m in earlier) + marker
    assert late["usage"]["prompt_tokens"] == len(chatty.tokenize(text.encode(), special=True))
    assert plain["usage"]["prompt_tokens"] < late["usage"]["prompt_tokens"]


def test_an_invocation_that_is_only_quoted_does_not_count(chatty: Llama) -> None:
    marker = demo.invocation_of("uncertainty")
    typed = [{"role": "user", "content": f"{QUESTION} {marker}"}]
    chatty.create_chat_completion(typed, adapter="uncertainty", max_tokens=1)
    own = chatty.tokenize(marker.encode(), add_bos=False, special=True)
    read = chatty._input_ids.tolist()
    assert sum(read[i : i + len(own)] == own for i in range(len(read))) == 1


def test_a_named_format_cannot_lose_its_marker(files: Files) -> None:
    with Llama(
        files.base,
        n_ctx=256,
        chat_format="chatml",
        verbose=False,
        n_threads=1,
        adapters={"s": files.alora},
    ) as llm:
        with pytest.raises(ag.InvocationNotFoundError):
            llm.create_chat_completion(MESSAGES, adapter="s", max_tokens=1)
        typed = [{"role": "user", "content": "the <certainty>"}]
        assert llm.create_chat_completion(typed, adapter="s", max_tokens=1)["choices"]


def test_a_contract_that_cannot_be_used_is_told(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contract = "model: ~\ntransformations: ~\nresponse_format: {format: isbn, type: string}"
    keys = {"alora.io_yaml": contract}
    path = files.write_adapter(tmp_path / "a.gguf", invocation=files.invocation, keys=keys)
    with Llama(files.base, n_ctx=256, verbose=False, n_threads=1, adapters={"a": path}) as llm:
        llm.load_adapter("b", path)
        with pytest.raises(ag.ContractError, match="Unknown format: isbn"):
            llm("x", intrinsic="a", **GREEDY)
        assert llm([*llm.tokenize(b"x"), *files.invocation], adapter="a", **GREEDY)["choices"]
    told = [record.message for record in caplog.records if record.name == "alora_gguf"]
    assert [text.endswith("Unknown format: isbn") for text in told] == [True, True]
