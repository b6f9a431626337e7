"""Adapter files: what is read from good ones, and that every bad one is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.gguf.base import BaseFile
from tests.support import corrupt, tiny_base
from tests.support.files import Files
from tests.support.make_gguf import adapter_keys, make_gguf

BASES = {"base": {}, "tied": {"tied": True}, "experts": {"experts": 4}}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        name: tiny_base.write_base(folder / f"{name}.gguf", **options)  # type: ignore[arg-type]
        for name, options in BASES.items()
    }


@pytest.mark.parametrize("case", corrupt.ADAPTERS)
def test_a_bad_adapter_is_refused_before_c_sees_it(
    case: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    write, base, error, text = corrupt.ADAPTERS[case]
    path = write(tmp_path / "bad.gguf")
    # read() and check_base() are pure Python: what they raise, C has not seen
    with pytest.raises(getattr(ag, error)) as caught:
        ag.AdapterFile.read(path).check_base(BaseFile.read(bases[base]), tiny_base.N_VOCAB)
    assert type(caught.value).__name__ == error
    assert text in str(caught.value)
    assert str(path) in str(caught.value)


def test_only_what_is_an_adapters_is_read(bases: dict[str, Path], tmp_path: Path) -> None:
    """A terabyte behind the tensors, which takes no room on the disk, and would all memory."""
    large = tiny_base.write_adapter(tmp_path / "large.gguf", invocation=(7, 8))
    plain = ag.AdapterFile.read(large)
    os.truncate(large, 1 << 40)
    found = ag.AdapterFile.read(large)
    assert (found.identity, found.data) == (plain.identity, plain.data)
    base = tmp_path / "base.gguf"
    base.write_bytes(bases["base"].read_bytes())
    os.truncate(base, 1 << 40)
    with pytest.raises(ag.AdapterFormatError, match="this is not an adapter's file"):
        ag.AdapterFile.read(base)


# The rows of the table on which stock llama.cpp aborts, crashes or corrupts memory: through the
# whole library, in a process of their own.
CRASHES = [
    "general.type of another type",
    "adapter.type of another type",
    "architecture of another type",
    "alpha of another type",
    "A is I32",
    "B is F64",
    "3-D A and B on a matrix",
    "too few experts",
    "2-D A and B on experts",
    "embedding ranks differ",
    "NaN in A",
    "invocation outside the vocabulary",
    "empty invocation",
]


@pytest.mark.parametrize("case", CRASHES)
def test_where_stock_would_crash_there_is_a_clean_error(
    case: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    write, base, error, text = corrupt.ADAPTERS[case]
    run = attempt(bases[base], write(tmp_path / "bad.gguf"))
    assert run.returncode == 3, run.stderr
    assert run.stdout.startswith(f"{error}: ")
    assert text in run.stdout


def attempt(base: Path, adapter: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs corrupt.py on the files; a crash is a negative exit status."""
    command = [sys.executable, "-m", corrupt.__name__, str(base)] + (
        [str(adapter)] if adapter else []
    )
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ.copy()
    )


def test_an_embedding_adapter_on_a_tied_base_does_not_crash(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    path = corrupt.adapter(tmp_path / "e.gguf", corrupt.pair(corrupt.EMBD, (corrupt.V, 4), (64, 4)))
    run = attempt(bases["tied"], path)
    assert run.returncode in (0, 3), run.stderr
    assert run.stdout.startswith(("decoded", "Adapter"))


def test_an_adapter_on_an_nvfp4_base_does_not_crash(tmp_path: Path) -> None:
    import gguf

    blocks = np.zeros((128, 36), np.uint8)  # 64 values in 36 bytes; scale bytes of 1.0
    blocks[:, :4] = 0x38
    base = tiny_base.write_base(
        tmp_path / "nvfp4.gguf",
        replace={"blk.0.ffn_up.weight": (blocks, gguf.GGMLQuantizationType.NVFP4)},
    )
    path = corrupt.adapter(
        tmp_path / "f.gguf", corrupt.pair("blk.0.ffn_up.weight", (4, 64), (128, 4))
    )
    run = attempt(base, path)
    assert run.returncode in (0, 3), run.stderr
    assert run.stdout.startswith(("decoded", "Adapter"))


def test_what_a_good_file_says(files: Files) -> None:
    file = ag.AdapterFile.read(files.alora)
    assert file.architecture == "llama"
    assert file.alpha == 16.0
    assert file.rank == 8
    assert file.invocation == files.invocation
    assert file.name == "sure"
    assert file.targets == tuple(
        sorted(f"blk.{i}.{t}.weight" for i in range(2) for t in tiny_base.ATTENTION)
    )
    assert ag.AdapterFile.read(files.lora).invocation == ()


def test_identity_is_of_weights_and_alpha_and_nothing_else(files: Files, tmp_path: Path) -> None:
    def identity(name: str, **options: object) -> str:
        path = tiny_base.write_adapter(tmp_path / f"{name}.gguf", **options)  # type: ignore[arg-type]
        return ag.AdapterFile.read(path).identity

    same = identity("copy", invocation=files.invocation)
    assert same == ag.AdapterFile.read(files.alora).identity
    assert same == identity("moved", invocation=(1, 2))  # where it begins is not what it computes
    others = [
        identity("alpha", alpha=8.0),
        identity("no alpha", alpha=None),
        identity("seed", seed=9),
        identity("type", dtype=np.float16),
        identity("rank", rank=4),
        identity("fewer", targets=("attn_q",)),
    ]
    assert len({same, *others}) == len(others) + 1


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_good_types_load(files: Files, tmp_path: Path, dtype: type) -> None:
    path = tiny_base.write_adapter(tmp_path / "a.gguf", dtype=dtype)
    with ag.Model(files.base, n_ctx=256, adapters={"a": path}) as model:
        assert list(model.adapters) == ["a"]


def test_q8_0_is_read_and_its_infinities_found(files: Files, tmp_path: Path) -> None:
    import gguf

    q8_0 = gguf.GGMLQuantizationType.Q8_0
    tensors = corrupt.pair(a=(32, 64), b=(64, 32))
    for name, poison in (("good", False), ("bad", True)):
        raw = {key: gguf.quants.quantize(data, q8_0) for key, data in tensors.items()}
        if poison:
            for data in raw.values():
                data[0, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
        quantised = {key: (data, q8_0) for key, data in raw.items()}
        make_gguf(tmp_path / f"{name}.gguf", adapter_keys(None), quantised)
    with ag.Model(files.base, n_ctx=256) as model:
        model.load_adapter("good", tmp_path / "good.gguf")
        with pytest.raises(ag.AdapterFormatError, match="NaN or infinite"):
            model.load_adapter("bad", tmp_path / "bad.gguf")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e39, "1", None, True])
def test_a_scale_that_is_no_finite_number_is_refused(model: ag.Model, scale: object) -> None:
    session = model.session()
    session.append("Hello")
    with pytest.raises(ag.InputError, match="scale must be"):
        session.invoke(ag.Invocation("sure", scale=scale))  # type: ignore[arg-type]
    with pytest.raises(ag.InputError, match="scale must be"):
        session.generate(adapter="lora", scale=scale)  # type: ignore[arg-type]


def test_a_missing_file_and_a_directory(model: ag.Model, tmp_path: Path) -> None:
    with pytest.raises(ag.MissingFileError, match="no such file"):
        model.load_adapter("x", tmp_path / "none.gguf")
    with pytest.raises(ag.AdapterFormatError, match="is a directory"):
        model.load_adapter("x", tmp_path)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("<certainty>", None),
        ("<|assistant|>", (tiny_base.ASSISTANT,)),
        # ids that the text would not be split into still read like it
        ("<c", tuple(b"<c")),
        # without its space, as another vocabulary's decoding has it
        ("<|user|>now", None),
    ],
)
def test_an_invocation_that_reads_as_the_file_says(
    model: ag.Model, tmp_path: Path, text: str, tokens: tuple[int, ...] | None
) -> None:
    if tokens == tuple(b"<c"):
        tokens = tuple(t for c in "<c" for t in model.tokenize(c))
    ids = tuple(model.tokenize(text)) if tokens is None else tokens
    path = tiny_base.write_adapter(tmp_path / "a.gguf", invocation=ids, invocation_text=text)
    assert model.load_adapter("reads", path).invocation_text == text
    model.unload_adapter("reads")


def test_an_invocation_of_another_vocabulary(model: ag.Model, tmp_path: Path) -> None:
    ids = [*model.tokenize("<certainty>")[:-1], tiny_base.END]
    path = tiny_base.write_adapter(
        tmp_path / "a.gguf", invocation=ids, invocation_text="<certainty>"
    )
    with pytest.raises(ag.AdapterMismatchError) as caught:
        model.load_adapter("wrong", path)
    message = str(caught.value)
    assert f"its invocation {ids} reads '<certainty>', but '" in message
    assert "which has another vocabulary; use the base it was trained on" in message
    assert "wrong" not in model.adapters


def test_without_a_vocabulary_ids_are_all_there_is(tmp_path: Path) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf", text=False)
    path = tiny_base.write_adapter(tmp_path / "a.gguf", invocation=[5], invocation_text="<x>")
    with ag.Model(base, adapters={"a": path}, n_ctx=64, n_threads=1) as model:
        assert model.adapters["a"].invocation == (5,)
