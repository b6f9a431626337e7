"""Rows are put into the order that llama.cpp has them in."""

from __future__ import annotations

from alora_gguf.convert.base.orders import DeltaHeads, Order, by_head, in_turns, rotary_order


def order(found: Order | None) -> list[int]:
    assert found is not None
    index = found.index().tolist()
    assert sorted(index) == list(range(found.n))
    assert [index[i] for i in found.inverse()] == list(range(found.n))
    return index


def test_the_halves_of_a_head_take_turns() -> None:
    assert order(rotary_order(8, 2)) == [0, 2, 1, 3, 4, 6, 5, 7]


def test_rows_that_take_turns_become_halves() -> None:
    assert order(in_turns(6)) == [0, 2, 4, 1, 3, 5]


def test_query_key_and_value_of_all_heads() -> None:
    assert order(by_head(12, 2)) == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


def test_value_heads_come_key_by_key_and_leave_tile_by_tile() -> None:
    heads = DeltaHeads(keys=2, values=6, key_width=4, value_width=2)
    assert order(heads.tiled(1)) == [0, 3, 1, 4, 2, 5]
    assert order(heads.tiled(2, kept=1)) == [0, 1, 2, 7, 8, 3, 4, 9, 10, 5, 6, 11, 12]
    assert DeltaHeads(keys=3, values=3, key_width=4, value_width=2).tiled(2) is None


def test_queries_keys_values_and_gates_of_all_heads() -> None:
    heads = DeltaHeads(keys=2, values=4, key_width=1, value_width=1)
    assert order(heads.joined()) == [0, 6, 1, 7, 2, 3, 8, 9, 4, 5, 10, 11]
