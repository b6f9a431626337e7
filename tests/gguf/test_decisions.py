"""What files say of typed decisions: a template, and temperatures, sound ones only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.gguf.decisions import temperature_of
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.writer import write_temperature
from tests.support import tiny_base

KEY = "llama.decision.temperature."


def test_a_base_says_what_writes_and_calibrates_its_questions(tmp_path: Path) -> None:
    more: dict[str, Any] = {"tokenizer.chat_template.systemone": "{{ state }}", f"{KEY}noul": 1.5}
    base = ag.BaseFile.read(tiny_base.write_base(tmp_path / "base.gguf", more=more))
    assert (base.decision_template, base.temperatures) == ("{{ state }}", {"noul": 1.5})
    plain = ag.BaseFile.read(tiny_base.write_base(tmp_path / "plain.gguf"))
    assert (plain.decision_template, plain.temperatures) == (None, {})


def test_an_adapter_says_what_calibrates_it(tmp_path: Path) -> None:
    keys = {f"{KEY}choice.11": 0.5, "qwen3.decision.temperature.noul": 3.0}
    file = ag.AdapterFile.read(tiny_base.write_adapter(tmp_path / "a.gguf", keys=keys))
    assert file.temperatures == {"choice.11": 0.5}


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e9, "warm", True])
def test_what_is_no_temperature_counts_for_none(tmp_path: Path, value: Any) -> None:
    path = tiny_base.write_base(tmp_path / "base.gguf", more={f"{KEY}noul": value})
    assert ag.BaseFile.read(path).temperatures == {}


@pytest.mark.parametrize(
    ("n", "few", "size"),
    [(2, "2", "small"), (5, "3_5", "small"), (8, "6_10", "small"), (10, "6_10", "mid"),
     (26, "11", "mid"), (27, "11", "large")],
)  # fmt: skip
def test_buckets_of_both_conventions_are_known(n: int, few: str, size: str) -> None:
    both = {f"choice.{few}": 2.0, f"choice.{size}": 3.0, "choice": 4.0}
    for name, wanted in tuple(both.items()):
        assert temperature_of(both, "choice", n) == wanted
        del both[name]
    assert temperature_of(both, "choice", n) is None


def test_a_temperature_is_written_and_replaced_and_all_else_stays(tmp_path: Path) -> None:
    path = tiny_base.write_adapter(tmp_path / "a.gguf", keys={f"{KEY}choice.11": 0.5})
    before, data = ag.AdapterFile.read(path), path.read_bytes()
    write_temperature(path, "noul", 1.5)
    write_temperature(path, "choice", 3.0)
    once = path.read_bytes()
    write_temperature(path, "noul", 1.5)
    assert path.read_bytes() == once
    write_temperature(path, "noul", 2.5)
    after = ag.AdapterFile.read(path)
    assert after.temperatures == {"choice.11": 0.5, "noul": 2.5, "choice": 3.0}
    assert after.identity == before.identity
    old, new = read_header(data), read_header(path)
    assert {**old.metadata, f"{KEY}noul": 2.5, f"{KEY}choice": 3.0} == {
        name: old.metadata.get(name, value)  # arrays lie elsewhere
        for name, value in new.metadata.items()
    }
    assert all(bytes(new.entries[name]) == bytes(entry) for name, entry in old.entries.items())
    assert all(new.tensor_data(name) == old.tensor_data(name) for name in old.tensors)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_temperature_is_not_written(tmp_path: Path) -> None:
    path = tiny_base.write_adapter(tmp_path / "a.gguf")
    data = path.read_bytes()
    with pytest.raises(
        ag.InputError, match="kind of a temperature is 'yes', expected noul, choice"
    ):
        write_temperature(path, "yes", 1.0)
    for value in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(ag.InputError, match="expected a number above 0, at most 1000"):
            write_temperature(path, "noul", value)
    assert path.read_bytes() == data
    with pytest.raises(ag.MissingFileError, match=r"b\.gguf"):
        write_temperature(tmp_path / "b.gguf", "noul", 1.0)
    path.write_bytes(data[:-8])
    with pytest.raises(ag.FileFormatError, match="truncated"):
        write_temperature(path, "noul", 1.0)
