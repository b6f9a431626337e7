"""Texts and a model, apart from conversations: bytes of tokens, what stands between two texts, how
likely a text is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.generate.sampling import token_logprob
from tests.support import inside, tiny_base
from tests.support.files import Files


def test_the_bytes_of_tokens_are_the_bytes_of_their_text(model: ag.Model) -> None:
    text = "naïve 😊 words"
    tokens = model.tokenize(text)
    assert b"".join(map(model.token_bytes, tokens)) == text.encode()
    end = model.end_tokens[0]
    assert model.token_bytes(end) == b""
    assert model.token_bytes(end, special=True).decode() == model.detokenize([end], special=True)
    with pytest.raises(ag.InputError, match=r"token: token 0 is -1, expected an id in \[0, "):
        model.token_bytes(-1)


# What stands between ------------------------------------------------------------------------------


def filling(folder: Path) -> Path:
    """A base with tokens for filling in."""
    keys = {f"tokenizer.ggml.fim_{name}_token_id": 40 + i for i, name in enumerate(FIM)}
    return tiny_base.write_base(folder / "fim.gguf", more=keys)


FIM = ("pre", "suf", "mid")


def test_a_prompt_for_what_stands_between_two_texts(tmp_path: Path) -> None:
    with ag.Model(filling(tmp_path), n_ctx=256, n_threads=1) as model:
        a, c = model.tokenize("ab"), model.tokenize("<|end|>", parse_special=False)
        bos = [tiny_base.BOS]
        prompt = model.infill("ab", "<|end|>")
        assert prompt == [*bos, 40, *a, 41, *c, 42]
        assert model.infill(a, "<|end|>") == prompt
        assert model.infill("ab", "<|end|>", suffix_first=True) == [*bos, 41, *c, 40, *a, 42]
        assert model.infill("", "") == [*bos, 40, 41, 42]
        with model.session() as session:
            assert session.generate(prompt=prompt, max_tokens=2).read() is not None
        with pytest.raises(ag.CacheFullError):
            model.infill("x" * 200_000, "")


def test_a_vocabulary_that_cannot_fill_in_says_so(model: ag.Model) -> None:
    with pytest.raises(ag.InputError, match="no tokens for what stands between two texts"):
        model.infill("a", "b")


# How likely a text is -----------------------------------------------------------------------------


def test_scores_are_those_of_every_row(files: Files) -> None:
    with files.model() as model, model.session() as session, model.session() as other:
        tokens = model.tokenize("the answer is certain, naïve 😊 " * 8)
        assert len(tokens) > 2 * 64  # more than a batch has rows
        found = session.score(tokens, logprobs=3)
        assert [each.token for each in found] == tokens[1:]
        assert "".join(each.text for each in found) == model.detokenize(tokens[1:])
        assert session.tokens == tokens
        assert (session.cached, session.provenance) == (len(tokens), ((0, ag.Provenance()),))
        for at in (1, 2, 64, 65, len(tokens) - 1):
            other.sync(tokens[:at])
            other.rewind(at - 1)
            other.append([tokens[at - 1]])
            row = inside.last_logits(other)
            wanted = token_logprob(tokens[at], "", row, 3, inside.vocab(model))
            mine = found[at - 1]
            assert np.isclose(mine.logprob, wanted.logprob, atol=1e-3)
            assert len(mine.top) == 3
            assert mine.top[0].token == wanted.top[0].token
        greedy = ag.Sampling(temperature=0.0)
        reply = session.generate(max_tokens=2, sampling=greedy)
        reply.read()
        assert reply.timings.evaluated == 0  # what follows is known already


def test_what_is_before_the_first_is_reused(files: Files) -> None:
    with files.model() as model, model.session() as session, model.session() as other:
        tokens = model.tokenize("the answer is certain" * 3)
        whole = session.score(tokens)
        read: list[tuple[int, int]] = []
        part = session.score(tokens, first=20, progress=lambda n, total: read.append((n, total)))
        assert read[-1] == (len(tokens) - 19, len(tokens) - 19)
        assert np.allclose(
            [each.logprob for each in part], [each.logprob for each in whole[19:]], atol=1e-3
        )
        alora = [*tokens[:30], *files.invocation, *tokens[:5]]
        base = session.score(alora)
        adapted = session.score(alora, adapter="sure")
        assert base[28].logprob == pytest.approx(adapted[28].logprob, abs=1e-3)
        assert base[-1].logprob != pytest.approx(adapted[-1].logprob, abs=1e-3)
        other.sync(tokens)
        before = session.tokens
        token = ag.CancelToken()
        token.cancel()
        with pytest.raises(ag.CancelledError):
            session.score(tokens, cancel=token)
        assert session.tokens == before


@pytest.mark.parametrize(
    ("tokens", "more", "problem"),
    [
        ([], {}, "there are no tokens to score"),
        ([1, -1], {}, "tokens: token 1 is -1"),
        ([1, 2], {"first": 0}, "first must be an integer in"),
        ([1, 2], {"first": 3}, "first must be an integer in"),
        ([1, 2], {"logprobs": 1001}, "logprobs must be an integer in"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    model: ag.Model, tokens: list[int], more: dict[str, Any], problem: str
) -> None:
    with model.session() as session, pytest.raises(ag.InputError, match=problem):
        session.score(tokens, **more)
