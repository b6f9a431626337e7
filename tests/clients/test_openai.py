"""OpenAI's client."""

from __future__ import annotations

import math
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.serve import Server

from .conftest import DOCUMENTS, QUESTION, package

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
LIKELIEST: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return package("openai").OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)


def test_models(client: Any) -> None:
    listed = [each.id for each in client.models.list()]
    assert listed[:2] == ["demo", "demo:answerability"]
    assert client.models.retrieve("demo:jailbreak").alora["kind"] == "alora"


def test_chat(client: Any, said: str) -> None:
    got = client.chat.completions.create(model="demo", messages=[QUESTION], **LIKELIEST)
    assert got.choices[0].message.content == said
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.usage.prompt_tokens_details.cached_tokens >= 0


def test_streaming(client: Any, said: str) -> None:
    stream = client.chat.completions.create(
        model="demo",
        messages=[QUESTION],
        stream=True,
        stream_options={"include_usage": True},
        **LIKELIEST,
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == said
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")


def test_the_streams_helper(client: Any, said: str) -> None:
    with client.chat.completions.stream(
        model="demo", messages=[QUESTION], temperature=0, max_completion_tokens=24
    ) as stream:
        events = list(stream)
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content == said
    assert any(event.type == "content.delta" for event in events)


def test_logprobs(client: Any, model: ag.Model, said: str) -> None:
    got = client.chat.completions.create(
        model="demo", messages=[QUESTION], logprobs=True, top_logprobs=3, **LIKELIEST
    )
    content = got.choices[0].logprobs.content
    assert b"".join(bytes(each.bytes) for each in content) == said.encode()
    with model.chat(messages=[QUESTION]) as chat:
        wanted = chat.reply(logprobs=3, **LIKELIEST).logprobs
    assert wanted is not None
    assert [each.logprob for each in content] == pytest.approx(
        [each.logprob for each in wanted if each.text], abs=1e-3
    )
    assert all(len(each.top_logprobs) == 3 for each in content)


def test_structured_output(client: Any, model: ag.Model) -> None:
    pydantic = package("pydantic")

    class Answer(pydantic.BaseModel):
        n: int
        ok: bool

    got = client.chat.completions.parse(
        model="demo", messages=[QUESTION], response_format=Answer, temperature=0, max_tokens=96
    )
    parsed = got.choices[0].message.parsed
    assert isinstance(parsed.n, int)
    assert isinstance(parsed.ok, bool)
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    same = client.chat.completions.create(
        model="demo", messages=[QUESTION], response_format=form, **LIKELIEST
    )
    with model.chat(messages=[QUESTION]) as chat:
        wanted = chat.reply(schema=SCHEMA, **LIKELIEST).text
    assert same.choices[0].message.content == wanted


def test_several_replies(client: Any, said: str) -> None:
    got = client.chat.completions.create(model="demo", messages=[QUESTION], n=3, **LIKELIEST)
    assert [each.message.content for each in got.choices] == [said] * 3


def test_adapters_intrinsics_and_verdicts(client: Any, model: ag.Model) -> None:
    extra = {"documents": DOCUMENTS, "verdicts": ["hallucination", "uncertainty"]}
    got = client.chat.completions.create(
        model="demo", messages=[QUESTION], extra_body=extra, **LIKELIEST
    )
    with model.chat(messages=[QUESTION], documents=DOCUMENTS) as chat:
        chat.reply(**LIKELIEST)
        wanted = chat.invoke_many(["hallucination", "uncertainty"])
    for each, result in zip(got.alora["verdicts"], wanted, strict=True):
        assert each["value"] == pytest.approx(result.value, abs=1e-3)
    by_adapter = client.chat.completions.create(
        model="demo:jailbreak", messages=[QUESTION], **LIKELIEST
    )
    with model.chat(messages=[QUESTION]) as chat:
        assert (
            by_adapter.choices[0].message.content
            == chat.reply(adapter="jailbreak", **LIKELIEST).text
        )


def test_completions(client: Any, model: ag.Model) -> None:
    prompts = ["The ferry to Harwich", "The library opens at"]
    got = client.completions.create(model="demo", prompt=prompts, logprobs=2, **LIKELIEST)
    for choice, prompt in zip(got.choices, prompts, strict=True):
        with model.session() as session:
            tokens = model.tokenize(prompt, add_special=True)
            wanted = session.generate(prompt=tokens, **LIKELIEST).read()
        assert choice.text == wanted
        assert "".join(choice.logprobs.tokens) == wanted
    assert got.usage.completion_tokens > 0
    stream = client.completions.create(model="demo", prompt=prompts, stream=True, **LIKELIEST)
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in got.choices]


def test_a_prompts_own_logprobs(client: Any, model: ag.Model) -> None:
    prompt = "The ferry to Harwich leaves"
    got = client.completions.create(
        model="demo", prompt=prompt, echo=True, logprobs=1, max_tokens=0, temperature=0
    )
    scores = got.choices[0].logprobs
    assert "".join(scores.tokens) == got.choices[0].text == prompt
    assert all(each is None or each <= 0 for each in scores.token_logprobs)
    assert sum(each is not None for each in scores.token_logprobs) >= len(scores.tokens) - 1


def test_embeddings(client: Any, model: ag.Model) -> None:
    texts = ["The ferry leaves at nine.", "Good morning."]
    got = client.embeddings.create(model="demo", input=texts)
    wanted = model.embed(texts)
    for each, vector in zip(got.data, wanted.vectors, strict=True):
        assert each.embedding == pytest.approx(list(map(float, vector)), abs=1e-4)
        assert math.isclose(sum(x * x for x in each.embedding), 1, abs_tol=1e-3)
    assert got.usage.prompt_tokens == sum(wanted.n_tokens)


def test_responses(client: Any, said: str) -> None:
    asked: dict[str, Any] = {"model": "demo", "input": QUESTION["content"], "temperature": 0,
                             "max_output_tokens": 24}  # fmt: skip
    got = client.responses.create(**asked)
    assert got.output_text == said
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens
    events = list(client.responses.create(stream=True, **asked))
    text = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert text == said
    assert events[0].type == "response.created"
    assert events[-1].response.output_text == said
    turns = [QUESTION, {"role": "assistant", "content": said}, {"role": "user", "content": "Why?"}]
    again = client.responses.create(**{**asked, "input": turns, "instructions": "Be short."})
    assert again.status in ("completed", "incomplete")


def test_responses_parse(client: Any) -> None:
    pydantic = package("pydantic")

    class Answer(pydantic.BaseModel):
        ok: bool

    got = client.responses.parse(
        model="demo", input=[QUESTION], text_format=Answer, temperature=0, max_output_tokens=96
    )
    assert isinstance(got.output_parsed.ok, bool)


def test_errors_are_its_own(client: Any) -> None:
    openai = package("openai")
    with pytest.raises(openai.NotFoundError, match="did you mean answerability"):
        client.chat.completions.create(model="demo:answerabilty", messages=[QUESTION])
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=[QUESTION], temperature=-1)
    assert (refused.value.code, refused.value.param) == ("input", "temperature")
