"""The rows about JSON Schemas: masks by llguidance against llama.cpp's own grammar sampler.

Both look at the whole vocabulary at every token, as log-probabilities after the mask need it. The
vocabulary is of the shape's size, with random words: what counts are its tokens' number and length.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import models
from .bench import Bench
from .measure import Result, Side, alternate, timed

_CASES = {
    "an answer and yes or no": (
        {
            "type": "object",
            "properties": {"answer": {"type": "string"}, "answerable": {"enum": ["yes", "no"]}},
            "required": ["answer", "answerable"],
            "additionalProperties": False,
        },
        '{"answer": "The sky is blue, they say.", "answerable": "yes"}',
    ),
    "a list of citations": (
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "r": {"type": "integer", "minimum": 0, "maximum": 9},
                    "text": {"type": "string", "maxLength": 200},
                },
                "required": ["r", "text"],
                "additionalProperties": False,
            },
        },
        '[{"r": 3, "text": "some words"}, {"r": 5, "text": "and more of them"}]',
    ),
}
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def constraint(bench: Bench) -> list[Result]:
    """Seconds per token of a reply, of one more schema, and of a vocabulary's first one."""
    from alora_gguf.engine.tokens import Vocabulary
    from alora_gguf.generate.constraint import Constraint

    llama = bench.weights.library.llama
    params = llama.llama_model_default_params()
    params.vocab_only = True
    path = _vocabulary(bench.shape.vocab)
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model
    try:
        vocab = Vocabulary(bench.weights.library.alora, model, path.name)
        first = [
            timed(
                lambda: Constraint.compile(
                    {}, Vocabulary(bench.weights.library.alora, model, path.name)
                )
            )
            for _ in range(bench.settings.rounds(4))
        ]
        results = [
            Result("schema, vocabulary's first", f"{vocab.n_tokens} tokens", Side("", first), None,
                   kind="value"),
        ]  # fmt: skip
        for name, (schema, text) in _CASES.items():
            results += _per_token(bench, vocab, name, schema, text)
    finally:
        llama.llama_model_free(model)
    return results


def _per_token(bench: Bench, vocab: Any, name: str, schema: Any, text: str) -> list[Result]:
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    from alora_gguf.generate.constraint import Constraint

    llama = bench.weights.library.llama
    by_byte = {vocab.piece(t): t for t in range(256)}  # the vocabulary begins with them
    tokens = [by_byte[bytes([byte])] for byte in text.encode()]
    logits = np.random.default_rng(1).standard_normal(vocab.n_tokens).astype(np.float32)
    grammar = json_schema_to_gbnf(json.dumps(schema)).encode()
    fresh = iter(range(10**9))  # a title that no schema had yet, so that it is compiled again

    def compiling() -> None:
        Constraint.compile({**schema, "title": str(next(fresh))}, vocab)

    def ours() -> float:
        matcher = Constraint.compile(schema, vocab).start()
        start = time.perf_counter()
        for token in tokens:
            matcher.mask(logits)
            matcher.accept(token)
        return (time.perf_counter() - start) / len(tokens)

    def other() -> float:
        sampler = llama.llama_sampler_init_grammar(vocab.handle, grammar, b"root")
        candidates, seconds = _Candidates(llama, vocab.n_tokens), 0.0
        for token in tokens:
            array = candidates.filled(logits)
            start = time.perf_counter()
            llama.llama_sampler_apply(sampler, ctypes.byref(array))
            llama.llama_sampler_accept(sampler, token)
            seconds += time.perf_counter() - start
        llama.llama_sampler_free(sampler)
        return seconds / len(tokens)

    rounds = bench.settings.rounds(8)
    samples = alternate({"ours": ours, "other": other}, rounds)
    once = [timed(compiling) for _ in range(rounds)]
    case = f"{name}, {vocab.n_tokens} tokens"
    return [
        Result("schema, each token", case, Side("llguidance", samples["ours"]),
               Side("llama.cpp's grammar", samples["other"]), kind="speedup", floor=10, goal="50"),
        Result("schema, compiling", case, Side("", once), None, kind="value"),
    ]  # fmt: skip


class _Candidates:
    """A llama_token_data_array over the whole vocabulary."""

    def __init__(self, llama: Any, n: int) -> None:
        self._data, self._ids = np.empty(n, _TOKEN_DATA), np.arange(n, dtype=np.int32)
        self._pointer = self._data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array(self._pointer, n, -1, False)

    def filled(self, logits: Any) -> Any:
        self._data["id"], self._data["logit"], self._data["p"] = self._ids, logits, 0.0
        self._array.size, self._array.selected, self._array.sorted = len(logits), -1, False
        return self._array


def _vocabulary(n: int) -> Path:
    """A GGUF of `n` tokens without weights: bytes, random words of 2 to 10 letters, most of them
    after a space, one in twenty before a mark, as in real vocabularies, and an end token.
    """
    path = models.FOLDER / f"vocabulary-{n}.gguf"
    if path.is_file():
        return path
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    tokens = _words(n - 1)
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, "<|end|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(len(tokens))
    counts = {"block_count": 1, "context_length": 128, "embedding_length": 8,
              "feed_forward_length": 8, "attention.head_count": 2}  # fmt: skip
    for key, count in counts.items():
        writer.add_uint32(f"llama.{key}", count)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)
    return path


def _words(n: int) -> list[str]:
    rng = np.random.default_rng(1)
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's signs for the bytes
    hidden = [byte for byte in range(256) if byte not in shown]
    words = dict.fromkeys([chr(b) for b in shown] + [chr(256 + i) for i in range(len(hidden))])
    words.update(dict.fromkeys(['":', 'Ġ"', '",', '{"', '"}', '":Ġ"', "ĊĊ", "Ġ{", "},", "ĠĠ"]))
    letters = np.array(list("etaoinshrdlcumwfgypbvkjxqz"))
    weights = 1 / np.arange(2, 28)
    marks = ['"', ",", ".", '":', "_", "("]
    while len(words) < n:
        drawn = "".join(rng.choice(letters, size=20000, p=weights / weights.sum()))
        at = 0
        while at < len(drawn) - 10 and len(words) < n:
            length = int(rng.integers(2, 11))
            space = "Ġ" if rng.random() < 0.6 else ""
            mark = marks[int(rng.integers(len(marks)))] if rng.random() < 0.05 else ""
            words[space + drawn[at : at + length] + mark] = None
            at += length
    return list(words)
