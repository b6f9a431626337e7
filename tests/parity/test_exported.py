"""An exported adapter converts to the same bytes, and PEFT computes with it what it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from alora_gguf.convert import convert_adapter, export_adapter

from alora_gguf.gguf.header import read_header
from tests.support.peft_oracle import TinyAdapter, make_adapter, reference_logits
from tests.support.tiny_families import FUSED_FAMILIES
from tests.support.tiny_models import TinyModel, tiny_model

from .sides import words
from .test_converted import CASES, options, size

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match"),
]

INVOCATION = (5, 5, 6)
TOKENS = [*words(12, 70), *INVOCATION, *words(9, 71)]


def there_and_back(tiny: TinyModel, adapter: TinyAdapter, folder: Path, outtype: str) -> Path:
    """Converts, exports and converts again, with the same bytes; returns what was exported."""
    files = [folder / f"{i}.gguf" for i in range(3)]
    sources = [adapter.directory, folder / "export", folder / "again"]
    for i in range(3):
        convert_adapter(
            sources[i],
            tiny.gguf,
            files[i],
            outtype=outtype,
            name="it",
            # PEFT writes none for experts' parameters
            invocation=adapter.invocation if i == 0 else None,
        )
        if i < 2:
            export_adapter(files[i], tiny.gguf, sources[i + 1])
    assert_same(files[0], files[1])
    assert files[1].read_bytes() == files[2].read_bytes()
    return sources[1]


def assert_same(first: Path, second: Path) -> None:
    """All but the hash of the weights' file that it was made of, which another file has."""
    one, other = read_header(first), read_header(second)
    left = one.metadata.keys() ^ other.metadata.keys()
    assert left <= {"alora.source.peft_version"}
    for key in (one.metadata.keys() & other.metadata.keys()) - {"alora.source.sha256"}:
        assert one.entries[key] == other.entries[key], key
    assert list(one.tensors) == list(other.tensors)
    for name in one.tensors:
        assert one.tensors[name].shape == other.tensors[name].shape, name
        assert bytes(one.tensor_data(name)) == bytes(other.tensor_data(name)), name


@pytest.mark.parametrize(("family", "targets"), CASES, ids=lambda value: value)
def test_families(family: str, targets: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny = tiny_model(family)
    adapter = make_adapter(
        tiny,
        tmp_path / "peft",
        targets=targets,
        size=size(family, targets),
        **options(family, targets, scaled=targets != "attention"),
    )
    exported = there_and_back(tiny, adapter, tmp_path, "f32")
    assert_loads(tiny, adapter, TinyAdapter(tiny, exported, None), 1e-5)


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_types(family: str, outtype: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny = tiny_model(family)
    adapter = make_adapter(tiny, tmp_path / "peft", targets="all-linear", rank=32)
    there_and_back(tiny, adapter, tmp_path, outtype)


@pytest.mark.parametrize("family", ["llama", "granite", "qwen3"])
def test_an_alora(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny = tiny_model(family)
    adapter = make_adapter(tiny, tmp_path / "peft", invocation=INVOCATION)
    exported = there_and_back(tiny, adapter, tmp_path, "f32")
    assert_loads(tiny, adapter, TinyAdapter(tiny, exported, INVOCATION), 1e-5)


@pytest.mark.parametrize("modules", [["q_proj", "k_proj", "v_proj"], ["v_proj", "q_proj"]])
@pytest.mark.parametrize("family", FUSED_FAMILIES)
def test_a_base_with_fused_projections(family: str, modules: Sequence[str], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny = tiny_model(family).fused
    adapter = make_adapter(
        tiny,
        tmp_path / "peft",
        target_modules=list(modules),
        **options(family, "attention", scaled=True),
    )
    exported = there_and_back(tiny, adapter, tmp_path, "f32")
    assert_loads(tiny, adapter, TinyAdapter(tiny, exported, None), 1e-5)


def test_embeddings_and_output(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny = tiny_model("llama")
    adapter = make_adapter(
        tiny, tmp_path / "peft", target_modules=["embed_tokens", "lm_head", "q_proj"]
    )
    exported = there_and_back(tiny, adapter, tmp_path, "f32")
    assert_loads(tiny, adapter, TinyAdapter(tiny, exported, None), 1e-5)


def assert_loads(
    tiny: TinyModel, adapter: TinyAdapter, exported: TinyAdapter, tolerance: float
) -> None:
    """PEFT loads all of it, and computes the same."""
    before, after = (reference_logits(tiny, each, TOKENS) for each in (adapter, exported))
    np.testing.assert_allclose(after, before, atol=tolerance * float(np.abs(before).max()))
    assert np.abs(before - reference_logits(tiny, None, TOKENS)).max() > 0.05
