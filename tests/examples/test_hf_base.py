"""examples/fleet/hf_base: where it refuses to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from alora_gguf.errors import InputError, MissingFileError
from examples.fleet import hf_base

pytest.importorskip("transformers", reason="comes with the extra train")


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "config.json"
    kept.write_text("{}")
    with pytest.raises(InputError, match="exists already"):
        hf_base.write(tmp_path / "base.gguf", tmp_path)
    assert kept.read_text() == "{}"


def test_without_a_base_nothing_is_written(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(MissingFileError, match=r"base\.gguf: there is no such file"):
        hf_base.write(tmp_path / "base.gguf", target)
    assert not target.exists()
