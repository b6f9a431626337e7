"""verify() beside PEFT: its changes by layer are those of transformers' hidden states, its
comparison of logits passes what is right and fails what is not.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from alora_gguf import (
    AdapterMismatchError,
    FileFormatError,
    InputError,
    ModelError,
    demo,
)
from alora_gguf.engine.native import Native
from alora_gguf.verification import peft_reference, verify
from alora_gguf.verification.peft_reference import allowed_for
from alora_gguf.verification.records import AdapterFacts, BaseFacts, Verification
from tests.support.peft_oracle import TinyAdapter, make_adapter
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_models import TinyModel, tiny_model

from .sides import gguf_of

pytestmark = pytest.mark.parity

INVOCATION = (5, 5, 6)
_GELU = ("gemma3",)  # a table of half-precision numbers in ggml: see checks.py


class Case:
    """A PEFT adapter for a family, and what was converted from it."""

    def __init__(self, family: str, folder: Path, invocation: tuple[int, ...] | None) -> None:
        self.tiny: TinyModel = tiny_model(family)
        self.adapter: TinyAdapter = make_adapter(
            self.tiny, folder / "peft", invocation=invocation, size=0.3
        )
        self.gguf = gguf_of(self.adapter, folder / "adapter.gguf")

    def verify(self, **options: Any) -> Verification:
        options.setdefault("peft", self.adapter.directory)
        return verify(self.tiny.gguf, self.gguf, n_threads=1, **options)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    pytest.importorskip("peft")
    return Case("llama", tmp_path_factory.mktemp("llama"), INVOCATION)


# The oracle ---------------------------------------------------------------------------------------


def hidden_states(model: Any, tokens: tuple[int, ...]) -> NDArray[np.float64]:
    """What each decoder layer of a transformers or PEFT model gives, [n_layers, n_tokens, n_embd].

    From hooks: `output_hidden_states` has the last one only behind the final norm.
    """
    import torch

    kept: list[Any] = []
    layers = model.get_decoder().layers
    hooks = [
        layer.register_forward_hook(
            lambda _module, _inputs, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in layers
    ]
    try:
        with torch.no_grad():
            model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(kept) == len(layers)
    return np.stack([h.reshape(len(tokens), -1).double().numpy() for h in kept])


def expected_changes(case: Case, found: Verification) -> Iterator[tuple[float, float, float]]:
    """(mean, largest, cosine) by layer, as the documentation defines them."""
    from peft import PeftModel

    tokens, n = found.text.tokens, found.text.n_adapted
    base = hidden_states(case.tiny.load(), tokens)[:, -n:]
    peft_model = PeftModel.from_pretrained(case.tiny.load(), str(case.adapter.directory)).eval()
    adapted = hidden_states(peft_model, tokens)[:, -n:]
    for b, a in zip(base, adapted, strict=True):
        sizes = np.sqrt((b * b).sum(-1)), np.sqrt((a * a).sum(-1))
        ratio = np.sqrt(((a - b) ** 2).sum(-1)) / sizes[0]
        yield ratio.mean(), ratio.max(), ((a * b).sum(-1) / (sizes[0] * sizes[1])).mean()


@pytest.mark.parametrize("invocation", [INVOCATION, None], ids=["alora", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_changes_by_layer_are_those_of_hidden_states(
    family: str, invocation: tuple[int, ...] | None, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    case = Case(family, tmp_path, invocation)
    found = case.verify(peft=None)
    bound = 2e-3 if family in _GELU else 1e-4
    expected = list(expected_changes(case, found))
    assert len(found.layers) == len(expected)
    for ours, (mean, largest, cosine) in zip(found.layers, expected, strict=True):
        assert ours.change == pytest.approx(mean, rel=bound, abs=1e-6)
        assert ours.largest == pytest.approx(largest, rel=bound, abs=1e-6)
        assert ours.cosine == pytest.approx(cosine, rel=bound)
    # and one layer's numbers could not pass for the next one's
    means = [mean for mean, _, _ in expected]
    assert max(abs(a - b) for a, b in itertools.pairwise(means)) > 20 * bound * max(means)


# Logits beside PEFT's -----------------------------------------------------------------------------


@pytest.mark.parametrize("invocation", [INVOCATION, None], ids=["alora", "lora"])
def test_what_was_converted_passes(tmp_path: Path, invocation: tuple[int, ...] | None) -> None:
    pytest.importorskip("peft")
    case = Case("granite", tmp_path, invocation)
    found = case.verify()
    assert found.passed
    assert found.peft is not None
    assert (found.peft.adapter, found.peft.base) == (case.adapter.directory, case.tiny.directory)
    assert found.peft.n_rows == found.text.n_rows
    assert 0 < found.peft.with_adapter.typical <= found.peft.with_adapter.largest < 1e-4
    assert 0 < found.peft.without.typical <= found.peft.without.largest < 1e-4
    assert found.peft.effect_clear
    assert found.peft.effect_cosine == pytest.approx(1, abs=1e-6)
    allowed = found.peft.allowed
    assert (allowed.type, allowed.typical, allowed.largest) == ("a base of type F32", 5e-3, 5e-3)


def failure(found: Verification) -> str:
    assert len(found.failures) == 1
    return found.failures[0]


def test_another_adapter_fails(llama: Case, tmp_path: Path) -> None:
    other = make_adapter(llama.tiny, tmp_path / "other", invocation=INVOCATION, seed=7, size=0.3)
    found = llama.verify(peft=other.directory)
    assert found.peft is not None
    assert failure(found) == (
        f"logits are off by {found.peft.with_adapter.typical:.1e} of PEFT's largest at a typical "
        "token, where 0.005 is allowed for a base of type F32; the adapter was converted from "
        "another one"
    )
    assert found.peft.effect_cosine < 0.9


def test_another_scale_fails(llama: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(llama.adapter.directory, tmp_path / "louder")
    change_config(folder, lora_alpha=17)
    assert "of PEFT's largest at a typical token, where 0.005 is" in failure(
        llama.verify(peft=folder)
    )


@pytest.mark.parametrize("off", [-1, 1])
def test_one_token_off_fails(llama: Case, off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    activate = Native.activate

    def elsewhere(self: Native, ctx: int, seq: int, first: int, slot: int, scale: float) -> None:
        activate(self, ctx, seq, first + off, slot, scale)

    monkeypatch.setattr(Native, "activate", elsewhere)
    found = llama.verify()
    assert any("of PEFT's largest at " in sentence for sentence in found.failures)


def test_another_base_fails(llama: Case) -> None:
    other = tiny_model("qwen2").directory
    found = llama.verify(hf_base=other)
    assert failure(found).endswith(f"; {other} and {llama.tiny.gguf} are not the same model")


def test_a_faint_adapter_that_adds_something_else_fails(llama: Case, tmp_path: Path) -> None:
    """Too faint for the logits' tolerance, but not for what it adds."""
    folders = {
        seed: make_adapter(
            llama.tiny, tmp_path / str(seed), invocation=INVOCATION, seed=seed, size=3e-5
        )
        for seed in (1, 2)
    }
    gguf = gguf_of(folders[1], tmp_path / "faint.gguf")
    found = verify(llama.tiny.gguf, gguf, n_threads=1, peft=folders[1].directory)
    assert found.passed
    found = verify(llama.tiny.gguf, gguf, n_threads=1, peft=folders[2].directory)
    assert found.peft is not None
    assert found.peft.close
    assert failure(found) == (
        "what the adapter adds to the logits is not what it adds in PEFT (cosine "
        f"{found.peft.effect_cosine:.3f}, at least 0.99 is expected for a base of type F32); the "
        "adapter was converted from another one"
    )


@pytest.mark.parametrize(
    ("base", "adapter", "expected"),
    [
        ((32.0, "F32"), (32.0, "F32"), ("a base of type F32", 5e-3, 5e-3, 0.99)),
        ((32.0, "F32"), (16.0, "F16"), ("an adapter of type F16", 5e-3, 5e-2, 0.99)),
        ((16.0, "BF16"), (16.0, "F16"), ("a base of type BF16", 5e-3, 5e-2, 0.99)),
        ((16.0, "F16"), (8.5, "Q8_0"), ("an adapter of type Q8_0", 8e-2, None, 0.94)),
        ((8.5, "Q8_0"), (16.0, "F16"), ("a base of type Q8_0", 8e-2, None, 0.94)),
        ((6.5625, "Q6_K"), (16.0, "F16"), ("a base of type Q6_K", 0.15, None, 0.85)),
        ((4.5, "Q4_K"), (16.0, "F16"), ("a base of type Q4_K", 0.35, None, 0.65)),
        ((2.625, "Q2_K"), (16.0, "F16"), ("a base of type Q2_K", 0.6, None, 0.5)),
    ],
)
def test_what_is_allowed(
    base: tuple[float, str], adapter: tuple[float, str], expected: tuple[Any, ...]
) -> None:
    facts = BaseFacts(Path("b"), None, "llama", 1, 1, base[1], base[0], None)
    other = AdapterFacts(
        Path("a"), "a", "lora", 1, 1, adapter[1], adapter[0], 8, 16, (), (), None, None, ""
    )
    allowed = allowed_for(facts, other)
    assert (allowed.type, allowed.typical, allowed.largest, allowed.cosine) == expected


def test_an_older_file_without_token_ids(llama: Case, tmp_path: Path) -> None:
    """Which knows its invocation as text only; the converter has worked out the ids."""
    folder = shutil.copytree(llama.adapter.directory, tmp_path / "older")
    change_config(folder, alora_invocation_tokens=None)
    assert llama.verify(peft=folder).passed


# What cannot be compared --------------------------------------------------------------------------


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_extra_is_missing(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = {"peft"}
    monkeypatch.setattr(
        peft_reference.importlib.util,
        "find_spec",
        lambda name, *rest: None if name in gone else real(name, *rest),
    )
    message = (
        "comparing with PEFT needs torch, transformers, peft, but {} not installed: pip install "
        "'alora-gguf[train]'"
    )
    with pytest.raises(InputError) as caught:
        llama.verify()
    assert str(caught.value) == message.format("peft is")
    gone.add("torch")
    with pytest.raises(InputError) as caught:
        llama.verify()
    assert str(caught.value) == message.format("torch, peft are")
    assert llama.verify(peft=None).passed


def test_the_base_has_to_be_here(llama: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(llama.adapter.directory, tmp_path / "adapter")
    change_config(folder, base_model_name_or_path="org/model")
    with pytest.raises(InputError) as caught:
        llama.verify(peft=folder)
    assert str(caught.value) == (
        f"{folder}/adapter_config.json: base_model_name_or_path is 'org/model', which is not "
        "a directory here; name the transformers directory of the base with --hf-base (hf_base=)"
    )
    assert llama.verify(peft=folder, hf_base=llama.tiny.directory).passed


def test_directories_that_are_none(llama: Case, tmp_path: Path) -> None:
    def message(**options: Any) -> str:
        with pytest.raises(InputError) as caught:
            llama.verify(**options)
        return str(caught.value)

    expected = "expected the PEFT directory that the adapter was converted from"
    gone, file = tmp_path / "gone", tmp_path / "file"
    file.write_bytes(b"")
    assert message(peft=gone) == f"{gone}: there is no such directory, {expected}"
    assert message(peft=file) == f"{file}: is not a directory, {expected}"
    assert message(peft=tmp_path) == (
        f"{tmp_path}: has no adapter_config.json, so it is not a PEFT adapter in safetensors"
    )
    expected = "expected the transformers directory of the base"
    assert message(hf_base=gone) == f"{gone}: there is no such directory, {expected}"
    assert message(hf_base=file) == f"{file}: is not a directory, {expected}"
    assert message(hf_base=tmp_path) == (
        f"{tmp_path}: has no config.json, so it is not a transformers directory"
    )


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_config_that_is_none(llama: Case, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(llama.adapter.directory, tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"adapter_config\.json: (is not JSON: |holds list)"):
        llama.verify(peft=folder)


def test_another_invocation(llama: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(llama.adapter.directory, tmp_path / "adapter")
    change_config(folder, alora_invocation_tokens=[7, 8])
    with pytest.raises(AdapterMismatchError) as caught:
        llama.verify(peft=folder)
    assert str(caught.value) == (
        f"{folder}/adapter_config.json: alora_invocation_tokens is [7, 8], but [5, 5, 6] in "
        f"{llama.gguf}, which was converted from another one"
    )


def test_what_transformers_or_peft_cannot_load(llama: Case, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"^{empty}: transformers cannot load it: ValueError: Unr"):
        llama.verify(hf_base=empty)
    wide = tiny_model("mistral").directory  # its heads are wider
    with pytest.raises(AdapterMismatchError, match=f"PEFT cannot put it on {wide}: RuntimeError"):
        llama.verify(hf_base=wide)
    broken = shutil.copytree(llama.adapter.directory, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"\0" * 16)
    with pytest.raises(AdapterMismatchError, match=f"^{broken}: PEFT cannot put it on "):
        llama.verify(peft=broken)


def test_a_base_with_fewer_tokens(llama: Case) -> None:
    with pytest.raises(
        ModelError, match=r": has 320 tokens, but token \d+ is in the text; it is n"
    ):
        verify(
            demo.base_path(),
            demo.adapter_path("jailbreak"),
            n_threads=1,
            peft=llama.adapter.directory,
        )


def test_nothing_is_printed(llama: Case, capfd: pytest.CaptureFixture[str]) -> None:
    llama.verify()
    assert capfd.readouterr() == ("", "")
