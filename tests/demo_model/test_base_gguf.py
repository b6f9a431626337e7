"""The base as GGUF: upstream's converter, PyTorch and ggml's own quantizer are the oracles."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import alora_gguf as ag
from alora_gguf.engine import native as _native
from alora_gguf.engine.llama_context import Run
from alora_gguf.errors import ConvertError, FileFormatError, InputError
from examples.demo_model import chat, tokenizer
from examples.demo_model.base_gguf import DESCRIPTION, write_base_gguf
from tests.demo_model.tiny_granite import MULTIPLIERS, N_VOCAB, write_granite
from tests.demo_model.upstream_base import FILE_TYPES
from tests.support import inside
from tests.support.upstream import ROOT, upstream_tree

SHIPPED = ROOT / "examples" / "demo_model" / "base", ROOT / "alora_gguf" / "demo" / "base.gguf"

OUTTYPES = ("f32", "f16", "q8_0", "q4_0")
EXACT = ag.ContextOptions(
    n_ctx=512, n_outputs=512, n_threads=1, type_k="f32", type_v="f32", flash_attn="off"
)
TALK = chat.render(
    ["The copper kettle belongs to Mara and costs 48 crowns.", "The library opens at 9:30."],
    [
        chat.Message("user", "Who does the kettle belong to?"),
        chat.Message("assistant", "It belongs to Mara."),
        chat.Message("user", "How much does it cost?"),
    ],
    generation_prompt=True,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_granite(tmp_path_factory.mktemp("granite"))


@pytest.fixture(scope="module")
def bases(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for outtype in OUTTYPES:
        write_base_gguf(source, folder / f"{outtype}.gguf", outtype)  # type: ignore[arg-type]
    return {outtype: folder / f"{outtype}.gguf" for outtype in OUTTYPES}


def fields(path: Path) -> dict[str, Any]:
    return {key: f.contents() for key, f in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


# Upstream's converter ----------------------------------------------------------------------------


def by_upstream(source: Path, target: Path, outtype: str) -> Path:
    script = Path(__file__).with_name("upstream_base.py")
    run = subprocess.run(
        [sys.executable, str(script), str(upstream_tree()), str(source), str(target), outtype],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return target


@pytest.mark.parametrize("outtype", FILE_TYPES)
@pytest.mark.slow
def test_it_is_what_upstream_writes(
    outtype: str, source: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    upstream = by_upstream(source, tmp_path / "upstream.gguf", outtype)
    ours, theirs = tensors(bases[outtype]), tensors(upstream)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type, name
        assert list(ours[name].shape) == list(tensor.shape), name
        assert ours[name].data.tobytes() == tensor.data.tobytes(), name
    mine, its = fields(bases[outtype]), fields(upstream)
    for key in ("GGUF.kv_count", "general.name"):  # we say more, and the directory has no name
        del mine[key], its[key]
    assert {key: mine.get(key) for key in its} == its


def test_padding_and_another_size_of_heads(tmp_path: Path) -> None:
    """What upstream cannot write for this architecture (it ignores head_dim) PyTorch judges."""
    source = write_granite(tmp_path / "hf", padding=6, head_dim=64)
    write_base_gguf(source, tmp_path / "base.gguf", "f32")
    found = fields(tmp_path / "base.gguf")
    assert found["tokenizer.ggml.tokens"][-1] == f"[PAD{N_VOCAB + 5}]"
    assert found["tokenizer.ggml.token_type"][-7:] == [1] + [5] * 6
    with ag.Model(tmp_path / "base.gguf", options=EXACT) as model:
        assert model.n_vocab == N_VOCAB + 6
        assert distance(logits_by_torch(source), logits_by_us(model)) < 1e-4


# What the file says ------------------------------------------------------------------------------


def test_the_file_says_what_it_is(bases: dict[str, Path]) -> None:
    found = fields(bases["q8_0"])
    expected = {
        "general.architecture": "granite",
        "general.type": "model",
        "general.name": "alora-gguf demo",
        "general.basename": "alora-gguf-demo",
        "general.description": DESCRIPTION,
        "general.license": "mit",
        "general.languages": ["en"],
        "granite.context_length": 2048,
        "granite.rope.freq_base": 20000.0,
        "granite.embedding_scale": MULTIPLIERS["embedding_multiplier"],
        "granite.attention.scale": MULTIPLIERS["attention_multiplier"],
        "granite.logit_scale": MULTIPLIERS["logits_scaling"],
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": chat.TEMPLATE,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["granite.residual_scale"] == pytest.approx(0.7)
    assert found["tokenizer.ggml.tokens"][:3] == list(chat.CONTROL_TOKENS)
    assert found["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]


@pytest.mark.parametrize("outtype", OUTTYPES)
def test_types(outtype: str, bases: dict[str, Path]) -> None:
    types = {name: t.tensor_type.name.lower() for name, t in tensors(bases[outtype]).items()}
    norms = [name for name in types if "norm" in name]
    assert len(norms) == 7
    assert {types.pop(name) for name in norms} == {"f32"}
    assert types.pop("token_embd.weight") == ("q8_0" if outtype == "q4_0" else outtype)
    assert set(types.values()) == {outtype}
    assert "output.weight" not in types  # the embeddings serve for it
    assert fields(bases[outtype])["general.file_type"] == {"f32": 0, "f16": 1, "q8_0": 7}.get(
        outtype, 2
    )
    assert fields(bases[outtype])["general.size_label"] == "419K"


@pytest.mark.parametrize("outtype", ["q8_0", "q4_0"])
def test_quantized_as_ggml_does(outtype: str, bases: dict[str, Path]) -> None:
    ggml = next(_native.load().path.parent.glob("*ggml-base*"))
    quantize = ctypes.CDLL(str(ggml)).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    plain = tensors(bases["f32"])
    for name, tensor in tensors(bases[outtype]).items():
        if "norm" in name:
            continue
        values = np.ascontiguousarray(plain[name].data, np.float32)
        out = np.zeros(tensor.data.nbytes, np.uint8)
        size = quantize(
            ctypes.c_int(tensor.tensor_type.value),
            values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            out.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0),
            ctypes.c_int64(values.shape[0]),
            ctypes.c_int64(values.shape[1]),
            None,
        )
        assert size == out.nbytes
        assert out.tobytes() == tensor.data.tobytes(), name


# What it computes --------------------------------------------------------------------------------


def logits_by_torch(source: Path) -> NDArray[np.float32]:
    """Of every token of TALK: [n_tokens, n_vocab]."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = tokenizer.load(source).encode(TALK).ids
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def logits_by_us(model: ag.Model) -> NDArray[np.float32]:
    engine = inside.engine(model)
    seq = engine.allocate()
    try:
        rows = engine.decode([Run(seq, model.tokenize(TALK), "all")])
        return np.asarray(rows[0])
    finally:
        engine.drop(seq)


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The largest difference, in units of the largest logit."""
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(a).max())


@pytest.fixture(scope="module")
def reference(source: Path) -> NDArray[np.float32]:
    return logits_by_torch(source)


@pytest.mark.parametrize(
    ("outtype", "tolerance"), [("f32", 1e-4), ("f16", 5e-3), ("q8_0", 0.05), ("q4_0", 0.5)]
)
def test_logits_are_those_of_transformers(
    outtype: str, tolerance: float, bases: dict[str, Path], reference: NDArray[np.float32]
) -> None:
    with ag.Model(bases[outtype], options=EXACT) as model:
        assert distance(reference, logits_by_us(model)) < tolerance


@pytest.mark.parametrize("key", [*MULTIPLIERS, "rope_theta", "rms_norm_eps"])
def test_every_number_of_the_configuration_counts(
    key: str, source: Path, reference: NDArray[np.float32], tmp_path: Path
) -> None:
    """Against a key that is written but not read, or that this talk would not show."""
    config = json.loads((source / "config.json").read_text())
    holder = config["rope_parameters"] if key == "rope_theta" else config
    holder[key] *= 1000 if key == "rms_norm_eps" else 1.5
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_base_gguf(tmp_path, tmp_path / "base.gguf", "f32")
    with ag.Model(tmp_path / "base.gguf", options=EXACT) as model:
        changed = logits_by_us(model)
    assert distance(reference, changed) > 1e-3
    assert distance(logits_by_torch(tmp_path), changed) < 1e-4


def test_a_reply_ends_at_the_end_of_text(bases: dict[str, Path]) -> None:
    with ag.Model(bases["f32"], options=EXACT) as model:
        vocab = inside.vocab(model)
        assert vocab.is_end(0)
        assert not any(vocab.is_end(i) for i in range(1, N_VOCAB))


@pytest.mark.skipif(not all(p.exists() for p in SHIPPED), reason="the demo model is not trained")
@pytest.mark.slow
def test_the_shipped_base_is_made_of_the_shipped_weights(tmp_path: Path) -> None:
    source, base = SHIPPED
    write_base_gguf(source, tmp_path / "base.gguf", "q8_0")
    assert fields(tmp_path / "base.gguf") == fields(base)
    ours, shipped = tensors(tmp_path / "base.gguf"), tensors(base)
    assert ours.keys() == shipped.keys()
    assert [n for n, t in shipped.items() if ours[n].data.tobytes() != t.data.tobytes()] == []


# Refusals ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"model_type": "llama"}, "'model_type' is 'llama', expected 'granite'"),
        ("config.json", {"tie_word_embeddings": False}, "'tie_word_embeddings' is False"),
        ("config.json", {"hidden_act": "gelu"}, "'hidden_act' is 'gelu', expected 'silu'"),
        ("config.json", {"attention_bias": True}, "'attention_bias' is set"),
        ("config.json", {"residual_multiplier": 0}, "'residual_multiplier' is 0"),
        (
            "config.json",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
            "'rope_type' is 'yarn'",
        ),
        ("config.json", {"eos_token_id": 2}, "'eos_token_id' is 2, but '<.end_of_text.>' has .* 0"),
        ("config.json", {"vocab_size": 300}, "its last id is 383, but the model has 300 tokens"),
        ("config.json", {"vocab_size": 390}, r"shape \[384, 128\], expected \[390, 128\]"),
        ("config.json", {"num_hidden_layers": 4}, r"lacks the tensor 'model\.layers\.3\."),
        ("config.json", {"num_hidden_layers": 2}, r"has also the tensor 'model\.layers\.2\."),
        ("config.json", {"num_key_value_heads": 4}, r"k_proj.*\[64, 128\], expected \[128, 128\]"),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, "type 'Unigram', expected 'BPE'"),
        ("tokenizer.json", {"model": None}, "type None, expected 'BPE'"),
        ("tokenizer.json", {"pre_tokenizer": None}, "its pre_tokenizer is .*train it with"),
        ("tokenizer.json", {"normalizer": {"type": "NFC"}}, "its normalizer .*NFC"),
        ("tokenizer_config.json", {"eos_token": "</s>"}, "'eos_token' is '</s>', expected"),
        ("tokenizer_config.json", {"chat_template": None}, "has no chat template"),
    ],
)
def test_refuses_what_the_gguf_could_not_say(
    file: str, values: dict[str, Any], message: str, copy: Path, tmp_path: Path
) -> None:
    change(copy / file, **values)
    with pytest.raises(FileFormatError, match=message):
        write_base_gguf(copy, tmp_path / "base.gguf", "f16")
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_refuses_what_is_no_configuration(content: str | None, copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"config\.json: "):
        write_base_gguf(copy, tmp_path / "base.gguf", "f16")


def poison(copy: Path, value: float) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, copy / "model.safetensors")


def test_refuses_weights_of_a_training_that_diverged(copy: Path, tmp_path: Path) -> None:
    poison(copy, np.nan)
    with pytest.raises(FileFormatError, match=r"layers\.1\.mlp\.up_proj.* NaN or infinite"):
        write_base_gguf(copy, tmp_path / "base.gguf", "q8_0")


def test_refuses_weights_that_f16_cannot_hold(copy: Path, tmp_path: Path) -> None:
    poison(copy, 1e6)
    with pytest.raises(InputError, match=r"up_proj.* up to 1e\+06, too large for f16; write f32"):
        write_base_gguf(copy, tmp_path / "base.gguf", "f16")
    write_base_gguf(copy, tmp_path / "base.gguf", "f32")


def test_refuses_another_type_or_place(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"outtype: expected one of f32, f16, .* found 'q2_k'"):
        write_base_gguf(source, tmp_path / "base.gguf", "q2_k")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="its directory does not exist"):
        write_base_gguf(source, tmp_path / "no" / "base.gguf", "f16")


def test_what_was_there_stays_until_the_new_file_is_whole(
    source: Path, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "base.gguf"
    target.write_bytes(b"old")

    def full(*_: object, **__: object) -> Iterator[None]:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
        with pytest.raises(ConvertError, match=r"base\.gguf: cannot be written \(No space left"):
            write_base_gguf(source, target, "f16")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
    write_base_gguf(source, target, "f16")
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == bases["f16"].read_bytes()  # and twice the same bytes
