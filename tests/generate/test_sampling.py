"""Sampling: options are checked, and the chain does what its options say."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.generate.sampling import Sampler, whole_escapes
from tests.support import inside
from tests.support.files import Files


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": -0.1}, "temperature must be a finite number of at least 0, got -0"),
        ({"temperature": math.nan}, "temperature must be a finite number"),
        ({"top_p": 1.1}, r"top_p must be a finite number in \[0, 1\], got 1.1"),
        ({"min_p": "0"}, "min_p must be a finite number"),
        ({"repeat_penalty": 0.0}, "repeat_penalty must be above 0"),
        ({"top_k": -2}, "top_k must be an integer of at least -1"),
        ({"seed": -1}, "seed must be an integer"),
        ({"seed": 2**32}, "seed must be an integer"),
        ({"logit_bias": {1: math.nan}}, "logit_bias of token 1 must be a finite number, got nan"),
        ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 must be a finite number, got inf"),
        ({"logit_bias": {1: 3.5e38}}, "logit_bias of token 1 must be a finite number, got 3.5e"),
        ({"logit_bias": {1: 10**400}}, "logit_bias of token 1 must be a finite number, got 1000"),
        ({"logit_bias": {1: "2"}}, "logit_bias of token 1 must be a finite number, got '2'"),
        ({"logit_bias": {-1: 1}}, "logit_bias: a token must be an integer of at least 0, got -1"),
        ({"logit_bias": {2**31: 1}}, "logit_bias: a token must be an integer of at least 0, got 2"),
        ({"logit_bias": {"1": 1}}, "logit_bias: a token must be an integer of at least 0, got '1'"),
        ({"logit_bias": {True: 1}}, "logit_bias: a token must be an integer of at least 0, got Tr"),
        ({"logit_bias": [1]}, r"logit_bias must be a mapping or None, got \[1\]"),
        ({"frequency_penalty": math.inf}, "frequency_penalty must be a finite number"),
    ],
)
def test_options_are_checked(options: dict[str, object], text: str) -> None:
    with pytest.raises(ag.InputError, match=text):
        ag.Sampling(**options)  # type: ignore[arg-type]


def row(model: ag.Model, **values: float) -> np.ndarray:  # type: ignore[type-arg]
    logits = np.zeros(model.n_vocab, np.float32)
    for key, value in values.items():
        logits[int(key[1:])] = value
    return logits


def sampler(model: ag.Model, **options: object) -> Sampler:
    return Sampler(ag.Sampling(**options), inside.vocab(model))  # type: ignore[arg-type]


def test_greedy_takes_the_largest(model: ag.Model) -> None:
    assert sampler(model, temperature=0).sample(row(model, t7=2, t9=1)) == 7
    assert sampler(model, top_k=1, seed=1).sample(row(model, t7=2, t9=1)) == 7


def test_probabilities_follow_the_temperature(model: ag.Model) -> None:
    chain = sampler(model, temperature=0.5, top_p=1.0, min_p=0.0, top_k=2, seed=3)
    counts = Counter(chain.sample(row(model, t7=1, t9=0.5)) for _ in range(4000))
    assert set(counts) == {7, 9}
    assert abs(counts[7] / 4000 - 1 / (1 + math.exp(-1))) < 0.03  # (1 - 0.5) / 0.5 = 1


def test_bias_bans_and_forces(model: ag.Model) -> None:
    banned = sampler(model, temperature=0, logit_bias={7: -math.inf})
    assert banned.sample(row(model, t7=2, t9=1)) == 9
    forced = sampler(model, temperature=0, logit_bias={4: 99.0})
    assert forced.sample(row(model, t7=2)) == 4
    with pytest.raises(ag.InputError, match="logit_bias: token 0"):
        sampler(model, logit_bias={model.n_vocab: 1.0})


def test_penalties_count_what_was_sampled(model: ag.Model) -> None:
    chain = sampler(model, temperature=0, presence_penalty=1.5)
    logits = row(model, t7=2, t9=1)
    assert [chain.sample(logits) for _ in range(2)] == [7, 9]
    chain = sampler(model, temperature=0, frequency_penalty=0.4)
    assert [chain.sample(logits) for _ in range(4)] == [7, 7, 7, 9]


def test_a_grammar_constrains_and_ends(model: ag.Model) -> None:
    session = model.session()
    session.append("Say: ")
    grammar = 'root ::= "yes" | "no"'
    reply = session.generate(sampling=ag.Sampling(temperature=0.0, grammar=grammar))
    assert reply.read() in ("yes", "no")
    assert reply.finish_reason == "stop"
    with pytest.raises(ag.InputError, match="not valid GBNF"):
        sampler(model, grammar="root ::= (")


def test_a_grammar_may_escape_characters_as_json_does(model: ag.Model) -> None:
    assert (
        whole_escapes(r'"\ud83d\uDE0A" [\ud83d\ude0a-\u00ff] \ud83d') == '"😊" [😊-\\u00ff] \\ud83d'
    )
    assert whole_escapes(r'"\\ud83d\\ude0a\"\n"') == r'"\\ud83d\\ude0a\"\n"'
    session = model.session()
    session.append("Say: ")
    assert session.generate(temperature=0, grammar=r'root ::= "\ud83d\ude0a"').read() == "😊"


def test_logits_that_are_no_numbers_are_an_error(model: ag.Model) -> None:
    logits = row(model, t7=2)
    logits[5] = np.nan
    for options in ({"temperature": 0}, {"seed": 1}):
        with pytest.raises(ag.DecodeError, match="not finite"):
            sampler(model, **options).sample(logits)


def test_it_equals_llama_cpp_pythons_sampler(model: ag.Model, files: Files) -> None:
    """Same options, same seed, same logits: the same tokens as stock's chain gives."""
    import ctypes

    llama = inside.engine(model).native.llama
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    n = model.n_vocab
    for part in (
        llama.llama_sampler_init_penalties(n, 64, 1.1, 0.0, 0.0),
        llama.llama_sampler_init_top_k(40),
        llama.llama_sampler_init_typical(1.0, 1),
        llama.llama_sampler_init_top_p(0.95, 1),
        llama.llama_sampler_init_min_p(0.05, 1),
        llama.llama_sampler_init_temp(0.8),
        llama.llama_sampler_init_dist(42),
    ):
        llama.llama_sampler_chain_add(chain, part)
    ours = sampler(model, repeat_penalty=1.1, seed=42)
    rng = np.random.default_rng(0)
    for _ in range(50):
        logits = rng.standard_normal(n).astype(np.float32) * 2
        data = (llama.llama_token_data * n)()
        for i in range(n):
            data[i].id, data[i].logit = i, float(logits[i])
        array = llama.llama_token_data_array(data, n, -1, False)
        llama.llama_sampler_apply(chain, ctypes.byref(array))
        expected = array.data[array.selected].id
        llama.llama_sampler_accept(chain, expected)
        assert ours.sample(logits) == expected
    llama.llama_sampler_free(chain)
