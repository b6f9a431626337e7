"""States: they come back as they were, and are refused where their cells mean another thing."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.llama import Llama, LlamaState
from tests.support import tiny_base
from tests.support.files import Files

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
TEXT = b"the rain in the plain and what came of it"


def opened(files: Files, **keywords: Any) -> Llama:
    options = {
        "n_ctx": 512,
        "verbose": False,
        "n_threads": 1,
        "adapters": {"sure": files.alora},
        **keywords,
    }
    return Llama(options.pop("path", files.base), **options)


@pytest.fixture
def llm(files: Files) -> Iterator[Llama]:
    with opened(files) as llm:
        yield llm


def test_round_trip_with_adapter_cells(llm: Llama, files: Files) -> None:
    prompt = [*llm.tokenize(TEXT), *files.invocation]
    first = llm(prompt, adapter="sure", **GREEDY)
    state = llm.save_state()
    n = len(prompt) + first["usage"]["completion_tokens"] - 1  # the last one is never read
    assert state.n_tokens == llm.n_tokens == n
    assert state.input_ids.tolist() == list(llm.eval_tokens)
    llm("something else", **GREEDY)
    llm.load_state(state)
    again = llm(prompt, adapter="sure", **GREEDY)
    assert llm.last_timings.reused == len(prompt) - 1  # the last one for its logits
    assert again["choices"] == first["choices"]
    llm.load_state(state)
    llm(prompt, **GREEDY)
    assert llm.last_timings.reused == len(prompt) - len(files.invocation)  # what the base computed


def test_into_another_object_by_pickle(llm: Llama, files: Files) -> None:
    prompt = [*llm.tokenize(TEXT), *files.invocation]
    first = llm(prompt, adapter="sure", **GREEDY)
    state: LlamaState = pickle.loads(pickle.dumps(llm.save_state()))
    with opened(files, adapters={"renamed": files.alora}) as other:
        other.load_state(state)
        assert other.n_tokens == state.n_tokens
        assert other(prompt, adapter="renamed", **GREEDY)["choices"] == first["choices"]
        assert other.last_timings.evaluated == 1


def test_sampling_goes_on(llm: Llama) -> None:
    tokens = llm.tokenize(TEXT)
    llm.eval(tokens)
    state, token = llm.save_state(), llm.sample(temp=0.0)
    llm.reset()
    with pytest.raises(ag.InputError, match="nothing has been read"):
        llm.sample()
    llm.load_state(state)
    assert llm.sample(temp=0.0) == token


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"adapters": None}, "load it first"),
        ({"type_k": 0}, "type_k"),
        ({"rope_freq_base": 5000.0}, "other settings"),
        ({"flash_attn": True}, "flash"),
    ],
)
def test_refused(llm: Llama, files: Files, keywords: dict[str, Any], words: str) -> None:
    llm([*llm.tokenize(TEXT), *files.invocation], adapter="sure", **GREEDY)
    state = llm.save_state()
    with opened(files, **keywords) as other:
        other.eval([5, 6, 7])
        with pytest.raises(ag.SavedSessionError, match=words):
            other.load_state(state)
        assert list(other.eval_tokens) == [5, 6, 7]


def test_another_base_and_other_weights_are_refused(
    llm: Llama, files: Files, tmp_path: Path
) -> None:
    llm.eval(llm.tokenize(TEXT))
    plain = llm.save_state()
    path = tiny_base.write_base(tmp_path / "other.gguf", seed=9)
    with (
        opened(files, path=path, adapters=None) as other,
        pytest.raises(ag.SavedSessionError, match="was saved with the base"),
    ):
        other.load_state(plain)
    llm([*llm.tokenize(TEXT), *files.invocation], adapter="sure", **GREEDY)
    state = llm.save_state()
    llm.unload_adapter("sure")
    llm.load_adapter("sure", files.other)
    with pytest.raises(ag.SavedSessionError, match="other weights"):
        llm.load_state(state)
    llm.load_state(plain)
    assert llm.n_tokens == plain.n_tokens


def test_only_states_are_loaded(llm: Llama) -> None:
    with pytest.raises(ag.InputError, match="expected a state of save_state"):
        llm.load_state(b"bytes")  # type: ignore[arg-type]


def test_an_empty_state(llm: Llama) -> None:
    state = llm.save_state()
    llm.eval([1, 2])
    llm.load_state(state)
    assert llm.n_tokens == 0
    assert llm.tokenize(TEXT)


def test_rows_come_along(files: Files) -> None:
    with opened(files, logits_all=True) as llm:
        llm.eval(llm.tokenize(TEXT))
        rows, state = llm._scores.copy(), llm.save_state()
        llm.eval([3, 4])
        llm.load_state(state)
        assert np.array_equal(llm._scores, rows)
        llm.n_tokens = 5
        assert np.array_equal(llm._scores, rows[:5])


def test_the_cache_knows_who_computed_what(llm: Llama, files: Files) -> None:
    from llama_cpp import LlamaRAMCache

    prompt = [*llm.tokenize(TEXT), *files.invocation]
    llm.set_cache(LlamaRAMCache(1 << 24))
    first = llm(prompt, adapter="sure", **GREEDY)
    base = llm(prompt, **GREEDY)
    llm("something else", **GREEDY)
    assert llm(prompt, **GREEDY)["choices"] == base["choices"]
    assert llm(prompt, adapter="sure", **GREEDY)["choices"] == first["choices"]
    llm.unload_adapter("sure")
    llm.reset()
    assert llm(prompt, **GREEDY)["choices"] == base["choices"]
    assert next(iter(llm(prompt, stream=True, **GREEDY)))["choices"]


def test_a_memory_that_cannot_rewind(paths: dict[str, Path]) -> None:
    tokens = list(range(3, 40))
    with Llama(paths["hybrid"], n_ctx=256, logits_all=True, verbose=False, n_threads=1) as llm:
        llm.eval(tokens)
        rows, state = llm._scores.copy(), llm.save_state()
        llm.n_tokens = 20
        llm.eval([7])  # read anew from the first token on
        llm.eval([8])
        assert list(llm.eval_tokens) == [*tokens[:20], 7, 8]
        np.testing.assert_allclose(llm.scores[:20], rows[:20], atol=1e-2)
        llm.load_state(state)
        assert llm.sample(temp=0.0) == int(np.argmax(rows[-1]))
        assert np.array_equal(llm._scores, rows)


@pytest.mark.parametrize("kind", ["hybrid", "recurrent"])
def test_a_state_of_a_recurrent_memory(paths: dict[str, Path], kind: str) -> None:
    """It cannot rewind by one token, so the state has the last token's logits."""
    tokens = list(range(3, 20))

    def opened(**keywords: Any) -> Llama:
        return Llama(paths[kind], n_ctx=64, verbose=False, n_threads=1, **keywords)

    def three(llm: Llama, prompt: list[int]) -> list[int]:
        stream = llm.generate(prompt, temp=0.0)
        return [next(stream) for _ in range(3)]

    with opened() as a, opened() as b:
        fresh, longer = three(a, tokens), three(a, [*tokens, 7])
        a.reset()
        a.eval(tokens)
        state = a.save_state()
        for llm in (b, a):
            llm.load_state(state)
            assert llm.sample(temp=0.0) == fresh[0]
            for prompt, expected in ((tokens, fresh), (tokens, fresh), ([*tokens, 7], longer)):
                assert three(llm, prompt) == expected
                llm.load_state(state)
                assert three(llm, prompt) == expected
        b.reset()
        assert three(b, tokens) == fresh


@pytest.mark.parametrize("model", ["tiny", "hybrid", "recurrent"])
def test_a_cache_that_several_share(paths: dict[str, Path], model: str) -> None:
    from llama_cpp import LlamaRAMCache

    cache, tokens = LlamaRAMCache(), list(range(3, 20))
    answers = []
    for _ in range(3):
        with Llama(paths[model], n_ctx=64, verbose=False, n_threads=1) as llm:
            llm.set_cache(cache)
            answers.append(llm(tokens, max_tokens=1, temperature=0)["choices"])
            hit = llm.last_timings.evaluated
            answers.append(llm(tokens, max_tokens=1, temperature=0)["choices"])
    assert hit == 0
    assert all(each == answers[0] for each in answers)


def test_a_cached_state_that_cannot_be_used_is_passed_over(files: Files) -> None:
    from llama_cpp import LlamaRAMCache

    cache = LlamaRAMCache()
    with opened(files) as llm:
        llm.set_cache(cache)
        prompt = [*llm.tokenize(TEXT), *files.invocation]
        llm(prompt, adapter="sure", **GREEDY)
    with opened(files, adapters=None) as other:
        plain = other(prompt, **GREEDY)
        other.reset()
        other.set_cache(cache)
        assert other(prompt, **GREEDY)["choices"] == plain["choices"]


def test_who_decodes_on_the_context_itself_does_no_harm(llm: Llama) -> None:
    """As guidance does, on sequence 0; its cells go when there is no room for ours."""
    from llama_cpp import _internals as internals
    from llama_cpp import llama_cpp as c

    prompt = llm.tokenize(TEXT)
    first = llm(prompt, **GREEDY)
    batch = internals.LlamaBatch(n_tokens=400, embd=0, n_seq_max=1)
    batch.set_batch([5, 6, 7] * 120, n_past=0, logits_all=False)
    assert c.llama_decode(llm.ctx, batch.batch) == 0
    assert llm(prompt, **GREEDY)["choices"] == first["choices"]
    assert llm.last_timings.evaluated == 1
    llm([*prompt, *[9] * 300], **GREEDY)
    assert llm(prompt, **GREEDY)["choices"] == first["choices"]


def test_what_lies_outside_a_window_is_saved(paths: dict[str, Path]) -> None:
    tokens = list(range(3, 40))
    with Llama(paths["swa"], n_ctx=256, verbose=False, n_threads=1, logits_all=True) as llm:
        llm.eval(tokens)
        expected = llm.scores[11].copy()
        state = llm.save_state()
        assert state.n_tokens == 37
        llm.reset()
        llm.eval([5, 5, 5])
        llm.load_state(state)
        llm.n_tokens = 11
        llm.eval(tokens[11:12])
        assert np.allclose(llm.scores[11], expected, atol=0.05)
