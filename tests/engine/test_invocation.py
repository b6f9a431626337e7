"""Finding the invocation: the last occurrence, whatever the pattern repeats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alora_gguf.engine.tokens import find_last, nearest_miss


@pytest.mark.parametrize(
    ("tokens", "invocation", "at"),
    [
        ([5, 5, 6, 6], [5, 5, 6], 0),  # llama-server's backward scan misses these two
        ([1, 2, 3, 3], [1, 2, 3], 0),
        ([5, 5, 5, 6], [5, 5, 6], 1),
        ([7, 8, 7, 8, 7], [7, 8, 7], 2),
        ([1, 2, 3, 1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3, 1, 2], [1, 2, 3], 0),
        ([1, 2], [1, 2, 3], None),
        ([], [1], None),
        ([4], [4], 0),
    ],
)
def test_the_last_occurrence(tokens: list[int], invocation: list[int], at: int | None) -> None:
    assert find_last(tokens, invocation) == at


@given(
    st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), min_size=1, max_size=4)
)
def test_it_equals_a_search_in_a_string(tokens: list[int], invocation: list[int]) -> None:
    found = "".join(map(str, tokens)).rfind("".join(map(str, invocation)))
    assert find_last(tokens, invocation) == (None if found < 0 else found)


def test_the_nearest_miss_is_the_longest_beginning_and_the_last_of_those() -> None:
    assert nearest_miss([1, 2, 9, 1, 2, 8, 1], [1, 2, 3]) == (3, 2)
    assert nearest_miss([1, 9, 1, 2], [1, 2, 3]) == (2, 2)
    assert nearest_miss([9, 9], [1, 2, 3]) == (0, 0)
