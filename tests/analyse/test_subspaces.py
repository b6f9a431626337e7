"""Two adapters and more: angles, cosines and shared bases of spaces that are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alora_gguf import demo
from alora_gguf.analyse import Analysis, Comparison, analyse
from alora_gguf.analyse.random_adapters import random_angles, random_frames
from tests.analyse.known import K, Q, dw_of, orthonormal, random_pair, write
from tests.support.make_gguf import Array

N = 96


def analysed(folder: Path, *pairs: tuple[Array, Array]) -> Analysis:
    paths = [write(folder / f"{i}.gguf", {Q: pair}) for i, pair in enumerate(pairs)]
    return analyse(paths)


def compared(folder: Path, *pairs: tuple[Array, Array]) -> Comparison:
    (found,) = analysed(folder, *pairs).comparisons
    return found


def test_the_same_adapter(tmp_path: Path) -> None:
    pair = random_pair(np.random.default_rng(0), 4, N, N)
    (overlap,) = compared(tmp_path, pair, pair).overlaps
    for angles in (overlap.written, overlap.read):
        assert angles.degrees == pytest.approx([0] * 4, abs=1e-4)
        assert angles.similarity == pytest.approx(1)
        assert angles.random_similarity == pytest.approx(4 / N, rel=0.3)
        assert 60 < angles.random_smallest < 90
    assert overlap.cosine == pytest.approx(1)


def test_the_same_space_in_another_basis(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    (a, b), turn = random_pair(rng, 4, N, N), rng.standard_normal((4, 4))
    other = random_pair(rng, 4, N, N)[0]
    (overlap,) = compared(tmp_path, (a, b), (other, b @ turn)).overlaps
    assert overlap.written.degrees == pytest.approx([0] * 4, abs=1e-3)
    assert overlap.read.smallest > 45
    assert abs(overlap.cosine) < 0.3


def test_orthogonal_spaces(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    basis = orthonormal(rng, N, 8)
    a = orthonormal(rng, N, 4).T
    (overlap,) = compared(tmp_path, (a, basis[:, :4]), (a, basis[:, 4:])).overlaps
    assert overlap.written.degrees == pytest.approx([90] * 4, abs=1e-3)
    assert overlap.written.similarity == pytest.approx(0, abs=1e-9)
    assert overlap.read.similarity == pytest.approx(1)
    assert overlap.cosine == pytest.approx(0, abs=1e-6)


def test_rotated_by_known_angles(tmp_path: Path) -> None:
    rng, degrees = np.random.default_rng(3), np.array([10.0, 35.0, 80.0])
    basis, a = orthonormal(rng, N, 6), orthonormal(rng, N, 3).T
    turned = basis[:, :3] * np.cos(np.radians(degrees)) + basis[:, 3:] * np.sin(np.radians(degrees))
    (overlap,) = compared(tmp_path, (a, basis[:, :3]), (a, turned)).overlaps
    assert overlap.written.degrees == pytest.approx(degrees, abs=1e-3)
    assert overlap.written.similarity == pytest.approx(np.mean(np.cos(np.radians(degrees)) ** 2))


def test_a_space_within_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    a, b = random_pair(rng, 8, N, N)
    (overlap,) = compared(tmp_path, (a, b), (a[:3], b[:, :3])).overlaps
    assert overlap.written.ranks == (8, 3)
    assert overlap.written.similarity == pytest.approx(1)
    assert len(overlap.read.degrees) == 3


def test_padding_is_not_in_the_space(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    (a, b), turn = random_pair(rng, 4, N, N), orthonormal(rng, 16, 16)
    padded = turn.T @ np.pad(a, ((0, 12), (0, 0))), np.pad(b, ((0, 0), (0, 12))) @ turn
    (overlap,) = compared(tmp_path, (a, b), padded).overlaps
    assert overlap.written.ranks == (4, 4)
    assert overlap.cosine == pytest.approx(1)


def test_random_adapters_are_as_similar_as_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    found = compared(tmp_path, random_pair(rng, 12, N, N), random_pair(rng, 12, N, N))
    written, by_chance, spread = found.mean("written")
    assert written == pytest.approx(by_chance, abs=5 * spread)
    assert by_chance == pytest.approx(12 / N, rel=0.1)


def test_chance_has_the_spread_of_random_spaces() -> None:
    """Of 400 draws it is that of 400 pairs of subspaces; what is shown of 5 is an estimate."""
    rng = np.random.default_rng(12)
    real = []
    for _ in range(400):
        u, v = orthonormal(rng, 40, 3), orthonormal(rng, 40, 5)
        cosines = np.linalg.svd(u.T @ v, compute_uv=False)
        real.append((np.mean(cosines**2), np.degrees(np.arccos(cosines[0]))))
    ours = random_angles(40, 3, 5, 0, 400)
    assert ours.mean(axis=0) == pytest.approx(np.mean(real, axis=0), rel=0.05)
    assert ours.std(axis=0) == pytest.approx(np.std(real, axis=0), rel=0.2)


def test_means_over_matrices_vary_less_than_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    pairs = {f"blk.{i}.attn_q.weight": random_pair(rng, 4, N, N) for i in range(16)}
    paths = [write(tmp_path / f"{i}.gguf", pairs) for i in range(2)]
    (found,) = analyse(paths, n_random=64).comparisons
    one, all_of_them = found.mean("read", 0)[2], found.mean("read")[2]
    assert one == pytest.approx(found.overlaps[0].read.random_similarity_spread)
    assert all_of_them == pytest.approx(one / 4, rel=0.01)


def test_frames_have_the_angles_of_random_spaces() -> None:
    rng = np.random.default_rng(7)
    ours, theirs = [], []
    for _ in range(300):
        u, v = random_frames(rng, 30, (3, 5))
        assert u.T @ u == pytest.approx(np.eye(3))
        ours.append(np.linalg.svd(u.T @ v, compute_uv=False))
        u, v = orthonormal(rng, 30, 3), orthonormal(rng, 30, 5)
        theirs.append(np.linalg.svd(u.T @ v, compute_uv=False))
    assert np.mean(ours, axis=0) == pytest.approx(np.mean(theirs, axis=0), abs=0.02)


def test_the_cosine_is_that_of_dw() -> None:
    paths = [demo.adapter_path(name) for name in ("answerability", "jailbreak")]
    (found,) = analyse(paths).comparisons
    first, second = map(dw_of, paths)
    for overlap in found.overlaps:
        x, y = first[overlap.target].ravel(), second[overlap.target].ravel()
        expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert overlap.cosine == pytest.approx(expected, abs=1e-3)
    assert [o.layer for o in found.overlaps] == sorted(o.layer for o in found.overlaps)


# Other targets ------------------------------------------------------------------------------------


def test_what_one_changes_alone_is_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    pair, dead = random_pair(rng), (random_pair(rng)[0], np.zeros((48, 4)))
    first = write(tmp_path / "1.gguf", {Q: pair, K: dead})
    second = write(tmp_path / "2.gguf", {Q: pair, K: pair})
    third = write(tmp_path / "3.gguf", {"blk.1.attn_v.weight": pair})
    found = analyse([first, second, third])
    assert [(len(each.overlaps), each.n_apart) for each in found.comparisons] == [
        (1, 1), (0, 2), (0, 3),
    ]  # fmt: skip
    assert [each.target for each in found.shared] == [Q]
    assert str(found.comparisons[1]) == "1 and 3: no matrix in common"
    assert all(map(np.isnan, found.comparisons[1].mean("read")))


# Shared bases -------------------------------------------------------------------------------------


def test_equal_adapters_share_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    pair = orthonormal(rng, N, 4).T, orthonormal(rng, N, 4)
    (found,) = analysed(tmp_path, pair, pair, pair).shared
    assert found.n_adapters == 3
    for side in (found.written, found.read):
        assert (side.together, side.apart, side.random, side.random_spread) == (4, 12, 12, 0)


def test_orthogonal_adapters_share_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    basis, a = orthonormal(rng, N, 8), orthonormal(rng, N, 4).T
    (found,) = analysed(tmp_path, (a, basis[:, :4]), (a, basis[:, 4:])).shared
    assert found.written.together == found.written.apart == 8
    assert found.read.together == 4


def test_large_adapters_do_not_outvote_small_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    basis, a = orthonormal(rng, N, 8), orthonormal(rng, N, 4).T
    (found,) = analysed(tmp_path, (a, 1000 * basis[:, :4]), (a, basis[:, 4:])).shared
    assert found.written.together == 8
