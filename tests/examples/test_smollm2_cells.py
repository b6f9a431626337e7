"""examples/smollm2/cells: what a table says of answers with other cells."""

from __future__ import annotations

import math

import pytest

from examples.smollm2.cells import Found, rows


def test_rows() -> None:
    usual = Found([0.9, 0.2, 0.6, 0.4], [True, True, False, True], [-1.0, -3.0])
    other = Found([0.8, 0.2, 0.4, 0.6], [True, True, True, False], [-2.0, -3.0])
    first, second = rows("answerability", {"f16": usual, "q4_0": other})
    assert (first["cells"], first["other_verdicts"], first["difference"]) == ("f16", 0, 0)
    assert (second["cells"], second["other_verdicts"], second["n"]) == ("q4_0", 2, 4)
    assert second["right"] == 0.75
    assert second["difference"] == pytest.approx(0.5 / 4)
    assert second["perplexity"] == pytest.approx(math.exp(2.5))
