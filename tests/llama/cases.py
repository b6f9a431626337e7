"""What programs do with a llama_cpp.Llama, as functions of a way to make one: run on the stock
class in a process of its own (stock_worker.py) and on ours, and compared.

Nothing here knows which of the two it has. Results are what JSON holds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Make = Callable[..., Any]
"""make("demo" or "tiny", **keywords) opens a model."""
Case = Callable[[Make], Any]

CASES: dict[str, Case] = {}
QUESTION = "Where is the Bomel library?"
PAGE = "The Bomel library opens at 9:30. It is in Castle Street."
PROMPT = (
    f"<|start_of_role|>document 1<|end_of_role|>{PAGE}<|end_of_text|>\n"
    f"<|start_of_role|>user<|end_of_role|>{QUESTION}<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>"
)


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def simple(name: str, model: str = "demo", **keywords: Any) -> None:
    """A case of one completion, whole and in chunks."""

    def run(make: Make) -> Any:
        llm = make(model)
        prompt = keywords.get("prompt", PROMPT)
        rest = {k: v for k, v in keywords.items() if k != "prompt"}
        whole = llm(prompt, **rest)
        chunks = list(llm.create_completion(prompt, stream=True, **rest))
        if model == "tiny":
            # stock's last chunks lose characters that are split over tokens, which random weights
            # are full of; test_completions.py says what ours must hold
            text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
            return [whole, "".join(c for c in text if c < "\x7f"), chunks[0], chunks[-1]]
        return [whole, chunks]

    CASES[name] = run


GREEDY = {"temperature": 0.0, "max_tokens": 24}

simple("completion_greedy", **GREEDY)
simple("completion_default_options")
for seed in (1, 2, 3, 4):
    simple(f"completion_seed_{seed}", seed=seed, temperature=0.8, max_tokens=24)
    simple(f"completion_hot_seed_{seed}", seed=seed, temperature=1.7, max_tokens=24, min_p=0.0)
simple("completion_as_many_as_fit", temperature=0.0, max_tokens=None)
simple("completion_one_token", temperature=0.0, max_tokens=1)
simple("stop_text", stop="Street", **GREEDY)
simple("stop_list", stop=["Street", " Castle"], **GREEDY)
simple("stop_never_met", stop=["Streetx", "xyz"], **GREEDY)
simple("stop_at_once", stop=["The"], **GREEDY)
simple("echo", echo=True, **GREEDY)
simple("model_name", model="demo", echo=False, **GREEDY)
simple("logit_bias", logit_bias={"50": 100.0}, temperature=0.0, max_tokens=3)
simple("logit_bias_ban", logit_bias={42: -100.0, 310: -50}, seed=5, max_tokens=12)
simple("penalties", seed=1, repeat_penalty=1.5, frequency_penalty=0.4, presence_penalty=0.3,
       max_tokens=24)  # fmt: skip
simple("greedy_penalties", temperature=0.0, repeat_penalty=1.9, max_tokens=24)
simple("mirostat_1", mirostat_mode=1, mirostat_tau=4.0, mirostat_eta=0.2, seed=1, max_tokens=24)
simple("mirostat_2", mirostat_mode=2, mirostat_tau=4.0, mirostat_eta=0.2, seed=1, max_tokens=24)
simple("negative_temperature", temperature=-1.0, seed=1, max_tokens=24)
simple("top_k_1", top_k=1, seed=1, max_tokens=12)
simple("typical_p", typical_p=0.5, min_p=0.0, seed=1, temperature=1.5, max_tokens=24)
simple("top_p_low", top_p=0.3, top_k=0, seed=1, temperature=1.5, max_tokens=24)
for seed in range(8):  # random weights: bytes that make no characters, control tokens
    simple(f"tiny_{seed}", "tiny", prompt="the rain", seed=seed, temperature=1.0, max_tokens=30)
    simple(f"tiny_hot_{seed}", "tiny", prompt="über all", seed=seed, temperature=3.0, top_k=0,
           top_p=1.0, min_p=0.0, max_tokens=40)  # fmt: skip
simple("tiny_empty_prompt", "tiny", prompt="", seed=1, max_tokens=10)
simple("tiny_tokens", "tiny", prompt=[5, 6, 7, 8, 9], seed=1, max_tokens=10)
simple("tiny_stop", "tiny", prompt="the rain", seed=1, max_tokens=40, stop=["a", "the", "e"])


@case
def seeds_of_calls_without_one(make: Make) -> Any:
    llm = make("demo", seed=42)
    first = [llm(PROMPT, max_tokens=12, temperature=1.5)["choices"][0]["text"] for _ in range(4)]
    llm.set_seed(7)
    return [first, llm(PROMPT, max_tokens=12, temperature=1.5), make("demo")(PROMPT)]


@case
def conversation_that_grows(make: Make) -> Any:
    """Prefixes are reused: each prompt begins with the last one and its answer."""
    llm = make("demo", n_batch=16)
    text, answers = PROMPT, []
    for seed in range(6):
        answer = llm(text, max_tokens=20, temperature=0.8, seed=seed)
        answers.append(answer)
        text += answer["choices"][0]["text"] + "<|end_of_text|>\n"
        text += "<|start_of_role|>user<|end_of_role|>When does it open?<|end_of_text|>\n"
        text += "<|start_of_role|>assistant<|end_of_role|>"
    again = llm(text[: len(PROMPT)], max_tokens=20, temperature=0.8, seed=1)
    return [answers, again, llm(text[: len(PROMPT)], max_tokens=1, seed=1), llm(PROMPT, seed=9)]


@case
def logprobs(make: Make) -> Any:
    llm = make("demo", logits_all=True)
    return [
        llm(PROMPT, logprobs=3, **GREEDY),
        llm(PROMPT, logprobs=0, **GREEDY),
        llm(PROMPT, logprobs=5, seed=3, temperature=1.5, max_tokens=10, stop=["Castle"]),
        list(llm(PROMPT, logprobs=2, stream=True, **GREEDY)),
        list(llm(PROMPT, logprobs=2, stream=True, stop=["Street"], **GREEDY)),
    ]


@case
def tiny_logprobs(make: Make) -> Any:
    llm = make("tiny", logits_all=True)
    return [
        llm("the rain in", logprobs=3, seed=1, max_tokens=12),
        llm("the rain in", logprobs=3, echo=True, seed=2, max_tokens=6),
        llm("the rain is", logprobs=2, echo=True, temperature=0, max_tokens=1),
        flat(llm("the rain in", logprobs=3, seed=4, max_tokens=12, stream=True)),
    ]


def flat(chunks: Any) -> Any:
    """The log-probabilities of a stream, in whichever chunks they came."""
    found = [chunk["choices"][0]["logprobs"] or {} for chunk in chunks]
    names = ("tokens", "token_logprobs", "top_logprobs")
    return [[value for one in found for value in one.get(name, ())] for name in names]


@case
def stopping_criteria(make: Make) -> Any:
    llm = make("demo")
    n = len(llm.tokenize(PROMPT.encode(), add_bos=False, special=True))
    seen: list[int] = []

    def enough(ids: Any, logits: Any) -> bool:
        seen.append(len(ids))
        return len(ids) >= n + 4

    whole = llm(PROMPT, stopping_criteria=enough, **GREEDY)
    chunks = list(llm(PROMPT, stopping_criteria=enough, stream=True, **GREEDY))
    return [whole, chunks, sorted(set(seen))]


@case
def logits_processor(make: Make) -> Any:
    llm = make("demo")
    calls: list[Any] = []

    def ban_best(ids: Any, scores: Any) -> Any:
        calls.append([len(ids), int(ids[-1])])
        scores[int(np.argmax(scores))] = -1e9
        return scores

    return [llm(PROMPT, logits_processor=[ban_best], temperature=0.0, max_tokens=6), calls]


@case
def grammar(make: Make) -> Any:
    from llama_cpp.llama_grammar import LlamaGrammar

    llm = make("demo")
    yes_no = LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    digits = LlamaGrammar.from_string("root ::= [0-9]+ [.]", verbose=False)
    return [
        llm(PROMPT, grammar=yes_no, **GREEDY),
        llm(PROMPT, grammar=digits, seed=1, max_tokens=8),
        list(llm(PROMPT, grammar=yes_no, stream=True, **GREEDY)),
    ]


@case
def min_tokens(make: Make) -> Any:
    from llama_cpp.llama import LogitsProcessorList, MinTokensLogitsProcessor

    llm = make("demo")
    processors = LogitsProcessorList([MinTokensLogitsProcessor(14, llm.token_eos())])
    return llm(PROMPT, logits_processor=processors, **GREEDY)


def run_case(name: str, paths: dict[str, Path], make_llama: Callable[..., Any]) -> Any:
    """A case's result; models that it opened are closed."""
    opened = []

    def make(model: str, **keywords: Any) -> Any:
        options = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **keywords}
        llm = make_llama(str(paths.get(model, model)), **options)
        opened.append(llm)
        return llm

    try:
        return CASES[name](make)
    finally:
        for llm in opened:
            llm.close()
