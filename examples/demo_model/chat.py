"""The words between the words: roles, control tokens and the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

START, END_ROLE, END_TEXT = "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"
CONTROL_TOKENS: Final = (END_TEXT, START, END_ROLE)

INTRINSICS: Final = (
    "answerability",
    "uncertainty",
    "query_rewrite",
    "hallucination",
    "jailbreak",
)

# Granite 3's, with documents as roles of their own. `documents` are dicts with `text` and,
# optionally, `doc_id`.
TEMPLATE: Final = """\
{%- for message in messages if message.role == 'system' -%}
{{- '<|start_of_role|>system<|end_of_role|>' + message.content + '<|end_of_text|>\\n' -}}
{%- endfor -%}
{%- for document in documents or [] -%}
{{- '<|start_of_role|>document ' + (document.doc_id or loop.index) | string -}}
{{- '<|end_of_role|>' + document.text + '<|end_of_text|>\\n' -}}
{%- endfor -%}
{%- for message in messages if message.role != 'system' -%}
{{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content -}}
{{- '<|end_of_text|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_of_role|>assistant<|end_of_role|>' -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Message:
    """A turn: `role` is system, user or assistant."""

    role: str
    content: str


def turn(role: str, content: str) -> str:
    """A whole turn as text with control tokens."""
    return f"{START}{role}{END_ROLE}{content}{END_TEXT}\n"


def render(
    documents: Sequence[str], messages: Sequence[Message], *, generation_prompt: bool = False
) -> str:
    """What TEMPLATE makes of a conversation: system message, documents, the other turns."""
    system = [turn(m.role, m.content) for m in messages if m.role == "system"]
    numbered = [turn(f"document {i}", text) for i, text in enumerate(documents, 1)]
    turns = [turn(m.role, m.content) for m in messages if m.role != "system"]
    prompt = role_marker("assistant") if generation_prompt else ""
    return "".join([*system, *numbered, *turns, prompt])


def role_marker(role: str) -> str:
    """What begins a turn. An intrinsic's invocation is the marker of a role of its name."""
    return f"{START}{role}{END_ROLE}"
