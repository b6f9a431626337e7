"""examples/capacity: from bench's samples to hours of work, and the page that shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alora_gguf.errors import InputError
from examples.capacity.__main__ import Curve, Machine, main

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "examples/capacity/two-cores.json"


def bench(path: Path, **changes: Any) -> Path:
    """What bench prints where reading takes 2 ms a token, and asking 10 ms and 10 µs a token."""
    contexts = [
        {
            "n_tokens": n,
            "read": [0.002 * n] * 3,
            "alora": {"total": [0.01 + 1e-5 * n]},
            "lora": {"total": [0.01 + 0.002 * n]},
        }
        for n in (100, 1000, 2000)
    ]
    together = [{"n_adapters": n, "at_once": [0.02 * (1 + n) / 2]} for n in (1, 2, 4, 8)]
    measured = {"method": {"threads": 2}, "contexts": contexts, "together": together}
    path.write_text(json.dumps(measured | changes))
    return path


def test_a_curve_is_through_what_was_measured() -> None:
    curve = Curve.of([(n, 0.1 + 2e-3 * n + 3e-7 * n * n) for n in (100, 500, 2000)])
    assert curve(1000) == pytest.approx(0.1 + 2 + 0.3)
    falling = Curve.of([(100, 0.2), (1000, 0.1), (2000, 0.15)])
    assert min(falling.a, falling.b, falling.c) >= 0  # what is measured falls only by chance
    assert Curve.of([(100, 1.0), (200, 2.0)])(400) == pytest.approx(4)


def test_times(tmp_path: Path) -> None:
    machine = Machine.of(bench(tmp_path / "laptop.json"))
    assert machine.read(500) == pytest.approx(1)
    assert machine.asking(1000, 1) == pytest.approx(0.02)
    assert machine.asking(1000, 3) == pytest.approx(0.02 * 2)  # between 2 and 4 at once
    assert machine.asking(1000, 16) == pytest.approx(0.02 * 9)  # twice eight
    assert machine.new(1000, 3) == pytest.approx(2.04)
    assert machine.loras(1000, 3) == pytest.approx(3 * 2.01)
    pays = machine.pays_from(1, 10)
    assert pays is not None
    assert machine.loras(pays, 1) >= 10 * machine.asking(pays, 1)
    assert machine.loras(pays - 16, 1) < 10 * machine.asking(pays - 16, 1)
    assert machine.pays_from(1, 1e9) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"contexts": []}, "has 0 lengths of contexts, expected two or more"),
        ({"together": []}, "expected two or more"),
        ({"contexts": [{"n_tokens": 5}]}, "is not what `alora-gguf bench"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Machine.of(bench(tmp_path / "x.json", **changes))
    with pytest.raises(InputError, match="cannot be read"):
        Machine.of(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--machines", "0"], "--machines must be 1 or more"),
        (["--efficiency", "1.5"], "--efficiency must be above 0 and at most 1, got 1.5"),
        (["--plot", "hours.txt"], "--plot must end in .svg, .png, .pdf, got hours.txt"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(MEASURED), *arguments])
    assert said in capsys.readouterr().err


def test_a_plot_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hours\.svg: cannot be written: "):
        main([str(MEASURED), "--plot", str(tmp_path / "none" / "hours.svg")])


def test_the_pages_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = (ROOT / "docs/capacity.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    shown = {row[0]: row[1:] for row in rows if len(row) == 3}
    plot = tmp_path / "capacity.svg"
    for machines in (1, 10):
        assert main([str(MEASURED), "--machines", str(machines), "--plot", str(plot)]) == 0
        _, *cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
        read, one, every, loras, whole, theirs, a_day, _ = cells
        at = int(machines > 1)
        assert shown["the whole work, conversations that nobody has read"][at] == whole
        assert shown["with plain LoRAs"][at] == theirs.partition(" (")[0]
        assert shown["conversations a day"][at] == a_day
        if machines == 1:
            assert shown["read a conversation"][0] == read
            assert shown["ask one intrinsic about it, when it is cached"][0] == one
            assert shown["ask all five"][0] == every
            assert shown["the same with plain LoRAs, which read it five times"][0] == loras
    assert plot.read_text(encoding="utf-8").startswith("<?xml")
