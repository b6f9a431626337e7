"""How `run --ray` parts conversations among workers, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from alora_gguf.cli.running.cluster import Cluster, Part, _shares, parts
from alora_gguf.cli.running.work import MIN_SHARED, Settings
from hypothesis import given
from hypothesis import strategies as st

from alora_gguf import InputError


def order(lengths: list[tuple[int, int]]) -> Any:
    """Conversations of so many tokens, of which so many are the one before's too."""
    tasks = [
        SimpleNamespace(size=SimpleNamespace(tokens=range(own + shared))) for own, shared in lengths
    ]
    return SimpleNamespace(tasks=tasks, shared=[0, *(shared for _, shared in lengths[1:])])


sizes = st.lists(st.tuples(st.integers(1, 400), st.sampled_from([0, 5, 40, 300])), min_size=1)


@given(sizes, st.integers(1, 40))
def test_each_conversation_is_in_one_part_in_order(lengths: list[tuple[int, int]], n: int) -> None:
    found = parts(order(lengths), n)
    assert sorted(place for part in found for place in part.places) == [*range(len(lengths))]
    assert all([*part.places] == sorted(part.places) for part in found)


def test_those_that_begin_alike_stay_together_unless_a_part_gets_too_long() -> None:
    ten_texts = [(205, MIN_SHARED - 1), *[(5, 200)] * 9] * 10
    assert {len(part.places) for part in parts(order(ten_texts), 10)} == {10}
    one_text = [(205, 0), *[(5, 200)] * 99]
    found = parts(order(one_text), 10)
    assert 1 < len(found) <= 10


def test_what_workers_die_of_is_found_by_halving() -> None:
    """The first death may be anybody's; then halves, down to one conversation."""
    bad, deaths, left = 11, 0, [Part(range(32))]
    answered = []
    while left:
        part = left.pop(0)
        if bad not in part.places:
            answered += part.places
        elif part.is_hopeless:
            deaths += 1
        else:
            deaths += 1
            left += part.again()
    assert sorted(answered) == [i for i in range(32) if i != bad]
    assert deaths <= 9


@pytest.mark.parametrize(
    ("cores", "n_workers", "n_threads", "found"),
    [
        ([2], None, None, (1, 2)),
        ([16], None, None, (4, 4)),
        ([3, 3], None, None, (2, 3)),  # a worker is on one machine
        ([6, 6, 6], None, None, (3, 4)),
        ([2], 2, None, (2, 1)),
        ([6, 6], 2, None, (2, 6)),
        ([6, 6], 3, None, (3, 3)),
        ([8], None, 1, (8, 1)),
    ],
)
def test_workers_fit_on_the_machines(
    cores: list[int], n_workers: int | None, n_threads: int | None, found: tuple[int, int]
) -> None:
    machines = [{"CPU": float(each)} for each in cores]
    assert _shares(Cluster("auto", n_workers), machines, Settings(n_threads=n_threads)) == found


@pytest.mark.parametrize("settings", [Settings(n_threads=4), Settings(n_gpu_layers=-1)])
def test_no_room_is_one_sentence(settings: Settings) -> None:
    with pytest.raises(InputError, match="has room for 0 workers"):
        _shares(Cluster("auto"), [{"CPU": 3.0}, {}], settings)
