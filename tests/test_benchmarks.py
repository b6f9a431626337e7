"""The benchmarks run: on a base of two tiny layers, with figures that mean nothing."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from alora_gguf.engine.library import library_dir
from benchmarks import (
    attention,
    grid,
    growing,
    models,
    rows_attention,
    rows_decode,
    rows_idle,
    rows_intrinsics,
    rows_steering,
)
from benchmarks.bench import Bench, Settings
from benchmarks.measure import Result, continued
from benchmarks.models import SHAPES, Shape
from benchmarks.runtime import Context, ContextSize, Library, Weights

TINY = Shape(
    "tiny", "llama", 2, 4096, SHAPES["1b"].metadata, hidden=256, ff=256, heads=4, kv_heads=2
)
N = 96
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shape]:
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    before = os.environ.get("ALORA_CPU_PATH")
    yield TINY
    assert os.environ.get("ALORA_CPU_PATH") == before, "a benchmark leaves a path chosen"


@pytest.fixture
def bench(tiny: Shape) -> Iterator[Bench]:
    bench = Bench(Library(), tiny, Settings(1, N, effort=0.01))
    yield bench
    bench.close()


def test_a_grown_conversation_repeats_the_cells_of_what_was_read(tiny: Shape) -> None:
    weights = Weights(Library(), models.base(tiny))
    with Context(weights, ContextSize(512)) as context:
        context.prefill(range(1, growing.N_READ + 1))
        read = context.save()
        assert growing.grown(read, growing.N_READ) == read
        context.clear()

        long = growing.grown(read, N)
        context.restore(long)
        assert context.save() == long

        context.truncate(0, growing.N_READ)
        assert context.save() == read
        context.restore(long)
        context.decode([(5, N, 0, True)])  # upstream refuses other positions than the next
    weights.close()


def test_a_saved_sequence_in_another_form_is_refused() -> None:
    with pytest.raises(RuntimeError, match="another form"):
        growing.grown(bytes(5000), N)


def test_what_is_left_to_read_follows_the_line_of_what_was_read() -> None:
    steps = [3.0 + 2.0 * i for i in range(10)]
    assert continued(steps[:4], 6) == pytest.approx(sum(steps[4:]))
    assert continued(steps, 0) == pytest.approx(0)


def sides(results: list[Result]) -> None:
    """Every cell has seconds on both sides."""
    assert results
    for result in results:
        assert all(x > 0 for x in result.ours.samples)
        assert result.other is not None
        assert len(result.other.samples) == len(result.ours.samples)


def test_rows_about_adapters(bench: Bench) -> None:
    sides(rows_decode.one_invocation(bench))
    sides(rows_decode.mixed_decode(bench))
    sides(rows_intrinsics.eight_intrinsics(bench))


def test_the_rows_about_steering(bench: Bench) -> None:
    idle, different, *steered = rows_steering.steering(bench)
    sides([idle, *steered])
    assert different.ours.samples == [0]
    with bench.context(512) as context:
        (slot,) = rows_steering.add_vectors(bench, context, 1)
        context.prefill(bench.tokens(8))
        before = context.digest()
        context.truncate(0, 7)
        context.activate(0, 7, slot)
        context.prefill(bench.tokens(8)[7:], first=7)
        assert context.digest() != before, "a vector changes what is computed"
        assert context.stats().n_steered == TINY.layers


@pytest.fixture
def against_itself(bench: Bench) -> Bench:
    """Our own library is stock's as long as it is told nothing."""
    bench.settings = replace(bench.settings, stock=library_dir())
    return bench


def test_the_row_about_the_base_alone(against_itself: Bench) -> None:
    results = rows_idle.base(against_itself)
    sides(results)
    assert [result.case for result in results] == [f"1 token after {N}", f"reading {N} tokens"]


def test_idle_has_stocks_bits_and_the_default_ours(against_itself: Bench) -> None:
    different = [each for each in rows_idle.idle(against_itself) if "different" in each.row]
    assert [result.ours.samples for result in different] == [[0], [0]]
    with rows_idle.Worker(against_itself, None) as ours:
        seen = {ours.ask(what, 16)[1] for what in ("time", "read")}
    with rows_idle.Worker(against_itself, library_dir()) as stock:
        assert seen.isdisjoint(stock.ask(what, 16)[1] for what in ("time", "read"))


def test_the_row_about_attention(bench: Bench) -> None:
    results = rows_attention.long_attention(bench)
    sides(results)
    assert len({result.case for result in results}) == len(results) == 8


def test_the_row_about_attention_compares_our_node_with_upstreams(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = {}
    run = rows_attention._run

    def counting(context, rows, n):
        sample = run(context, rows, n)
        sample()
        nodes.setdefault(context, set()).add(context.stats().n_attention)
        return sample

    monkeypatch.setattr(rows_attention, "_run", counting)
    rows_attention.long_attention(bench)
    assert list(nodes.values()) == [{TINY.layers}, {0}]


def test_a_first_token_is_measured_where_all_is_read(bench: Bench) -> None:
    results = rows_intrinsics.first_token(bench)
    sides(results)
    assert all("extrapolated" not in str(result.other) for result in results)


def test_a_first_token_far_away_says_that_it_is_extrapolated(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_intrinsics, "_READ_AT_MOST", 64)
    monkeypatch.setattr(rows_intrinsics, "_STEP", 8)
    figures, errors = rows_intrinsics.first_token(bench)[:2]
    assert "64 read, the rest extrapolated" in str(figures.other)
    assert errors.ours.unit == "%"
    assert len(errors.ours.samples) == len(figures.ours.samples)


def test_the_grid(tiny: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", tiny)
    chosen = argparse.Namespace(
        models=["tiny"], quants=["q8_0"], threads=[1], ranks=[8], targets=["all-linear"],
        batches=list(grid.BATCHES), rounds=1,
    )  # fmt: skip
    lines = [grid.line(*cell) for cell in grid.cells(chosen)]
    assert [line.split(" | ")[4] for line in lines] == list(grid.BATCHES)
    assert all(line.count(" | ") == grid.HEAD.splitlines()[0].count(" | ") for line in lines)


def test_the_table_of_attention_times_both_nodes(
    tiny: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.CUT_SHAPES, "tiny", tiny)
    chosen = argparse.Namespace(
        models=["tiny"],
        cached=[N],
        cells=["f16", "q8_0"],
        threads=[1],
        tokens=[1, 16],
        forks=[2],
        rounds=1,
    )
    lines = list(attention.cells(chosen))
    assert [line.split(" | ")[3] for line in lines] == ["1 token", "16 tokens", "2 forks"] * 2
    assert all(line.count(" | ") == attention.HEAD.splitlines()[0].count(" | ") for line in lines)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("benchmarks", "--rows nosuch", "--rows: nosuch unknown; there are idle, decode"),
        ("benchmarks", "--targets nosuch", "there are attention-only, all-linear"),
        ("benchmarks", "--cached 0", "--cached: '0' is not a whole number from 64 on"),
        ("benchmarks", "--threads 1,x", "--threads: 'x' is not a whole number from 1 on"),
        ("benchmarks", "--stock nowhere", "--stock: no libllama in nowhere; leave it out"),
        ("benchmarks.attention", "--models nosuch", "nosuch unknown; there are 1b, 2b, 135m, mha"),
        ("benchmarks.grid", "--ranks a", "--ranks: 'a' is not a whole number from 1 on"),
        ("benchmarks.profile", "--repeat 0", "--repeat: '0' is not a whole number from 1 on"),
    ],
)
def test_wrong_options_are_named(command: str, options: str, message: str) -> None:
    said = run_module([command, *options.split()])
    assert said.returncode == 2
    assert message in said.stderr
    assert "Traceback" not in said.stderr


def test_ctrl_c_ends_a_command_amid_a_batch(tmp_path: Path) -> None:
    """Raised in ctypes' callback for each node, KeyboardInterrupt would be swallowed."""
    code = (
        "import os, signal; from pathlib import Path; from dataclasses import replace;"
        "from benchmarks import attention, models;"
        f"models.FOLDER = Path({str(tmp_path)!r});"
        "attention.CUT_SHAPES = {'1b': replace(models.SHAPES['1b'], layers=2, vocab=4096,"
        " hidden=256, ff=256, heads=4, kv_heads=2)};"
        "watch = attention.Profile.watch;"
        "attention.Profile.watch = lambda *a: os.kill(os.getpid(), signal.SIGINT) or watch(*a);"
        "import sys; sys.argv = ['x', '--models', '1b', '--cached', '64', '--rounds', '1'];"
        "attention.main()"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert said.returncode == -signal.SIGINT
    assert not said.stderr


def run_module(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
