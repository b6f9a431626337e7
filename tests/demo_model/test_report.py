"""results.json as tables and a chart: what they show is what was measured."""

from __future__ import annotations

import hashlib
import json
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from alora_gguf.errors import FileFormatError
from examples.demo_model import chart, evaluate, report, tables, verdicts
from examples.demo_model.chat import INTRINSICS
from examples.demo_model.report import Places
from examples.demo_model.tables import Figure, Results
from tests.demo_model.stand_in import Data

N = 40
SVG = "{http://www.w3.org/2000/svg}"
PAGE = f"# Title\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n"


def made_up() -> dict[str, Any]:
    """Results of made-up answers: LoRA right 9 times of 10, the base half of the time."""
    rng, data = random.Random(1), Data()
    rows: list[dict[str, object]] = []
    for base in ("F16", "Q8_0", "Q4_0"):
        for task in INTRINSICS:
            examples = data.examples(task, "eval", N)
            right = verdicts.expected(task, examples)
            answers = {
                side: [answer if rng.random() < share else None for answer in right]
                for side, share in (("alora", 0.95), ("lora", 0.9), ("base", 0.5))
            }
            rows += evaluate.judge(base, task, examples, answers, seed=0)
    latency = [
        {
            "base": "Q8_0",
            "intrinsic": task,
            "length": length,
            "side": side,
            "n": 5,
            "conversation_tokens": tokens,
            "first_token_ms": {"median": ms, "p10": ms - 1, "p90": ms + 1},
            "total_ms": {"median": 2 * ms, "p10": ms, "p90": 3 * ms},
            "reused": 0 if side == "lora" else tokens,
            "evaluated": tokens + 4 if side == "lora" else 4,
            "generated": 3,
        }
        for task in INTRINSICS
        for length, tokens, slow in (("as they are", 200, 50.0), ("long", 1800, 612.0))
        for side, ms in (("alora", 4.5), ("lora", slow))
    ]
    replies = evaluate.judge_replies(
        "Q8_0", data.questions("eval", 10), [("It costs 12.", "I do not know.")] * 10
    )
    return {
        "machine": "a machine",
        "threads": 2,
        "n": N,
        "files": {
            "demo/base.gguf": {"bytes": 4, "sha256": hashlib.sha256(b"base").hexdigest()},
            "build/base-F16.gguf": {"bytes": 4, "sha256": "made again each time"},
        },
        "verdicts": rows,
        "replies": replies,
        "latency": latency,
    }


def drawn(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 (it is our own)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return made_up()


@pytest.fixture
def results(found: dict[str, Any]) -> Results:
    return Results(found)


@pytest.fixture
def places(found: dict[str, Any], tmp_path: Path) -> Places:
    evaluate.write_json(found, tmp_path / "results.json")
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "base.gguf").write_bytes(b"base")
    return Places(
        results=tmp_path / "results.json",
        parity=tmp_path / "parity.json",
        readme=tmp_path / "README.md",
        chart=tmp_path / "results.svg",
        root=tmp_path,
    )


# The command -------------------------------------------------------------------------------------


def test_writes_then_finds_nothing_stale(places: Places) -> None:
    assert report.main([], places) == 0
    page = places.readme.read_text()
    assert page.startswith(f"# Title\n\nbefore\n\n{report.BEGIN}\n")
    assert page.endswith(f"\n{report.END}\n\nafter\n")
    assert "\nold\n" not in page
    assert report.main(["--check"], places) == 0
    assert report.main([], places) == 0
    assert places.readme.read_text() == page


@pytest.mark.parametrize("name", ["readme", "chart"])
def test_check_finds_a_changed_page(
    places: Places, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([], places)
    path: Path = getattr(places, name)
    changed = path.read_text().replace("LoRA", "LORA", 1)
    path.write_text(changed)
    assert report.main(["--check"], places) == 1
    assert f"{path} differs from results.json" in capsys.readouterr().err
    assert path.read_text() == changed


def test_check_finds_changed_results(places: Places, found: dict[str, Any]) -> None:
    report.main([], places)
    other = json.loads(json.dumps(found))
    other["verdicts"][4 * 5]["figures"]["weighted_f1"]["value"] = 0.123
    evaluate.write_json(other, places.results)
    assert report.main(["--check"], places) == 1


def test_check_finds_a_missing_chart(places: Places) -> None:
    report.main([], places)
    places.chart.unlink()
    assert report.main(["--check"], places) == 1
    assert not places.chart.exists()


def test_check_finds_files_trained_anew(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([], places)
    base = places.root / "demo" / "base.gguf"
    base.write_bytes(b"a better one")
    assert report.main(["--check"], places) == 1
    assert "results.json was made with another demo/base.gguf; run" in capsys.readouterr().err
    base.unlink()
    assert report.main(["--check"], places) == 1
    assert "demo/base.gguf, which is missing; run `make demo-eval`" in capsys.readouterr().err


def test_parity_is_told_and_checked(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"demo/base.gguf": {"bytes": 4, "sha256": hashlib.sha256(b"base").hexdigest()}}
    record = {"base": "F16", "same": 1499, "total": 1500, "files": files}
    places.parity.write_text(json.dumps(record))
    report.main([], places)
    page = places.readme.read_text()
    assert "letter by letter, on 1,499 of 1,500 held-out conversations, the others are in" in page
    assert report.main(["--check"], places) == 0
    files["demo/base.gguf"]["sha256"] = "0" * 64
    places.parity.write_text(json.dumps(record))
    assert report.main(["--check"], places) == 1
    assert "parity.json was made with another demo/base.gguf" in capsys.readouterr().err
    record["same"] = 1500
    places.parity.write_text(json.dumps(record))
    report.main([], places)
    assert "1,500 of 1,500 held-out conversations; `make demo-parity`" in places.readme.read_text()
    places.parity.write_text("{}")
    assert report.main([], places) == 1
    assert "parity.json: lacks base, same, total, files" in capsys.readouterr().err


def test_a_page_without_markers(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    places.readme.write_text("# Title\n")
    assert report.main([], places) == 1
    assert "README.md: lacks the markers <!-- demo-results:begin -->" in capsys.readouterr().err
    assert not places.chart.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "lacks machine, threads"),
        ('{"machine": "", "threads": 1, "n": 1}', "lacks files, verdicts, replies, latency"),
    ],
)
def test_results_that_are_none(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FileFormatError, match=message) as caught:
        Results.read(path)
    assert "make demo-eval" in str(caught.value)


# Tables ------------------------------------------------------------------------------------------


def test_every_figure_is_in_the_table(results: Results) -> None:
    section = tables.section(results)
    for row in results.found["verdicts"]:
        if row["base"] != "Q8_0":
            continue
        for name, values in row["figures"].items():
            assert str(Figure(name, **values)) in section, (row["intrinsic"], row["side"], name)


def test_tables_are_rectangular(results: Results) -> None:
    blocks = [part for part in tables.section(results).split("\n\n") if part.startswith("|")]
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_how_figures_are_written() -> None:
    assert str(Figure("accuracy", 0.9712, 0.9599, 0.98)) == "97.1 % (96.0 .. 98.0)"
    assert str(Figure("mae", 0.0421, 0.04, 0.045)) == "0.042 (0.040 .. 0.045)"


def test_an_error_is_drawn_as_what_it_leaves() -> None:
    assert Figure("mae", 0.25, 0.125, 0.5).as_share() == (0.5, 0.75, 0.875)
    assert Figure("accuracy", 0.25, 0.125, 0.5).as_share() == (0.125, 0.25, 0.5)


def test_the_unreadable_are_told(results: Results) -> None:
    row = results.row("hallucination", "base")
    assert row["unreadable"]
    line = next(
        line for line in tables.section(results).splitlines() if line.startswith("| hallucination")
    )
    assert f"{100 * row['unreadable'] / N:.1f} % unreadable" in line


def test_the_base_alone_and_the_times(results: Results) -> None:
    section = tables.section(results)
    assert "base itself, greedy, is right on 100.0 % (56.6 .. 100.0) of the 5 questions" in section
    assert "base itself, temperature 1, is right on 0.0 %" in section
    assert "| 1,800 | 4 | 4.5 ms | 9.0 ms | 1,804 | 612 ms | 1,224 ms | 136x |" in section


def test_a_missing_row_is_named(results: Results) -> None:
    with pytest.raises(FileFormatError, match="no row of Q5_0, jailbreak, alora"):
        results.row("jailbreak", "alora", "Q5_0")
    with pytest.raises(FileFormatError, match="no taste of jailbreak, alora"):
        results.figure("jailbreak", "alora", "taste")


# The chart ---------------------------------------------------------------------------------------


def test_chart_shows_each_side_where_it_is(results: Results) -> None:
    root = drawn(chart.svg(results))
    width = chart._RIGHT - chart._LEFT
    for side in chart.SIDES:
        lines = [e for e in root.iter(f"{SVG}line") if e.get("class") == side]
        assert len(lines) == len(INTRINSICS)
        for task, line in zip(INTRINSICS, lines, strict=True):
            low, _, high = results.headline(task, side).as_share()
            assert float(line.get("x1", "")) == pytest.approx(chart._LEFT + width * low, abs=0.06)
            assert float(line.get("x2", "")) == pytest.approx(chart._LEFT + width * high, abs=0.06)


def test_chart_bars_are_as_long_as_the_times(results: Results) -> None:
    root = drawn(chart.svg(results))
    bars = [e for e in root.iter(f"{SVG}rect") if e.get("height") == "10"]
    lengths = {(e.get("class"), float(e.get("width", ""))) for e in bars}
    whole = chart._BARS_END - chart._BARS
    assert lengths == {("lora", float(whole)), ("alora", round(whole * 4.5 / 612, 1))}


def test_chart_stays_inside_its_frame(results: Results) -> None:
    text = chart.svg(results)
    root = drawn(text)
    _, _, width, height = (float(x) for x in root.get("viewBox", "").split())
    for element in root.iter(f"{SVG}text"):
        shown = element.text or ""
        span, x = 7.5 * len(shown), float(element.get("x", ""))
        left = {"end": x - span, "middle": x - span / 2}.get(element.get("text-anchor", ""), x)
        assert left >= 0, shown
        assert left + span <= width, shown
        assert 0 < float(element.get("y", "")) < height
    assert "prefers-color-scheme: dark" in text
    # what is drawn has a colour in both modes
    classes = set(re.findall(r'class="(\w+)"', text))
    light, dark = text.split("@media")
    for name in classes - {"small"}:
        assert f".{name} " in light.split("<style>")[1], name
        assert f".{name} " in dark.split("</style>")[0], name


def test_chart_without_times(found: dict[str, Any]) -> None:
    root = drawn(chart.svg(Results({**found, "latency": []})))
    assert not [e for e in root.iter(f"{SVG}rect") if e.get("height") == "10"]
