"""Norms and ranks, against plain numpy on dW itself."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alora_gguf import (
    AdapterFormatError,
    AdapterMismatchError,
    InputError,
    MissingFileError,
    ModelError,
    demo,
)
from alora_gguf.analyse import Analysis, MatrixWeights, analyse, base_norms
from alora_gguf.analyse.factors import Factors, Place
from alora_gguf.analyse.random_adapters import Chance, RandomAdapters, normal_r
from tests.analyse.known import K, Q, dw_of, orthonormal, random_pair, weight_of, write
from tests.support import corrupt, tiny_base
from tests.support.files import Files
from tests.support.verified import with_nan

ROOT = Path(__file__).parents[2]


def matrices(path: Path, **options: object) -> dict[str, MatrixWeights]:
    (adapter,) = analyse(path, **options).adapters  # type: ignore[arg-type]
    return {matrix.label: matrix for matrix in adapter.matrices}


@pytest.mark.parametrize("name", ["answerability", "jailbreak"])
def test_a_trained_adapter(name: str) -> None:
    found = matrices(demo.adapter_path(name))
    for target, dw in dw_of(demo.adapter_path(name)).items():
        s, ours = np.linalg.svd(dw, compute_uv=False)[:32], found[target]
        assert ours.singular_values == pytest.approx(s, abs=1e-6 * s[0])
        assert ours.frobenius == pytest.approx(np.linalg.norm(dw))
        assert ours.spectral == pytest.approx(np.linalg.norm(dw, 2))
        assert ours.stable_rank == pytest.approx(np.sum(s**2) / s[0] ** 2)
        shares = s / s.sum()
        assert ours.effective_rank == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))
        assert np.sum(s[: ours.energy_rank] ** 2) >= 0.99 * np.sum(s**2)
        assert np.sum(s[: ours.energy_rank - 1] ** 2) < 0.99 * np.sum(s**2)
        assert ours.utilisation == pytest.approx(ours.stable_rank / 32)
        assert ours.finite
        assert not ours.dead


def test_known_singular_values(tmp_path: Path) -> None:
    rng, s = np.random.default_rng(0), np.array([4.0, 2.0, 1.0, 0.0])
    a, b = orthonormal(rng, 64, 4).T, orthonormal(rng, 48, 4) * s
    found = matrices(write(tmp_path / "a.gguf", {Q: (a, b)}, alpha=8.0))[Q]
    assert found.scale == 2
    assert found.singular_values == pytest.approx([8, 4, 2, 0], abs=1e-5)
    assert (found.n_in, found.n_out, found.rank) == (64, 48, 4)
    assert (found.numerical_rank, found.energy_rank) == (3, 3)
    assert found.stable_rank == pytest.approx(21 / 16)
    flat = matrices(write(tmp_path / "flat.gguf", {Q: (a, orthonormal(rng, 48, 4))}))[Q]
    assert (flat.scale, flat.spectral) == (1, pytest.approx(1))
    assert (flat.stable_rank, flat.effective_rank) == (pytest.approx(4), pytest.approx(4))
    assert flat.utilisation == pytest.approx(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("how", ["zeros", "rotated"])
def test_rank_4_padded_to_32_is_told_as_rank_4(tmp_path: Path, dtype: type, how: str) -> None:
    rng = np.random.default_rng(1)
    pairs = {}
    for target in (Q, K):
        a, b = random_pair(rng, 4, 256, 128)
        a, b = np.pad(a, ((0, 28), (0, 0))), np.pad(b, ((0, 0), (0, 28)))
        if how == "rotated":
            turn = orthonormal(rng, 32, 32)
            a, b = turn.T @ a, b @ turn
        pairs[target] = (a, b)
    path = write(tmp_path / "padded.gguf", pairs, alpha=64.0, dtype=dtype)
    (adapter,) = analyse(path).adapters
    assert {m.numerical_rank for m in adapter.matrices} == {4}
    assert all(m.energy_rank <= 4 for m in adapter.matrices)
    (note,) = adapter.findings
    assert str(note) == (
        "note: no matrix has more than rank 4, but rank 32 is stored; --write-rank 4 writes the "
        "same adapter smaller [spare-rank]"
    )


def test_low_rank_plus_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    a, b = orthonormal(rng, 256, 16).T, orthonormal(rng, 256, 16)
    b = b * np.where(np.arange(16) < 3, 1.0, 0.01)
    found = matrices(write(tmp_path / "noisy.gguf", {Q: (a, b)}))[Q]
    assert (found.numerical_rank, found.energy_rank) == (16, 3)
    assert found.stable_rank == pytest.approx(3, abs=0.01)


def test_experts_are_matrices_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((3, 4, 32)), rng.standard_normal((3, 16, 4))
    b[1] = 0
    target = "blk.2.ffn_up_exps.weight"
    (adapter,) = analyse(write(tmp_path / "a.gguf", {target: (a, b)}, alpha=4.0)).adapters
    assert [m.expert for m in adapter.matrices] == [0, 1, 2]
    for matrix, a_i, b_i in zip(adapter.matrices, a, b, strict=True):
        assert matrix.spectral == pytest.approx(np.linalg.norm(b_i @ a_i, 2))
    assert adapter.dead == (f"{target}[1]",)
    assert [layer.layer for layer in adapter.layers] == [2]
    (totals,) = (each.totals for each in adapter.targets)
    assert (totals.n_matrices, totals.n_dead) == (3, 1)


def test_the_embedding_is_stored_the_other_way_round(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((300, 4)), rng.standard_normal((64, 4))
    path = write(tmp_path / "a.gguf", {"token_embd.weight": (a, b)})
    found = matrices(path)["token_embd.weight"]
    assert (found.n_in, found.n_out, found.layer) == (300, 64, None)
    assert found.spectral == pytest.approx(np.linalg.norm(b @ a.T, 2))
    assert found.frobenius == pytest.approx(np.linalg.norm(dw_of(path)["token_embd.weight"]))


@pytest.mark.parametrize("kind", ["BF16", "Q8_0"])
def test_other_types(tmp_path: Path, kind: str) -> None:
    import gguf

    rng = np.random.default_rng(5)
    raw, halves = gguf.GGMLQuantizationType[kind], {}
    for half, values in zip("ab", random_pair(rng, 32, 64, 64), strict=True):
        stored = gguf.quants.quantize(values.astype(np.float32), raw)
        halves[half] = (stored, raw)
    path = tmp_path / "a.gguf"
    corrupt.make_gguf(
        path, corrupt.adapter_keys(None), {f"{Q}.lora_{h}": t for h, t in halves.items()}
    )
    a, b = (gguf.quants.dequantize(stored, raw).astype(float) for stored, raw in halves.values())
    assert matrices(path)[Q].spectral == pytest.approx(np.linalg.norm(b @ a, 2))


def test_small_layers_of_a_large_rank(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", {Q: random_pair(np.random.default_rng(6), 32, 64, 8)})
    found = matrices(path)[Q]
    assert found.numerical_rank == 8
    assert found.frobenius == pytest.approx(np.linalg.norm(dw_of(path)[Q]))


# Layers and targets -------------------------------------------------------------------------------


def test_layers_and_concentration(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    pairs = {}
    for layer, size in enumerate((1.0, 1.0, 2.0)):
        for name in ("attn_q", "ffn_up"):
            a, b = orthonormal(rng, 32, 2).T, size * orthonormal(rng, 32, 2)
            pairs[f"blk.{layer}.{name}.weight"] = (a, b)
    (adapter,) = analyse(write(tmp_path / "a.gguf", pairs)).adapters
    assert [layer.totals.share for layer in adapter.layers] == pytest.approx([1 / 6, 1 / 6, 2 / 3])
    assert adapter.concentration == pytest.approx(0.5)
    assert adapter.totals.frobenius == pytest.approx(np.sqrt(24))
    assert [each.name for each in adapter.targets] == ["attn_q", "ffn_up"]
    assert [each.totals.share for each in adapter.targets] == pytest.approx([0.5, 0.5])


# The random adapter -------------------------------------------------------------------------------


def test_bartletts_r_is_that_of_normal_numbers() -> None:
    rng = np.random.default_rng(8)
    drawn = [normal_r(rng, 40, 6) for _ in range(400)]
    real = [np.linalg.qr(rng.standard_normal((40, 6)), mode="r") for _ in range(400)]
    ours, theirs = (
        np.mean([np.linalg.svd(r, compute_uv=False) for r in each], axis=0)
        for each in (drawn, real)
    )
    assert ours == pytest.approx(theirs, rel=0.02)
    assert normal_r(rng, 3, 6).shape == (3, 6)


def test_a_random_adapter_is_told_as_random(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", {Q: random_pair(np.random.default_rng(9), 8, 256, 192)})
    found = matrices(path)[Q]
    assert found.spectral == pytest.approx(found.random.spectral, rel=0.1)
    assert found.stable_rank == pytest.approx(found.random.stable_rank, rel=0.15)
    assert found.effective_rank == pytest.approx(found.random.effective_rank, rel=0.03)
    assert matrices(path, seed=1)[Q].random != found.random


def test_random_adapters_have_mean_and_spread_of_real_ones(tmp_path: Path) -> None:
    rng, shapes = np.random.default_rng(10), (8, 96, 64)
    path = write(tmp_path / "a.gguf", {Q: random_pair(rng, *shapes)})
    found = matrices(path, n_random=64)[Q]
    drawn = []
    for i in range(64):
        write(tmp_path / f"{i}.gguf", {Q: random_pair(rng, *shapes)})
        each = matrices(tmp_path / f"{i}.gguf")[Q]
        spectral = found.frobenius / each.frobenius * each.spectral
        drawn.append((spectral, each.stable_rank, each.effective_rank, each.utilisation))
    for i, name in enumerate(("spectral", "stable_rank", "effective_rank", "utilisation")):
        real = np.array([each[i] for each in drawn])
        mean, spread = getattr(found.random, name), getattr(found.random_spread, name)
        assert mean == pytest.approx(real.mean(), abs=4 * real.std() / 8), name
        assert spread == pytest.approx(real.std(ddof=1), rel=0.35), name
    assert found.random.relative is None


def test_a_layers_mean_varies_less_than_its_matrices(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    pairs = {f"blk.0.{name}.weight": random_pair(rng, 8, 64, 64) for name in map(str, range(16))}
    (adapter,) = analyse(write(tmp_path / "a.gguf", pairs), n_random=64).adapters
    (layer,) = adapter.layers
    one = np.mean([m.random_spread.effective_rank for m in adapter.matrices])
    assert layer.totals.random_spread.effective_rank == pytest.approx(one / 4, rel=0.3)
    # the largest of 16 is above each
    largest = layer.totals.random.spectral
    assert largest > max(m.random.spectral for m in adapter.matrices)


def test_random_matrices_are_drawn_apart_and_used_again_in_the_end() -> None:
    random = RandomAdapters(Chance(0, 4))
    first, second = (random.matrix(40, 30, 8) for _ in range(2))
    assert first.shape == (4, 4)
    assert not np.allclose(first, second)
    again = [random.matrix(40, 30, 8) for _ in range(2, 129)]
    assert np.array_equal(again[-1], first)  # 1024 / 8 = 128 are drawn
    assert np.array_equal(RandomAdapters(Chance(0, 4)).matrix(40, 30, 8), first)
    assert not np.array_equal(RandomAdapters(Chance(1, 4)).matrix(40, 30, 8), first)


# With the base ------------------------------------------------------------------------------------


def test_relative_to_the_base() -> None:
    found = matrices(demo.adapter_path("jailbreak"), base=demo.base_path())
    for target in ("blk.0.attn_q.weight", "blk.5.attn_output.weight"):
        below = np.linalg.norm(weight_of(demo.base_path(), target), 2)
        assert found[target].base_spectral == pytest.approx(below, rel=1e-3)
        assert found[target].base_spectral <= below * (1 + 1e-5)
        relative = found[target].relative
        assert relative == pytest.approx(found[target].spectral / below, rel=1e-3)


def test_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, base = demo.adapter_path("jailbreak"), demo.base_path()
    whole = matrices(adapter, base=base)
    monkeypatch.setattr(base_norms, "_AT_ONCE", 5 * 256)
    monkeypatch.setattr(base_norms, "_HELD", 0)
    done: list[float] = []
    parts = matrices(adapter, base=base, progress=done.append)
    for target, matrix in parts.items():
        assert matrix.base_spectral == pytest.approx(whole[target].base_spectral, rel=1e-4)
    assert done == pytest.approx([(i + 1) / 24 for i in range(24)])


def test_experts_of_the_base(tmp_path: Path) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf", experts=4)
    rng, target = np.random.default_rng(10), "blk.1.ffn_down_exps.weight"
    a, b = rng.standard_normal((4, 2, 128)), rng.standard_normal((4, 64, 2))
    found = matrices(write(tmp_path / "a.gguf", {target: (a, b)}), base=base)
    weight = weight_of(base, target)
    for i in range(4):
        below = found[f"{target}[{i}]"].base_spectral
        assert below == pytest.approx(np.linalg.norm(weight[i], 2), rel=1e-3)


@pytest.mark.parametrize(("n_out", "n_in", "rank"), [(300, 200, 200), (40, 64, 3), (5, 3, 3)])
def test_norms_of_random_weights(n_out: int, n_in: int, rank: int) -> None:
    rng = np.random.default_rng(rank)
    weight = rng.standard_normal((n_out, rank)) @ rng.standard_normal((rank, n_in))
    weight = rng.standard_normal((n_out, n_in)) if rank == n_in else weight
    halves = np.array_split(weight.astype(np.float32), 2)
    found = base_norms._spectral_norm(lambda: iter(halves), n_in, 0)
    assert found == pytest.approx(np.linalg.norm(weight, 2), rel=1e-3)
    assert base_norms._spectral_norm(lambda: iter([0 * halves[0]]), n_in, 0) == 0
    assert np.isnan(base_norms._spectral_norm(lambda: iter([np.nan * halves[0]]), n_in, 0))


# What is refused ----------------------------------------------------------------------------------


def test_files_that_cannot_be_used(files: Files, tmp_path: Path) -> None:
    with pytest.raises(AdapterFormatError, match=r"lora_a' holds NaN or infinite values; its"):
        analyse(with_nan(files.alora, tmp_path / "nan.gguf"))
    with pytest.raises(MissingFileError, match="there is no such file, expected an adapter's GG"):
        analyse(tmp_path / "gone.gguf")
    with pytest.raises(MissingFileError, match="there is no such file, expected a GGUF file"):
        analyse(files.alora, base=tmp_path / "gone.gguf")
    with pytest.raises(ModelError, match=r"is an adapter \(general.type = adapter\), not a base"):
        analyse(files.alora, base=files.alora)
    with pytest.raises(AdapterMismatchError, match="was made for the architecture 'llama', but "):
        analyse(files.alora, base=demo.base_path())
    other = write(tmp_path / "other.gguf", {Q: random_pair(np.random.default_rng(0), 4)})
    with pytest.raises(AdapterMismatchError) as caught:
        analyse([files.alora, other])
    assert str(caught.value) == (
        f"{other}: '{Q}' maps 64 to 48, but 64 to 64 in {files.alora}; only adapters of one base "
        "can be compared, analyse them one by one"
    )


@pytest.mark.parametrize("name", sorted(corrupt.ADAPTERS))
def test_hostile_files_are_refused(name: str, tmp_path: Path) -> None:
    writer, _, error, words = corrupt.ADAPTERS[name]
    path = writer(tmp_path / "hostile.gguf")
    if error != "AdapterFormatError":  # of a base, which there is not here
        return
    with pytest.raises(AdapterFormatError, match=re.escape(words)):
        analyse(path)


def test_arguments(files: Files) -> None:
    with pytest.raises(InputError, match=r"^adapters is empty; give the path of at least one "):
        analyse([])
    with pytest.raises(InputError, match=r"^adapters must be paths of GGUF files, got 3 among th"):
        analyse([files.alora, 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"^seed must be an integer of at least 0, got -1$"):
        analyse(files.alora, seed=-1)
    with pytest.raises(InputError, match=r"^n_random must be an integer .*2.*64.*, got 1$"):
        analyse(files.alora, n_random=1)


# Records ------------------------------------------------------------------------------------------


def test_json_can_hold_it(files: Files) -> None:
    found = analyse([files.alora, files.other], base=files.base)
    shown = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(shown) == {field.name for field in dataclasses.fields(Analysis)}
    assert shown["adapters"][0]["matrices"][0]["target"] == "blk.0.attn_k.weight"
    assert shown["base"] == str(files.base)
    assert found == analyse([files.alora, files.other], base=files.base)
    assert len(str(found).splitlines()) >= 3


def test_labels_tell_adapters_apart(files: Files, tmp_path: Path) -> None:
    pair = {Q: random_pair(np.random.default_rng(0))}
    paths = [
        write(tmp_path / f"{name}.gguf", pair, general__name="the same") for name in ("x", "y")
    ]
    assert [each.label for each in analyse(paths).adapters] == ["x", "y"]
    twice = analyse([paths[0], paths[0]]).adapters
    assert [each.label for each in twice] == [f"{paths[0]} (1)", f"{paths[0]} (2)"]


# Cost ---------------------------------------------------------------------------------------------

LARGE = """
import sys, time
import numpy
from alora_gguf.analyse import analyse
start = time.process_time()
(adapter,) = analyse(sys.argv[1]).adapters
seconds = time.process_time() - start
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak) / 1024, len(adapter.matrices))
"""
SHAPES = {  # of Llama 3.1 8B
    "attn_q": (4096, 4096), "attn_k": (4096, 1024), "attn_v": (4096, 1024),
    "attn_output": (4096, 4096), "ffn_gate": (4096, 14336), "ffn_up": (4096, 14336),
    "ffn_down": (14336, 4096),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_adapter_of_8b_costs_less_than_2_seconds_and_300_mb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 20).astype(np.float16)

    def drawn(*shape: int) -> np.ndarray:
        return np.resize(np.roll(noise, int(rng.integers(1 << 20))), shape)

    pairs = {
        f"blk.{i}.{name}.weight": (drawn(16, n_in), drawn(n_out, 16))
        for i in range(32)
        for name, (n_in, n_out) in SHAPES.items()
    }
    path = write(tmp_path / "8b.gguf", pairs, alpha=32.0, dtype=np.float16)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", LARGE, str(path)],
        capture_output=True, text=True, env=environment, check=True, cwd=ROOT,
    )  # fmt: skip
    seconds, mib, n = map(float, run.stdout.split())
    assert n == 224
    assert seconds < 2, run.stdout
    assert mib < 300


def test_the_svd_is_numpys() -> None:
    rng = np.random.default_rng(11)
    for scale, (rank, n_in, n_out) in ((-2.0, (4, 30, 20)), (3.0, (16, 30, 8))):
        a, b = random_pair(rng, rank, n_in, n_out)
        factors = Factors(Place("w", "w", None, None), a, b, scale, 1e-6)
        u, s, vt = factors.svd()
        assert (u * s) @ vt == pytest.approx(scale * b @ a)
        k = len(s)
        assert u.T @ u == pytest.approx(np.eye(k))
        assert s == pytest.approx(np.linalg.svd(b @ a, compute_uv=False)[:k] * abs(scale))
