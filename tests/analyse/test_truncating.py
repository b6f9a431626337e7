"""truncate(): the best approximation of its rank, and a sound adapter of the same metadata."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from alora_gguf import AdapterFile, AdapterFormatError, InputError, MissingFileError, demo
from alora_gguf.analyse import analyse, truncate
from alora_gguf.gguf.header import read_header
from alora_gguf.verification import verify
from tests.analyse.known import K, Q, dw_of, random_pair, write
from tests.support.files import Files
from tests.support.make_gguf import Array, finish


def best(dw: Array, rank: int) -> Array:
    """Of this rank, by numpy's SVD."""
    u, s, vt = np.linalg.svd(dw, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


@pytest.mark.parametrize("rank", [1, 4, 31])
def test_the_best_approximation(tmp_path: Path, rank: int) -> None:
    source, out = demo.adapter_path("jailbreak"), tmp_path / "out.gguf"
    found = truncate(source, out, rank=rank)
    before, after = dw_of(source), dw_of(out)
    for target, dw in before.items():
        expected = best(dw, rank)
        assert np.abs(after[target] - expected).max() < 1e-5 * np.abs(expected).max()
    kept = sum(np.sum(dw**2) for dw in after.values()) / sum(np.sum(w**2) for w in before.values())
    assert found.kept == pytest.approx(kept, abs=1e-5)
    assert found.nbytes == out.stat().st_size
    assert str(found) == f"{out}: rank {rank}, {found.kept:.2%} of ||dW||_F^2 kept"
    assert {m.rank for m in analyse(out).adapters[0].matrices} == {rank}


def test_metadata_stay(tmp_path: Path) -> None:
    source, out = demo.adapter_path("answerability"), tmp_path / "out.gguf"
    truncate(source, out, rank=8)
    before, after = read_header(source), read_header(out)
    assert {k: bytes(v) for k, v in after.entries.items()} == {
        k: bytes(v) for k, v in before.entries.items()
    }
    assert list(after.tensors) == list(before.tensors)
    assert {info.type_name for info in after.tensors.values()} == {"F32"}
    first, second = AdapterFile.read(source), AdapterFile.read(out)
    assert (second.alpha, second.invocation, second.io_yaml) == (
        first.alpha, first.invocation, first.io_yaml,
    )  # fmt: skip
    assert second.identity != first.identity


def test_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    truncate(demo.adapter_path("answerability"), out, rank=8)
    found = verify(demo.base_path(), out, n_threads=1)
    assert found.passed
    assert (found.adapter.rank, found.adapter.type) == (8, "F32")


@pytest.mark.parametrize("alpha", [None, 6.0, -6.0])
def test_scales(tmp_path: Path, alpha: float | None) -> None:
    path = write(tmp_path / "a.gguf", {Q: random_pair(np.random.default_rng(0), 8)}, alpha=alpha)
    truncate(path, tmp_path / "out.gguf", rank=3)
    after = dw_of(tmp_path / "out.gguf")[Q]
    assert after == pytest.approx(best(dw_of(path)[Q], 3), abs=1e-5)


def test_what_has_no_higher_rank_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    pairs = {Q: random_pair(rng, 8), K: random_pair(rng, 2)}
    path = write(tmp_path / "a.gguf", pairs, alpha=4.0, dtype=np.float16)
    truncate(path, tmp_path / "out.gguf", rank=4)
    before, after = read_header(path), read_header(tmp_path / "out.gguf")
    for half in "ab":
        name = f"{K}.lora_{half}"
        assert after.tensors[name].type_name == "F16"
        assert bytes(after.tensor_data(name)) == bytes(before.tensor_data(name))
    ours, theirs = dw_of(tmp_path / "out.gguf"), dw_of(path)
    assert ours[K] == pytest.approx(theirs[K])
    assert ours[Q] == pytest.approx(best(theirs[Q], 4), abs=1e-4)


def test_a_padded_adapter_loses_nothing(tmp_path: Path) -> None:
    a, b = random_pair(np.random.default_rng(2), 4)
    padded = np.pad(a, ((0, 28), (0, 0))), np.pad(b, ((0, 0), (0, 28)))
    path = write(tmp_path / "a.gguf", {Q: padded}, alpha=64.0)
    assert truncate(path, tmp_path / "out.gguf", rank=4).kept == pytest.approx(1)
    assert dw_of(tmp_path / "out.gguf")[Q] == pytest.approx(dw_of(path)[Q], abs=1e-4)


def test_experts_embeddings_and_dead_targets(tmp_path: Path) -> None:
    rng, out = np.random.default_rng(3), tmp_path / "out.gguf"
    experts = "blk.0.ffn_up_exps.weight"
    pairs = {
        experts: (rng.standard_normal((3, 8, 32)), rng.standard_normal((3, 16, 8))),
        "token_embd.weight": (rng.standard_normal((100, 8)), rng.standard_normal((32, 8))),
        Q: (rng.standard_normal((8, 64)), np.zeros((48, 8))),
        "blk.0.attn_v.weight": (rng.standard_normal((8, 64)), rng.standard_normal((2, 8))),
    }
    path = write(tmp_path / "a.gguf", pairs, alpha=8.0)
    found = truncate(path, out, rank=4)
    assert len(found.matrices) == 6
    for target in ("token_embd.weight", Q, "blk.0.attn_v.weight"):
        assert dw_of(out)[target] == pytest.approx(best(dw_of(path)[target], 4), abs=1e-4)
    before, after = (
        {m.label: m for m in analyse(each).adapters[0].matrices} for each in (path, out)
    )
    for label, matrix in before.items():
        expected = (*matrix.singular_values[:4],)
        assert after[label].singular_values == pytest.approx(expected, abs=1e-4)
    assert [m.kept for m in found.matrices if m.target == Q] == [1.0]


def test_another_alignment(tmp_path: Path) -> None:
    path, out = tmp_path / "a.gguf", tmp_path / "out.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    for half, values in zip("ab", random_pair(np.random.default_rng(4), 8, 33, 17), strict=True):
        writer.add_tensor(f"{Q}.lora_{half}", values.astype(np.float32))
    finish(writer, path)
    truncate(path, out, rank=3)
    assert (read_header(path).alignment, read_header(out).alignment) == (64, 32)
    assert dw_of(out)[Q] == pytest.approx(best(dw_of(path)[Q], 3), abs=1e-4)


# What is refused ----------------------------------------------------------------------------------


def test_refusals(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for rank in (8, 100):
        with pytest.raises(InputError) as caught:
            truncate(files.alora, out, rank=rank)
        assert str(caught.value) == (
            f"rank is {rank}, but {files.alora} has rank 8; give a lower one to truncate it"
        )
    with pytest.raises(InputError, match=r"^rank must be an integer of at least 1, got 0$"):
        truncate(files.alora, out, rank=0)
    with pytest.raises(MissingFileError, match="there is no such file, expected an adapter's"):
        truncate(tmp_path / "gone.gguf", out, rank=2)
    with pytest.raises(AdapterFormatError):
        truncate(files.base, out, rank=2)
    with pytest.raises(InputError, match="its directory does not exist; create it first"):
        truncate(files.alora, tmp_path / "gone" / "out.gguf", rank=2)
    assert not out.exists()
    out.write_text("here")
    with pytest.raises(InputError, match="exists already; pass overwrite=True"):
        truncate(files.alora, out, rank=2)
    assert out.read_text() == "here"
    truncate(files.alora, out, rank=2, overwrite=True)
    assert AdapterFile.read(out).rank == 2


def test_over_itself(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(files.alora.read_bytes())
    truncate(path, path, rank=2, overwrite=True)
    assert dw_of(path)[Q] == pytest.approx(best(dw_of(files.alora)[Q], 2), abs=1e-4)
