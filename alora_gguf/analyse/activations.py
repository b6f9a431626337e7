"""Runs adapters on texts, and puts together what that shows. What layers compute is read as
verify() reads it; beside this, passages.py alone knows a model here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from alora_gguf.errors import DecodeError, InputError, ModelError, NotFiniteError
from alora_gguf.files import check_target
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.model import Model
from alora_gguf.options import ContextOptions
from alora_gguf.verification.probe import Probe, Reading, open_probe

from .activation_records import ActivationOptions, Activations
from .activation_sums import Cosines, Cut, Run, delta_cosines
from .dumping import write_states
from .passages import Part, Passage, Tokens, parts
from .random_adapters import Chance
from .rewriting import write_random
from .states import clusters
from .texts import read_texts
from .truncating import write_cut

Progress = Callable[[float], None]


def check_options(options: ActivationOptions, files: Sequence[AdapterFile]) -> None:
    """Raises InputError for what measure_activations() could not do, before it begins."""
    if options.dump is not None:
        if len(files) > 1:
            raise InputError(f"dump takes one adapter, got {len(files)}; analyse them one by one")
        check_target(Path(options.dump), what="safetensors")
    largest = max(file.rank for file in files)
    for rank in options.ranks:
        if rank >= largest:
            raise InputError(
                f"ranks has {rank}, but no adapter has a rank above {largest}; give lower ones"
            )


def measure_activations(
    base: Path,
    files: Sequence[AdapterFile],
    labels: Sequence[str],
    options: ActivationOptions,
    chance: Chance,
    progress: Progress | None = None,
) -> Activations:
    """Reads the texts with the base, with each adapter, and with random ones of its shapes."""
    path = None if options.text is None else Path(options.text)
    texts = None if path is None else read_texts(path)
    context = ContextOptions(n_threads=options.n_threads, n_seq_max=2, n_pooled=0, max_adapters=1)
    runs = [
        Run(label, file, str(i)) for i, (label, file) in enumerate(zip(labels, files, strict=True))
    ]
    with Model(base, options=context, n_gpu_layers=options.n_gpu_layers) as model:
        opened = any(not run.file.invocation for run in runs)
        n_texts = _lay_out(runs, parts(model, texts, opened=opened), options.max_tokens)
        if not n_texts:
            raise InputError(f"{path or 'the probes'}: has no token that an adapter would act on")
        done = _Counted(progress, n_texts * (1 + chance.n))
        common = _run_adapters(model, runs, options.ranks, done)
        random = [_run_random(model, runs, [chance.seed, i], done) for i in range(chance.n)]
    found = [run.result() for run in runs]
    if options.dump is not None:
        _dump(Path(options.dump), runs[0], base, path)
    cosines = tuple(delta_cosines(common, random)) if len(runs) > 1 else ()
    mean = np.mean([each.cosines for each in cosines], axis=0) if cosines else None
    return Activations(
        text=path,
        n_texts=n_texts,
        adapters=tuple(found),
        n_common=common.n if cosines else 0,
        cosines=cosines,
        clusters=() if mean is None else clusters(labels, mean),
    )


# Reading ----------------------------------------------------------------------------------------


def _lay_out(runs: Sequence[Run], found: Iterator[Part], max_tokens: int) -> int:
    """Passages for all, until one has so many adapted tokens; how many texts that makes."""
    n_texts = 0
    for part in found:
        passages = [Passage.of(part, run.file.invocation) for run in runs]
        if any(each.n_adapted < 1 for each in passages):
            continue
        n_texts += 1
        for run, passage in zip(runs, passages, strict=True):
            run.passages.append(passage)
        if any(sum(each.n_adapted for each in run.passages) >= max_tokens for run in runs):
            break
    return n_texts


class _Counted:
    """Progress in texts that were read."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def next(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done / self._total)


@contextmanager
def _probing(model: Model, runs: Sequence[Run], adapters: Mapping[str, Path]) -> Iterator[Probe]:
    passages = [each for run in runs for each in run.passages]
    n_tokens = max(len(each.tokens) for each in passages)
    n_rows = max(each.n_rows for each in passages)
    with open_probe(model, adapters, n_tokens=n_tokens, n_rows=n_rows) as probe:
        yield probe


def _run_adapters(
    model: Model, runs: Sequence[Run], ranks: Sequence[int], done: _Counted
) -> Cosines:
    """All texts with the base, with each adapter, and with what it is truncated to."""
    common = Cosines(len(runs))
    with tempfile.TemporaryDirectory(prefix="alora-gguf-") as folder:
        adapters = {run.name: Path(run.file.path) for run in runs}
        for run in runs:
            adapters |= _write_cuts(run, ranks, Path(folder))
        with _probing(model, runs, adapters) as probe:
            for number in range(len(runs[0].passages)):
                _read(probe, runs, number, common)
                done.next()
    return common


def _run_random(model: Model, runs: Sequence[Run], seed: Sequence[int], done: _Counted) -> Cosines:
    """All texts with a random adapter in the place of each; only one draw's states are kept."""
    common = Cosines(len(runs))
    with tempfile.TemporaryDirectory(prefix="alora-gguf-") as folder:
        adapters = {run.name: Path(folder) / f"{run.name}.gguf" for run in runs}
        for i, run in enumerate(runs):
            write_random(run.file, adapters[run.name], [*seed, i])
        with _probing(model, runs, adapters) as probe:
            for number in range(len(runs[0].passages)):
                deltas = []
                for run in runs:
                    passage = run.passages[number]
                    key = passage.tokens, passage.n_rows, run.name
                    drawn = probe.read(*key, first=passage.first)
                    run.add_random(_finite(drawn, f"{run.label}, with random weights"))
                    deltas.append(run.delta(drawn, number))
                common.add(deltas, _n_common(runs, number))
                done.next()
    for run in runs:
        run.end_draw()
    return common


def _write_cuts(run: Run, ranks: Sequence[int], folder: Path) -> dict[str, Path]:
    """The adapter at lower ranks, and then at its own."""
    paths, lower = dict[str, Path](), sorted({each for each in ranks if each < run.file.rank})
    for rank in (*lower, run.file.rank) if lower else ():
        cut = Cut(f"{run.name} rank {rank}", rank)
        paths[cut.name] = folder / f"{run.name}-{rank}.gguf"
        cut.kept = write_cut(run.file, paths[cut.name], rank, overwrite=False).kept
        run.cuts.append(cut)
    return paths


def _n_common(runs: Sequence[Run], number: int) -> int:
    return min(run.passages[number].n_common for run in runs)


def _read(probe: Probe, runs: Sequence[Run], number: int, common: Cosines) -> None:
    """One text, with everything that is not random."""
    bases, deltas = dict[tuple[Tokens, int], Reading](), []
    for run in runs:
        passage = run.passages[number]
        key = passage.tokens, passage.n_rows
        if key not in bases:
            bases[key] = _finite(probe.read(*key), "the base")
        base = bases[key]
        adapted = _finite(probe.read(*key, run.name, first=passage.first), run.label)
        if not adapted.same_rows(base, passage.n_before):
            raise DecodeError(
                f"{run.label}: changes what is computed before its invocation; this is a bug of "
                "alora-gguf or llama.cpp, please report it"
            )
        if not base.layers:
            raise ModelError(
                "llama.cpp's graph of this architecture does not name what its layers compute, so "
                "their states cannot be read"
            )
        run.add(base, adapted, passage.n_adapted)
        deltas.append(run.delta(adapted, number))
        for cut in run.cuts:
            less = _finite(probe.read(*key, cut.name, first=passage.first), cut.name)
            cut.add(adapted, less, passage.n_adapted)
    common.add(deltas, _n_common(runs, number))


def _finite(reading: Reading, whose: str) -> Reading:
    if (where := reading.not_finite) is not None:
        raise NotFiniteError(
            f"{whose}: {where} holds values that are not finite, so nothing can be measured there"
        )
    return reading


def _dump(path: Path, run: Run, base: Path, text: Path | None) -> None:
    """H and h_delta by layer, and where their rows come from."""
    tensors = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int32]]]()
    for layer in run.base:
        h, adapted = np.concatenate(run.base[layer]), np.concatenate(run.adapted[layer])
        tensors[f"h.{layer}"], tensors[f"h_delta.{layer}"] = h, adapted - h
    places = [
        (number, position, passage.tokens[position])
        for number, passage in enumerate(run.passages)
        for position in range(len(passage.tokens) - passage.n_adapted, len(passage.tokens))
    ]
    for name, column in zip(("text", "position", "token"), zip(*places, strict=True), strict=True):
        tensors[name] = np.array(column, np.int32)
    about = {"adapter": run.file.path, "base": base, "text": text or "probes"}
    write_states(path, tensors, {name: str(value) for name, value in about.items()})
