"""derive(), sweep() and match() on the tiny base, against plain numpy and what was planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.gguf.vector import Directions, VectorFile
from alora_gguf.gguf.vector_writer import write_vector
from alora_gguf.steer import (
    Derivation,
    DeriveOptions,
    Effect,
    MatchOptions,
    RunOptions,
    SweepOptions,
    derive,
    match,
    sweep,
)
from alora_gguf.steer.running import (
    BASE,
    Passage,
    Steering,
    log_softmax,
    mean_logprob,
    next_logits,
    open_model,
)
from alora_gguf.steer.writing import random_parts
from alora_gguf.verification.probe import open_probe
from tests.analyse.plain_llama import run
from tests.steer.test_pairs import write
from tests.support import tiny_base
from tests.support.chats import PLAIN
from tests.support.make_gguf import Array
from tests.support.tiny_base import N_EMBD, N_LAYER

RUN = RunOptions(n_threads=1)
TEXTS = ["the rain again", "in the main", "another one", "plain and there", "air", "three teas"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base.write_base(tmp_path_factory.mktemp("steer") / "base.gguf", template=PLAIN)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    splits = ["train", "train", "train", "train", "held_out", "held_out"]
    lines = [
        {"positive": f"{text}!", "negative": f"{text} or", "split": split}
        for text, split in zip(TEXTS, splits, strict=True)
    ]
    return write(tmp_path / "pairs.jsonl", *lines)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    lines = [{"prompt": text, "positive": "a", "negative": "b"} for text in TEXTS]
    return write(tmp_path / "answers.jsonl", *lines)


def weight(base: Path, name: str) -> Array:
    from gguf import GGUFReader

    (found,) = (t for t in GGUFReader(base).tensors if t.name == name)
    return np.asarray(found.data, np.float64).reshape(found.shape[::-1])


def token(base: Path, text: str) -> int:
    with ag.Model(base, n_ctx=64, n_threads=1) as model:
        (found,) = model.tokenize(text)
    return found


# derive ------------------------------------------------------------------------------------------


def learn(base: Path, pairs: Path, output: Path, **options: object) -> Derivation:
    how = DeriveOptions(**options)  # type: ignore[arg-type]
    return derive(base, pairs, output, options=how, run=RUN, overwrite=True)


def numpy_states(base: Path, read_at: str) -> tuple[Array, Array, Array]:
    """[layer, pair, n_embd] of both sides of the texts, and medians of |h|, by plain numpy."""
    sides, lengths = [], list[list[Array]]()
    with ag.Model(base, n_ctx=256, n_threads=1) as model:
        bos = model.tokenize("", add_special=True)
        texts = [[model.tokenize(text + end) for text in TEXTS] for end in ("!", " or")]
    for side in texts:
        rows = []
        for tokens in side:
            states = run(base, [*bos, *tokens])[0]
            n = len(tokens) if read_at == "answer" else 1
            rows.append([state[-n:].mean(axis=0) for state in states])
            lengths.append([np.linalg.norm(state[-n:], axis=1) for state in states])
        sides.append(np.array(rows).transpose(1, 0, 2))
    norms = [np.median(np.concatenate(each)) for each in zip(*lengths, strict=True)]
    return sides[0], sides[1], np.array(norms)


@pytest.mark.parametrize("read_at", ["answer", "last"])
def test_a_vector_is_the_mean_difference_of_plain_numpy(
    base: Path, pairs: Path, tmp_path: Path, read_at: str
) -> None:
    found = learn(base, pairs, tmp_path / "v.gguf", layers=[0, 1], read_at=read_at, scale=0.5)
    file = VectorFile.read(tmp_path / "v.gguf")
    positive, negative, norms = numpy_states(base, read_at)
    assert file.layers == found.chosen == (0, 1)
    for part, layer in zip(file.parts, found.layers, strict=True):
        p, n = positive[part.layer], negative[part.layer]
        mean = (p - n)[:4].mean(axis=0)
        norm = norms[part.layer]
        assert layer.norm == pytest.approx(norm, rel=1e-4)
        # half of |h|, by two layers
        wanted = mean / np.linalg.norm(mean) * norm * 0.5 / 2
        assert (part.operation, part.hook) == ("add", "block")
        np.testing.assert_allclose(part.scale * part.values[0], wanted, atol=1e-3 * norm)
        told = [side[4:] @ mean for side in (p, n)]
        wins = np.mean([a > b for a in told[0] for b in told[1]])
        assert layer.auroc == pytest.approx(wins)


@pytest.mark.parametrize("hook", ["attention", "ffn"])
def test_read_at_the_hook_where_it_acts(
    base: Path, pairs: Path, answers: Path, tmp_path: Path, hook: str
) -> None:
    path = tmp_path / "v.gguf"
    found = learn(base, pairs, path, hook=hook, layers=[0, 1], scale=0.5)
    file = VectorFile.read(path)
    assert (found.hook, {part.hook for part in file.parts}) == (hook, {hook})
    assert "pre_residual" in file.origin.derived_at
    states, lengths = [], [list[Array](), list[Array]()]
    with ag.Model(base, n_ctx=256, n_threads=1) as model:
        bos = model.tokenize("", add_special=True)
        with open_probe(model, {"v": path}, n_tokens=64, n_rows=32, hook=hook) as probe:  # type: ignore[arg-type]
            for end in ("!", " or"):
                for text in TEXTS[:4]:
                    tokens = model.tokenize(text + end)
                    layers = probe.read([*bos, *tokens], len(tokens)).layers
                    states.append([layers[i].mean(axis=0) for i in (0, 1)])
            for text in [f"{text}{end}" for text in TEXTS for end in ("!", " or")]:
                tokens = model.tokenize(text)
                layers = probe.read([*bos, *tokens], len(tokens)).layers
                for i in (0, 1):
                    lengths[i].append(np.linalg.norm(layers[i], axis=1))
            bare = probe.read(tokens, len(tokens)).layers
            acting = probe.read(tokens, len(tokens), "v", first=2).layers
    sides = np.array(states).reshape(2, 4, 2, N_EMBD)
    for i, part in enumerate(file.parts):
        mean = (sides[0] - sides[1])[:, i].mean(axis=0)
        norm = np.median(np.concatenate(lengths[i]))
        wanted = mean / np.linalg.norm(mean) * norm * 0.5 / 2
        np.testing.assert_allclose(part.scale * part.values[0], wanted, atol=1e-3 * norm)
        assert found.layers[i].norm == pytest.approx(norm, rel=1e-4)
    change = acting[0] - bare[0]  # at the first layer nothing else has changed
    assert not change[:2].any()
    added = np.broadcast_to(file.parts[0].scale * file.parts[0].values[0], change[2:].shape)
    np.testing.assert_allclose(change[2:], added, atol=1e-5)
    few = SweepOptions(scales=[1], n_random=0, n_replies=0)
    swept = sweep(base, path, answers, options=few, run=RUN)
    assert 0.25 < (swept.unit or 0) < 1  # 0.5 |h| at that hook, measured on other tokens


def test_components_to_project_out(base: Path, pairs: Path, tmp_path: Path) -> None:
    found = learn(
        base, pairs, tmp_path / "v.gguf", method="pca", operation="project", rank=2, layers=[1]
    )
    (part,) = VectorFile.read(tmp_path / "v.gguf").parts
    assert (part.layer, part.operation, part.scale, part.rank) == (1, "project", 1.0, 2)
    positive, negative, _ = numpy_states(base, "answer")
    components = np.linalg.svd((positive - negative)[1][:4], full_matrices=False)[2][:2]
    angles = np.linalg.svd(part.values @ components.T, compute_uv=False)
    np.testing.assert_allclose(angles, 1, atol=1e-4)
    assert (found.scale, found.rank) == (1.0, 2)


def test_a_file_says_where_it_comes_from_and_repeats(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    fractions = list[float]()
    one = derive(base, answers, tmp_path / "1.gguf", run=RUN, progress=fractions.append)
    learn(base, answers, tmp_path / "2.gguf")
    assert fractions == pytest.approx([(i + 1) / 6 for i in range(6)])
    first, second = (VectorFile.read(tmp_path / f"{i}.gguf") for i in (1, 2))
    assert first.identity == second.identity
    assert first.architecture == "llama"
    assert (first.origin.method, first.origin.contrast) == (
        "mean difference",
        "6 pairs of answers.jsonl",
    )
    assert json.loads(first.origin.validation)["held_out_pairs"] == one.n_held_out == 2
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["chosen"] == [*one.chosen]
    learn(base, answers, tmp_path / "2.gguf", seed=1)
    assert VectorFile.read(tmp_path / "2.gguf").identity != first.identity


def refused(call: Callable[[], object], kind: type[ag.AloraError] = ag.InputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_derive_refuses(base: Path, files: object, answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.gguf"
    assert refused(lambda: learn(base, answers, out, layers=[2])) == (
        "layers has 2, but base.gguf has layers 0 to 1"
    )
    said = refused(lambda: DeriveOptions(rank=2))
    assert said.startswith("rank is 2, but operation 'add' has one direction; use method 'pca'")
    said = refused(lambda: DeriveOptions(rank=2, operation="project"))
    assert said.startswith("rank is 2, but method 'mean' has one direction")
    said = refused(lambda: learn(base, answers, out, rank=5, method="pca", operation="project"))
    assert said.startswith("rank is 5, but 4 training pairs have no more directions than that")
    assert "scale is 0" in refused(lambda: DeriveOptions(scale=0.0))
    assert "layers is empty" in refused(lambda: DeriveOptions(layers=[]))
    said = refused(lambda: DeriveOptions(layers=["a"]))  # type: ignore[list-item]
    assert said == "each of layers must be an integer, got 'a'"
    assert "DeriveOptions(): method must be one of" in refused(
        lambda: DeriveOptions(method="sae")  # type: ignore[arg-type]
    )
    assert not out.exists()
    out.write_bytes(b"mine")
    said = refused(lambda: derive(base, answers, out, run=RUN))
    assert said == f"{out}: exists already; pass overwrite=True to replace it"
    assert out.read_bytes() == b"mine"
    before = answers.read_bytes()
    said = refused(lambda: learn(base, answers, answers))
    assert said == f"{answers}: is the file of pairs that is read; name another output"
    assert answers.read_bytes() == before
    said = refused(lambda: learn(base, answers, base))
    assert said == f"{base}: is the base that is read; name another output"


def test_what_no_pair_has_in_common_is_no_direction(base: Path, tmp_path: Path) -> None:
    sides, splits = [("a", "b"), ("b", "a")] * 3, ["train"] * 4 + ["held_out"] * 2
    lines = [
        {"prompt": f"q{i // 2}", "positive": positive, "negative": negative, "split": splits[i]}
        for i, (positive, negative) in enumerate(sides)
    ]
    file = write(tmp_path / "swapped.jsonl", *lines)
    said = refused(lambda: learn(base, file, tmp_path / "v.gguf", layers=[1]))
    assert said == (
        f"{file}: the training pairs have no difference in common at layer 1, so there is no "
        "direction; are the sides of some swapped?"
    )
    assert not (tmp_path / "v.gguf").exists()


def test_derive_refuses_what_does_not_fit(base: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"q{i}", "positive": "a", "negative": "b"} for i in range(5)]
    lines[2]["negative"] = "b, " * 1000
    file = write(tmp_path / "long.jsonl", *lines)
    said = refused(lambda: learn(base, file, tmp_path / "v.gguf"))
    assert said.startswith(f"{file}: line 3: negative has 3,0")
    assert said.endswith("more than the context's 1,008; shorten it")
    lines[2]["prompt"] = "b" * 100_000  # too long to be made into tokens
    write(file, *lines)
    said = refused(lambda: learn(base, file, tmp_path / "v.gguf"))
    assert said.endswith("positive has more tokens than the context's 1,008; shorten it")
    assert said.startswith(f"{file}: line 3: ")


def test_derive_needs_a_template_for_conversations(
    answers: Path, pairs: Path, tmp_path: Path
) -> None:
    bare = tiny_base.write_base(tmp_path / "bare.gguf")
    said = refused(lambda: learn(bare, answers, tmp_path / "v.gguf"), ag.ModelError)
    assert said.startswith(f"{bare}: has no chat template")
    assert learn(bare, pairs, tmp_path / "v.gguf").n_train == 4  # texts need none


def test_an_interrupt_leaves_nothing(base: Path, answers: Path, tmp_path: Path) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive(base, answers, tmp_path / "v.gguf", run=RUN, progress=stop)
    assert [each.name for each in tmp_path.iterdir()] == ["answers.jsonl"]


# sweep -------------------------------------------------------------------------------------------


def planted(base: Path, path: Path, size: float = 2.0, layer: int = N_LAYER - 1) -> Path:
    """What leads from the answer b to a, behind the last layer: a's row of the output less b's."""
    rows = weight(base, "output.weight")
    v = rows[token(base, "a")] - rows[token(base, "b")]
    values = np.float32(size * v / np.linalg.norm(v))
    part = Directions(layer, "block", "add", 1.0, values)
    write_vector(path, [part], architecture="llama")
    return path


def test_a_planted_vectors_effect_rises_with_its_scale(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    how = SweepOptions(scales=[-2, -1, 1, 2], n_random=2, n_replies=2, n_tokens=4, bound=1000)
    fractions = list[float]()
    found = sweep(
        base, planted(base, tmp_path / "v.gguf"), answers, options=how, run=RUN,
        progress=fractions.append,
    )  # fmt: skip
    assert [step.scale for step in found.steps] == [-2, -1, 0, 1, 2]
    odds = [step.vector.log_odds or 0.0 for step in found.steps]
    assert odds == sorted(odds)
    assert odds[-1] - odds[0] > 2
    for step in found.steps:
        assert step.scale == 0 or step.random is not None
        if step.random is not None and step.interval is not None:
            assert abs((step.random.log_odds or 0.0) - odds[2]) < abs(odds[0] - odds[2])
            assert step.interval.low <= (step.vector.log_odds or 0.0) <= step.interval.high
    zero = found.steps[2].vector
    assert (zero.text_ratio, zero.reply_ratio) == (1, 1)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert len(found.questions) == len(zero.replies) == 2
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["n_pairs"] == 2


def test_odds_and_perplexities_are_those_of_plain_numpy(base: Path, tmp_path: Path) -> None:
    """A vector behind the last layer is one sum before the output's norm."""
    path = planted(base, tmp_path / "v.gguf")
    (part,) = VectorFile.read(path).parts
    prompt, after = (200, 20, 30, 40), (50, 60, 70)
    states, _ = run(base, [*prompt, *after])
    output, norm = weight(base, "output.weight"), weight(base, "output_norm.weight")

    def logprobs(scale: float) -> Array:
        h = states[-1][len(prompt) - 1 : -1] + scale * part.values[0]
        h = h / np.sqrt((h**2).mean(axis=1, keepdims=True) + 1e-5) * norm
        return log_softmax(np.asarray(h @ output.T, np.float32))

    text = Passage(prompt, after)
    jobs = [(BASE, text), (Steering("v", 1.0), text), (Steering("v", -2.5), text)]
    with open_model(base, {"v": path}, RUN) as model:
        found = dict(next_logits(model, jobs))
    for i, scale in enumerate((0.0, 1.0, -2.5)):
        wanted = logprobs(scale)
        np.testing.assert_allclose(log_softmax(found[i]), wanted, atol=2e-2)
        mean = np.mean([wanted[row, each] for row, each in enumerate(after)])
        assert mean_logprob(found[i], after) == pytest.approx(mean, abs=2e-2)


def test_the_unit_is_the_length_relative_to_the_state(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    learn(base, answers, tmp_path / "v.gguf", scale=0.3)
    how = SweepOptions(scales=[1], n_random=0, n_replies=0)
    found = sweep(base, tmp_path / "v.gguf", answers, options=how, run=RUN)
    assert found.unit == pytest.approx(0.3, rel=0.25)  # of other pairs, which are few
    assert found.steps[1].random is None
    assert found.steps[1].vector.reply_ratio is None


def test_the_floor_is_the_mean_of_several_and_their_spread(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    path = planted(base, tmp_path / "v.gguf", size=1.0)
    how = SweepOptions(scales=[2], n_random=3, n_replies=0, seed=7)
    step = sweep(base, path, answers, options=how, run=RUN).steps[1]
    each = []
    for i in range(3):
        one = tmp_path / f"{i}.gguf"
        parts = random_parts(VectorFile.read(path).parts, [7, i])
        write_vector(one, parts, architecture="llama")
        alone = replace(how, n_random=1)
        found = sweep(base, one, answers, options=alone, run=RUN).steps[1]
        assert found.random_spread is None
        each.append(found.vector.log_odds or 0.0)
    assert step.random is not None
    assert step.random.log_odds == pytest.approx(np.mean(each), rel=1e-3)
    assert step.random_spread == pytest.approx(np.std(each, ddof=1), rel=1e-3)


def test_the_largest_scale_within_the_bound_is_written(
    base: Path, answers: Path, tmp_path: Path
) -> None:
    path = planted(base, tmp_path / "v.gguf", size=1.0)
    scales = [0.1, 0.2, 100.0]
    how = SweepOptions(scales=scales, n_random=0, n_replies=0, bound=2)
    out = tmp_path / "out.gguf"
    found = sweep(base, path, answers, options=how, run=RUN, output=out)
    assert [step.fluent for step in found.steps] == [True, True, True, False]
    assert found.suggested == 0.2
    before, after = (VectorFile.read(each).parts[0] for each in (path, out))
    np.testing.assert_allclose(after.values, 0.2 * before.values, rtol=1e-5)
    how = SweepOptions(scales=[100], n_random=0, n_replies=0, bound=2)
    said = refused(
        lambda: sweep(base, path, answers, options=how, run=RUN, output=tmp_path / "no.gguf")
    )
    assert "is within the bound of 2 at none of the scales" in said
    assert not (tmp_path / "no.gguf").exists()


def test_replies_are_scored(base: Path, answers: Path, tmp_path: Path) -> None:
    path, seen = planted(base, tmp_path / "v.gguf", size=100.0), list[tuple[str, str]]()

    def score(question: str, reply: str) -> float:
        seen.append((question, reply))
        return float(len(reply))

    how = SweepOptions(scales=[1], n_random=0, n_replies=2, n_tokens=3, match="^a+$")
    found = sweep(base, path, answers, options=how, run=RUN)
    assert found.steps[1].vector.score == 1
    assert found.steps[1].vector.replies == ("aaa", "aaa")
    assert found.steps[1].vector.repeats == 0
    assert found.steps[0].vector.score == 0
    how = SweepOptions(scales=[1], n_random=0, n_replies=2, n_tokens=3, score=score)
    assert sweep(base, path, answers, options=how, run=RUN).steps[1].vector.score == 3
    assert seen[-1][1] == "aaa"
    assert seen[-1][0] in TEXTS


@pytest.mark.parametrize("layer", range(N_LAYER))  # the first one's reach the cache
def test_a_scale_that_is_too_large_for_numbers_is_said_in_its_row(
    base: Path, answers: Path, tmp_path: Path, layer: int
) -> None:
    path = planted(base, tmp_path / "v.gguf", 1e38, layer)
    how = SweepOptions(scales=[1e-38, 1000], n_random=1, n_replies=1, n_tokens=3, match="a")
    found = sweep(base, path, answers, options=how, run=RUN)
    zero, one, wild = found.steps
    assert wild.vector == Effect(None, None, None, None, None, None)
    assert (wild.interval, wild.fluent) == (None, False)
    assert one.vector.text_ratio == pytest.approx(1, abs=0.1)
    assert one.vector.replies
    json.dumps(found.to_dict(), allow_nan=False)
    how = SweepOptions(scales=[1e-38], n_random=1, n_replies=1, n_tokens=3, match="a")
    alone = sweep(base, path, answers, options=how, run=RUN)
    for step, other in zip(alone.steps, (zero, one), strict=True):  # it reached no other
        assert step.vector.replies == other.vector.replies
        assert step.vector.log_odds == pytest.approx(other.vector.log_odds, abs=1e-4)


def test_sweep_refuses(base: Path, pairs: Path, answers: Path, tmp_path: Path) -> None:
    path = planted(base, tmp_path / "v.gguf")
    assert "scales has none but 0" in refused(lambda: SweepOptions(scales=[0]))
    said = refused(lambda: SweepOptions(match="("))
    assert said.startswith("match is '(', which is not a regular expression: ")
    said = refused(lambda: SweepOptions(match="a", score=lambda q, r: 1.0))
    assert said == "match and score exclude each other; give one of them"
    said = refused(lambda: SweepOptions(scales=[float("nan")]))
    assert said == "each of scales must be a number in [-1000, 1000], got nan"
    how = SweepOptions(score=lambda q, r: float("inf"), n_replies=1, n_tokens=1)
    said = refused(lambda: sweep(base, path, answers, options=how, run=RUN))
    assert said == "what score returns must be a finite number, got inf"
    said = refused(lambda: sweep(base, path, answers, output=answers, overwrite=True, run=RUN))
    assert said == f"{answers}: is the file of pairs that is read; name another output"
    assert "n_replies is 0" in refused(lambda: SweepOptions(match="a", n_replies=0))
    said = refused(lambda: sweep(base, path, pairs, run=RUN))
    assert said.startswith(f"{pairs}: its pairs have no answers whose odds could be told")
    said = refused(lambda: sweep(base, path, pairs, options=SweepOptions(match="a"), run=RUN))
    assert said.startswith(f"{pairs}: its pairs are texts, to which nothing can be replied")
    text = tmp_path / "t.txt"
    text.write_text("short")
    said = refused(lambda: sweep(base, path, answers, options=SweepOptions(text=text), run=RUN))
    assert said == f"{text}: has too few tokens to tell anything; give a longer text"
    refused(lambda: sweep(base, answers, answers, run=RUN), ag.AdapterFormatError)


# match -------------------------------------------------------------------------------------------


def averaging(path: Path) -> Path:
    """A base whose first layer alone looks at other tokens, at all of them alike: what a long
    prompt does there is nearly the same sum at each token.
    """
    zero = np.zeros((N_EMBD, N_EMBD), np.float32)
    half = np.zeros((tiny_base.N_KV, N_EMBD), np.float32)
    replaced = {"blk.0.attn_q.weight": (zero, None), "blk.0.attn_k.weight": (half, None)}
    replaced["blk.1.attn_output.weight"] = (zero, None)
    return tiny_base.write_base(path, template=PLAIN, replace=replaced)


def test_a_prompt_that_is_a_sum_is_matched(tmp_path: Path) -> None:
    base = averaging(tmp_path / "base.gguf")
    (tmp_path / "s.txt").write_text("zzzz qqqq " * 20)
    questions = write(tmp_path / "q.jsonl", *({"prompt": text} for text in TEXTS))
    how, fractions = MatchOptions(n_tokens=6), list[float]()
    found = match(
        base, tmp_path / "s.txt", questions, tmp_path / "v.gguf", options=how, run=RUN,
        progress=fractions.append,
    )  # fmt: skip
    assert found.recovered > 0.4
    assert found.random < 0.1
    assert found.interval.low <= found.recovered <= found.interval.high
    assert found.kl > 0.05
    with ag.Model(base, n_ctx=512, n_threads=1) as model:
        n = len(model.tokenize("<|user|>#" + ("zzzz qqqq " * 20).strip() + "<|end|>"))
    assert found.tokens_saved == n
    assert (found.n_train, found.n_held_out) == (4, 2)
    assert fractions == sorted(fractions)
    assert max(c.recovered for c in found.candidates) == pytest.approx(
        next(
            c.recovered
            for c in found.candidates
            if (c.layers, c.scale) == (found.layers, found.scale)
        )
    )
    file = VectorFile.read(tmp_path / "v.gguf")
    assert file.layers == found.layers
    assert json.loads(file.origin.validation)["recovered"] == round(found.recovered, 4)
    json.dumps(found.to_dict(), allow_nan=False)


def test_match_refuses(base: Path, tmp_path: Path) -> None:
    prompt, out = tmp_path / "s.txt", tmp_path / "v.gguf"
    prompt.write_text("Be brief.")
    lines = [{"prompt": text} for text in TEXTS]
    questions = write(tmp_path / "q.jsonl", *lines)
    how = MatchOptions(layers=[7], n_tokens=2)
    said = refused(lambda: match(base, prompt, questions, out, options=how, run=RUN))
    assert said == "layers has 7, but base.gguf has layers 0 to 1"
    system = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    questions = write(tmp_path / "q.jsonl", {"prompt": system}, *lines)
    said = refused(lambda: match(base, prompt, questions, out, run=RUN))
    assert said.startswith(f"{questions}: line 1: has a system message, beside the one of the")
    questions = write(tmp_path / "q.jsonl", *lines[:2])
    said = refused(lambda: match(base, prompt, questions, out, run=RUN))
    assert said.startswith(f"{questions}: has 2 questions, expected at least 4")
    prompt.write_text("z" * 1100)
    questions = write(tmp_path / "q.jsonl", *lines)
    said = refused(lambda: match(base, prompt, questions, out, run=RUN))
    assert said.startswith(f"{questions}: line 1: with the prompt and a reply it has 1,1")
    prompt.write_text("z" * 100_000)
    said = refused(lambda: match(base, prompt, questions, out, run=RUN))
    assert said.startswith(f"{questions}: line 1: with the prompt and a reply it has more tokens")
    said = refused(lambda: match(base, prompt, questions, prompt, overwrite=True, run=RUN))
    assert said == f"{prompt}: is the prompt's file that is read; name another output"
    assert not out.exists()
