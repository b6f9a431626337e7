"""What a model thinks, told from what it says: its markers, whoever began it, and what the next
turn makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import pytest

import alora_gguf as ag
from alora_gguf.chat.said import Parts
from alora_gguf.generate.calls import HERMES
from alora_gguf.generate.sampling import Sampler
from tests.support import inside, tiny_base
from tests.support.chats import GREEDY, PLAIN, saying

# as Qwen 3's: thinking is a field, written for the last turn only
_TURN = (
    "{%- for m in messages -%}{{ '<|' + m.role + '|>' }}"
    "{%- if m.role == 'assistant' and m.reasoning_content and loop.last -%}"
    "{{ 'BEGINS\n' + m.reasoning_content + '\nENDS\n\n' }}{%- endif -%}"
    "{{ m.content + '<|end|>' }}{%- endfor -%}"
)
FIELD = _TURN + "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
BEGUN = _TURN + "{%- if add_generation_prompt -%}{{ '<|assistant|>BEGINS\n' }}{%- endif -%}"
MARKERS = [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|to_think|>", "<|thought|>")]


def template(text: str, markers: tuple[str, str]) -> str:
    return text.replace("BEGINS", markers[0]).replace("ENDS", markers[1])


@contextmanager
def sampled(model: ag.Model, text: str, *, ends: bool = True) -> Iterator[None]:
    """Replies say `text`, with the control tokens in it, and end, or go on as they like."""
    left, real = [*model.tokenize(text), *(model.end_tokens[:1] if ends else ())], Sampler.sample

    def sample(self: Sampler, logits: Any) -> int:
        logits = logits.copy()
        if left:
            logits[left.pop(0)] = 1e9
        return real(self, logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "sample", sample)
        yield


@pytest.mark.parametrize("markers", MARKERS)
@pytest.mark.parametrize("control", [False, True], ids=["text", "control tokens"])
@pytest.mark.parametrize("begun", [False, True], ids=["by the model", "by the prompt"])
def test_thinking_is_told_from_what_is_said(
    tmp_path: Any, markers: tuple[str, str], control: bool, begun: bool
) -> None:
    kinds = dict.fromkeys(markers if control else (), gguf.TokenType.CONTROL)
    base = tiny_base.write_base(tmp_path / "base.gguf", markers=kinds)
    how = template(BEGUN if begun else FIELD, markers)
    with ag.Model(base, n_ctx=512, n_threads=1) as model:
        chat = model.chat(messages=["?"], template=how)
        assert inside.template(chat).thinking == markers
        head = "" if begun else f"{markers[0]}\n"
        with sampled(model, f"{head}a < b\n\nc\n{markers[1]}\n\nYes, < it.\n"):
            reply = chat.reply(sampling=GREEDY, stream=True)
            events = list(reply.events())
        assert (reply.reasoning, reply.content) == ("a < b\n\nc", "Yes, < it.\n")
        for kind, whole in (("reasoning", reply.reasoning), ("content", reply.content)):
            assert "".join(str(text) for each, text in events if each == kind) == whole
        kinds_in_order = list(dict.fromkeys(kind for kind, _ in events))
        assert kinds_in_order == ["reasoning", "content"]
        said = ag.Message("assistant", reply.content, reasoning=reply.reasoning)
        assert chat.messages[-1] == said
        chat.say("And?", max_tokens=2, sampling=GREEDY)  # earlier turns are without it
        assert "a < b" not in model.detokenize(chat.tokens, special=True)


def test_where_a_template_keeps_no_thinking_it_stays_in_what_was_said(model: ag.Model) -> None:
    chat = model.chat(messages=["?"], template=PLAIN)
    text = "<think>a</think>b"
    reply = chat.reply(saying(text))
    assert (reply.text, reply.reasoning, reply.content) == (text, "a", "b")
    assert chat.messages[-1] == ag.Message("assistant", text)
    held = chat.tokens
    chat.add("And?")
    assert chat.tokens[: len(held)] == held


def test_thinking_that_does_not_end_is_all_there_is(model: ag.Model) -> None:
    chat = model.chat(messages=["?"], template=template(FIELD, MARKERS[0]))
    reply = chat.reply(saying("<think>\nwell, </thin"))
    assert (reply.reasoning, reply.content) == ("well, </thin", "")
    assert chat.messages[-1] == ag.Message("assistant", reply.text)


@pytest.mark.parametrize(
    "text", ["", " \n", "a <think>b</think> c", "</think>", "<thinking>", " a "]
)
def test_what_is_no_thinking_is_said(text: str) -> None:
    parts = Parts(MARKERS[0], None)
    events = [each for sign in text for each in parts.feed(sign)] + parts.finish()
    assert (parts.content, parts.reasoning, parts.calls) == (text, "", [])
    assert "".join(str(piece) for _, piece in events) == text
    assert parts.whole


def test_a_call_may_have_to_wait_until_thinking_is_over(model: ag.Model) -> None:
    tool = {"function": {"name": "stop", "parameters": {"additionalProperties": False}}}
    chat = model.chat(messages=["?"], template=template(BEGUN, MARKERS[0]), tools=[tool])
    text = "Shall I <tool_call>? Yes.\n</think>"
    with sampled(model, text):
        left = len(model.tokenize(text))
        reply = chat.reply(tool_choice="stop", max_tokens=left, sampling=GREEDY, stream=True)
        reply.read()
    assert (reply.reasoning, reply.tool_calls) == ("Shall I <tool_call>? Yes.", ())
    with sampled(model, "</think>", ends=False):
        reply = chat.reply(tool_choice="stop", max_tokens=200, sampling=GREEDY)
    assert [each.name for each in reply.tool_calls] == ["stop"]
    assert (reply.reasoning, reply.content) == ("", "")


def test_calls_are_read_however_their_text_comes() -> None:
    calls = [("f", '{"a": "}\\"", "b": [{}]}', ""), ("g", "{}", "")]
    text = f"<think>x</think>\n\nSo <t.\n\n{HERMES.write(calls)}\n"
    for step in (1, 2, 3, 7, len(text)):
        parts = Parts(MARKERS[0], HERMES)
        for at in range(0, len(text), step):
            parts.feed(text[at : at + step])
        parts.finish()
        assert (parts.reasoning, parts.content) == ("x", "So <t.")
        found = [(each.name, dict(each.arguments)) for each in parts.calls]
        assert found == [("f", {"a": '}"', "b": [{}]}), ("g", {})]
        assert parts.whole
        assert parts.before == text.index("<tool_call>")
