"""Vectors and combinations: where each begins, whose cells are whose, and that what the API gives
is what the native library gives when it is told the same by hand, and plain numpy.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import alora_gguf as ag
from alora_gguf.engine.llama_context import Run
from alora_gguf.engine.tokens import BASE, Provenance
from alora_gguf.gguf.header import read_header
from alora_gguf.verification.probe import open_probe
from tests.support import inside, steered, tiny_base
from tests.support.batches import slow_batches, threads_of_batches
from tests.support.files import Files, write_hybrid_files
from tests.support.gguf_bytes import tensor_array

GREEDY = ag.Sampling(temperature=0.0)
PROMPT = [(11 * i) % 250 for i in range(40)]
N = len(PROMPT)
Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return steered.write_all(tmp_path_factory.mktemp("vectors"))


@pytest.fixture
def model(files: Files, vectors: Mapping[str, Path]) -> Iterator[ag.Model]:
    with files.model(adapters={"sure": files.alora, "lora": files.lora, **vectors}) as opened:
        yield opened


def by_hand(
    model: ag.Model, tokens: Sequence[int], stages: Sequence[tuple[int, Mapping[str, float]]]
) -> Logits:
    """The logits after `tokens`, from position to position computed with these adapters: the
    native library's own calls, on a sequence of its own.
    """
    engine, bank = inside.engine(model), inside.runtime(model).bank
    native, seq, made = engine.native, engine.allocate(), []
    for first, scales in stages:
        slots = [bank._loaded[name][1] for name in scales]
        if len(slots) == 1:
            native.activate(engine.ctx, seq, first, slots[0], *scales.values())
            continue
        made.append(native.combine(engine.ctx, slots, [*scales.values()]))
        native.activate(engine.ctx, seq, first, made[-1], 1.0)
    (logits,) = engine.decode([Run(seq, tokens)])
    engine.drop(seq)
    engine.collect()
    for slot in made:
        native.adapter_remove(engine.ctx, slot, "by hand")
    assert logits is not None
    return logits


def read(model: ag.Model, tokens: Sequence[int], adapter: Any, scale: float = 1.0) -> Logits:
    with model.session() as session:
        session.sync(tokens, adapter=adapter, scale=scale)
        return inside.last_logits(session).copy()


def beginning(session: ag.Session) -> bytes:
    """The cells before the prompt's last."""
    with session.fork() as fork:
        fork.rewind(N - 1)
        return fork.state()


def begun(session: ag.Session) -> list[tuple[int, dict[str, float]]]:
    """Positions, and the names and scales of what computes from there on."""
    files = {file.identity: name for name, file in session.model.adapters.items()}
    return [
        (at, {files[identity]: scale for identity, scale in by.acting})
        for at, by in session.provenance
    ]


# Where they begin --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["add", "out", "half", "norm"])
def test_a_vector_acts_on_the_reply(model: ag.Model, name: str) -> None:
    """From the last token of the prompt on, whose output chooses the reply's first one."""
    with model.session() as session:
        assert session.append(PROMPT).evaluated == N
        cells = beginning(session)
        reply = session.generate(adapter=name, scale=1.5, max_tokens=4, sampling=GREEDY)
        reply.read()
        assert (reply.timings.reused, reply.timings.evaluated) == (N - 1, 1)
        assert begun(session) == [(0, {}), (N - 1, {name: 1.5})]
        tokens = list(PROMPT)
        for token in reply.tokens:  # each by itself, by hand
            expected = by_hand(model, tokens, [(N - 1, {name: 1.5})])
            assert int(expected.argmax()) == token
            tokens.append(token)
        assert beginning(session) == cells  # the base's, as they were


@pytest.mark.parametrize("name", ["add", "out", "half", "norm"])
def test_it_is_what_the_native_library_and_numpy_make_of_it(
    model: ag.Model, files: Files, vectors: Mapping[str, Path], name: str, tmp_path: Path
) -> None:
    found = read(model, PROMPT, name, 2.0)
    assert np.array_equal(found, by_hand(model, PROMPT, [(N - 1, {name: 2.0})]))
    assert not np.allclose(found, read(model, PROMPT, None), rtol=0.05)
    # at the last layer alone, numpy needs no more than the stream behind it
    path = steered.write(
        tmp_path / "last.gguf", ag.VectorFile.read(vectors[name]).parts[0].operation
    )
    model.load_adapter("last", path)
    parts = [(part, -0.75) for part in ag.VectorFile.read(path).parts]
    assert [part.layer for part, _ in parts] == [tiny_base.N_LAYER - 1]
    with open_probe(model, {}, n_tokens=N, n_rows=1) as probe:
        h = probe.read(PROMPT, 1).layers[tiny_base.N_LAYER - 1]
    expected = _logits(files, steered.edited(h.astype(np.float64), parts))[0]
    found = read(model, PROMPT, "last", -0.75)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def _normed(h: NDArray[np.float64]) -> NDArray[np.float64]:
    normed: NDArray[np.float64] = h / np.sqrt((h**2).mean(axis=-1, keepdims=True) + 1e-5)
    return normed


def _logits(files: Files, h: NDArray[np.float64]) -> NDArray[np.float64]:
    output = tensor_array(read_header(files.base), "output.weight").astype(np.float64)
    return _normed(h) @ output.T


def test_each_part_begins_where_it_would_alone(model: ag.Model, files: Files) -> None:
    tokens = [*PROMPT, *files.invocation, 3, 4]
    n, mixed = len(tokens), {"lora": 0.5, "add": 2.0}
    stages = [(0, {"lora": 0.5}), (n - 1, mixed)]
    assert np.array_equal(read(model, tokens, mixed), by_hand(model, tokens, stages))
    with model.session() as session:
        session.sync(tokens, adapter=mixed)
        assert begun(session) == stages
    mixed = {"out": 1.0, "sure": 1.5, "add": 0.5}
    stages = [(N, {"sure": 1.5}), (n - 1, mixed)]
    assert np.array_equal(read(model, tokens, mixed), by_hand(model, tokens, stages))
    with model.session() as session:
        session.sync(tokens, adapter=mixed)
        assert begun(session) == [(0, {}), *stages]


def test_with_an_invocation_of_its_own_and_from_the_start(
    model: ag.Model, files: Files, tmp_path: Path
) -> None:
    path = steered.write(tmp_path / "at.gguf", invocation=files.invocation, seed=8)
    made = model.load_adapter("at", path)
    always = model.load_adapter("always", path, from_start=True)
    assert (made.begins, always.begins) == ("invocation", "start")
    assert (made.invocation, always.invocation) == (files.invocation, ())
    tokens = [*PROMPT, *files.invocation, 3, 4]
    assert np.array_equal(read(model, tokens, "at"), by_hand(model, tokens, [(N, {"at": 1.0})]))
    expected = by_hand(model, tokens, [(0, {"at": 1.0})])
    assert np.array_equal(read(model, tokens, "always"), expected)
    with pytest.raises(ag.InvocationNotFoundError, match="adapter 'at' begins at its invocation"):
        read(model, PROMPT, "at")
    with model.session() as session:
        session.append(PROMPT)
        verdict = session.invoke("always", [3], max_tokens=2)
        assert verdict.timings.reuse_note == (
            "'always' is on from the first token: it recomputes every token"
        )
        verdict = session.invoke("at", [3], max_tokens=2)  # its invocation is appended
        assert verdict.timings.evaluated == 1 + len(files.invocation)


def test_what_is_scored_is_the_reply(model: ag.Model) -> None:
    text = [*PROMPT, *PROMPT[5:15]]
    for adapter in ("add", {"lora": 1.0, "out": 1.0}):
        start = [(0, {"lora": 1.0})] if isinstance(adapter, dict) else []
        whole = adapter if isinstance(adapter, dict) else {adapter: 1.0}
        with model.session() as session:
            found = session.score(text, first=N, adapter=adapter)
            assert begun(session)[-1] == (N - 1, whole)
        assert len(found) == 10
        for i, each in enumerate(found):
            row = by_hand(model, text[: N + i], [*start, (N - 1, whole)]).astype(np.float64)
            row -= row.max()
            expected = row[each.token] - np.log(np.exp(row).sum())
            assert abs(each.logprob - expected) < 1e-4


def test_scoring_begins_before_the_invocation(model: ag.Model, files: Files) -> None:
    text = [*PROMPT, *files.invocation, 3, 4]
    with model.session() as session:
        session.score(text, first=10, adapter={"sure": 1.0, "add": 0.5})
        assert begun(session) == [(0, {}), (9, {"add": 0.5}), (N, {"add": 0.5, "sure": 1.0})]
        found = inside.last_logits(session)
    stages = [(9, {"add": 0.5}), (N, {"sure": 1.0, "add": 0.5})]
    assert np.allclose(found, by_hand(model, text, stages), atol=1e-4)


def test_a_text_that_is_embedded_has_no_reply(
    model: ag.Model, files: Files, tmp_path: Path
) -> None:
    """It acts from the first token on: the last layer's, by numpy."""
    model.load_adapter("last", steered.write(tmp_path / "last.gguf"))
    parts = [(part, 1.5) for part in ag.VectorFile.read(tmp_path / "last.gguf").parts]
    with open_probe(model, {}, n_tokens=N, n_rows=N) as probe:
        h = probe.read(PROMPT, N).layers[tiny_base.N_LAYER - 1]
    expected = _normed(steered.edited(h.astype(np.float64), parts)).mean(axis=0)
    expected /= np.linalg.norm(expected)
    found = model.embed([PROMPT], adapter="last", scale=1.5).vectors[0]
    assert np.abs(found - expected).max() < 1e-4
    # several, of which the second context keeps none
    lora = model.embed([PROMPT, PROMPT[:7]], adapter={"lora": 0.5, "last": 1.0, "add": 0.0})
    assert (
        np.abs(lora.vectors[0] - model.embed([PROMPT], adapter="lora", scale=0.5).vectors[0]).max()
        > 1e-3
    )
    again = model.embed([PROMPT, PROMPT[:7]], adapter={"last": 1.0, "lora": 0.5})
    assert np.array_equal(lora.vectors, again.vectors)
    model.unload_adapter("last")
    assert np.abs(model.embed([PROMPT]).vectors[0] - found).max() > 1e-3


# Scales ------------------------------------------------------------------------------------------


def test_scale_zero_is_the_base_bit_for_bit(model: ag.Model) -> None:
    base = read(model, PROMPT, None)
    for adapter, scale in (
        ("add", 0.0),
        ({"add": 0.0, "out": 0.0}, 1.0),
        ({"add": 1, "out": 2}, 0),
    ):
        assert np.array_equal(read(model, PROMPT, adapter, scale), base)
    with model.session() as session:
        session.append(PROMPT)
        assert session.append([1], adapter={"sure": 0.0, "add": 0.0}).evaluated == 1
        assert session.provenance == ((0, BASE),)


def test_scales_multiply_and_one_of_a_mapping_is_itself(model: ag.Model) -> None:
    model.combine("named", {"add": 0.5, "out": 0.25})
    alike: list[tuple[Any, float]] = [
        ({"add": 0.5, "out": 0.25}, 2.0),
        ({"out": 0.5, "add": 1.0}, 1.0),
        ("named", 2.0),
        ({"named": 4.0}, 0.5),
        ({"named": 2.0, "half": 0.0}, 1.0),
        ({"named": 1.0, "add": 0.5, "out": 0.25}, 1.0),
    ]
    with model.session() as session:
        session.append(PROMPT)
        for i, (adapter, scale) in enumerate(alike):
            timings = session.sync(PROMPT, adapter=adapter, scale=scale)
            assert (timings.reused, timings.evaluated) == ((N - 1, 1) if i == 0 else (N, 0))
        session.sync(PROMPT, adapter="add", scale=3.0)
        assert session.sync(PROMPT, adapter={"add": 1.5, "out": 0.0}, scale=2.0).reused == N
        assert session.sync(PROMPT, adapter={"add": 3.0}).evaluated == 0
        note = session.sync(PROMPT, adapter="named").reuse_note
        assert (
            note
            == f"tokens from {N - 1} on were in the cache, but computed by an adapter at scale 3"
        )
        note = session.sync(PROMPT).reuse_note
        assert (
            note == f"tokens from {N - 1} on were in the cache, but computed by 2 adapters together"
        )


# Cells -------------------------------------------------------------------------------------------


def test_several_asked_at_once_share_the_conversations_cells(model: ag.Model) -> None:
    asked = ["add", "out", {"half": 3.0}, "norm", None, {"add": 1.0, "norm": 0.5}, "sure"]
    with model.session() as session:
        session.append(PROMPT)
        state = session.state()
        verdicts = session.invoke_many([ag.Invocation(each, max_tokens=5) for each in asked])
        assert session.state() == state
        assert [each.adapter for each in verdicts] == asked
        assert [v.timings.evaluated for v in verdicts[:6]] == [1, 1, 1, 1, 0, 1]
        assert [v.timings.reuse_note for v in verdicts] == [""] * 7
        for each, verdict in zip(asked[:6], verdicts, strict=False):
            with session.fork() as fork:
                reply = fork.generate(adapter=each, max_tokens=5, sampling=GREEDY)
                reply.read()
            assert tuple(reply.tokens) == verdict.tokens
        assert len({v.tokens for v in verdicts}) == 7


def test_the_end_that_a_vector_wrote_is_read_once_for_several(model: ag.Model) -> None:
    with model.session() as session:
        session.append(PROMPT)
        n = N + len(session.generate(adapter="add", max_tokens=30, sampling=GREEDY).read())
        n = len(session.tokens)
        verdicts = session.invoke_many(["out", "norm", None], cancel=None)
        assert sum(v.timings.evaluated for v in verdicts) <= (n - N + 1) + 3
        with model.session() as fresh:
            fresh.append(session.tokens)
            expected = fresh.invoke_many(["out", "norm", None])
        assert [v.tokens for v in verdicts] == [v.tokens for v in expected]


def test_who_computed_what_in_words(model: ag.Model, tmp_path: Path) -> None:
    model.combine("calm", {"add": 1.0, "half": 1.0})
    with model.session() as session:
        session.sync(PROMPT, adapter={"add": 0.5, "out": 1.0})
        (_, span) = session.spans
        names = {"add at 0.5", "out"}
        assert (span.begin, span.end, span.scale) == (N - 1, N, 1.0)
        assert span.adapter is not None
        assert set(span.adapter.split(" + ")) == names
        assert span.adapter in str(model.cache_report())
        session.sync(PROMPT, adapter="calm")
        assert session.spans[-1] == ag.CacheSpan(N - 1, N, "calm", 1.0)
        session.sync(PROMPT, adapter="norm", scale=2.0)
        assert session.spans[-1] == ag.CacheSpan(N - 1, N, "norm", 2.0)


def test_saved_cells_of_vectors_need_the_same_vectors(
    model: ag.Model, files: Files, vectors: Mapping[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "talk.alora"
    with model.session() as session:
        session.append(PROMPT)
        session.generate(adapter={"add": 1.0, "out": 0.5}, max_tokens=3, sampling=GREEDY).read()
        session.save(path)
        tokens, spans, last = session.tokens, session.provenance, inside.last_logits(session)
        with model.restore_session(path) as restored:
            assert (restored.tokens, restored.provenance) == (tokens, spans)
            # what goes on with them goes on with their cells
            assert np.array_equal(inside.last_logits(restored), last)
    renamed = {"x": vectors["add"], "y": vectors["out"]}
    with files.model(adapters=renamed) as other, other.restore_session(path) as restored:
        assert restored.provenance == spans
        assert {name for span in restored.spans for name in (span.adapter or "").split(" + ")} == {
            "", "x", "y at 0.5"
        }  # fmt: skip
    only, missing = {"add": vectors["add"]}, r"'out' \(.*not loaded \(loaded: 'add'\)"
    with files.model(adapters=only) as other, pytest.raises(ag.SavedSessionError, match=missing):
        other.restore_session(path)
    changed = {"add": vectors["add"], "out": steered.write(tmp_path / "o.gguf", "project", seed=9)}
    wrong = "loaded as 'out' has other weights"
    with files.model(adapters=changed) as other, pytest.raises(ag.SavedSessionError, match=wrong):
        other.restore_session(path)


def test_where_the_memory_cannot_rewind(tmp_path: Path) -> None:
    files = write_hybrid_files(tmp_path)
    path = steered.write(tmp_path / "v.gguf", architecture="jamba", layers=(0, 1))
    with files.model(adapters={"v": path}) as model, model.session() as session:
        session.append(PROMPT[:-1])
        reply = session.generate(prompt=PROMPT, adapter={"v": 1.0}, max_tokens=3, sampling=GREEDY)
        reply.read()
        assert (reply.timings.reused, reply.timings.evaluated) == (N - 1, 1)
        assert begun(session) == [(0, {}), (N - 1, {"v": 1.0})]
        again = session.sync(PROMPT)
        assert (again.reused, again.evaluated) == (0, N)  # recurrent states have no positions
        assert np.allclose(inside.last_logits(session), read(model, PROMPT, None), atol=1e-4)


# Threads -----------------------------------------------------------------------------------------


N_REPLY = 60


@pytest.mark.usefixtures("patient")
def test_eight_threads_with_eight_vectors_share_batches(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = ["add", "project", "project_positive", "add_keep_norm"]
    paths = {
        f"v{i}": steered.write(
            tmp_path / f"v{i}.gguf", operations[i % 4], layers=(0, 1), seed=i, scale=2
        )
        for i in range(8)
    }
    with files.model(adapters={**paths, "lora": files.lora, "sure": files.alora}) as model:
        sessions = [model.session() for _ in range(8)]
        for i, session in enumerate(sessions):
            session.append([i, *PROMPT])
        chosen: list[Any] = [f"v{i}" for i in range(8)]
        chosen[3] = {"v3": 0.5, "v4": 1.0}
        chosen[4] = {"v3": 0.5, "v4": 1.0}  # one slot for both
        chosen[6] = {"sure": 1.0, "v6": 2.0}

        def reply(i: int) -> list[int]:
            prompt = [i, *PROMPT, *(files.invocation if i == 6 else ())]
            made = sessions[i].generate(
                prompt=prompt, adapter=chosen[i], max_tokens=N_REPLY, sampling=GREEDY
            )
            made.read()
            return made.tokens

        alone = [reply(i) for i in range(8)]
        assert len({tuple(each) for each in alone}) >= 7  # two have the same vectors
        for session in sessions:
            session.rewind(30)
        before = model.stats().n_reserves
        with slow_batches(0.005), threads_of_batches() as batches, ThreadPoolExecutor(8) as pool:
            together = list(pool.map(reply, range(8)))
        assert together == alone
        assert len(batches) < 3 * N_REPLY  # and not 8 of them
        assert model.stats().n_reserves == before
        for session in sessions:
            session.close()
        inside.engine(model).collect()
        bank = inside.runtime(model).bank
        with bank.using({"v0": 1.0, "v1": 1.0}, 1.0):
            assert len(bank._mixed) == 1  # those of the replies are gone
        assert not bank._mixed
        assert not +bank._in_use
        for name in paths:
            model.unload_adapter(name)
        assert model.stats().n_vectors == 0


# Loading, naming, unloading ----------------------------------------------------------------------


def test_kinds_are_told_apart_and_all_are_loaded_or_none(
    files: Files, vectors: Mapping[str, Path], tmp_path: Path
) -> None:
    with files.model(adapters={"sure": files.alora, "add": vectors["add"]}) as model:
        kinds = {name: type(file) for name, file in model.adapters.items()}
        assert kinds == {"sure": ag.AdapterFile, "add": ag.VectorFile}
        assert (model.stats().n_adapters, model.stats().n_vectors) == (1, 1)
        bank = inside.runtime(model).bank
        wide = ag.write_vector(
            tmp_path / "wide.gguf",
            [ag.Directions(0, "block", "add", 1.0, np.ones(128, np.float32))],
            architecture="llama",
        )
        high = steered.write(tmp_path / "high.gguf", layers=(7,))
        for path, problem in (
            (wide.path, "have 128 numbers, but .* is 64 wide"),
            (high, "layer 7"),
        ):
            with pytest.raises(ag.AdapterMismatchError, match=problem):
                bank.load({"out": vectors["out"], "lora": files.lora, "x": path})
        assert model.adapters.keys() == kinds.keys()
        assert (model.stats().n_adapters, model.stats().n_vectors) == (1, 1)


def test_nothing_stays_of_what_the_library_refuses_last(
    files: Files, vectors: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with files.model(adapters={}) as model:
        native, seen = inside.engine(model).native, []
        real = native.vector_add

        def add(ctx: int, parts: Any, n_embd: int, what: str) -> int:
            seen.append(what)
            if len(seen) == 2:
                raise ag.AdapterError(f"{what}: there is no room")
            return real(ctx, parts, n_embd, what)

        monkeypatch.setattr(native, "vector_add", add)
        with pytest.raises(ag.AdapterError, match="there is no room"):
            inside.runtime(model).bank.load({"lora": files.lora, **vectors})
        assert not model.adapters
        assert (model.stats().n_adapters, model.stats().n_vectors) == (0, 0)


def test_a_combination_has_a_name(model: ag.Model, files: Files) -> None:
    made = model.combine("calm", {"sure": 1, "add": 0.5})
    assert made == model.adapter("calm") == model.adapters["calm"]
    assert (made.name, made.parts, made.path) == ("calm", {"sure": 1.0, "add": 0.5}, None)
    assert (made.invocation, made.begins) == (files.invocation, "invocation")
    assert set(made.targets) == {
        *model.adapters["sure"].targets, *model.adapters["add"].targets
    }  # fmt: skip
    assert made.rank == model.adapters["sure"].rank
    identities = [(model.adapters[each].identity, s) for each, s in made.parts.items()]
    assert made.identity == Provenance.of_parts(identities).identity
    assert hash(made)
    nested = model.combine("calmer", {"calm": 0.5, "out": 1})
    assert nested.invocation == files.invocation
    tokens = [*PROMPT, *files.invocation]
    flat = {"sure": 0.5, "add": 0.25, "out": 1.0}
    assert np.array_equal(read(model, tokens, "calmer"), read(model, tokens, flat))
    with pytest.raises(ag.AdapterInUseError, match="'add' cannot be unloaded now: the combination "
                       "'calm' has it; unload that first"):  # fmt: skip
        model.unload_adapter("add")
    with pytest.raises(ag.AdapterInUseError, match="the combination 'calmer' has it"):
        model.unload_adapter("calm")
    model.unload_adapter("calmer")
    model.unload_adapter("calm")
    model.unload_adapter("add")
    assert "calm" not in model.adapters


def test_what_a_combination_cannot_be(model: ag.Model, files: Files, tmp_path: Path) -> None:
    other = steered.write(tmp_path / "at.gguf", invocation=[5, 6], seed=8)
    model.load_adapter("at", other)
    wrong: list[tuple[Any, type[ag.AloraError], str]] = [
        ({}, ag.InputError, "is an empty mapping: name adapters with their scales, or None"),
        ({"add": 1, "nope": 1}, ag.UnknownAdapterError, "no adapter named 'nope' is loaded"),
        (
            {"sure": 1, "at": 1},
            ag.InputError,
            r"'sure' begins at the invocation \[.*'at' at \[5, 6\]",
        ),
        ({"add": "1"}, ag.InputError, r"\['add'\], a scale, must be a finite number .* got '1'"),
        ({"add": True}, ag.InputError, "must be a finite number"),
        ({"add": float("nan")}, ag.InputError, "must be a finite number"),
        ({"add": 1001}, ag.InputError, r"in \[-1000.0, 1000.0\], got 1001"),
        ({3: 1.0}, ag.InputError, "maps 3 to a scale, expected an adapter's name"),
    ]
    with model.session() as session:
        session.append([*PROMPT, *files.invocation, 5, 6])
        for adapter, kind, problem in wrong:
            for call in (
                lambda adapter=adapter: model.combine("x", adapter),
                lambda adapter=adapter: session.generate(adapter=adapter),
                lambda adapter=adapter: session.invoke(adapter),
                lambda adapter=adapter: session.append([1], adapter=adapter),
                lambda adapter=adapter: session.score([1, 2], adapter=adapter),
                lambda adapter=adapter: session.reserve(1, adapter=adapter),
                lambda adapter=adapter: model.embed("the", adapter=adapter),
            ):
                with pytest.raises(kind, match=problem):
                    call()
        model.combine("weak", {"add": 100})
        with pytest.raises(
            ag.InputError, match="the scale of 'add' comes to 2000, expected one in"
        ):
            session.generate(adapter="weak", scale=20)
        assert session.tokens[-2:] == [5, 6]
    for name, kind, problem in (
        ("add", ag.AdapterInUseError, "'add' is loaded already"),
        ("weak", ag.AdapterInUseError, r"'weak' is loaded already \(a combination\)"),
        ("", ag.InputError, "an adapter's name must be"),
        ("self", ag.InputError, "the combination 'self' cannot contain itself"),
    ):
        with pytest.raises(kind, match=problem):
            model.combine(name, {"out": 1, "self": 1} if name == "self" else {"out": 1})
    with pytest.raises(ag.InputError, match=r"combine\(\): adapters must be a mapping"):
        model.combine("x", "add")  # type: ignore[arg-type]
    with pytest.raises(ag.InputError, match="adapter must be a string, a mapping or None"):
        session.append([1], adapter=3)  # type: ignore[arg-type]


def test_nothing_is_unloaded_under_a_reply(model: ag.Model) -> None:
    model.combine("calm", {"out": 1.0, "add": 0.5})
    bank, session = inside.runtime(model).bank, model.session()
    session.append(PROMPT)
    for adapter, held in (("add", ["add"]), ({"add": 1, "norm": 2}, ["add", "norm"])):
        reply = session.generate(adapter=adapter, max_tokens=9, sampling=GREEDY)
        next(reply)
        model.unload_adapter("calm")  # it is not used, and has to go first
        for name in held:
            with pytest.raises(ag.AdapterInUseError, match=f"'{name}' cannot be unloaded now"):
                model.unload_adapter(name)
        rest = reply.read()
        assert rest
        model.combine("calm", {"out": 1.0, "add": 0.5})
    model.combine("one", {"add": 0.5})
    for name, parts in (("calm", ["out", "add"]), ("one", ["add"])):  # names, which can go
        session.rewind(len(PROMPT))
        whole = session.generate(adapter=name, max_tokens=9, sampling=GREEDY).read()
        session.rewind(len(PROMPT))
        reply = session.generate(adapter=name, max_tokens=9, sampling=GREEDY)
        next(reply)
        model.unload_adapter(name)
        for part in parts:
            with pytest.raises(ag.AdapterInUseError, match=f"'{part}' cannot be unloaded now: "):
                model.unload_adapter(part)
        assert reply.read() == whole
    del reply
    gc.collect()
    model.unload_adapter("add")
    assert not bank._mixed


def test_a_combination_in_use_waits_for_nobody(model: ag.Model) -> None:
    """It has a slot already, so what others compute meanwhile does not hold it up."""
    bank, both = inside.runtime(model).bank, {"add": 1.0, "out": 0.5}

    def slot() -> int:
        with bank.using(both, 1.0) as use:
            return use.slot

    engine = inside.engine(model)
    with bank.using(both, 1.0) as first, ThreadPoolExecutor(1) as pool, engine.lock:
        # as while another thread computes
        assert pool.submit(slot).result(timeout=10) == first.slot


def test_one_alone_is_another_adapter_at_another_scale(model: ag.Model) -> None:
    own = model.adapter("add").identity
    whole, half, less = (model.combine(f"at {s}", {"add": s}) for s in (1.0, 0.5, 0.25))
    assert whole.identity == own
    assert len({own, half.identity, less.identity}) == 3
    assert half.identity == model.combine("again", {"at 1.0": 0.5}).identity
    with model.session() as session:  # cells are known by the file and the scale, as ever
        session.sync(PROMPT, adapter="at 0.5")
        assert session.provenance[-1] == (N - 1, Provenance.of(own, 0.5))


def test_names_while_others_unload(model: ag.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unloading(dict[str, Any]):
        """Another thread unloads each just before it is looked up."""

        def __getitem__(self, name: str) -> Any:
            self.pop(name)
            return super().__getitem__(name)

    bank, names = inside.runtime(model).bank, {*model.adapters}
    monkeypatch.setattr(bank, "_loaded", Unloading(bank._loaded))
    assert {*inside.runtime(model).names().values()} == names
    assert model.adapters.keys() == names
    assert repr(model).count(", ") >= len(names)
