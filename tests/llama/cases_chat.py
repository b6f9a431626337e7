"""More cases: chats, JSON mode, tools, chat formats."""

from __future__ import annotations

from typing import Any

from .cases import QUESTION, Make, case

MESSAGES = [
    {"role": "system", "content": "You answer questions about a town."},
    {"role": "user", "content": QUESTION},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a place up",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "maxLength": 12}},
                "required": ["place"],
            },
        },
    }
]


@case
def chat(make: Make) -> Any:
    llm = make("demo")
    return [
        llm.create_chat_completion(messages=MESSAGES, temperature=0, max_tokens=24),
        llm.create_chat_completion(MESSAGES, seed=4, temperature=0.8, max_tokens=24),
        llm.create_chat_completion(MESSAGES, seed=4),
        list(llm.create_chat_completion(MESSAGES, stream=True, temperature=0, max_tokens=24)),
        llm.create_chat_completion(MESSAGES, stop=["library"], temperature=0, max_tokens=24),
    ]


@case
def chat_json_mode(make: Make) -> Any:
    llm = make("demo")
    free = {"type": "json_object"}
    options = {"temperature": 0, "max_tokens": 40}
    return [
        llm.create_chat_completion(MESSAGES, response_format=free, **options),
        llm.create_chat_completion(MESSAGES, response_format={"type": "text"}, **options),
    ]


@case
def chat_logprobs(make: Make) -> Any:
    llm = make("demo", logits_all=True)
    options = {"logprobs": True, "top_logprobs": 3, "temperature": 0, "max_tokens": 6}
    return [
        llm.create_chat_completion(MESSAGES, **options),
        list(llm.create_chat_completion(MESSAGES, stream=True, **options)),
    ]


@case
def tool_of_choice(make: Make) -> Any:
    choice = {"type": "function", "function": {"name": "look_up"}}
    results = []
    for chat_format in (None, "chatml-function-calling"):
        llm = make("demo", chat_format=chat_format)
        options = {"tools": TOOLS, "tool_choice": choice, "temperature": 0, "max_tokens": 40}
        results += [
            llm.create_chat_completion(MESSAGES, **options),
            list(llm.create_chat_completion(MESSAGES, stream=True, **options)),
            llm.create_chat_completion(
                MESSAGES,
                functions=[TOOLS[0]["function"]],
                function_call={"name": "look_up"},
                temperature=0,
                max_tokens=40,
            ),
        ]
    return results


@case
def automatic_tools(make: Make) -> Any:
    llm = make("demo", chat_format="chatml-function-calling", n_ctx=768)
    results = [
        llm.create_chat_completion(MESSAGES, temperature=0, max_tokens=24),
        llm.create_chat_completion(
            MESSAGES, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=24
        ),
    ]
    call, end = (llm.tokenize(text, add_bos=False)[-1] for text in (b"f", b"<"))
    seen: list[int] = []

    def calls_one_function(_: Any, scores: Any) -> Any:
        """What the demo model would never do: a function call, then "<|im_end|>"."""
        seen.append(1)
        scores[call if len(seen) == 1 else end] += 50
        return scores

    for processors in (None, [calls_one_function]):
        answer = llm.create_chat_completion(
            MESSAGES, tools=TOOLS, tool_choice="auto", logits_processor=processors, temperature=0
        )
        results.append(answer)
    return results


@case
def named_chat_formats(make: Make) -> Any:
    results = []
    for name in ("llama-2", "chatml", "vicuna", "zephyr", "alpaca", "gemma"):
        llm = make("tiny", chat_format=name)
        results.append(llm.create_chat_completion(MESSAGES, seed=1, max_tokens=8))
    return [results, make("tiny").chat_format, make("demo").chat_format]


@case
def registered_chat_format(make: Make) -> Any:
    from llama_cpp import llama_chat_format

    def formatter(messages: Any, **keywords: Any) -> Any:
        text = "/".join(m["content"] for m in messages)
        return llama_chat_format.ChatFormatterResponse(prompt=text, stop="z")

    handler = llama_chat_format.chat_formatter_to_chat_completion_handler(formatter)
    llm = make("tiny", chat_handler=handler)
    return llm.create_chat_completion(MESSAGES, seed=1, max_tokens=8)
