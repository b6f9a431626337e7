"""Models whose memory cannot rewind: forks still serve them, and what is read again is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.tokens import BASE
from tests.support import corrupt, inside
from tests.support.tiny_base import D_INNER, write_hybrid

GREEDY = ag.Sampling(temperature=0.0)
INVOCATION = [7, 8, 9]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("hybrid")
    rng = np.random.default_rng(3)
    tensors = {}
    for target, n_in, n_out in (
        ("blk.0.ssm_in.weight", 64, 2 * D_INNER),
        ("blk.0.ssm_out.weight", D_INNER, 64),
        ("blk.1.attn_q.weight", 64, 64),
        ("blk.1.ffn_down.weight", 128, 64),
    ):
        tensors[f"{target}.lora_a"] = rng.standard_normal((4, n_in), np.float32) / 8
        tensors[f"{target}.lora_b"] = rng.standard_normal((n_out, 4), np.float32)
    adapter = corrupt.adapter(
        folder / "a.gguf",
        tensors,
        arch="jamba",
        array=(corrupt.Type.UINT32, list(INVOCATION)),
    )
    return write_hybrid(folder / "hybrid.gguf"), adapter


@pytest.fixture
def model(paths: tuple[Path, Path]) -> Iterator[ag.Model]:
    base, adapter = paths
    with ag.Model(base, adapters={"a": adapter}, n_ctx=512, n_threads=1) as opened:
        yield opened


def reply(model: ag.Model, tokens: list[int], adapter: str | None) -> list[int]:
    with model.session() as session:
        session.sync(tokens, adapter=adapter)
        made = session.generate(max_tokens=8, sampling=GREEDY, adapter=adapter)
        made.read()
        return made.tokens


def test_invocations_fork_the_whole_memory(model: ag.Model) -> None:
    session = model.session()
    session.sync(list(range(50)))
    state = session.state()
    verdicts = session.invoke_many(
        [ag.Invocation(n, [1, 2], max_tokens=8) for n in ("a", None, "a")]
    )
    assert [v.timings.reused for v in verdicts] == [50, 50, 50]
    tokens = [*range(50), 1, 2]
    assert list(verdicts[0].tokens) == reply(model, [*tokens, *INVOCATION], "a")
    assert list(verdicts[1].tokens) == reply(model, tokens, None)
    assert verdicts[0].tokens == verdicts[2].tokens != verdicts[1].tokens
    assert session.state() == state


def test_nothing_to_read_needs_no_rewind(model: ag.Model) -> None:
    session = model.session()
    session.sync(list(range(20)))
    verdict = session.invoke(ag.Invocation(None, max_tokens=8))
    assert (verdict.timings.reused, verdict.timings.evaluated) == (20, 0)
    assert list(verdict.tokens) == reply(model, list(range(20)), None)


def test_a_fork_in_the_middle_reads_everything_and_says_so(model: ag.Model) -> None:
    session = model.session()
    session.sync([*range(20), 7, 8])
    verdict = session.invoke(ag.Invocation("a", [9], max_tokens=8))
    assert (verdict.timings.reused, verdict.timings.evaluated) == (0, 23)
    assert "can be forked only as a whole" in verdict.timings.reuse_note
    assert list(verdict.tokens) == reply(model, [*range(20), 7, 8, 9], "a")


def test_a_rewind_is_read_again_and_says_so(model: ag.Model) -> None:
    session = model.session()
    session.sync(list(range(20)))
    session.rewind(10)
    timings = session.append([3])
    assert session.tokens == [*range(10), 3]
    assert (timings.reused, timings.evaluated) == (0, 11)
    assert "cannot rewind" in timings.reuse_note
    fresh = model.session()
    fresh.sync([*range(10), 3])
    np.testing.assert_allclose(inside.last_logits(session), inside.last_logits(fresh), atol=0.05)


@pytest.mark.parametrize("n", [0, 2, 40, 85])
def test_what_was_rewound_is_not_said_to_be_cached(model: ag.Model, n: int) -> None:
    """Its memory still has it, and cache_report() says so."""
    with model.session() as session:
        session.append(list(range(85)))
        session.sync([*range(85), *INVOCATION, 5, 6], adapter="a")
        assert (session.cached, len(session.provenance)) == (90, 2)
        session.rewind(n)
        assert (len(session.tokens), session.cached) == (n, n)
        assert session.provenance == ((0, BASE),)
        assert model.cache_report().used == 90
        session.append([3, 4])
        assert (session.cached, session.tokens) == (n + 2, [*range(n), 3, 4])


def test_a_generation_goes_on_without_reading_again(model: ag.Model) -> None:
    session = model.session()
    session.sync(list(range(20)))
    first = session.generate(max_tokens=4, sampling=GREEDY)
    first.read()
    second = session.generate(max_tokens=4, sampling=GREEDY)
    second.read()
    assert second.timings.evaluated == 0
    assert first.tokens + second.tokens == reply(model, list(range(20)), None)


def test_a_full_cache_leaves_the_session_usable(paths: tuple[Path, Path]) -> None:
    with ag.Model(paths[0], n_ctx=256, n_threads=1) as model:
        session = model.session()
        session.sync(list(range(200)))
        with pytest.raises(ag.CacheFullError):
            session.generate(max_tokens=100, sampling=GREEDY).read()
        tokens = session.tokens
        assert len(tokens) > 240
        session.rewind(50)
        session.append([1])
        assert session.tokens == [*range(50), 1]
