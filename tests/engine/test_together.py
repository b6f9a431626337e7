"""Adapters with weights that act on one token together: what is made of them, kept and freed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.llama_context import Logits
from alora_gguf.gguf.header import read_header
from tests.support import inside, steered
from tests.support.files import Files
from tests.support.make_gguf import adapter_keys, make_gguf
from tests.support.tiny_base import TARGETS, write_adapter

PROMPT = [4, 8, 15, 16, 23, 42]
LORAS = ("one", "two", "three", "four")


@pytest.fixture
def loras(files: Files, tmp_path: Path) -> dict[str, Path]:
    return {
        name: write_adapter(
            tmp_path / f"{name}.gguf", seed=20 + i, invocation=None, rank=4 * (i + 1)
        )
        for i, name in enumerate(LORAS)
    }


@pytest.fixture
def model(files: Files, loras: dict[str, Path]) -> Iterator[ag.Model]:
    with files.model(adapters={"sure": files.alora, **loras}) as opened:
        yield opened


def read(model: ag.Model, adapter: Any, tokens: list[int] = PROMPT, scale: float = 1.0) -> Logits:
    with model.session() as session:
        session.sync(tokens, adapter=adapter, scale=scale)
        return inside.last_logits(session).copy()


def n_adapters(model: ag.Model) -> int:
    return model.stats().n_adapters


def test_halves_of_an_adapter_are_the_whole(files: Files, tmp_path: Path) -> None:
    whole = write_adapter(tmp_path / "w.gguf", rank=8, alpha=16.0, targets=tuple(TARGETS))
    header = read_header(whole)
    halves = {}
    for i in range(2):
        tensors = {}
        for name, info in header.tensors.items():
            array = np.frombuffer(header.tensor_data(name), "<f4").reshape(info.shape[::-1])
            axis = 1 if name.endswith("lora_b") else 0
            tensors[name] = np.ascontiguousarray(np.split(array, 2, axis)[i])
        halves[f"half{i}"] = make_gguf(tmp_path / f"{i}.gguf", adapter_keys(8.0), tensors)
    with files.model(adapters={"whole": whole, **halves}) as model:
        found = read(model, dict.fromkeys(halves, 1.0), scale=0.5)
        expected = read(model, "whole", scale=0.5)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
        assert np.abs(expected - read(model, None)).max() > 0.01 * np.abs(expected).max()


def test_scales_are_sums_and_order_means_nothing(model: ag.Model) -> None:
    alike = [{"one": 1.0, "two": 0.5}, {"two": 0.5, "one": 1.0}]
    first, second = (read(model, each) for each in alike)
    assert np.array_equal(first, second)
    model.combine("both", alike[0])
    assert np.array_equal(first, read(model, "both"))
    assert not np.array_equal(first, read(model, {"one": 0.5, "two": 1.0}))
    # nothing is left of what counts for nothing
    assert np.array_equal(read(model, {"one": 1, "two": 0}), read(model, "one"))


def test_one_adapter_is_made_for_all_scales_of_the_whole(model: ag.Model) -> None:
    model.combine("both", {"one": 1.0, "two": 0.25})
    for scale in (1.0, 0.5, 2.0):
        read(model, "both", scale=scale)
    assert n_adapters(model) == 5 + 1
    read(model, {"one": 4.0, "two": 1.0})
    assert n_adapters(model) == 5 + 1
    read(model, {"one": 1.0, "two": 1.0})
    assert n_adapters(model) == 5 + 2


def test_scales_that_are_no_powers_of_two(model: ag.Model) -> None:
    """Their ratios differ in the last bit, and are taken for the same."""
    model.combine("both", {"one": 0.7, "two": 0.3})
    for scale in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.1):
        read(model, "both", scale=scale)
    assert n_adapters(model) == 5 + 1


def test_what_is_loaded_takes_the_room_of_what_can_be_made_again(
    model: ag.Model, files: Files, tmp_path: Path
) -> None:
    read(model, {"one": 1, "two": 1})
    assert n_adapters(model) == 5 + 1
    model.load_adapter("five", files.write_adapter(tmp_path / "five.gguf", seed=55))
    assert n_adapters(model) == 6


def test_one_that_goes_while_it_is_asked_for_is_made_again(model: ag.Model) -> None:
    """Threads use two kept ones in turn, and others push them out."""
    pairs = [(a, b) for i, a in enumerate(LORAS) for b in LORAS[i + 1 :]]
    problems: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for i in range(12):
                read(model, dict.fromkeys(pairs[(start + i) % len(pairs)], 1.0))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert n_adapters(model) <= 5 + 6


def test_with_vectors_besides(model: ag.Model, tmp_path: Path) -> None:
    model.load_adapter("up", steered.write(tmp_path / "v.gguf", seed=3), from_start=True)
    both = {"one": 1.0, "two": 1.0}
    plain, steered_too = read(model, both), read(model, {**both, "up": 1.0})
    assert not np.array_equal(plain, steered_too)
    assert not np.array_equal(steered_too, read(model, {"one": 1.0, "up": 1.0}))
    assert np.array_equal(steered_too, read(model, {**both, "up": 1.0}))


def test_few_are_kept_that_nobody_uses(model: ag.Model) -> None:
    """The oldest goes, and one that is used again is young."""
    pairs = [(a, b) for i, a in enumerate(LORAS) for b in LORAS[i + 1 :]]
    before = read(model, dict.fromkeys(pairs[0], 1.0))
    for pair in pairs[1:]:
        read(model, dict.fromkeys(pair, 1.0))
    assert n_adapters(model) == 5 + 4
    assert np.array_equal(before, read(model, dict.fromkeys(pairs[0], 1.0)))
    assert n_adapters(model) == 5 + 4


def test_unloading_a_part_frees_what_was_made_of_it(model: ag.Model) -> None:
    for pair in (("one", "two"), ("two", "three"), ("three", "four")):
        read(model, dict.fromkeys(pair, 1.0))
    session = model.session()
    session.append(PROMPT)
    reply = session.generate(adapter={"three": 1, "four": 1}, max_tokens=9)
    next(reply)
    with pytest.raises(ag.AdapterInUseError, match="'four' cannot be unloaded now: a reply is sti"):
        model.unload_adapter("four")
    model.unload_adapter("two")
    assert n_adapters(model) == 4 + 1
    reply.close()
    session.close()
    model.unload_adapter("four")
    assert n_adapters(model) == 3


def test_a_slot_that_was_freed_stands_for_nothing_old(
    model: ag.Model, files: Files, tmp_path: Path
) -> None:
    """Another adapter in its slot is another one."""
    read(model, {"one": 1, "two": 1})
    model.unload_adapter("two")
    model.load_adapter("two", write_adapter(tmp_path / "new.gguf", seed=99, invocation=None))
    found = read(model, {"one": 1, "two": 1})
    with files.model(
        adapters={"one": model.adapters["one"].path, "two": tmp_path / "new.gguf"}
    ) as m:
        assert np.array_equal(found, read(m, {"one": 1, "two": 1}))


def test_files_that_are_gone_or_changed(model: ag.Model, loras: dict[str, Path]) -> None:
    read(model, {"one": 1, "two": 1})
    write_adapter(loras["one"], seed=77, invocation=None, rank=4)
    read(model, {"one": 1, "two": 1})  # is there already
    with pytest.raises(ag.AdapterFormatError, match=r"one.gguf: was changed after it was loaded"):
        read(model, {"one": 1, "three": 1})
    loras["two"].unlink()
    with pytest.raises(ag.MissingFileError, match=r"two.gguf: is not there any more, and its weig"):
        read(model, {"two": 1, "three": 1})
    assert n_adapters(model) == 5 + 1
    assert read(model, "two").shape  # alone it needs no file


def test_the_working_directory_may_change(
    files: Files, loras: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {name: path.relative_to(tmp_path) for name, path in loras.items()}
    with files.model(adapters=paths) as model:
        monkeypatch.chdir("/")
        assert read(model, {"one": 1, "two": 1}).shape
        assert model.adapters["one"].path == paths["one"]


def test_what_asks_for_the_contract(files: Files, tmp_path: Path) -> None:
    """An intrinsic's is that of its combination with a LoRA; of two that differ there is none."""
    io_yaml = "model: ~\nresponse_format: null\n"

    def adapter(name: str, text: str | None, invocation: list[int] | None) -> Path:
        keys = {} if text is None else {"alora.io_yaml": text}
        path = tmp_path / f"{name}.gguf"
        return write_adapter(path, seed=len(name), invocation=invocation, keys=keys)

    paths = {
        "plain": adapter("plain", None, None),
        "spoken": adapter("spoken", "model: x\nresponse_format: null\n", None),
        "judge": adapter("judge", io_yaml, [5, 6]),
        "same": adapter("same", io_yaml, [5, 6]),
        "differs": adapter("differs", "model: y\nresponse_format: null\n", [5, 6]),
    }
    with files.model(adapters=paths) as model:

        def contract(*names: str) -> str | None:
            made = model.combine(" ".join(names), dict.fromkeys(names, 1.0))
            return made.io_yaml

        assert contract("plain", "judge") == io_yaml
        assert contract("spoken", "judge") == io_yaml
        assert contract("judge", "same") == io_yaml
        assert contract("judge", "differs") is None
        assert contract("plain", "spoken") == "model: x\nresponse_format: null\n"


def test_threads_make_one(model: ag.Model) -> None:
    found: list[Logits] = []

    def work() -> None:
        found.extend(read(model, {"one": 1.0, "three": 0.5}) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert n_adapters(model) == 5 + 1
    for each in found:  # batches may be shared
        assert np.abs(each - found[0]).max() < 1e-4 * np.abs(found[0]).max()
