"""verify() of steering vectors: what they change by layer, and that the rest is the base's."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.native import Native
from alora_gguf.verification import verify
from alora_gguf.verification.probe import open_probe
from tests.support import vectors
from tests.support.files import Files
from tests.support.tiny_base import write_hybrid

# the vocabulary is nothing to a vector, so nothing is odd about one


@pytest.mark.parametrize("hook", ["block", "attention", "ffn"])
@pytest.mark.parametrize("mode", ["add", "project", "project_positive", "add_keep_norm"])
def test_what_each_changes_from_its_layer_on(
    hook: str, mode: str, files: Files, tmp_path: Path
) -> None:
    found = verify(files.base, vectors.glp(tmp_path / "v.gguf", mode=mode, hook=hook), n_threads=1)
    assert (found.failures, found.warnings) == ((), ())
    adapter = found.adapter
    assert (adapter.kind, adapter.operation, adapter.alpha, adapter.rank) == ("vector", mode, 2, 1)
    assert adapter.acts_on == ("blk.1" if hook == "block" else f"blk.1.{hook}",)
    assert (adapter.type, adapter.n_parameters) == ("F32", vectors.N)
    assert found.vocabularies == "unknown"
    # 256 tokens before it, of which 16 are looked at, and 32 that stand for a reply
    assert (found.text.first, found.text.n_rows, found.text.n_adapted) == (256, 48, 32)
    assert (found.cells.n_cells, found.cells.reused) == (256, 256)
    assert (found.cells.untouched, found.cells.equal) == (True, True)
    assert (found.logits.n_before, found.logits.before_equal) == (16, True)
    before, after = found.layers
    assert (before.change, before.largest) == (0, 0)  # layer 0 comes before
    assert after.change > 1e-3
    assert found.logits.largest > 1e-3


def test_add_changes_what_it_adds(files: Files, tmp_path: Path) -> None:
    """Behind the last layer, |h - h_base| is the length of the vector: by hand, elsewhere."""
    path = vectors.plain(tmp_path / "v.gguf", (1,))
    length = float(np.linalg.norm(vectors.rows(seed=6)))
    with ag.Model(files.base, n_threads=1, n_ctx=512) as model:
        found = verify(files.base, path, n_threads=1)
        n_rows = found.text.n_rows
        with open_probe(model, {}, n_tokens=len(found.text.tokens), n_rows=n_rows) as probe:
            hidden = probe.read(found.text.tokens, n_rows).layers[1][-found.text.n_adapted :]
    wanted = length / np.linalg.norm(hidden, axis=-1)
    assert found.layers[1].change == pytest.approx(wanted.mean(), rel=1e-4)
    assert found.layers[1].largest == pytest.approx(wanted.max(), rel=1e-4)


def test_one_with_an_invocation_begins_there(files: Files, tmp_path: Path) -> None:
    ids = (list(files.invocation), gguf.GGUFValueType.UINT32)
    path = vectors.glp(tmp_path / "v.gguf", keys={"adapter.alora.invocation_tokens": ids})
    found = verify(files.base, path, n_threads=1)
    assert found.failures == ()
    assert found.adapter.invocation == files.invocation
    assert found.text.tokens[256 : 256 + len(files.invocation)] == files.invocation
    assert (found.cells.equal, found.logits.before_equal) == (True, True)


def test_one_that_does_nothing_fails(files: Files, tmp_path: Path) -> None:
    path = vectors.glp(tmp_path / "v.gguf", keys={"glp.alpha_default": 0.0})
    found = verify(files.base, path, n_threads=1)
    assert found.failures == (
        "the adapter changes nothing: with it, every layer and every logit is bit for bit the "
        "base's; its scale is 0, or nothing that flows there points along its directions",
    )


def test_one_that_overflows_fails(files: Files, tmp_path: Path) -> None:
    keys = {"glp.alpha_default": 3e38}
    tensors = {"direction.0": np.full(vectors.N, 1e4, np.float32)}
    path = vectors.glp(tmp_path / "v.gguf", tensors, {**keys, "glp.orthonormal": False}, mode="add")
    found = verify(files.base, path, n_threads=1)
    (failure,) = found.failures
    assert failure.startswith("with the adapter on, NaN or infinite values come up, first in layer")
    assert failure.endswith("its directions times their scale are too large")


def test_an_enormous_one_is_warned_of(files: Files, tmp_path: Path) -> None:
    path = vectors.glp(tmp_path / "v.gguf", keys={"glp.alpha_default": 1e4}, mode="add")
    found = verify(files.base, path, n_threads=1)
    assert found.passed
    assert found.warnings == (
        "the change is enormous, more than 10 times the base's own norm, in layer 1; check the "
        "adapter's scale",
    )


def test_a_memory_that_cannot_be_cut(tmp_path: Path) -> None:
    base = write_hybrid(tmp_path / "hybrid.gguf")
    hint = ag.BaseFile.read(base).architecture
    found = verify(base, vectors.plain(tmp_path / "v.gguf", hint=hint), n_threads=1)
    assert found.passed
    assert found.logits.before_equal
    assert found.warnings == (
        "this model's memory cannot be cut, so cells before the reply were compared only as the "
        "conversation's own; layers and logits before it were compared all the same",
    )


def test_what_does_not_fit_is_refused(files: Files, tmp_path: Path) -> None:
    path = vectors.BAD["another width"][0](tmp_path / "v.gguf")
    with pytest.raises(ag.AdapterMismatchError, match="have 32 numbers, but"):
        verify(files.base, path)
    with pytest.raises(ag.InputError, match="is a steering vector, which PEFT does not know"):
        verify(files.base, vectors.plain(tmp_path / "p.gguf"), peft=tmp_path)


def test_one_token_too_early_is_found(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate = Native.activate

    def elsewhere(self: Native, ctx: int, seq: int, first: int, slot: int, scale: float) -> None:
        activate(self, ctx, seq, max(0, first - 1), slot, scale)

    monkeypatch.setattr(Native, "activate", elsewhere)
    found = verify(files.base, vectors.plain(tmp_path / "v.gguf"), n_threads=1)
    assert found.logits.before_equal is False
    assert any(" 16 tokens before the reply are not the base's" in f for f in found.failures)
