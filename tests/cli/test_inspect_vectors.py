"""`alora-gguf inspect` of steering vectors: the table, the same as JSON, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alora_gguf.cli.inspect import command
from click.testing import CliRunner

import alora_gguf as ag
from tests.support import tiny_base, vectors

TABLE = """\
{path}: steering vector, 1.6 kB
  name           formal
  architecture   llama
  operation      project: h - s·V Vᵀ h, what points along it is taken out
  acts on        what the FFN returns
  layers         1-2
  directions     64 wide
  scale          2
  begins         at the reply
  file           GGUF version 3, 2 tensors
  weights        128 parameters, 512 B
                 F32         512 B in 2 tensors

  metadata
    controlvector.layer_count: 2
    general.base_model.0.name: Tiny
    glp.spec_version: 1
    glp.generator: captain-vector 0.4.0
    glp.orthonormal: True
    glp.derived_at: residual_stream_post_layer
    glp.method: dom
    glp.contrast: a-vs-b
    glp.structure: per-layer
    glp.base_model: org/Tiny
    glp.base_revision: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    glp.created: 2026-09-04
    glp.content_sha256:
      {sha256}
"""


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(command, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def _formal(folder: Path) -> Path:
    tensors = {f"direction.{il}": vectors.unit(vectors.rows(seed=il)[0]) for il in (1, 2)}
    return vectors.glp(folder / "v.gguf", tensors, {"general.name": "formal"}, hook="ffn")


def test_the_table(tmp_path: Path) -> None:
    path = _formal(tmp_path)
    sha256 = ag.VectorFile.read(path).content_sha256
    assert run(path) == TABLE.format(path=path, sha256=sha256)


def test_json_has_it_whole(tmp_path: Path) -> None:
    path = _formal(tmp_path)
    found = json.loads(run(path, "--json"))
    assert found["problems"] == []
    wanted = {
        "kind": "vector",
        "architecture": "llama",
        "operation": "project",
        "hook": "ffn",
        "scale": 2.0,
        "rank": 1,
        "layers": [1, 2],
        "n_embd": 64,
        "invocation": [],
        "invocation_text": None,
    }
    assert {key: found[key] for key in wanted} == wanted
    assert found["origin"]["contrast"] == "a-vs-b"
    assert found["metadata"]["glp.mode"] == "project"


def test_one_that_llama_cpp_would_add(tmp_path: Path) -> None:
    said = run(vectors.plain(tmp_path / "happy.gguf", (3, 7, 8)))
    assert "  operation      add: h + s·v\n" in said
    assert "  layers         3, 7-8\n" in said
    assert "  acts on        the stream behind the block\n" in said
    assert "  scale          1\n" in said


@pytest.mark.parametrize("case", vectors.BAD)
def test_what_is_wrong_is_a_problem_or_an_error(case: str, tmp_path: Path) -> None:
    """Nothing that a file holds makes it crash; of what no header tells nothing is said here."""
    write, _, _ = vectors.BAD[case]
    path = write(tmp_path / "bad.gguf")
    try:
        ag.VectorFile.read(path)
        refused = False
    except ag.AdapterFormatError:
        refused = True
    result = CliRunner().invoke(command, [str(path), "--json"])
    if isinstance(result.exception, ag.FileFormatError):
        assert refused
        return
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    if found["kind"] == "vector" and not refused:
        assert found["problems"] == []
    assert CliRunner().invoke(command, [str(path)]).exit_code == 0


def test_whether_it_fits_a_base(tmp_path: Path) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf")
    fits = run(vectors.glp(tmp_path / "fits.gguf"), "--model", base)
    assert "problems" not in fits
    wide = vectors.BAD["another width"][0](tmp_path / "wide.gguf")
    assert "its directions have 32 numbers, but" in " ".join(run(wide, "-m", base).split())
    # what only the numbers tell, which inspect does not look at without a base
    zeros = vectors.BAD["zeros"][0](tmp_path / "zeros.gguf")
    assert "problems" not in run(zeros)
    assert "holds only zeros" in " ".join(run(zeros, "-m", base).split())


def test_whether_an_adapter_fits_a_base(tmp_path: Path) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf")
    adapter = tiny_base.write_adapter(tmp_path / "a.gguf")
    assert "problems" not in run(adapter, "-m", base)
    other = tiny_base.write_swa(tmp_path / "other.gguf")
    assert "made for the architecture 'llama', but" in " ".join(run(adapter, "-m", other).split())
    result = CliRunner().invoke(command, [str(base), "-m", str(base)])
    assert "is neither an adapter nor a steering vector" in str(result.exception)
