"""Vectors of texts: those of the drop-in and of llama.cpp, beside conversations, by adapters."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from tests.support import inside, tiny_base
from tests.support.chats import assert_nothing_left
from tests.support.files import FOREVER, Files

TEXTS = ["one text", "another text, which is longer", "x", "naïve 😊"]
OPTIONS = {"n_ctx": 256, "n_threads": 1}


@pytest.mark.parametrize(("pooling", "number"), [("mean", 1), ("cls", 2), ("last", 3), (None, 1)])
def test_they_are_those_of_the_drop_in(files: Files, pooling: Any, number: int) -> None:
    with (
        ag.Model(files.base, **OPTIONS) as model,
        ag.Llama(str(files.base), pooling_type=number, verbose=False, **OPTIONS) as llama,
    ):
        found = model.embed(TEXTS, pooling=pooling)
        mine, counts = found.vectors, found.n_tokens
        others, total = llama.embed(TEXTS, normalize=True, return_count=True)
        np.testing.assert_allclose(mine, others, atol=2e-3)
        assert (sum(counts), len(found)) == (total, len(TEXTS))
        assert mine.shape == (len(TEXTS), tiny_base.N_EMBD)
        np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-5)
        plain = model.embed(TEXTS[0], pooling=pooling, normalize=False)
        np.testing.assert_allclose(plain.vectors, [llama.embed(TEXTS[0])], atol=2e-2)


def test_texts_that_share_a_batch_do_not_see_each_other(files: Files) -> None:
    with ag.Model(files.base, n_batch=64, **OPTIONS) as model:
        texts = [f"text number {i} " * (i % 4) + "end" for i in range(40)]
        together = model.embed(texts)
        for text, vector in zip(texts, together, strict=True):
            np.testing.assert_allclose(model.embed(text).vectors[0], vector, atol=2e-3)
        tokens = [tiny_base.BOS, *model.tokenize("end")]
        np.testing.assert_allclose(model.embed([tokens]).vectors[0], together.vectors[0], atol=2e-3)
        assert model.embed([]).vectors.shape == (0, tiny_base.N_EMBD)


def test_an_adapter_reads_them(files: Files) -> None:
    with files.model() as model:
        said = model.detokenize(files.invocation, special=True)
        texts = [f"Is it? {said} yes", f"No. {said} no"]
        base = model.embed(texts, pooling="last").vectors
        for name in ("sure", "lora"):
            adapted = model.embed(texts, adapter=name, pooling="last").vectors
            assert np.abs(adapted - base).max() > 0.05
            session = model.session()  # as the model's own context computes it
            nothing = model.embed(texts, adapter=name, scale=0.0, pooling="last").vectors
            np.testing.assert_allclose(nothing, base, atol=1e-3)
            session.close()
        np.testing.assert_allclose(model.embed(texts, pooling="last").vectors, base, atol=1e-3)
        with pytest.raises(ag.InvocationNotFoundError):
            model.embed("without it", adapter="sure")
        with pytest.raises(ag.UnknownAdapterError):
            model.embed("x", adapter="none")
        before = model.embed(texts, adapter="other", pooling="last").vectors
        model.unload_adapter("sure")
        model.unload_adapter("other")
        model.load_adapter("other", files.other)
        after = model.embed(texts, adapter="other", pooling="last").vectors
        np.testing.assert_allclose(before, after, atol=1e-5)


def test_conversations_stay_as_they_are(files: Files) -> None:
    with files.model() as model, model.session() as session:
        session.append("the answer is certain")
        before, logits = session.state(), inside.last_logits(session).copy()
        vectors = model.embed(TEXTS).vectors
        assert session.state() == before
        assert (inside.last_logits(session) == logits).all()
        found: list[Any] = []
        threads = [
            threading.Thread(target=lambda: found.append(model.embed(TEXTS).vectors))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        session.generate(max_tokens=20).read()
        for thread in threads:
            thread.join(FOREVER)
        assert len(found) == 3
        for each in found:
            np.testing.assert_allclose(each, vectors, atol=1e-3)
        session.close()
        assert_nothing_left(model)


@pytest.mark.parametrize(
    ("texts", "more", "problem"),
    [
        ([3], {}, r"texts\[0\] is 3, expected text or token ids"),
        (["a", []], {}, r"texts\[1\] has no tokens"),
        (["a b " * 40], {}, r"texts\[0\] has \d+ tokens, expected at most 32; split it"),
        ([[1, 99999]], {}, r"texts\[0\]: token 1 is 99999"),
        (["a"], {"pooling": "max"}, "pooling must be one of mean, cls, last"),
        (["\ud800"], {}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_embedded_is_refused(
    files: Files, texts: Any, more: dict[str, Any], problem: str
) -> None:
    with ag.Model(files.base, n_batch=32, **OPTIONS) as model:
        with pytest.raises(ag.InputError, match=problem):
            model.embed(texts, **more)
        cut = model.embed("a b " * 40, truncate=True)
        assert cut.n_tokens == (32,)
        token = ag.CancelToken()
        token.cancel()
        with pytest.raises(ag.CancelledError):
            model.embed("a", cancel=token)


def test_a_model_that_pools_into_ranks_has_no_vectors(tmp_path: Path) -> None:
    base = tiny_base.write_base(tmp_path / "ranks.gguf", more={"llama.pooling_type": 4})
    with ag.Model(base, **OPTIONS) as model:
        with pytest.raises(ag.InputError, match="pools into ranks, which are not embeddings"):
            model.embed("a")
        assert len(model.embed("a", pooling="mean")) == 1


def test_a_closed_model_says_so(files: Files) -> None:
    with ag.Model(files.base, **OPTIONS) as model:
        model.embed("a")
    with pytest.raises(ag.ClosedError):
        model.embed("a")
