"""`intrinsic=`: answers about a request's conversation, equal to a chat's; the cells stay."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.demo.script import DOCUMENTS
from alora_gguf.llama import Llama

MESSAGES: Any = [{"role": "user", "content": "When does the Bomel library open?"}]
CONTRACT = """
model: ~
response_format: '{"type": "string", "enum": ["yes", "no"]}'
transformations:
  - {type: likelihood, input_path: [], categories_to_values: {"yes": 1.0, "no": 0.0}}
"""


@pytest.fixture
def llm() -> Iterator[Llama]:
    adapters = {
        name: demo.adapter_path(name) for name in ("answerability", "query_rewrite", "jailbreak")
    }
    with Llama(
        demo.base_path(), n_ctx=1024, verbose=False, n_threads=1, adapters=adapters
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def chats() -> dict[str, Any]:
    """What a chat says."""
    adapters = demo.adapter_paths()
    with ag.Model(demo.base_path(), adapters=adapters, n_ctx=1024, n_threads=1) as model:
        chat = model.chat(documents=DOCUMENTS, messages=MESSAGES)
        return {name: chat.invoke(name).value for name in adapters}


def content(answer: Any) -> Any:
    return json.loads(answer["choices"][0]["message"]["content"])


def test_a_chats_answer(llm: Llama, chats: dict[str, Any]) -> None:
    answer: Any = llm.create_chat_completion(
        MESSAGES, documents=DOCUMENTS, intrinsic="answerability"
    )
    value = content(answer)
    assert value["answer"] == chats["answerability"]["answer"]
    assert value["answerable"] == pytest.approx(chats["answerability"]["answerable"], abs=1e-3)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    rewritten: Any = llm.create_chat_completion(
        MESSAGES, documents=DOCUMENTS, intrinsic="query_rewrite", temperature=0.0, max_tokens=500
    )
    assert content(rewritten) == chats["query_rewrite"]


def test_the_conversation_is_read_once_and_stays(llm: Llama) -> None:
    ask: Any = {"messages": MESSAGES, "documents": DOCUMENTS}
    plain: Any = llm.create_chat_completion(**ask, temperature=0.0)
    n = llm.last_timings.evaluated + llm.last_timings.reused
    for name in ("answerability", "jailbreak", "query_rewrite"):
        llm.create_chat_completion(**ask, intrinsic=name)
        timings = llm.last_timings
        assert timings.reused >= n - 3  # all but what begins the assistant's turn
        assert timings.evaluated < 12
    again: Any = llm.create_chat_completion(**ask, temperature=0.0)
    assert again["choices"] == plain["choices"]
    # a conversation that goes on keeps what the model said in its own tokens
    said = [*MESSAGES, plain["choices"][0]["message"], {"role": "user", "content": "Who runs it?"}]
    before = llm.n_tokens
    llm.create_chat_completion(said, documents=DOCUMENTS, intrinsic="answerability")
    assert llm.last_timings.reused >= before


def test_streaming_gives_the_same(llm: Llama) -> None:
    ask: Any = {"messages": MESSAGES, "documents": DOCUMENTS, "intrinsic": "jailbreak"}
    whole = content(llm.create_chat_completion(**ask))
    chunks: list[Any] = list(llm.create_chat_completion(**ask, stream=True))
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert json.loads(text) == whole
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_after_a_prompt(llm: Llama) -> None:
    prompt = "<|start_of_role|>user<|end_of_role|>When does it open?<|end_of_text|>\n"
    answer: Any = llm(prompt, intrinsic="jailbreak")
    chat: Any = llm.create_chat_completion(
        [{"role": "user", "content": "When does it open?"}], intrinsic="jailbreak"
    )
    assert json.loads(answer["choices"][0]["text"]) == content(chat)
    assert answer["object"] == "text_completion"
    (chunk,) = llm.create_completion(prompt, intrinsic="jailbreak", stream=True)
    assert chunk["choices"][0]["text"] == answer["choices"][0]["text"]  # type: ignore[index]
    tokens = llm.tokenize(prompt.encode(), add_bos=False, special=True)
    invocation = llm.adapters["jailbreak"].invocation
    for ids in (tokens, [*tokens, *invocation]):
        same: Any = llm.create_completion(ids, intrinsic="jailbreak")
        assert same["choices"] == answer["choices"]


def test_arguments_and_contracts_of_ones_own(llm: Llama, tmp_path: Path) -> None:
    file = tmp_path / "io.yaml"
    file.write_text(CONTRACT + "instruction: 'Is it {what}?'\n")
    llm.load_contract("jailbreak", file)
    answer: Any = llm.create_chat_completion(
        MESSAGES, intrinsic="jailbreak", intrinsic_arguments={"what": "polite"}
    )
    assert 0 <= content(answer) <= 1
    with pytest.raises(ag.InputError, match="needs the argument what"):
        llm.create_chat_completion(MESSAGES, intrinsic="jailbreak")
    with pytest.raises(ag.InputError, match="need a conversation in messages, not a prompt"):
        llm("Hello", intrinsic="jailbreak", intrinsic_arguments={"what": "polite"})


@pytest.mark.parametrize(
    "option",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"adapter": "jailbreak"},
        {"stop": ["x"]},
        {"logprobs": True},
        {"logit_bias": {3: 1.0}},
    ],
)
def test_what_a_contract_decides(llm: Llama, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ag.InputError, match=f"^{name}= cannot be used with intrinsic="):
        llm.create_chat_completion(MESSAGES, intrinsic="jailbreak", **option)


def test_what_is_refused(llm: Llama, paths: dict[str, Path]) -> None:
    with pytest.raises(ag.UnknownAdapterError, match="no adapter named 'certainty'"):
        llm.create_chat_completion(MESSAGES, intrinsic="certainty")
    with pytest.raises(ag.InputError, match="the chat template has no use for 'mood'"):
        llm.create_chat_completion(
            MESSAGES, intrinsic="jailbreak", chat_template_kwargs={"mood": "good"}
        )
    with (
        Llama(paths["tiny"], n_ctx=128, verbose=False, n_threads=1) as tiny,
        pytest.raises(ag.ModelError, match=r"has no chat template"),
    ):
        tiny.create_chat_completion(MESSAGES, intrinsic="x")
