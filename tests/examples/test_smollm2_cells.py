"""examples/smollm2/cells: what a table says of answers with other cells."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from alora_gguf.errors import MissingFileError
from examples.smollm2.cells import Found, main, rows


def test_rows() -> None:
    usual = Found([0.9, 0.2, 0.6, 0.4], [True, True, False, True], [-1.0, -3.0])
    other = Found([0.8, 0.2, 0.4, 0.6], [True, True, True, False], [-2.0, -3.0])
    first, second = rows("answerability", {"f16": usual, "q4_0": other})
    assert (first["cells"], first["other_verdicts"], first["difference"]) == ("f16", 0, 0)
    assert (second["cells"], second["other_verdicts"], second["n"]) == ("q4_0", 2, 4)
    assert second["right"] == 0.75
    assert second["difference"] == pytest.approx(0.5 / 4)
    assert second["perplexity"] == pytest.approx(math.exp(2.5))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--conversations", "0"], "--conversations must be 1 or more, got 0"),
        (["--cells", "q9_0"], "--cells: q9_0 is none of "),
        (["--tasks", "weather"], "--tasks: weather is none of "),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), *arguments])
    assert said in capsys.readouterr().err


def test_missing_data_is_refused_before_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MissingFileError, match=r"answerability\.eval\.jsonl: "):
        main([str(tmp_path), "--tasks", "answerability"])
    assert not capsys.readouterr().out
