"""Every pair of cell types with every flash attention opens and computes, or is refused by us, and
so does every pair of extreme sizes: tried in processes of their own, so that an abort is an exit
status.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

import alora_gguf as ag
from tests.support.base_mutants import Parts, V
from tests.support.tiny_base import write_base

_CHILD = """
import itertools, sys
import alora_gguf as ag

for k, v, flash in itertools.product(*(each.split(",") for each in sys.argv[2:])):
    options = ag.ContextOptions(n_ctx=64, n_threads=1, type_k=k, type_v=v, flash_attn=flash)
    try:
        with ag.Model(sys.argv[1], options=options) as model, model.session() as session:
            session.append([5, 6, 7, 8, 9])
            "".join(session.generate(max_tokens=2, temperature=0))  # refuses what is not finite
            print(k, v, flash, "works", flush=True)
    except ag.ModelError as error:
        print(k, v, flash, "refused" if "type_" in str(error) else error, flush=True)
"""
_KEYS, _VALUES = ("f16", "bf16", "q8_0", "q4_0", "iq4_nl"), ("f32", "f16", "q8_0")
_FLASH = ("auto", "on", "off")


def _with_heads(path: Path, size: int) -> Path:
    """A tiny base whose two heads for keys, and for values, have `size` elements."""
    parts = Parts.read(write_base(path))
    for name in ("key_length", "value_length"):
        parts.keys[f"llama.attention.{name}"] = V.UINT32, size
    parts.keys["llama.rope.dimension_count"] = V.UINT32, size
    for name, (kind, old, data) in parts.tensors.items():
        shape = old
        if ".attn_output." in name:
            shape = size * 4, shape[1]
        elif ".attn_" in name and len(shape) == 2:
            shape = shape[0], shape[1] // 16 * size
        n = 4
        for each in shape:
            n *= each
        parts.tensors[name] = kind, shape, (data * (n // len(data) + 1))[:n]
    path.write_bytes(parts.encode())
    return path


@pytest.mark.parametrize("size", [40, 48, 64])
def test_cells_of_every_type(size: int, tmp_path: Path) -> None:
    path = _with_heads(tmp_path / "base.gguf", size)
    lists = [",".join(each) for each in (_KEYS, _VALUES, _FLASH)]
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), *lists],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-1000:]
    found = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())
    for k, v, flash in itertools.product(_KEYS, _VALUES, _FLASH):
        blocks = "q8_0" in (k, v) or k in ("q4_0", "iq4_nl")
        refused = (blocks and size % 32) or (v == "q8_0" and flash == "off")
        assert found[f"{k} {v} {flash}"] == ("refused" if refused else "works"), (k, v, flash)


_EXTREMES = {
    "n_ctx": (1, 7, 256),
    "n_batch": (1, 7, 2**20),
    "n_ubatch": (1, 7, 2**20),
    "n_seq_max": (1, 256),
    "n_outputs": (1, 2**20),
    "max_adapters": (1, 1023),
    "n_gpu_layers": (-1, 2**31 - 1),
    "n_pooled": (0, 255),
}
_PAIRS = """
import itertools, json, sys
import alora_gguf as ag

sizes = json.loads(sys.argv[2])
for (one, ones), (other, others) in itertools.combinations(sizes.items(), 2):
    for first, second in itertools.product(ones, others):
        print(one, first, other, second, flush=True)
        with ag.Model(sys.argv[1], n_threads=1, **{one: first, other: second}) as model:
            with model.session() as session:
                session.append([5, 6, 7, 8, 9])
                "".join(session.generate(max_tokens=2, temperature=0))
print("all")
"""


def test_extreme_sizes(tmp_path: Path) -> None:
    path = write_base(tmp_path / "base.gguf")
    run = subprocess.run(
        [sys.executable, "-c", _PAIRS, str(path), json.dumps(_EXTREMES)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.stdout.endswith("all\n"), (run.stdout[-100:], run.returncode, run.stderr[-1000:])


def test_more_cells_than_the_machine_has_memory_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known before anything is loaded: llama.cpp would take half a minute, or be killed."""
    base = write_base(tmp_path / "base.gguf")
    each = 2 * 2 * 2 * 32  # layers, keys and values, bytes, elements of both heads
    monkeypatch.setattr("alora_gguf.engine.loading.machine_memory", lambda: 1000 * each)
    with pytest.raises(ag.ModelError, match=r"a KV cache of 1024 cells takes 0\.0 GB, "):
        ag.Model(base, n_ctx=1024)
    monkeypatch.setattr("alora_gguf.engine.loading.machine_memory", lambda: 1024 * each)
    with ag.Model(base, n_ctx=1024, n_threads=1) as model:
        assert model.n_ctx == 1024
    monkeypatch.setattr("alora_gguf.engine.loading.machine_memory", lambda: 0)  # it cannot be told
    with ag.Model(base, n_ctx=1024, n_threads=1, type_k="f32", type_v="bf16") as model:
        assert model.n_ctx == 1024
