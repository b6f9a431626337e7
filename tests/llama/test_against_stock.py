"""The same calls give what the stock class gives on the unpatched library: the same shapes and the
same text, greedy and sampled; logits and log-probabilities within rounding.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from alora_gguf.llama import Llama

from . import cases_chat, cases_other  # noqa: F401 (their cases)
from .cases import CASES, run_case

pytestmark = [pytest.mark.stock, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

TOLERANCE = 1e-4


@pytest.mark.parametrize("name", list(CASES))
def test_same_as_stock(name: str, paths: dict[str, Path], stock: dict[str, Any]) -> None:
    expected = stock[name]
    assert not (isinstance(expected, dict) and "failed" in expected), expected
    found = json.loads(json.dumps(run_case(name, paths, Llama), default=float))
    assert_same(found, expected, name)


def assert_same(found: Any, expected: Any, where: str) -> None:
    """Equal in every key, type and value; ids and times aside, and numbers within TOLERANCE."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert list(found) == list(expected), where
        for key, value in expected.items():
            if key == "id":
                assert same_id(found[key], value), f"{where}.{key}"
            elif key == "bytes" and value is None:  # stock's chats have none
                assert bytes(found[key]).decode("utf-8", "ignore") == found["token"], where
            elif key == "created":
                assert isinstance(found[key], int), f"{where}.{key}"
            else:
                assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list), where
        assert len(found) == len(expected), f"{where}: {found} is not {expected}"
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(expected, float) and isinstance(found, (int, float)):
        close = math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        assert close or found == expected, f"{where}: {found} is not {expected}"
    else:
        assert type(found) is type(expected), f"{where}: {found!r} is not {expected!r}"
        assert found == expected, f"{where}: {found!r} is not {expected!r}"


def same_id(found: str, expected: str) -> bool:
    """Ids end in a random UUID, behind what says what they are of."""
    return len(found) == len(expected) and found[:-36] == expected[:-36]
