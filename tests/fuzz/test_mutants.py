"""Some mutants of each kind; `python -m tests.fuzz` goes on for as long as you like."""

from __future__ import annotations

from collections import Counter

import pytest

from .harness import run

_SOME = {
    "base": 400,
    "adapter": 150,
    "vector": 250,
    "session": 150,
    "hybrid-session": 100,
    "contract": 300,
    "peft": 150,
}


@pytest.mark.parametrize("kind", _SOME)
def test_mutants_are_used_or_refused(kind: str) -> None:
    outcomes = list(run(kind, 1, iter(range(_SOME[kind]))))
    assert [outcome for outcome in outcomes if outcome.bad] == []
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert len(outcomes) // 20 < kinds["used"] < len(outcomes)  # they are not all alike
