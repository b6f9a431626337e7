"""Completions beyond stock: what it gets wrong, and what nothing may break."""

from __future__ import annotations

import math
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.llama import Llama
from tests.support import tiny_base

from .cases import PROMPT

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture
def llm(paths: dict[str, Path]) -> Iterator[Llama]:
    with Llama(paths["demo"], n_ctx=1024, verbose=False, n_threads=1) as opened:
        yield opened


@pytest.fixture
def tiny(paths: dict[str, Path]) -> Iterator[Llama]:
    with Llama(paths["tiny"], n_ctx=512, verbose=False, n_threads=1) as opened:
        yield opened


def text_of(answer: Any) -> str:
    text: str = answer["choices"][0]["text"]
    return text


# Streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("logprobs", [None, 1])
def test_chunks_are_the_whole(tiny: Llama, seed: int, logprobs: int | None) -> None:
    """Random bytes: also characters that are split over tokens, which stock's streams lose."""
    options: dict[str, Any] = {"seed": seed, "temperature": 3.0, "top_k": 0, "max_tokens": 40}
    options |= {"min_p": 0.0, "top_p": 1.0, "stop": ["a", "bc"]}
    whole = tiny("über all", **options)
    chunks = list(tiny("über all", stream=True, logprobs=logprobs, **options))
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert "".join(map(text_of, chunks)) == text_of(whole)


def test_closing_a_stream_midway(llm: Llama) -> None:
    whole = llm(PROMPT, **GREEDY)
    stream = llm(PROMPT, stream=True, **GREEDY)
    first = next(stream)
    assert text_of(whole).startswith(text_of(first))
    stream.close()  # type: ignore[attr-defined]
    assert llm(PROMPT, **GREEDY)["choices"] == whole["choices"]


def test_a_second_call_ends_a_stream_and_says_so(llm: Llama) -> None:
    stream = llm(PROMPT, stream=True, **GREEDY)
    next(stream)
    whole = llm(PROMPT, **GREEDY)
    with pytest.raises(ag.InputError, match="ended by another call on the same Llama"):
        list(stream)
    assert llm(PROMPT, **GREEDY)["choices"] == whole["choices"]


def test_an_error_in_a_callback_leaves_it_usable(llm: Llama) -> None:
    whole = llm(PROMPT, **GREEDY)

    def bad(ids: Any, scores: Any) -> Any:
        if len(ids) % 3 == 0:
            raise RuntimeError("mine")
        return scores

    with pytest.raises(RuntimeError, match="mine"):
        llm(PROMPT, logits_processor=[bad], **GREEDY)
    with pytest.raises(ag.InputError, match="returned shape"):
        llm(PROMPT, logits_processor=[lambda _, row: row[:3]], **GREEDY)
    with pytest.raises(ag.DecodeError, match="not finite"):
        llm(PROMPT, logits_processor=[lambda _, row: row * np.nan], **GREEDY)
    assert llm(PROMPT, **GREEDY)["choices"] == whole["choices"]


def test_calls_of_several_threads_take_turns(llm: Llama) -> None:
    prompts = [PROMPT, PROMPT[40:], PROMPT[:80], "something else"]
    alone = [text_of(llm(prompt, **GREEDY)) for prompt in prompts]
    found: dict[int, list[str]] = {}

    def work(i: int) -> None:
        found[i] = [text_of(llm(prompts[i], **GREEDY)) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == [[text] * 3 for text in alone]


# Log-probabilities -------------------------------------------------------------------------------


def test_logprobs_are_those_of_logits_all(paths: dict[str, Path]) -> None:
    options: dict[str, Any] = {"logprobs": 4, "seed": 1, "temperature": 1.2, "max_tokens": 10}
    answers = []
    for logits_all in (True, False):
        with Llama(paths["demo"], logits_all=logits_all, verbose=False, n_threads=1) as llm:
            answers.append(llm(PROMPT, **options)["choices"][0])
    one, other = answers
    assert one["text"] == other["text"]
    assert one["logprobs"]["top_logprobs"] == [
        pytest.approx(top, abs=1e-4) for top in other["logprobs"]["top_logprobs"]
    ]


def test_echoed_logprobs_are_of_the_right_tokens(tmp_path: Path) -> None:
    """Stock is off by one where the vocabulary has no token that begins a text."""
    with Llama(
        tiny_base.write_base(tmp_path / "b.gguf"),
        kv_overrides={"tokenizer.ggml.add_bos_token": False},
        logits_all=True,
        verbose=False,
        n_threads=1,
    ) as llm:
        tokens = llm.tokenize(b"the rain", add_bos=False)
        answer = llm("the rain", echo=True, logprobs=2, temperature=0.0, max_tokens=2)
        logprobs = llm.logits_to_logprobs(llm.scores)
        found = answer["choices"][0]["logprobs"]
        assert found["tokens"][: len(tokens)] == [llm.detokenize([t]).decode() for t in tokens]
        assert found["token_logprobs"][0] is None
        expected = [float(logprobs[i, t]) for i, t in enumerate(tokens[1:])]
        assert found["token_logprobs"][1 : len(tokens)] == pytest.approx(expected, abs=1e-5)
        assert found["text_offset"][:2] == [0, len(found["tokens"][0])]


def test_echo_takes_token_ids_too(llm: Llama) -> None:
    tokens = llm.tokenize(b"some words", add_bos=False)
    assert text_of(llm(tokens, echo=True, **GREEDY)).startswith("some words")


def test_earlier_tokens_need_logits_all(llm: Llama) -> None:
    llm.eval([1, 2, 3])
    with pytest.raises(ag.InputError, match="logits_all=True"):
        llm.sample(idx=0)
    assert llm.sample(temp=0.0) >= 0


def test_logprobs_take_little_memory(tmp_path: Path) -> None:
    """Neither n_ctx nor the prompt's length times the vocabulary."""
    with Llama(
        tiny_base.write_base(tmp_path / "b.gguf"), n_ctx=4096, verbose=False, n_threads=1
    ) as llm:
        prompt = "the rain in the main " * 60
        n = len(llm.tokenize(prompt.encode()))
        assert n > 700
        llm(prompt, logprobs=2, max_tokens=1, temperature=0.0)
        tracemalloc.start()
        llm(prompt, logprobs=2, max_tokens=4, temperature=0.0)
        plain = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        llm(prompt, logprobs=2, echo=True, max_tokens=4, temperature=0.0)
        echoed = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        row = 4 * llm.n_vocab()
        assert plain < 200 * row
        assert echoed < n * row


# What stock does wrong ---------------------------------------------------------------------------


def test_logit_bias_goes_with_a_processor(llm: Llama) -> None:
    """Stock drops both where both are given."""
    calls = []

    def watch(ids: Any, scores: Any) -> Any:
        calls.append(len(ids))
        return scores

    biased = llm(PROMPT, logits_processor=[watch], logit_bias={70: 1000.0}, **GREEDY)
    assert len(calls) == 12
    assert biased["choices"][0]["text"] == 12 * llm.detokenize([70]).decode()


@pytest.mark.parametrize(
    ("bias", "said"),
    [
        ({2560: 1.0}, "logit_bias: token 0 is 2560, expected an id in [0, {n})"),
        ({10**30: 1.0}, "logit_bias: a token must be an integer of at least 0, got 1000"),
        ({-1: 1.0}, "logit_bias: a token must be an integer of at least 0, got -1"),
        ({"a": 1.0}, "logit_bias maps tokens to numbers: "),
        ({5: None}, "logit_bias maps tokens to numbers: "),
        ({"5": 10**400}, "logit_bias maps tokens to numbers: "),
        ([5], "logit_bias maps tokens to numbers: "),
        ({5: math.nan}, "logit_bias of token 5 must be a finite number, got nan"),
        ({5: math.inf}, "logit_bias of token 5 must be a finite number, got inf"),
        ({"5": 3.5e38}, "logit_bias of token 5 must be a finite number, got 3.5e+38"),  # no float32
    ],
)
def test_the_limits_of_a_logit_bias(llm: Llama, bias: Any, said: str) -> None:
    with pytest.raises(ag.InputError) as caught:
        llm(PROMPT, logit_bias=bias, **GREEDY)
    assert str(caught.value).startswith(said.format(n=llm.n_vocab()))


def test_a_logit_bias_at_its_limits(llm: Llama) -> None:
    ends = {"0": -math.inf, llm.n_vocab() - 1: 3.4e38}
    last = llm.detokenize([llm.n_vocab() - 1]).decode(errors="ignore")
    assert text_of(llm(PROMPT, logit_bias=ends, **GREEDY)).replace(last, "") == ""


def test_a_suffix_follows_where_the_model_cannot_fill_in(llm: Llama) -> None:
    plain = llm(PROMPT, **GREEDY)
    more = llm(PROMPT, suffix=" (end)", **GREEDY)
    assert text_of(more) == text_of(plain) + " (end)"
    with pytest.raises(ag.InputError, match="suffix must be text"):
        llm(PROMPT, suffix=3)  # type: ignore[arg-type]


def test_fill_in_the_middle(paths: dict[str, Path]) -> None:
    fim = {"prefix": 300, "suffix": 301, "middle": 302}
    keys = {"prefix": "fim_pre", "suffix": "fim_suf", "middle": "fim_mid"}
    overrides = {f"tokenizer.ggml.{keys[k]}_token_id": v % 260 for k, v in fim.items()}
    for spm in (False, True):
        with Llama(
            paths["tiny"],
            kv_overrides=overrides,
            spm_infill=spm,
            verbose=False,
            n_threads=1,
            n_ctx=128,
        ) as llm:
            llm("ab", suffix="cd", max_tokens=1, temperature=0.0)
            a, c = (llm.tokenize(text, add_bos=False) for text in (b"ab", b"cd"))
            before, after = [40, *a], [41, *c]
            middle = [*after, *before] if spm else [*before, *after]
            assert list(llm.eval_tokens) == [llm.token_bos(), *middle, 42]


def test_an_empty_prompt(llm: Llama) -> None:
    with pytest.raises(ag.InputError, match="the prompt is empty"):
        llm("")  # this vocabulary begins no text with a token
    with pytest.raises(ag.InputError, match="expected an id"):
        llm([10**6])


def test_a_grammar_that_is_none(llm: Llama) -> None:
    from llama_cpp.llama_grammar import LlamaGrammar

    with pytest.raises(ag.InputError, match="not valid GBNF"):
        llm(PROMPT, grammar=LlamaGrammar.from_string("root ::= (", verbose=False))
    with pytest.raises(ag.InputError, match="must be a LlamaGrammar"):
        llm(PROMPT, grammar='root ::= "a"')  # type: ignore[arg-type]


def test_options_out_of_range(llm: Llama) -> None:
    for options in ({"mirostat_mode": 3}, {"temperature": "hot"}, {"repeat_penalty": 0.0}):
        with pytest.raises(ag.InputError):
            llm(PROMPT, **options)  # type: ignore[arg-type]


def test_sent_tokens_are_guesses(tiny: Llama) -> None:
    tokens = tiny.tokenize(b"the rain")
    plain = tiny.generate(tokens, temp=0.0)
    expected = [next(plain) for _ in range(4)]
    guessed = tiny.generate(tokens, temp=0.0)
    assert [next(guessed), *(guessed.send([1, 2]) for _ in range(3))] == expected


# Embeddings --------------------------------------------------------------------------------------


def test_embeddings_of_several_texts_are_those_of_each(paths: dict[str, Path]) -> None:
    """Stock mixes up texts that share a batch where nothing is pooled."""
    texts = ["one text", "another text, which is longer", "x"]
    with Llama(paths["demo"], n_ctx=256, n_batch=64, verbose=False, n_threads=1) as llm:
        together = llm.embed(texts)
        for one, other in zip(together, texts, strict=True):
            np.testing.assert_allclose(one, llm.embed(other), atol=2e-2)
        assert llm.embed([]) == []


def test_embedding_leaves_the_conversation_alone(llm: Llama) -> None:
    llm(PROMPT, **GREEDY)
    n, tokens = llm.n_tokens, list(llm.eval_tokens)
    llm.embed("some text")
    assert (llm.n_tokens, list(llm.eval_tokens)) == (n, tokens)
    llm(PROMPT, **GREEDY)
    assert llm.last_timings.evaluated == 1


def test_texts_too_long_to_embed(paths: dict[str, Path]) -> None:
    with Llama(paths["tiny"], n_ctx=256, n_batch=16, verbose=False, n_threads=1) as llm:
        assert len(llm.embed("word " * 40)) == 16
        with pytest.raises(ValueError, match="exceed batch size of 16"):
            llm.embed("word " * 40, truncate=False)


def test_the_window_is_never_exceeded(tiny: Llama) -> None:
    """Not even within a character, for whose end max_tokens waits otherwise."""
    for seed in range(6):
        answer = tiny("e" * 500, seed=seed, temperature=3.0, top_k=0, min_p=0.0, max_tokens=None)
        assert answer["usage"]["total_tokens"] <= tiny.n_ctx()
        assert answer["choices"][0]["finish_reason"] in ("length", "stop")
    with pytest.raises(ValueError, match="exceed context window of 512"):
        tiny("e" * 512)


def test_a_doubled_beginning_is_warned_of(tiny: Llama) -> None:
    with pytest.warns(RuntimeWarning, match="duplicate leading"):
        tiny("<|bos|>the rain", max_tokens=1)
