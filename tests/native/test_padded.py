"""Repacked weights take four rows at a time: two or three adapted rows are padded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.support.tiny_models import tiny_model

from .harness import Base, Logits, Token, difference, write_adapter
from .test_fused import prepared

# activations are quantized, so that a difference in the last bit can become a step of Q8_0
TOLERANCE = 1e-2
Q4_0 = gguf.GGMLQuantizationType.Q4_0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    """The tiny llama with Q4_0 weights, which ggml repacks on x86 and ARM."""
    path = tmp_path_factory.mktemp("q4_0") / "base.gguf"
    reader = gguf.GGUFReader(str(tiny_model("llama").gguf))
    writer = gguf.GGUFWriter(str(path), "llama")
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1])
    for tensor in reader.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            values = gguf.quants.quantize(tensor.data, Q4_0)
            writer.add_tensor(tensor.name, values, raw_dtype=Q4_0)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = Base(path)
    yield base
    base.close()


def rows(n: int) -> list[Token]:
    return [(7 + i, 0, (i,)) for i in range(n)]


def run(
    base: Base, adapters: list[Path], path: str, n: int, active: bool
) -> tuple[Logits, int, int]:
    """Logits, nodes of the graph and reserves of a batch of n sequences."""
    with prepared(base, adapters, path) as (ctx, slots):
        reserved = ctx.stats().n_reserves
        for seq in range(n if active else 0):
            ctx.activate(seq, 0, slots[seq % 2])
        logits = ctx.decode(rows(n))
        stats = ctx.stats()
        return logits, stats.n_nodes, stats.n_reserves - reserved


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        write_adapter(folder / f"{seed}.gguf", tiny_model("llama"), rank=8, seed=seed)
        for seed in (1, 2)
    ]


@pytest.mark.parametrize("n", range(1, 9))
def test_padding_changes_nothing(base: Base, adapters: list[Path], n: int) -> None:
    standard, _, _ = run(base, adapters, "standard", n, active=True)
    fused, _, reserves = run(base, adapters, "fused", n, active=True)
    assert difference(fused, standard) < TOLERANCE
    assert reserves == 0


@pytest.mark.parametrize("n", [2, 3, 6])
def test_batches_of_the_base_are_upstreams(base: Base, adapters: list[Path], n: int) -> None:
    standard, nodes, _ = run(base, adapters, "standard", n, active=False)
    idle, idle_nodes, _ = run(base, adapters, "fused", n, active=False)
    assert np.array_equal(idle, standard)
    assert idle_nodes == nodes


def test_only_what_would_be_left_over_is_padded(base: Base, adapters: list[Path]) -> None:
    nodes = {n: run(base, adapters, "fused", n, active=True)[1] for n in (3, 4, 5, 7)}
    if nodes[3] == nodes[4]:
        pytest.skip("ggml does not repack Q4_0 on this processor")
    assert nodes[4] == nodes[5]
    assert nodes[3] == nodes[7] > nodes[4]


@pytest.mark.parametrize("n_batch", [8, 256])
def test_all_memory_is_reserved(base: Base, adapters: list[Path], n_batch: int) -> None:
    """Padding keeps out of batches nearly as long as the longest, which is what is reserved."""
    lengths = [n for n in (2, 3, 6, 7, 30, 63, 64, 254, 255, 256) if n <= n_batch]
    with prepared(base, adapters, "fused", n_batch=n_batch) as (ctx, slots):
        ctx.activate(0, 0, slots[0])
        before = ctx.stats()
        nodes = {}
        for n in lengths:
            ctx.clear()
            ctx.decode([(7 + i, i, (0,)) for i in range(n)], lambda token, n=n: token[1] == n - 1)
            nodes[n] = ctx.stats().n_nodes
        after = ctx.stats()
    assert after.compute_bytes == before.compute_bytes
    assert after.n_reserves == before.n_reserves
    if n_batch == 256:
        assert nodes[63] == nodes[64] == nodes[254] == nodes[255] == nodes[256]
