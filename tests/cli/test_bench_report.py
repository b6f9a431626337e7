"""What `alora-gguf bench` shows: the table, number by number, and the chart."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.bench.result import Result, add_ratios, duration, report, times, write_chart

from tests.support.bench_command import SMALL, failure, run, squeezed

ESCAPE = "\x1b["


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def text() -> str:
    status, out, err = run(*SMALL)
    assert (status, err) == (0, "")
    return out


# As text ------------------------------------------------------------------------------------------

BASE = {
    "path": "b.gguf", "name": "b\x1b[31m", "architecture": "llama", "n_parameters": 1_235_814_400,
    "nbytes": 763_106_304, "trained": 131072,
}  # fmt: skip
ALORA = {"name": "sure", "path": "sure.gguf", "kind": "alora", "rank": 32, "n_invocation": 16}
METHOD = {
    "threads": 2, "gpu_layers": 0, "seed": 0, "rounds": 3, "seconds": 60, "answer_tokens": 8,
    "asked": "sure",
}  # fmt: skip


def asked(*samples: tuple[float, float]) -> Result:
    first, total = map(list, zip(*samples, strict=True))
    return {"reused": 0, "evaluated": 1, "first_token": first, "total": total}


def row(n: int, alora: Result | None, lora: Result | None, base: Result | None) -> Result:
    return {"n_tokens": n, "read": [1.0], "alora": alora, "lora": lora, "base": base}


def synthetic(**changes: Any) -> Result:
    """A result whose numbers are easily told apart."""

    def three(first: float, total: float) -> Result:
        return asked((99.0, 99.0), (first, total), (first / 2, total / 2))

    result = {
        "version": "0",
        "base": BASE,
        "adapters": [ALORA],
        "method": METHOD,
        "contexts": [
            row(512, three(0.1, 0.5), three(2.0, 2.5), three(0.08, 0.4)),
            row(2048, three(0.2, 0.8), three(12.0, 12.34), three(0.16, 0.6)),
        ],
        "together": [
            {"n_tokens": 2048, "n_adapters": 1, "at_once": [1.0, 9.0, 0.5],
             "one_by_one": [1.1, 0.1, 9.0]},
            {"n_tokens": 2048, "n_adapters": 8, "at_once": [2.0], "one_by_one": [9.0]},
        ],
        "decoding": {"n_tokens": 2048, "adapter": [10.0, 1.0, 100.0], "base": [12.5, 1.0, 100.0]},
        "memory": {"n_tokens": 2048, "n_forks": 8, "cells": 2240, "cells_apart": 16576,
                   "cell_nbytes": 32768.0},
        "notes": ["a note"],
        "elapsed": 41.7,
        "interrupted": False,
    }  # fmt: skip
    return add_ratios(result | changes)


TABLE = r"""b\x1b[31m (llama, 1.24 billion parameters, 763.1 MB) on 2 threads
  sure: aLoRA of rank 32, invoked by 16 tokens

To the first token
   context      aLoRA  plain LoRA  no adapter   LoRA/aLoRA  aLoRA/none
       512     100 ms      2.00 s     80.0 ms        20.0x       1.25x
      2048     200 ms      12.0 s      160 ms        60.0x       1.25x

To the end of an answer of 8 tokens
   context      aLoRA  plain LoRA  no adapter   LoRA/aLoRA  aLoRA/none
       512     500 ms      2.50 s      400 ms        5.00x       1.25x
      2048     800 ms      12.3 s      600 ms        15.4x       1.33x

Several aLoRAs asked after 2048 tokens, to the end of all answers
    aLoRAs  one batch  one by one       ratio
         1     1.00 s      1.10 s       1.10x
         8     2.00 s      9.00 s       4.50x

Decoding after 2048 tokens
  with the adapter        10.0 tokens/s
  no adapter              12.5 tokens/s       1.25x

Memory of 8 questions and answers after 2048 tokens
  one context, forked       2240 cells     73.4 MB
  8 contexts               16576 cells    543.2 MB     7.40x

Medians of 3 rounds, measured in 42 s. The aLoRA is 'sure', asked on the cells
that the base has computed, like the base itself; the plain LoRA has the same
weights, is on from the first token and reads everything.
A note."""


def plain_report(result: Result, width: int = 80) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(report(result, width)))


def test_the_table() -> None:
    assert plain_report(synthetic()) == TABLE


@pytest.mark.parametrize(
    ("layers", "shown"),
    [(0, "on 2 threads\n"), (-1, "on 2 threads, all layers on the GPU"),
     (1, "on 2 threads, 1 layer on the GPU"), (9, "on 2 threads, 9 layers on the GPU")],
)  # fmt: skip
def test_what_computes_it(layers: int, shown: str) -> None:
    method = METHOD | {"gpu_layers": layers}
    assert shown in plain_report(synthetic(method=method), 100)


def test_what_is_missing_is_not_made_up() -> None:
    rows = [row(512, None, asked((2.0, 2.5)), None)]
    said = plain_report(synthetic(contexts=rows, together=[], decoding=None, memory=None, notes=[]))
    assert "       512          -      2.00 s           -            -           -\n" in said
    assert "Several" not in said
    assert "Decoding" not in said
    assert "Memory" not in said
    assert "Medians of 1 round, measured in 42 s." in said


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.000314, "0.31 ms"), (0.00999, "9.99 ms"), (0.0123, "12.3 ms"), (0.09996, "100 ms"),
     (0.456, "456 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (9.994, "9.99 s"),
     (45.43, "45.4 s"), (123.4, "123 s")],
)  # fmt: skip
def test_times_have_three_digits(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("ratio", "shown"), [(0.98, "0.98x"), (9.994, "9.99x"), (12.34, "12.3x"), (456.7, "457x")]
)
def test_ratios_too(ratio: float, shown: str) -> None:
    assert times(ratio) == shown


@pytest.mark.slow
def test_the_text_has_every_row(text: str) -> None:
    lines = text.splitlines()
    assert lines[0] == "alora-gguf demo (granite, 4.6 million parameters, 5.0 MB) on 1 thread"
    assert lines[1] == "  answerability: aLoRA of rank 32, invoked by 7 tokens"
    for heading in (
        "To the first token",
        "To the end of an answer of 8 tokens",
        "Several aLoRAs asked after 96 tokens, to the end of all answers",
        "Decoding after 96 tokens",
        "Memory of 8 questions and answers after 96 tokens",
    ):
        assert heading in lines
    number = r" +[\d.]+ m?s"
    for n in (32, 96):
        assert len(re.findall(rf"^ +{n}{3 * number} +[\d.]+x +[\d.]+x$", text, re.MULTILINE)) == 2
    for n in (1, 2, 4, 8):
        assert re.search(rf"^ +{n}{2 * number} +[\d.]+x$", text, re.MULTILINE)
    assert "Medians of 2 rounds, measured in " in text
    assert "5 aLoRAs were given; up to 8 are made of them" in squeezed(text)
    assert max(map(len, lines)) <= 80


def test_wider_terminals_have_longer_sentences() -> None:
    lines = plain_report(synthetic(), 100).splitlines()
    assert 80 < max(map(len, lines)) <= 100
    assert [line for line in lines if "tokens/s" in line] == [
        line for line in TABLE.splitlines() if "tokens/s" in line
    ]


@pytest.mark.parametrize("wish", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.slow
def test_colour_is_for_terminals_that_want_it(
    wish: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ESCAPE not in text
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wish.items():
        monkeypatch.setenv(name, value)
    status, out, _ = run("--contexts", "8", "--rounds", "1", "--threads", "1", out=Terminal())
    assert status == 0
    assert (ESCAPE in out) == (not wish)


# The chart ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_chart_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_text("an older chart")
    status, out, _ = run(*SMALL, "--plot", path)
    assert status == 0
    assert out.splitlines()[-1] == f"The chart is in {path}."
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (770, 484)
    assert 10_000 < len(data) < 150_000
    assert [each.name for each in tmp_path.iterdir()] == ["out.png"]  # nothing half-written


def test_the_chart_says_what_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "out.svg"
    write_chart(synthetic(base=BASE | {"name": "$b$\x1b"}), path)
    svg = path.read_text()
    for words in (
        r"$b$\x1b, 2 threads",
        "context (tokens)",
        "time to the first token",
        "plain LoRA, reads everything; numbers: times the aLoRA",
        "aLoRA, on the base's cells",
        "no adapter, on the base's cells",
        "20.0x",
        "60.0x",
        "2048",
    ):
        assert f">{words}</text>" in svg, words
    assert "<dc:date>" not in svg
    assert "Matplotlib" not in svg
    before = path.read_bytes()
    write_chart(synthetic(base=BASE | {"name": "$b$\x1b"}), path)
    assert path.read_bytes() == before


def test_the_charts_times_have_units(tmp_path: Path) -> None:
    """Milliseconds alone would have five digits for a large model."""
    rows = [
        row(n, *(asked((first, first)) for first in (s / 60, s, s / 70)))
        for n, s in ((512, 4.3), (4096, 45.0))
    ]
    path = tmp_path / "out.svg"
    write_chart(synthetic(contexts=rows), path)
    for tick in ("50 ms", "500 ms", "1 s", "20 s"):
        assert f">{tick}</text>" in path.read_text(), tick


@pytest.mark.parametrize("name", ["out.pdf", "OUT.PNG"])
def test_charts_of_other_kinds(name: str, tmp_path: Path) -> None:
    rows = [row(100, None, asked((2.0, 2.5)), None)]
    write_chart(synthetic(contexts=rows), tmp_path / name)
    head = {"out.pdf": b"%PDF", "OUT.PNG": b"\x89PNG"}[name]
    assert (tmp_path / name).read_bytes().startswith(head)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.gif", "{path}: expected a name that ends in .png, .svg, .pdf"),
        (
            "folder.png",
            "{path}: is a directory, expected a file name for the chart; name a file in it",
        ),
        ("none/out.png", "{path}: its directory does not exist; create it first"),
    ],
)
def test_where_a_chart_cannot_be(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    path = tmp_path / name
    assert failure("no-such-base.gguf", "none.gguf", "--plot", path) == message.format(path=path)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert failure("no-such-base.gguf", "none.gguf", "--plot", tmp_path / "out.png") == (
        "--plot needs matplotlib, which is not installed: pip install 'alora-gguf[plot]'"
    )
