"""What adapters do on texts, against the same model in plain numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.analyse import ActivationOptions, AdapterActivations, analyse, truncate
from alora_gguf.analyse.passages import Passage, parts
from alora_gguf.analyse.rewriting import write_random
from alora_gguf.analyse.texts import Conversation
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.verification.probe import Probe, Reading, open_probe
from tests.analyse.known import dw_of
from tests.analyse.plain_llama import run
from tests.support.files import Files
from tests.support.make_gguf import Array
from tests.support.tiny_base import BOS

TEXT = "the rain in the main plain again, and the other one there"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def tokens_of(files: Files) -> tuple[list[int], int]:
    """TEXT with the invocation in its middle, and where that begins."""
    with ag.Model(files.base, n_ctx=256, n_threads=1) as model:
        ids = model.tokenize(TEXT)
    half = len(ids) // 2
    return [BOS, *ids[:half], *files.invocation, *ids[half:]], half + 1


def one(files: Files, adapter: Path, **options: object) -> AdapterActivations:
    how = ActivationOptions(n_threads=1, **options)  # type: ignore[arg-type]
    found = analyse(adapter, base=files.base, activations=how).activations
    assert found is not None
    return found.adapters[0]


def kl(p: Array, q: Array) -> Array:
    """By row, of logits."""
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p, q))
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=1))


# What layers compute ------------------------------------------------------------------------------


def readings(files: Files, adapter: Path, *scales: float) -> tuple[Reading, list[Reading], int]:
    """TEXT with the base, and with an adapter at some scales; and where it begins."""
    tokens, first = tokens_of(files)
    n = len(tokens)
    with (
        files.model() as model,
        open_probe(model, {"a": adapter}, n_tokens=n, n_rows=n) as probe,
    ):
        found = [probe.read(tokens, n, "a", scale=scale) for scale in scales]
        return probe.read(tokens, n), found, first


def test_states_and_logits_are_those_of_plain_numpy(files: Files) -> None:
    tokens, first = tokens_of(files)
    base, (adapted,), _ = readings(files, files.alora, 1.0)
    for reading, dw in ((base, None), (adapted, dw_of(files.alora))):
        states, logits = run(files.base, tokens, dw, first)
        for layer, expected in enumerate(states):
            np.testing.assert_allclose(reading.layers[layer], expected, rtol=0, atol=2e-4)
        np.testing.assert_allclose(reading.logits, logits, rtol=0, atol=2e-3)
    assert np.abs(adapted.layers[0] - base.layers[0]).max() > 0.1


def test_scale_0_and_rows_before_the_invocation_are_the_base(files: Files) -> None:
    base, (nothing, adapted), first = readings(files, files.alora, 0.0, 1.0)
    assert nothing.same_rows(base, len(base.logits))
    assert adapted.same_rows(base, first)
    assert not adapted.same_rows(base, first + 1)


def test_a_first_layers_delta_grows_with_the_scale(files: Files, tmp_path: Path) -> None:
    """Of the last matrix of it, whose input does not change."""
    adapter = files.write_adapter(
        tmp_path / "down.gguf", invocation=files.invocation, targets=("ffn_down",), layers=(0,)
    )
    base, found, first = readings(files, adapter, 0.5, 1.0, 2.0)
    half, once, twice = (each.layers[0][first:] - base.layers[0][first:] for each in found)
    np.testing.assert_allclose(2 * half, once, atol=1e-5)
    np.testing.assert_allclose(twice, 2 * once, atol=1e-5)
    assert np.abs(once).max() > 0.1


# The figures --------------------------------------------------------------------------------------


def test_figures_are_those_of_plain_numpy(files: Files, text: Path, tmp_path: Path) -> None:
    tokens, first = tokens_of(files)
    found = one(files, files.alora, text=text, ranks=[4])
    assert (found.n_tokens, found.n_before) == (len(tokens) - first, min(16, first))
    base, base_logits = run(files.base, tokens)
    adapted, logits = run(files.base, tokens, dw_of(files.alora), first)
    for layer, (without, with_it) in enumerate(zip(base, adapted, strict=True)):
        h, delta = without[first:], (with_it - without)[first:]
        states = found.layers[layer].states
        norms = [np.linalg.norm(x, axis=1) for x in (h, delta, h + delta)]
        assert states.change == pytest.approx((norms[1] / norms[0]).mean(), rel=1e-4)
        cosine = ((h + delta) * h).sum(axis=1) / norms[0] / norms[2]
        assert states.cosine == pytest.approx(cosine.mean(), abs=1e-5)
        s = np.linalg.svd(delta, compute_uv=False)
        assert states.dimension == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-4)
    assert found.kl == pytest.approx(kl(logits, base_logits)[first:].mean(), rel=1e-3)

    kept = truncate(files.alora, tmp_path / "cut.gguf", rank=4).kept
    less = run(files.base, tokens, dw_of(tmp_path / "cut.gguf"), first)[1]
    lost = kl(logits, less)[first:]
    loss, rounding = found.ranks
    assert (rounding.rank, rounding.top_changed) == (8, 0)
    assert rounding.kept == pytest.approx(1)
    assert rounding.largest < 1e-6 < loss.kl
    assert (loss.rank, loss.kept) == (4, kept)
    assert loss.kl == pytest.approx(lost.mean(), rel=1e-3)
    assert loss.largest == pytest.approx(lost.max(), rel=1e-3)
    tops = logits[first:].argmax(axis=1), less[first:].argmax(axis=1)
    assert loss.top_changed == pytest.approx(np.mean(tops[0] != tops[1]))


def test_a_cka_is_refused_where_there_are_too_few_tokens(files: Files, text: Path) -> None:
    found = one(files, files.alora, text=text)
    assert found.no_cka == f"{found.n_tokens} tokens do not carry a CKA: it needs at least 64"
    ckas = {(e.states.cka, e.random.cka_delta, e.random_spread.cka) for e in found.layers}
    assert ckas == {(None, None, None)}
    text.write_text(4 * TEXT)
    found = one(files, files.alora, text=text)
    assert found.no_cka is None
    for each in found.layers:
        assert each.states.cka is not None
        assert -0.1 < each.states.cka < 1


def test_an_adapter_that_changes_nothing(files: Files, text: Path, tmp_path: Path) -> None:
    text.write_text(4 * TEXT)
    nothing = files.write_adapter(tmp_path / "0.gguf", invocation=files.invocation, strength=0.0)
    found = one(files, nothing, text=text)
    assert (found.kl, found.random_kl) == (0, 0)
    for each in found.layers:
        assert (each.states.change, each.states.dimension) == (0, 0)
        assert each.states.cosine == pytest.approx(1)
        assert each.states.cka == pytest.approx(1)
        assert each.states.cka_delta is None


def test_a_plain_lora_acts_on_all_but_the_first_token(files: Files, text: Path) -> None:
    tokens, _ = tokens_of(files)
    found = one(files, files.lora, text=text)
    assert found.n_tokens == len(tokens) - len(files.invocation) - 1
    assert found.n_before == 0


def test_texts_are_read_up_to_max_tokens(files: Files, text: Path) -> None:
    text.write_text(60 * TEXT)
    how = ActivationOptions(text=text, max_tokens=300, n_threads=1)
    found = analyse(files.alora, base=files.base, activations=how).activations
    assert found is not None
    n_each = 256 + len(files.invocation)  # of a piece of 512
    assert (found.n_texts, found.adapters[0].n_tokens) == (2, 2 * n_each)


def test_a_row_before_the_invocation_that_changes_is_an_error(
    files: Files, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Probe.read

    def early(self: Probe, *arguments: object, first: int | None = None) -> Reading:
        return read(self, *arguments, first=first and first - 1)  # type: ignore[arg-type]

    monkeypatch.setattr(Probe, "read", early)
    with pytest.raises(ag.DecodeError, match="changes what is computed before its invocation"):
        one(files, files.alora, text=text)


def test_a_random_adapter_has_the_same_norms(files: Files, tmp_path: Path) -> None:
    file = AdapterFile.read(files.other)
    write_random(file, tmp_path / "random.gguf", [0, 1])
    own, random = dw_of(files.other), dw_of(tmp_path / "random.gguf")
    assert own.keys() == random.keys()
    for name, dw in own.items():
        assert np.linalg.norm(random[name]) == pytest.approx(np.linalg.norm(dw), rel=1e-5)
        assert np.linalg.matrix_rank(random[name]) == 4
        assert not np.allclose(random[name], dw, atol=0.01)
    assert AdapterFile.read(tmp_path / "random.gguf").invocation == file.invocation


def test_random_figures_are_of_several_random_adapters(
    files: Files, text: Path, tmp_path: Path
) -> None:
    """Each drawn, written and run by hand."""
    text.write_text(4 * TEXT)
    how = ActivationOptions(text=text, n_threads=1)
    run = analyse(files.alora, base=files.base, activations=how, n_random=3, seed=7).activations
    assert run is not None
    (found,) = run.adapters
    drawn = []
    for i in range(3):
        path = tmp_path / f"{i}.gguf"
        write_random(AdapterFile.read(files.alora), path, [7, i, 0])
        drawn.append(one(files, path, text=text))
    kl = [each.kl for each in drawn]
    assert found.random_kl == pytest.approx(np.mean(kl), rel=1e-6)
    assert found.random_kl_spread == pytest.approx(np.std(kl, ddof=1), rel=1e-6)
    for layer, own in enumerate(found.layers):
        for name in ("change", "cosine", "cka", "cka_delta", "dimension"):
            real = [getattr(each.layers[layer].states, name) for each in drawn]
            assert getattr(own.random, name) == pytest.approx(np.mean(real), rel=1e-5), name
            spread = getattr(own.random_spread, name)
            assert spread == pytest.approx(np.std(real, ddof=1), rel=1e-3), name
            assert spread > 0


# Several, conversations, files --------------------------------------------------------------------


def test_several_adapters(files: Files, text: Path) -> None:
    how = ActivationOptions(text=text, n_threads=1)
    paths = [files.alora, files.other, files.alora]
    found = analyse(paths, base=files.base, activations=how).activations
    assert found is not None
    tokens, first = tokens_of(files)
    assert found.n_common == len(tokens) - first - len(files.invocation)
    base = run(files.base, tokens)[0]
    first_two = [run(files.base, tokens, dw_of(path), first)[0] for path in paths[:2]]
    for layer in found.cosines:
        deltas = [(h[layer.layer] - base[layer.layer])[-found.n_common :] for h in first_two]
        a, b = deltas
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert layer.cosines[0][1] == pytest.approx(cosine.mean(), abs=1e-4)
        assert layer.cosines[0][2] == pytest.approx(1, abs=1e-6)
        assert layer.cosines[1][0] == layer.cosines[0][1]
        assert layer.random[0][2] < 0.9  # drawn apart
        assert layer.random_spread[0][2] == layer.random_spread[2][0] > 0
        assert layer.random_spread[1][1] == 0
    assert {found.clusters[0].first[0], found.clusters[0].second[0]} == {
        found.adapters[0].label, found.adapters[2].label,
    }  # fmt: skip


def test_conversations_are_read_as_the_template_has_them(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "When is the ferry?"}]
    reply = "The ferry leaves at nine."
    lines = [
        {"messages": [*said, {"role": "assistant", "content": reply}]},
        {"messages": said, "answer": reply, "split": "train"},
        {"messages": said},
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    dump = tmp_path / "states.safetensors"
    how = ActivationOptions(text=path, dump=dump, n_threads=1)
    adapter = demo.adapter_path("answerability")
    found = analyse(adapter, base=demo.base_path(), activations=how).activations
    assert found is not None
    assert found.n_texts == 3
    states = load_file(dump)
    invocation = AdapterFile.read(adapter).invocation
    with ag.Model(demo.base_path(), n_threads=1) as model:
        after = model.tokenize(reply)
        with model.chat(messages=said) as chat:
            chat.read()
            n_before = len(chat.tokens)
    expected = [[*invocation, *after]] * 2 + [[*invocation]]
    assert states["token"].tolist() == [token for each in expected for token in each]
    assert states["text"].tolist() == [i for i, each in enumerate(expected) for _ in each]
    positions = [n_before + i for each in expected for i in range(len(each))]
    assert states["position"].tolist() == positions
    n = found.adapters[0].n_tokens
    assert n == len(positions)
    for layer in range(6):
        h, delta = states[f"h.{layer}"], states[f"h_delta.{layer}"]
        assert h.shape == delta.shape == (n, 256)
        change = np.linalg.norm(delta, axis=1) / np.linalg.norm(h, axis=1)
        assert found.adapters[0].layers[layer].states.change == pytest.approx(change.mean())
    n_first = len(expected[0])  # the first two lines are the same text
    np.testing.assert_array_equal(h[:n_first], h[n_first : 2 * n_first])


def test_a_plain_lora_reads_the_reply_where_the_assistant_says_it(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "When is the ferry?"}]
    whole = [*said, {"role": "assistant", "content": "At nine."}]
    with ag.Model(demo.base_path(), n_threads=1) as model:
        after = tuple(model.tokenize("At nine."))
        with model.chat(messages=whole) as chat:
            chat.read()
            tokens = tuple(chat.tokens)
        text = Conversation((ag.Message.of(said[0]),), (), "At nine.")
        (part,) = parts(model, [text], opened=True)
    assert (*part.opened, *part.after) == tokens[: len(part.opened) + len(after)]
    assert part.after == after
    assert len(part.opened) > len(part.before)  # the beginning of the assistant's turn
    passage = Passage.of(part, ())
    assert (passage.first, passage.n_before, passage.n_common) == (0, 0, len(after))
    assert passage.n_adapted == len(passage.tokens) - 1


def test_probes_need_no_template(files: Files) -> None:
    found = one(files, files.alora)
    assert found.n_tokens > 64
    assert found.n_before > 16
    assert one(files, files.lora).n_tokens > found.n_tokens


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[]", "line 1 has no messages"),
        ('{"messages": []}', "line 1 has no messages"),
        ('{"messages": [{"role": 1, "content": "a"}]}', "line 1: messages"),
        ("{", "line 1 is not JSON"),
        ("", "is empty"),
    ],
)
def test_broken_texts(files: Files, tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(line)
    with pytest.raises(ag.FileFormatError, match=problem):
        one(files, files.alora, text=path)


def test_what_cannot_be_measured(files: Files, tmp_path: Path) -> None:
    how = ActivationOptions(n_threads=1)
    with pytest.raises(ag.InputError, match="activations needs base"):
        analyse(files.alora, activations=how)
    with pytest.raises(ag.InputError, match="ranks has 8, but no adapter has a rank above 8"):
        one(files, files.alora, ranks=[4, 8])
    both = ActivationOptions(dump=tmp_path / "a.safetensors", n_threads=1)
    with pytest.raises(ag.InputError, match="dump takes one adapter, got 2"):
        analyse([files.alora, files.other], base=files.base, activations=both)
    with pytest.raises(ag.InputError, match="max_tokens"):
        ActivationOptions(max_tokens=0)
    with pytest.raises(ag.MissingFileError):
        one(files, files.alora, text=tmp_path / "none.txt")
