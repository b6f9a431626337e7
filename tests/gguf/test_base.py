"""Base files that cannot serve: refused before llama.cpp sees them, and never a crash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import alora_gguf as ag
from tests.support import corrupt, inside, tiny_base
from tests.support.files import Files
from tests.support.gguf_bytes import tensor_array
from tests.support.make_gguf import make_gguf


def f64(path: Path) -> Path:
    weight = np.ones((64, 64), np.float64)
    return tiny_base.write_base(path, replace={"blk.0.attn_q.weight": (weight, None)})


def cut(path: Path) -> Path:
    tiny_base.write_base(path)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


X = {"x": np.ones(32, np.float32)}
UINT16 = gguf.GGUFValueType.UINT16


def part(path: Path) -> Path:
    return make_gguf(path, {"split.count": (2, UINT16)}, X)


def vocabulary_only(path: Path) -> Path:
    return make_gguf(path)


def encoder(path: Path) -> Path:
    return make_gguf(path, tensors=X, architecture="clip")


def unknown(path: Path) -> Path:
    return make_gguf(path, tensors=X, architecture="no-such-model")


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda path: path, "there is no such file"),
    "empty": (lambda path: corrupt.raw(path, b""), "empty"),
    "text": (lambda path: corrupt.raw(path, b"hello" * 20), "is not a GGUF file"),
    "truncated": (cut, "truncated"),
    "an adapter": (corrupt.adapter, "is an adapter (general.type = adapter), not a base model"),
    "a weight of F64": (f64, "tensor 'blk.0.attn_q.weight' is F64"),
    "a part of a split model": (part, "is one of 2 parts, but is not named like one"),
    "vocabulary only": (vocabulary_only, "holds a vocabulary but no weights"),
    "a projector": (encoder, "is a vision projector"),
    "an unknown architecture": (unknown, "llama.cpp cannot load this model"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_base_that_cannot_serve_is_refused(case: str, tmp_path: Path) -> None:
    write, text = CASES[case]
    path = write(tmp_path / "bad.gguf")
    run = subprocess.run(
        [sys.executable, "-m", corrupt.__name__, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ.copy(),
    )
    assert run.returncode == 3, run.stderr
    kind = "MissingFileError" if case == "missing" else "ModelError"
    assert run.stdout.startswith(f"{kind}: ")
    assert text in run.stdout
    assert str(path) in run.stdout


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ag.ModelError, match="is a directory"):
        ag.Model(tmp_path)


def test_a_split_model_is_read_whole(files: Files, tmp_path: Path) -> None:
    from alora_gguf.gguf.base import BaseFile
    from alora_gguf.gguf.header import read_header

    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    header = read_header(files.base)
    for i, path in enumerate(parts):
        tensors = {name: tensor_array(header, name) for name in list(header.tensors)[i::2]}
        make_gguf(path, {"split.count": (2, UINT16)}, tensors)
    assert set(BaseFile.read(parts[0]).tensors) == set(header.tensors)
    with pytest.raises(ag.ModelError, match="is part 2 of 2; open m-00001"):
        BaseFile.read(parts[1])
    parts[1].unlink()
    with pytest.raises(ag.MissingFileError, match="no such file"):
        BaseFile.read(parts[0])


def test_an_adapter_for_another_base_of_the_same_architecture(files: Files, tmp_path: Path) -> None:
    path = corrupt.adapter(tmp_path / "a.gguf", corrupt.pair(a=(4, 128), b=(128, 4)))
    with ag.Model(files.base, n_ctx=256) as model:
        with pytest.raises(ag.AdapterMismatchError, match="use the base it was trained on"):
            model.load_adapter("a", path)
        assert dict(model.adapters) == {}
        model.session().append("still fine")


def test_adapters_given_to_the_model_load_all_or_none(files: Files, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    shutil.copy(files.base, bad)
    with pytest.raises(ag.AdapterFormatError):
        ag.Model(files.base, n_ctx=256, adapters={"good": files.alora, "bad": bad})
    with ag.Model(files.base, n_ctx=256) as model:
        before = model.stats().n_adapters
        model.load_adapter("good", files.alora)
        assert model.stats().n_adapters == before + 1


def test_an_adapter_the_library_refuses_takes_the_others_with_it(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alora_gguf.engine.native import Native

    real = Native.adapter_add

    def refuse(self: Native, ctx: int, gguf: bytes, what: str) -> int:
        if what == str(files.lora):
            raise ag.AdapterMismatchError("no")
        return real(self, ctx, gguf, what)

    with ag.Model(files.base, n_ctx=256) as model:
        monkeypatch.setattr(Native, "adapter_add", refuse)
        with pytest.raises(ag.AdapterMismatchError):
            inside.runtime(model).bank.load({"sure": files.alora, "lora": files.lora})
        assert dict(model.adapters) == {}
        assert model.stats().n_adapters == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"n_batch": 0}, "n_batch must be an integer in"),
        ({"n_seq_max": 257}, r"n_seq_max must be an integer in \[1, 256\], got 257"),
        ({"n_ctx": -1}, "n_ctx must be"),
        ({"n_threads": True}, "n_threads must be"),
        ({"type_k": "f17"}, "type_k must be one of f32, f16"),
        ({"flash_attn": "maybe"}, "flash_attn must be one of auto, off, on"),
    ],
)
def test_context_options_are_checked(options: dict[str, object], text: str) -> None:
    with pytest.raises(ag.InputError, match=text):
        ag.ContextOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_cache_types(files: Files, kind: str) -> None:
    options = ag.ContextOptions(type_k=kind, type_v=kind, n_threads=1)  # type: ignore[arg-type]
    with ag.Model(files.base, adapters={"sure": files.alora}, options=options) as model:
        session = model.session()
        session.append("Hello")
        assert session.invoke(ag.Invocation("sure", max_tokens=2)).finish_reason == "length"


def test_a_cache_type_the_model_cannot_have_is_an_error_that_says_why(files: Files) -> None:
    options = ag.ContextOptions(type_k="q8_0", n_ctx=256)
    with pytest.raises(ag.ModelError, match="do not divide the 16 of a head"):
        ag.Model(files.base, options=options)


@pytest.mark.parametrize("n_batch", [1, 5, 17, 600])
def test_any_batch_size_serves_any_number_of_forks(files: Files, n_batch: int) -> None:
    options = ag.ContextOptions(n_batch=n_batch, n_ubatch=n_batch, n_ctx=512, n_threads=1)
    with ag.Model(files.base, adapters={"sure": files.alora}, options=options) as model:
        session = model.session()
        session.append("Hello there")
        verdicts = session.invoke_many([ag.Invocation("sure", max_tokens=3)] * 16)
    assert len({v.tokens for v in verdicts}) == 1
