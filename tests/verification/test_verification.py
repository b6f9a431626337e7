"""verify(): what passes, what fails and with which sentence, and that every check can fail."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alora_gguf import (
    AdapterFormatError,
    AdapterMismatchError,
    InputError,
    ModelError,
    Session,
    demo,
)
from alora_gguf.engine.native import Native
from alora_gguf.gguf.base import BaseFile
from alora_gguf.verification import probe, verify
from alora_gguf.verification.records import Verification
from tests.support import corrupt, tiny_base
from tests.support.files import Files
from tests.support.make_gguf import adapter_keys, make_gguf
from tests.support.tiny_base import write_hybrid, write_swa
from tests.support.verified import (
    VOCABULARY_KEY,
    adapter_with,
    tiny_vocabulary_sha256,
    with_context,
    with_nan,
)

UNUSABLE = "model: ~\ntransformations: ~\nresponse_format: {type: array, uniqueItems: true}\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sound(files: Files) -> Verification:
    return verify(files.base, files.alora, n_threads=1)


def failures(base: Path, adapter: Path) -> tuple[str, ...]:
    return verify(base, adapter, n_threads=1).failures


# What passes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", demo.INTRINSICS)
def test_the_demo_model(name: str) -> None:
    found = verify(demo.base_path(), demo.adapter_path(name), n_threads=1)
    assert found.passed
    assert (found.failures, found.warnings) == ((), ())
    assert (found.base.type, found.base.architecture) == ("Q8_0", "granite")
    assert (found.adapter.kind, found.adapter.type, found.adapter.rank) == ("alora", "F16", 32)
    assert found.adapter.invocation_text == demo.invocation_of(name)
    assert found.vocabularies == "equal"
    assert found.adapter.vocabulary_sha256 == found.base.vocabulary_sha256
    assert (found.cells.n_cells, found.cells.reused) == (256, 256)
    assert (found.cells.untouched, found.cells.equal) == (True, True)
    assert (found.logits.n_before, found.logits.before_equal) == (16, True)
    assert [change.layer for change in found.layers] == list(range(6))
    assert all(0.01 < change.change <= change.largest < 10 for change in found.layers)
    assert all(0 < change.cosine < 1 for change in found.layers)
    assert found.logits.largest > 0.01
    assert found.logits.kl > 0


def test_a_plain_lora() -> None:
    adapter = ROOT / "examples/demo_model/lora/jailbreak.gguf"
    found = verify(demo.base_path(), adapter, n_threads=1)
    assert found.passed
    assert (found.adapter.kind, found.text.first) == ("lora", 0)
    assert (found.cells.reused, found.cells.untouched, found.cells.equal) == (0, True, None)
    assert (found.logits.n_before, found.logits.before_equal) == (0, None)
    assert found.text.n_rows == found.text.n_adapted == 32
    assert len(found.layers) == 6


def test_who_is_who(sound: Verification, files: Files) -> None:
    base, adapter = sound.base, sound.adapter
    assert (base.path, base.name, base.type, base.bits_per_weight) == (
        files.base, "tiny", "F32", 32,
    )  # fmt: skip
    assert base.nbytes == files.base.stat().st_size
    assert base.vocabulary_sha256 == tiny_vocabulary_sha256()
    assert (adapter.path, adapter.rank, adapter.alpha) == (files.alora, 8, 16)
    assert {target.name for target in adapter.targets} == set(tiny_base.ATTENTION)
    assert adapter.invocation == files.invocation
    assert adapter.n_parameters == sum(
        8 * (tiny_base.TARGETS[name][0] + tiny_base.TARGETS[name][1]) * tiny_base.N_LAYER
        for name in tiny_base.ATTENTION
    )
    assert sound.n_threads == 1
    assert sound.vocabularies == "unknown"
    assert sound.warnings == (
        "the adapter does not say which vocabulary it was converted for; alora-gguf convert writes "
        "it where the base is a GGUF",
    )


def test_json_can_hold_it(sound: Verification) -> None:
    shown = sound.to_dict()
    assert shown["passed"] is True
    assert set(shown) == {"passed", *(f.name for f in dataclasses.fields(Verification))}
    assert shown["layers"][1] == dataclasses.asdict(sound.layers[1])


# The text -----------------------------------------------------------------------------------------


def test_the_text_is_drawn_from_the_vocabulary(sound: Verification, files: Files) -> None:
    text = sound.text
    n = len(files.invocation)
    assert text.tokens[0] == tiny_base.BOS
    assert text.tokens[text.first : text.first + n] == files.invocation
    drawn = {*text.tokens[1 : text.first], *text.tokens[text.first + n :]}
    assert not drawn & set(files.invocation)
    assert max(drawn) < tiny_base.BOS  # control tokens are the last ones
    assert len(drawn) > 100
    assert len(text.tokens) == 256 + n + 32
    assert (text.n_rows, text.n_adapted) == (16 + n + 32, n + 32)


def test_a_seed_makes_the_text(sound: Verification, files: Files) -> None:
    assert verify(files.base, files.alora, n_threads=1) == sound
    other = verify(files.base, files.alora, n_threads=1, seed=1)
    assert other.text.tokens != sound.text.tokens
    assert other.passed


def test_a_base_without_a_vocabulary(tmp_path: Path, files: Files) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf", text=False)
    found = verify(base, files.alora, n_threads=1)
    assert found.passed
    assert (found.base.vocabulary_sha256, found.vocabularies) == (None, "unknown")
    assert found.logits.text_base is None
    assert found.warnings == (
        "the base has no vocabulary to compare with the one the adapter was converted for",
    )


def test_a_base_for_short_texts(tmp_path: Path, files: Files) -> None:
    n = len(files.invocation)
    short = with_context(files.base, tmp_path / "short.gguf", 40)
    found = verify(short, files.alora, n_threads=1)
    assert found.passed
    assert len(found.text.tokens) == 40
    shorter = with_context(files.base, tmp_path / "shorter.gguf", n + 1)
    with pytest.raises(ModelError) as caught:
        verify(shorter, files.alora, n_threads=1)
    assert str(caught.value) == (
        f"{shorter}: was trained for texts of {n + 1} tokens, which leaves no room for the "
        f"adapter's invocation of {n}; use the base it was trained on"
    )


def adapter_for(base: Path, path: Path, targets: tuple[str, ...]) -> Path:
    """A random aLoRA of rank 4 on all matrices with such names."""
    rng = np.random.default_rng(3)
    file = BaseFile.read(base)
    tensors = {}
    for name, info in file.tensors.items():
        if name.split(".")[-2] in targets:
            n_in, n_out = info.shape
            tensors[f"{name}.lora_a"] = rng.standard_normal((4, n_in), np.float32) / 8
            tensors[f"{name}.lora_b"] = rng.standard_normal((n_out, 4), np.float32) / 8
    return corrupt.adapter(
        path,
        tensors,
        arch=file.architecture,
        array=(corrupt.Type.UINT32, [7, 8, 9]),
    )


def test_a_memory_that_cannot_be_cut(tmp_path: Path) -> None:
    base = write_hybrid(tmp_path / "hybrid.gguf")
    adapter = adapter_for(base, tmp_path / "a.gguf", ("ssm_in", "ssm_out", "attn_q"))
    found = verify(base, adapter, n_threads=1)
    assert found.passed
    assert (found.cells.reused, found.cells.untouched, found.cells.equal) == (256, True, None)
    assert found.logits.before_equal
    assert len(found.layers) == 2
    assert found.warnings[-1] == (
        "this model's memory cannot be cut, so cells before the invocation were compared only as "
        "the conversation's own; layers and logits before it were compared all the same"
    )


def test_windows_of_attention(tmp_path: Path) -> None:
    base = write_swa(tmp_path / "swa.gguf")
    adapter = adapter_for(base, tmp_path / "a.gguf", ("attn_q", "attn_k", "attn_v"))
    found = verify(base, adapter, n_threads=1)
    assert found.passed
    assert (found.cells.reused, found.cells.untouched, found.cells.equal) == (256, True, True)
    assert found.logits.before_equal
    assert len(found.layers) == 4


# What fails ---------------------------------------------------------------------------------------


def test_zero_weights_change_nothing(tmp_path: Path, files: Files) -> None:
    adapter = tiny_base.write_adapter(
        tmp_path / "zero.gguf", invocation=files.invocation, strength=0.0
    )
    found = verify(files.base, adapter, n_threads=1)
    assert found.failures == (
        "the adapter changes nothing: with it, every layer and every logit is bit for bit the "
        "base's; its B matrices are zero, as they are before training",
    )
    assert (found.finite, found.effective) == (True, False)
    assert found.logits.largest == found.logits.kl == 0
    assert [(c.change, c.largest) for c in found.layers] == [(0, 0), (0, 0)]
    assert [c.cosine for c in found.layers] == pytest.approx([1, 1])


def test_an_adapter_of_the_output_alone_changes_no_layer(tmp_path: Path, files: Files) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"output.weight.lora_{half}": rng.standard_normal(shape, np.float32)
        for half, shape in (("a", (4, tiny_base.N_EMBD)), ("b", (tiny_base.N_VOCAB, 4)))
    }
    make_gguf(tmp_path / "output.gguf", adapter_keys(None), tensors)
    found = verify(files.base, tmp_path / "output.gguf", n_threads=1)
    assert found.passed
    assert [change.change for change in found.layers] == [0, 0]
    assert found.logits.largest > 0.01


def test_another_vocabulary(tmp_path: Path, files: Files) -> None:
    def verified(sha256: str) -> Verification:
        adapter = adapter_with(
            tmp_path / "hash.gguf", {VOCABULARY_KEY: sha256}, invocation=files.invocation
        )
        return verify(files.base, adapter, n_threads=1)

    right = tiny_vocabulary_sha256()
    found = verified(right)
    assert (found.vocabularies, found.failures, found.warnings) == ("equal", (), ())
    wrong = "0123456789abcdef" * 4
    found = verified(wrong)
    assert found.vocabularies == "different"
    assert found.failures == (
        f"the base's vocabulary (sha256 {right[:12]}…) is not the one that the adapter was "
        "converted for (0123456789ab…); use the base it was trained on, or convert it again for "
        "this one",
    )
    assert found.layers  # what can be measured is measured


def test_nan_weights_are_refused(tmp_path: Path, files: Files) -> None:
    adapter = with_nan(files.alora, tmp_path / "nan.gguf")
    with pytest.raises(AdapterFormatError, match=r"lora_a' holds NaN or infinite values; its"):
        verify(files.base, adapter, n_threads=1)


def test_weights_that_overflow(tmp_path: Path, files: Files) -> None:
    adapter = tiny_base.write_adapter(
        tmp_path / "huge.gguf", invocation=files.invocation, strength=1e30
    )
    found = verify(files.base, adapter, n_threads=1)
    assert found.failures == (
        "with the adapter on, NaN or infinite values come up, first in layer 0; its weights are "
        "too large, so its training has diverged or its alpha is wrong",
    )
    assert not found.finite
    assert found.to_dict()["layers"][0]["change"] == "nan"


def test_a_base_of_nan(tmp_path: Path, files: Files) -> None:
    weight = np.full((tiny_base.N_EMBD, tiny_base.N_EMBD), np.nan, np.float32)
    base = tiny_base.write_base(
        tmp_path / "base.gguf", replace={"blk.1.attn_output.weight": (weight, None)}
    )
    assert failures(base, files.alora) == (
        "the base itself computes NaN or infinite values, first in layer 1; its file is damaged, "
        "or its weights overflow",
    )


def test_an_enormous_change_is_a_warning(tmp_path: Path, files: Files) -> None:
    adapter = adapter_with(
        tmp_path / "large.gguf",
        {VOCABULARY_KEY: tiny_vocabulary_sha256()},
        invocation=files.invocation,
        strength=1000.0,
    )
    found = verify(files.base, adapter, n_threads=1)
    assert found.passed
    assert found.warnings == (
        "the change is enormous, more than 10 times the base's own norm, in layer 0 and 1 more; "
        "check the adapter's alpha and rank",
    )


def test_files_that_do_not_go_together(tmp_path: Path, files: Files) -> None:
    with pytest.raises(AdapterMismatchError, match="was made for the architecture 'llama', but "):
        verify(demo.base_path(), files.alora)
    tied = tiny_base.write_base(tmp_path / "experts.gguf", experts=4)
    with pytest.raises(AdapterMismatchError, match=r"has no tensor 'blk\.0\.ffn_down\.weight', wh"):
        verify(tied, files.other)


def test_arguments(files: Files) -> None:
    with pytest.raises(InputError, match=r"^seed must be an integer of at least 0, got -1$"):
        verify(files.base, files.alora, seed=-1)
    with pytest.raises(InputError, match=r"^hf_base is only used with peft, the adapter's PEFT "):
        verify(files.base, files.alora, hf_base="base")


# That the checks can fail -------------------------------------------------------------------------


def activated_off_by(monkeypatch: pytest.MonkeyPatch, off: int) -> None:
    activate = Native.activate

    def elsewhere(self: Native, ctx: int, seq: int, first: int, slot: int, scale: float) -> None:
        activate(self, ctx, seq, max(0, first + off), slot, scale)

    monkeypatch.setattr(Native, "activate", elsewhere)


def test_one_token_too_early_is_found(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    activated_off_by(monkeypatch, -1)
    found = verify(files.base, files.alora, n_threads=1)
    assert (found.cells.equal, found.logits.before_equal) == (False, False)
    report = "; this is a bug of alora-gguf or llama.cpp, please report it"
    assert found.failures == (
        "cells of the 256 tokens before the invocation are not the base's when the adapter reads "
        f"the whole text{report}",
        f"layers or logits of the 16 tokens before the invocation are not the base's{report}",
    )


def test_a_conversation_that_changes_is_found(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, calls = Session.state, []

    def changing(self: Session) -> bytes:
        calls.append(1)
        return state(self) + bytes(len(calls) == 2)

    monkeypatch.setattr(Session, "state", changing)
    found = verify(files.base, files.alora, n_threads=1)
    assert found.failures == (
        "the conversation's cells have changed while the adapter was asked; this is a bug of "
        "alora-gguf or llama.cpp, please report it",
    )


# The second context -------------------------------------------------------------------------------


def test_a_graph_that_does_not_name_its_layers(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_BLOCK", re.compile(rb"no layer ([0-9]+)"))
    found = verify(files.base, files.alora, n_threads=1)
    assert found.passed
    assert found.layers == ()
    assert found.warnings[-1] == (
        "llama.cpp's graph of the architecture 'llama' does not name its layers' outputs, so "
        "changes by layer are not known"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("seen")])
def test_what_is_raised_in_the_callback_comes_out(
    error: BaseException, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("alora_gguf.verification.probe._Tap._copy", fail)
    with pytest.raises(type(error)):
        verify(files.base, files.alora, n_threads=1)


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ("model: [", "expected YAML"),
        (UNUSABLE, 'field response_format: the JSON Schema cannot be used: Unimplemented keys: ["'),
    ],
)
def test_a_contract_that_cannot_be_used_fails(
    files: Files, tmp_path: Path, contract: str, said: str
) -> None:
    path = adapter_with(tmp_path / "a.gguf", {"alora.io_yaml": contract}, invocation=(7, 8))
    found = verify(files.base, path, n_threads=1)
    (failure,) = found.failures
    assert failure.startswith("the adapter works, but cannot be asked as an intrinsic: ")
    assert f"{path}(io.yaml)" in failure
    assert said in failure
    assert not found.passed
