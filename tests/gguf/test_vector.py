"""Steering vectors' files: what is read from good ones, that every bad one is refused by name, and
what others read in those that we write. The readers beside ours are gguf's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.vector import (
    Directions,
    VectorFile,
    VectorOrigin,
    is_vector,
    read_adapter,
)
from alora_gguf.gguf.vector_writer import write_vector
from tests.support import tiny_base, vectors
from tests.support.files import Files
from tests.support.gguf_bytes import gguf_bytes
from tests.support.make_gguf import make_gguf
from tests.support.vectors import N


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base.write_base(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.mark.parametrize("case", vectors.BAD)
def test_a_bad_vector_is_refused_before_c_sees_it(case: str, base: Path, tmp_path: Path) -> None:
    write, error, text = vectors.BAD[case]
    path = write(tmp_path / "bad.gguf")
    with pytest.raises(getattr(ag, error)) as caught:
        VectorFile.read(path).check_base(BaseFile.read(base), tiny_base.N_VOCAB)
    assert type(caught.value).__name__ == error
    assert text.format(base=base) in str(caught.value)
    assert str(path) in str(caught.value)
    assert "; " in str(caught.value)  # a way out


def test_only_what_is_a_vectors_is_read(tmp_path: Path) -> None:
    """A terabyte behind the tensors, which takes no room on the disk, and would all memory."""
    path = vectors.plain(tmp_path / "v.gguf")
    before = VectorFile.read(path)
    os.truncate(path, 1 << 40)
    assert VectorFile.read(path) == before
    other = tiny_base.write_base(tmp_path / "base.gguf")
    os.truncate(other, 1 << 40)
    with pytest.raises(ag.AdapterFormatError, match="not a steering vector's file"):
        VectorFile.read(other)


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ag.MissingFileError, match="no such file, expected a steering vector's"):
        VectorFile.read(tmp_path / "none.gguf")
    with pytest.raises(ag.AdapterFormatError, match="is a directory"):
        VectorFile.read(tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_damage_anywhere_gives_our_errors_and_no_others(seed: int, tmp_path: Path) -> None:
    """Bytes of header and directions changed, cut, doubled: a vector, or a clean refusal."""
    good = vectors.glp(tmp_path / "good.gguf", vectors.basis(2)).read_bytes()
    dice = random.Random(seed)
    for i in range(60):
        data = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(len(data))
            match dice.randrange(4):
                case 0:
                    data[at] = dice.choice((0, 1, 8, 9, 127, 128, 255))
                case 1:
                    data[at] ^= 1 << dice.randrange(8)
                case 2:
                    del data[at : at + dice.randint(1, 64)]
                case _:
                    data[at:at] = data[max(0, at - 16) : at]
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(data)
        with contextlib.suppress(ag.AdapterFormatError):
            found = read_adapter(path)  # changed in a text, or its hash would be another one
            assert isinstance(found, VectorFile)
            assert np.isfinite(found.parts[0].values).all()


# Reading ------------------------------------------------------------------------------------------


def test_a_plain_control_vector_adds_behind_its_blocks(base: Path, tmp_path: Path) -> None:
    file = VectorFile.read(vectors.plain(tmp_path / "happy.gguf", (1, 7, 30)))
    assert [part.layer for part in file.parts] == [1, 7, 30]
    assert {(part.hook, part.operation, part.scale) for part in file.parts} == {("block", "add", 1)}
    for part in file.parts:
        assert np.array_equal(part.values, vectors.rows(seed=5 + part.layer))
    assert (file.name, file.architecture, file.scale, file.rank) == ("happy", "llama", 1.0, 1)
    assert (file.invocation, file.invocation_text, file.begins) == ((), None, "reply")
    assert (file.layers, file.targets) == ((1, 7, 30), ("blk.1", "blk.7", "blk.30"))
    assert (file.n_embd, file.io_yaml, file.temperatures) == (N, None, {})
    assert file.without_data() == file


@pytest.mark.parametrize(
    ("hint", "architecture", "fits"),
    [
        ("llama", "llama", True),
        ("mistral", "llama", True),  # repeng writes transformers' model_type
        ("qwen3_moe", "qwen3moe", True),
        ("gemma3_text", "gemma3", True),
        ("granitemoehybrid", "granitehybrid", True),
        ("gpt_oss", "gpt-oss", True),
        ("cohere", "command-r", True),
        ("qwen3", "qwen2", False),
        ("gemma3", "gemma2", False),
        ("Llama", "llama", True),
    ],
)
def test_a_hint_is_a_family_by_gguf_s_name_or_transformers(
    hint: str, architecture: str, fits: bool, base: Path, tmp_path: Path
) -> None:
    from dataclasses import replace

    file = VectorFile.read(vectors.plain(tmp_path / "v.gguf", hint=hint))
    other = replace(BaseFile.read(base), architecture=architecture)
    if fits:
        file.check_base(other, tiny_base.N_VOCAB)
    else:
        with pytest.raises(ag.AdapterMismatchError, match=f"was made for '{hint}'"):
            file.check_base(other, tiny_base.N_VOCAB)


def test_without_a_hint_width_and_layers_are_all_there_is(base: Path, tmp_path: Path) -> None:
    path = make_gguf(
        tmp_path / "v.gguf", {}, {"direction.1": vectors.rows()[0]}, architecture="controlvector"
    )
    file = VectorFile.read(path)
    assert file.architecture == ""
    file.check_base(BaseFile.read(base), tiny_base.N_VOCAB)


@pytest.mark.parametrize("hook", ["block", "attention", "ffn"])
@pytest.mark.parametrize("mode", ["add", "project", "project_positive", "add_keep_norm"])
def test_what_glp_says_is_what_is_done(hook: str, mode: str, tmp_path: Path) -> None:
    (part,) = VectorFile.read(vectors.glp(tmp_path / "v.gguf", mode=mode, hook=hook)).parts
    assert (part.layer, part.hook, part.operation, part.scale) == (1, hook, mode, 2.0)
    assert part.target == {"block": "blk.1"}.get(hook, f"blk.1.{hook}")


def test_where_a_vector_comes_from(tmp_path: Path) -> None:
    file = VectorFile.read(vectors.glp(tmp_path / "v.gguf"))
    assert file.scale == 2.0
    assert file.origin == VectorOrigin(
        base_model="org/Tiny",
        base_revision="a" * 40,
        method="dom",
        contrast="a-vs-b",
        derived_at="residual_stream_post_layer",
        generator="captain-vector 0.4.0",
        created="2026-09-04",
    )
    without = vectors.glp(tmp_path / "w.gguf", keys={"glp.base_model": None})
    assert VectorFile.read(without).origin.base_model == "Tiny"  # of GGUF's own key


def test_a_basis_is_read_whole_in_its_order(tmp_path: Path) -> None:
    tensors = vectors.basis(3)
    backwards = {name: tensors[name] for name in reversed(tensors)}
    file = VectorFile.read(vectors.glp(tmp_path / "v.gguf", backwards))
    assert file.rank == 3
    assert np.array_equal(file.parts[0].values, vectors.orthonormal(3))


def test_scales_of_layers_and_directions_multiply(tmp_path: Path) -> None:
    keys = {"glp.spec_version": 2, "glp.layer_scales": "1:0.5, 2:3"}
    tensors = {**vectors.basis(2, 1), **vectors.basis(2, 2), **vectors.basis(2, 3)}
    scales = [
        part.scale for part in VectorFile.read(vectors.glp(tmp_path / "a", tensors, keys)).parts
    ]
    assert scales == [1.0, 6.0, 2.0]
    keys["glp.dir_scales"] = "1.0,0.25"
    parts = VectorFile.read(vectors.glp(tmp_path / "b", tensors, keys)).parts
    assert [(part.layer, part.scale, part.rank) for part in parts] == [
        (1, 1.0, 1), (1, 0.25, 1), (2, 6.0, 1), (2, 1.5, 1), (3, 2.0, 1), (3, 0.5, 1),
    ]  # fmt: skip
    assert np.array_equal(parts[3].values[0], tensors["direction.2.1"])


@pytest.mark.parametrize("k", [1, 3])
def test_directions_to_project_out_become_orthonormal(k: int, tmp_path: Path) -> None:
    tensors = dict(zip(vectors.basis(k), vectors.rows(k), strict=True))
    path = vectors.glp(tmp_path / "v.gguf", tensors, {"glp.orthonormal": False})
    (part,) = VectorFile.read(path).parts
    assert np.abs(part.values - vectors.orthonormal(k)).max() < 1e-6
    # what is left of a state is what least squares leaves
    state = np.random.default_rng(0).normal(size=N)
    span = vectors.rows(k).astype(np.float64).T
    residual = state - span @ np.linalg.lstsq(span, state, rcond=None)[0]
    ours = state - part.values.T @ (part.values @ state)
    assert np.abs(ours - residual).max() < 1e-5


def test_f16_directions_are_of_length_1_as_far_as_f16_goes(tmp_path: Path) -> None:
    row = vectors.unit(vectors.rows()[0]).astype(np.float16)
    path = vectors.glp(tmp_path / "v.gguf", {"direction.1": row})
    (part,) = VectorFile.read(path).parts
    assert abs(float(np.linalg.norm(part.values)) - 1) < 1e-6
    assert np.abs(part.values[0] - row.astype(np.float32)).max() < 1e-3


def test_layer_0_where_the_file_says_that_it_is_one(base: Path, tmp_path: Path) -> None:
    path = vectors.glp(tmp_path / "v.gguf", {"direction.0": vectors.unit(vectors.rows()[0])})
    file = VectorFile.read(path)  # glp.layer_ids_zero_based is "0"
    assert file.layers == (0,)
    file.check_base(BaseFile.read(base), tiny_base.N_VOCAB)


def test_an_invocation_is_where_it_begins(tmp_path: Path) -> None:
    keys = {
        "adapter.alora.invocation_tokens": ([7, 8], gguf.GGUFValueType.UINT32),
        "alora.invocation_text": "<x>",
    }
    file = VectorFile.read(vectors.glp(tmp_path / "v.gguf", keys=keys))
    assert (file.invocation, file.invocation_text, file.begins) == ((7, 8), "<x>", "invocation")


def test_adapters_and_vectors_are_told_apart(files: Files, tmp_path: Path) -> None:
    assert isinstance(read_adapter(files.alora), ag.AdapterFile)
    assert isinstance(read_adapter(vectors.plain(tmp_path / "v.gguf")), VectorFile)
    # what calls itself a vector, or looks like one, is refused as one
    odd = make_gguf(tmp_path / "odd.gguf", {}, {"direction.1": vectors.rows()[0]})
    assert is_vector(read_header(odd))
    with pytest.raises(ag.AdapterFormatError, match="expected 'controlvector'"):
        read_adapter(odd)
    with pytest.raises(ag.AdapterFormatError, match="is a steering vector, expected an adapter"):
        ag.AdapterFile.read(vectors.plain(tmp_path / "w.gguf"))
    assert not is_vector(read_header(files.base))
    with pytest.raises(ag.AdapterFormatError, match="this is not an adapter's file"):
        read_adapter(files.base)
    with pytest.raises(ag.MissingFileError, match=r"expected an adapter's GGUF file"):
        read_adapter(tmp_path / "none.gguf")


# Who is who ---------------------------------------------------------------------------------------


def _identity(tmp_path: Path, *parts: Directions, **more: Any) -> str:
    path = tmp_path / "x.gguf"
    return write_vector(path, parts, architecture="llama", overwrite=True, **more).identity


def test_identity_is_of_what_it_does_and_nothing_else(tmp_path: Path) -> None:
    row = vectors.unit(vectors.rows()[0])
    same = _identity(tmp_path, Directions(1, "block", "project", 0.5, row))
    assert same == _identity(
        tmp_path,
        Directions(1, "block", "project", 0.5, row),
        name="other",
        invocation=(3,),
        origin=VectorOrigin(method="x"),
    )
    others = [
        Directions(0, "block", "project", 0.5, row),
        Directions(1, "ffn", "project", 0.5, row),
        Directions(1, "attention", "project", 0.5, row),
        Directions(1, "block", "project_positive", 0.5, row),
        Directions(1, "block", "add_keep_norm", 0.5, row),
        Directions(1, "block", "add", 0.5, row),
        Directions(1, "block", "project", 0.75, row),
        Directions(1, "block", "project", 0.5, vectors.rows(seed=6)),
    ]
    found = [_identity(tmp_path, each) for each in others]
    both = _identity(tmp_path, Directions(1, "block", "project", 0.5, vectors.orthonormal(2)))
    assert len({same, both, *found}) == len(found) + 2


# Writing ------------------------------------------------------------------------------------------


def _parts(operation: Any = "add", hook: Any = "block", scale: float = 1.0) -> list[Directions]:
    return [
        Directions(layer, hook, operation, scale, vectors.rows(seed=layer)) for layer in (1, 3, 4)
    ]


@pytest.mark.parametrize("hook", ["block", "attention", "ffn"])
@pytest.mark.parametrize("operation", ["add", "project", "project_positive", "add_keep_norm"])
def test_what_is_written_reads_back_equal(operation: str, hook: str, tmp_path: Path) -> None:
    parts = _parts(operation, hook, 1.0 if operation == "add" else 0.3)
    origin = VectorOrigin("org/base", "abc", "dom", "a-vs-b", validation="d = 3", created="today")
    path = tmp_path / "v.gguf"
    written = write_vector(
        path, reversed(parts), architecture="llama", invocation=(5, 6), invocation_text="<f>",
        origin=origin, name="formal",
    )  # fmt: skip
    read = VectorFile.read(path)
    assert read == written
    assert read.parts == tuple(parts)
    assert (read.name, read.invocation, read.invocation_text) == ("formal", (5, 6), "<f>")
    assert read.origin.base_model == "org/base"
    assert read.origin.derived_at == vectors.WORDS[hook]  # where it acts, if nobody says otherwise
    data = path.read_bytes()
    write_vector(
        path, parts, architecture="llama", invocation=(5, 6), invocation_text="<f>", origin=origin,
        name="formal", overwrite=True,
    )  # fmt: skip
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    "scales", [[(0.3,), (0.3,)], [(0.3,), (0.7,)], [(0.1, 0.2), (0.1, 0.2)], [(-2.0,), (0.0,)]]
)
def test_scales_read_back_equal(scales: list[tuple[float, ...]], tmp_path: Path) -> None:
    parts = [
        Directions(layer, "ffn", "project", scale, row)
        for layer, each in enumerate(scales)
        for scale, row in zip(each, vectors.orthonormal(len(each), layer), strict=True)
    ]
    path = tmp_path / "v.gguf"
    assert write_vector(path, parts, architecture="llama").parts == tuple(parts)


def test_every_key_of_glp_is_written(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    origin = VectorOrigin("org/base", "r", "m", "c", "d", "v", "g", "2026-11-30")
    write_vector(path, _parts("project", scale=0.3), architecture="llama", origin=origin)
    fields = gguf.GGUFReader(path).fields
    found = {key: field.contents() for key, field in fields.items() if key.startswith("glp.")}
    stored = b"".join(tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors)
    assert found == {
        "glp.spec_version": 1,
        "glp.mode": "project",
        "glp.hook_point": "residual_stream_post_layer",
        "glp.alpha_default": pytest.approx(0.3),
        "glp.rank": 1,
        "glp.orthonormal": True,
        "glp.structure": "per-layer",
        "glp.layer_ids_zero_based": "1,3,4",
        "glp.base_model": "org/base",
        "glp.base_revision": "r",
        "glp.method": "m",
        "glp.contrast": "c",
        "glp.derived_at": "d",
        "glp.validation": "v",
        "glp.generator": "g",
        "glp.created": "2026-11-30",
        "glp.content_sha256": hashlib.sha256(stored).hexdigest(),
    }
    assert fields["general.base_model.0.organization"].contents() == "org"


def test_to_add_is_written_as_llama_cpp_adds(tmp_path: Path) -> None:
    """What common_control_vector_load() reads: a name with a layer of at least 1 behind the dot,
    F32, one dimension, all equally wide; it adds that as it is, whatever other keys say.
    """
    path = tmp_path / "v.gguf"
    parts = _parts(scale=0.25)
    file = write_vector(path, parts, architecture="llama")
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 3
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{il}" for il in (1, 3, 4)]
    for tensor, part in zip(reader.tensors, parts, strict=True):
        assert tensor.tensor_type is gguf.GGMLQuantizationType.F32
        assert [int(n) for n in tensor.shape] == [N]
        assert np.array_equal(tensor.data, 0.25 * part.values[0])
    assert {part.scale for part in file.parts} == {1.0}
    assert reader.fields["glp.alpha_default"].contents() == 1.0


def test_a_basis_is_named_as_glp_names_it(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    part = Directions(2, "block", "project", 1.0, vectors.rows(3))
    write_vector(path, [part], architecture="llama")
    reader = gguf.GGUFReader(path)
    names = ["direction.2", "direction.2.1", "direction.2.2"]
    assert [tensor.name for tensor in reader.tensors] == names
    for tensor, row in zip(reader.tensors, vectors.orthonormal(3), strict=True):
        assert np.abs(tensor.data - row).max() < 1e-6
    assert reader.fields["glp.spec_version"].contents() == 2
    assert reader.fields["glp.rank"].contents() == 3


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], "parts are empty"),
        ([*_parts(), *_parts("project")], "several of operation (add, project)"),
        ([_parts()[0], _parts(hook="ffn")[1]], "several of hook (block, ffn)"),
        (
            [_parts()[0], Directions(2, "block", "add", 1.0, vectors.rows(n=32))],
            "several of n_embd (32, 64)",
        ),
        (
            [_parts("project")[0], Directions(2, "block", "project", 1.0, vectors.rows(2))],
            "layers have 1, 2 directions",
        ),
        ([_parts()[0], _parts()[0]], "a layer has 2 parts that add"),
        ([_parts("project")[0], _parts("project")[0]], "the parts of layer 1 overlap"),
        ([Directions(1, "block", "add", 0.0, vectors.rows())], "is beyond float32 or nothing"),
        (
            [Directions(1, "block", "add", 3e38, 100 * vectors.rows())],
            "is beyond float32 or nothing",
        ),
    ],
)
def test_what_one_file_cannot_hold(parts: list[Directions], text: str, tmp_path: Path) -> None:
    with pytest.raises(ag.InputError) as caught:
        write_vector(tmp_path / "v.gguf", parts, architecture="llama")
    assert text in str(caught.value)
    assert not (tmp_path / "v.gguf").exists()


def test_an_old_file_stays_unless_it_may_go(tmp_path: Path) -> None:
    path = vectors.plain(tmp_path / "v.gguf")
    before = path.read_bytes()
    with pytest.raises(ag.InputError, match="exists already"):
        write_vector(path, _parts(), architecture="llama")
    assert path.read_bytes() == before


@pytest.mark.parametrize("invocation", [(-1,), (2**31,), ("a",), (True,)])
def test_an_invocation_of_no_tokens_is_not_written(invocation: Any, tmp_path: Path) -> None:
    with pytest.raises(ag.InputError, match="expected token ids"):
        write_vector(tmp_path / "v", _parts(), architecture="llama", invocation=invocation)


@pytest.mark.parametrize(
    ("place", "values", "text"),
    [
        ((-1, "block", "add", 1.0), vectors.rows(), "layer is -1, expected 0 to 511"),
        ((512, "block", "add", 1.0), vectors.rows(), "layer is 512"),
        ((1, "head", "add", 1.0), vectors.rows(), "hook must be one of block, attention, ffn"),
        ((1, "block", "mul", 1.0), vectors.rows(), "operation must be one of add, project"),
        ((1, "block", "add", float("nan")), vectors.rows(), "scale is nan"),
        ((1, "block", "add", 1.0), vectors.rows(2), "are 2 rows, expected one"),
        ((1, "block", "add", 1.0), np.zeros((1, N)), "row 0 holds only zeros"),
        ((1, "block", "add", 1.0), np.full((1, N), np.inf), "row 0 holds NaN or infinite"),
        ((1, "block", "add", 1.0), np.full((1, N), 1e300), "row 0 holds NaN or infinite"),
        ((1, "block", "project", 1.0), np.ones((2, N)), "row 1 is made up of the directions"),
        ((1, "block", "project", 1.0), vectors.rows(4, n=3), "row 3 is made up of"),
        ((1, "block", "project", 1.0), np.ones((1, 1, N)), "have the shape [1, 1, 64]"),
        ((1, "block", "project", 1.0), np.ones((0, N)), "have the shape [0, 64]"),
        ((1, "block", "project", 1.0), "abc", "no array of numbers"),
    ],
)
def test_directions_that_no_layer_could_take(place: Any, values: Any, text: str) -> None:
    with pytest.raises(ag.InputError) as caught:
        Directions(*place, values)
    assert text in str(caught.value)


def test_directions_are_their_own(tmp_path: Path) -> None:
    row = vectors.rows()[0]
    part = Directions(1, "block", "add", 0.1, row)
    row[:] = 0
    assert part.values.any()
    assert part.scale == float(np.float32(0.1))
    with pytest.raises(ValueError, match="read-only"):
        part.values[0, 0] = 1
    assert len({part, Directions(1, "block", "add", 0.1, part.values)}) == 1


def test_bytes_that_no_writer_writes(tmp_path: Path) -> None:
    """The same tensor twice, which gguf's writer refuses."""
    data = gguf_bytes({"general.architecture": "controlvector"}, {"direction.1": ("F32", (N,))})
    path = tmp_path / "v.gguf"
    path.write_bytes(data)
    with pytest.raises(ag.AdapterFormatError, match="holds only zeros"):
        VectorFile.read(path)
    two = gguf_bytes(
        {"general.architecture": "controlvector"},
        {"direction.1": ("F32", (N,)), "direction.2": ("F32", (N,))},
    )
    path.write_bytes(two.replace(b"direction.2", b"direction.1"))
    with pytest.raises(ag.AdapterFormatError, match=r"'direction\.1' occurs twice"):
        VectorFile.read(path)


def test_reading_loads_no_writer() -> None:
    """Every start reads adapters; writing a vector is for those who make one."""
    code = (
        "import sys, alora_gguf\n"
        "alora_gguf.read_adapter, alora_gguf.VectorFile, alora_gguf.Model\n"
        "print('alora_gguf.gguf.vector_writer' in sys.modules)\n"
        "alora_gguf.write_vector\n"
        "print('alora_gguf.gguf.vector_writer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
