"""More cases: embeddings, tokens and text, the low level, states, settings."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .cases import GREEDY, PROMPT, Make, case
from .cases_chat import MESSAGES, TOOLS


@case
def embeddings(make: Make) -> Any:
    llm = make("demo", embedding=True, n_ctx=256, n_batch=64)
    texts = ["one text", "another text, which is longer", "x", " ".join(["long"] * 100)]
    tiny = make("tiny", embedding=True, n_ctx=256, n_batch=128)
    pooled = make("demo", embedding=True, pooling_type=1, n_ctx=256)
    return [
        *(llm.create_embedding(text) for text in texts),
        llm.embed(texts[1], normalize=True),
        llm.embed(texts[3:], return_count=True),
        tiny.create_embedding(texts[0], model="named"),
        pooled.embed(texts, return_count=True),
        pooled.create_embedding(texts),
        pooled.embed(texts[0], normalize=True),
        [llm.pooling_type(), pooled.pooling_type(), llm.n_embd()],
    ]


@case
def text_and_numbers(make: Make) -> Any:
    results = []
    for name in ("demo", "tiny"):
        llm = make(name)
        tokens = llm.tokenize(PROMPT.encode(), special=True)
        results += [
            tokens,
            llm.tokenize(PROMPT.encode()),
            llm.tokenize("über 日本 🙂".encode(), add_bos=False),
            llm.tokenize(b"\xff\xfe broken"),
            llm.detokenize(tokens).decode(),
            llm.detokenize(tokens, special=True).decode(),
            llm.detokenize(tokens[3:], prev_tokens=tokens[:3]).decode(),
            llm.tokenizer().encode("some text"),
            llm.tokenizer().decode(tokens),
            [llm.token_bos(), llm.token_eos(), llm.token_nl()],
            [llm.n_ctx(), llm.n_embd(), llm.n_vocab(), llm.n_batch, llm.n_tokens],
            [llm.model_path, llm.verbose, llm.last_n_tokens_size, llm.pooling_type()],
            {k: v for k, v in llm.metadata.items() if "template" not in k},
            llm.logits_to_logprobs(np.array([[1.0, 2, 3], [0, 0, -np.inf]], np.float32)).tolist(),
            llm.longest_token_prefix([1, 2, 3], [1, 2, 4]),
        ]
    return results


@case
def low_level(make: Make) -> Any:
    llm = make("tiny", logits_all=True, n_batch=16)
    tokens = llm.tokenize(b"the rain in the main plain, which is long enough for two batches")
    llm.eval(tokens)
    logits = np.array(llm.eval_logits, np.float32)
    digest = hashlib.sha256(logits.tobytes()).hexdigest()  # equal batches: equal bits
    picked = [llm.sample(temp=0.0), llm.sample(temp=0.0, idx=len(tokens) - 3)]
    for _ in range(5):
        llm.eval([llm.sample(temp=0.0)])
    n = llm.n_tokens
    results = [picked, n, digest, list(llm.eval_tokens), llm.input_ids[:n].tolist()]
    llm.reset()
    results += [llm.n_tokens, np.array(llm.eval_logits).tolist()]
    return results


@case
def same_bits(make: Make) -> Any:
    """Logits of a prompt in chunks and of single tokens behind it, a reused prefix among them."""
    llm = make("demo", logits_all=True, n_batch=16)
    digests = []
    for text in (PROMPT, PROMPT + "The library", PROMPT[:-20] + "other"):
        tokens = llm.tokenize(text.encode(), special=True)
        stream = llm.generate(tokens, temp=0.0)
        taken = [next(stream) for _ in range(4)]
        rows = np.array(llm.scores[: llm.n_tokens], np.float32)
        digests.append([taken, hashlib.sha256(rows.tobytes()).hexdigest()])
    return digests


@case
def other_memories(make: Make) -> Any:
    """A recurrent memory, which cannot rewind, and a sliding window; both without a vocabulary."""
    results = []
    for model in ("hybrid", "swa"):
        llm = make(model, n_batch=16)
        prompts = [list(range(3, 40)), list(range(3, 30)), list(range(3, 50)), list(range(3, 50))]
        for prompt in [*prompts, [*prompts[0], 1, 2]]:
            stream = llm.generate(prompt, temp=0.0)
            results.append([next(stream) for _ in range(6)])
        saved = llm.save_state() if model == "hybrid" else None
        if saved is not None:
            n = llm.n_tokens
            llm.reset()
            llm.load_state(saved)
            results.append([n, llm.n_tokens])
    return results


@case
def generate(make: Make) -> Any:
    llm = make("tiny", seed=3)

    def take(n: int, tokens: Any, **keywords: Any) -> list[int]:
        stream: Iterator[int] = llm.generate(tokens, **keywords)
        return [next(stream) for _ in range(n)]

    tokens = llm.tokenize(b"the rain in")
    results: list[Any] = [take(8, tokens, temp=0.0), take(8, tokens, temp=0.9), llm.n_tokens]
    results.append(take(4, tokens[:-2], top_k=5, temp=2.0))
    results.append(take(4, tokens, temp=0.0, repeat_penalty=1.5))
    results.append(list(llm.generate(tokens, temp=0.0, stopping_criteria=lambda i, _: len(i) > 9)))
    llm.reset()
    results.append(take(4, tokens, temp=0.7, reset=False))
    results.append(take(4, [9, 10], temp=0.7, reset=False))
    return [*results, llm.n_tokens]


@case
def state(make: Make) -> Any:
    llm = make("demo")
    first = llm(PROMPT, max_tokens=3, temperature=0.0)
    saved = llm.save_state()
    other = llm("another prompt", max_tokens=5, seed=1)
    llm.load_state(saved)
    n = llm.n_tokens
    again = llm(PROMPT + first["choices"][0]["text"], max_tokens=12, temperature=0.0)
    return [first, other, n, saved.n_tokens, again, llm(PROMPT, seed=None, max_tokens=5)]


@case
def ram_cache(make: Make) -> Any:
    from llama_cpp import LlamaRAMCache

    llm = make("demo")
    llm.set_cache(LlamaRAMCache(1 << 24))
    texts = [PROMPT, "another prompt entirely", PROMPT + "The", PROMPT]
    answers = [llm(text, max_tokens=5, temperature=0.8, seed=2) for text in texts]
    return [answers, len(llm.cache.cache_state)]


@case
def pickled(make: Make) -> Any:
    llm = pickle.loads(pickle.dumps(make("demo", n_ctx=300, n_batch=32)))
    return [llm(PROMPT, **GREEDY), llm.n_ctx(), llm.n_batch]


@case
def settings(make: Make) -> Any:
    different: list[dict[str, Any]] = [
        {"rope_freq_base": 20000.0, "rope_freq_scale": 0.5},
        {"rope_scaling_type": 2, "yarn_ext_factor": 0.5, "yarn_orig_ctx": 128},
        {"flash_attn": True, "type_k": 8, "type_v": 8},
        {"type_k": 0, "type_v": 0},
        {"n_batch": 7, "n_ubatch": 3},
        {"use_mmap": False, "offload_kqv": False, "op_offload": True, "no_perf": True},
        {"n_ctx": 0, "n_threads": 1, "n_threads_batch": 2},
        {"last_n_tokens_size": 2},
        {"kv_overrides": {"tokenizer.ggml.add_bos_token": True, "general.name": "renamed"}},
    ]
    results = []
    for keywords in different:
        llm = make("demo", **keywords)
        answer = llm(PROMPT, seed=1, repeat_penalty=1.3, max_tokens=16, temperature=1.2)
        results.append([answer, llm.n_ctx(), llm.n_batch, llm.metadata["general.name"]])
    return results


@case
def what_is_refused(make: Make) -> Any:
    llm = make("demo", n_ctx=256)
    calls: list[Callable[[], Any]] = [
        lambda: llm("word " * 400),
        lambda: list(llm("word " * 400, stream=True)),
        lambda: llm.create_chat_completion(MESSAGES, tools=TOOLS, tool_choice={
            "type": "function", "function": {"name": "nothing"}}),
        lambda: make("nowhere.gguf"),
    ]  # fmt: skip

    def refusal(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ValueError as error:
            return ["ValueError", str(error).split(":")[0]]

    return [refusal(call) for call in calls]
