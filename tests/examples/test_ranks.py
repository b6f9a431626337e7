"""The example that compares ranks runs as documented, on the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import AdapterFile, demo
from examples.ranks import __main__ as ranks


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks and a twin, of few lines."""
    out = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(ranks, "RANKS", (2, 8))
        few = ["--lines", "48", "--held-out", "12", "--epochs", "2", "--rate", "4e-3"]
        assert ranks.main([str(demo.base_path()), str(out), *few]) == 0
        # what is there is not trained again
        times = [path.stat().st_mtime_ns for path in adapters(out)]
        assert ranks.main([str(demo.base_path()), str(out), *few]) == 0
        assert times == [path.stat().st_mtime_ns for path in adapters(out)]
    return out


@pytest.fixture
def found(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "ranks.json").read_text())
    return loaded


def adapters(out: Path) -> list[Path]:
    return [out / f"rank-{name}.gguf" for name in ("2", "8", "8-twin")]


@pytest.mark.slow
def test_all_are_of_one_invocation_and_their_ranks(out: Path) -> None:
    files = [AdapterFile.read(path) for path in adapters(out)]
    assert [file.rank for file in files] == [2, 8, 8]
    assert len({file.invocation for file in files}) == 1
    assert len({file.identity for file in files}) == 3
    assert not list(out.glob("smalltalk.gguf*"))


@pytest.mark.slow
def test_a_lora_and_its_twin_from_another_seed(found: dict[str, Any]) -> None:
    """They do the same thing by weights that have little in common: A stays where it began."""
    pairs = {(each["first"], each["second"]): each["overlaps"] for each in found["comparisons"]}
    overlaps = pairs["rank-8", "rank-8-twin"]

    def mean(side: str, name: str) -> float:
        return sum(each[side][name] for each in overlaps) / len(overlaps)

    read, chance = mean("read", "similarity"), mean("read", "random_similarity")
    assert read < 3 * chance
    last = found["activations"]["cosines"][-1]
    assert last["cosines"][1][2] > 0.6
    assert last["cosines"][1][2] > last["random"][1][2] + 2 * last["random_spread"][1][2]


@pytest.mark.slow
def test_the_tables_are_what_was_measured(out: Path, found: dict[str, Any]) -> None:
    lines = (out / "ranks.md").read_text().splitlines()
    n_tokens = found["activations"]["adapters"][0]["n_tokens"]
    assert lines[0] == f"On {n_tokens} tokens."
    assert n_tokens >= 64
    at = lines.index("|d| / |h|:") + 2
    assert lines[at] == "| layer | rank-2 | rank-8 | rank-8-twin | random, of rank 8 |"
    layer = [run["layers"][0] for run in found["activations"]["adapters"]]
    own = [f"{each['states']['change']:.3g}" for each in layer]
    chance = "±".join(f"{layer[1][name]['change']:.3g}" for name in ("random", "random_spread"))
    assert lines[at + 2] == f"| 0 | {' | '.join(own)} | {chance} |"
    at = lines.index("Cosine of d, beside random adapters:") + 2
    assert lines[at] == "| layer | rank-2, rank-8 | rank-8, rank-8-twin |"
    first = found["activations"]["cosines"][0]
    assert lines[at + 2].startswith(f"| 0 | {first['cosines'][0][1]:.3f} (")
    assert (out / "ranks.svg").read_text().count("<svg") == 1
