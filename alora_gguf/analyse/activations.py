"""Runs adapters on texts, and puts together what that shows. What layers compute is read as
verify() reads it; beside this, passages.py alone knows a model here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from alora_gguf.errors import DecodeError, InputError, ModelError, NotFiniteError
from alora_gguf.files import check_target
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.model import Model
from alora_gguf.options import ContextOptions
from alora_gguf.verification.probe import (
    Hidden,
    Probe,
    Reading,
    changes,
    divergence,
    open_probe,
)

from .activation_records import (
    ActivationOptions,
    Activations,
    AdapterActivations,
    DeltaCosines,
    LayerActivations,
    LayerStates,
    RankLoss,
)
from .dumping import write_states
from .factors import Doubles
from .passages import Part, Passage, Tokens, parts
from .rewriting import write_random
from .states import FEWEST, cka, clusters, dimension, gram, mean_cosine
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
    seed: int,
    progress: Progress | None = None,
) -> Activations:
    """Reads the texts with the base, with each adapter, and with a random one of its shapes."""
    path = None if options.text is None else Path(options.text)
    texts = None if path is None else read_texts(path)
    context = ContextOptions(n_threads=options.n_threads, n_seq_max=2, n_pooled=0, max_adapters=1)
    runs = [
        _Run(label, file, str(i)) for i, (label, file) in enumerate(zip(labels, files, strict=True))
    ]
    common = _Common(len(runs))
    with Model(base, options=context, n_gpu_layers=options.n_gpu_layers) as model:
        opened = any(not run.file.invocation for run in runs)
        n_texts = _lay_out(runs, parts(model, texts, opened=opened), options.max_tokens)
        if not n_texts:
            raise InputError(f"{path or 'the probes'}: has no token that an adapter would act on")
        with _written(runs, options.ranks, seed) as adapters:
            passages = [each for run in runs for each in run.passages]
            n_tokens = max(len(each.tokens) for each in passages)
            n_rows = max(each.n_rows for each in passages)
            with open_probe(model, adapters, n_tokens=n_tokens, n_rows=n_rows) as probe:
                for number in range(n_texts):
                    _read(probe, runs, number, common)
                    if progress is not None:
                        progress((number + 1) / n_texts)
    found = [run.result() for run in runs]
    if options.dump is not None:
        _dump(Path(options.dump), runs[0], base, path)
    cosines = common.result() if len(runs) > 1 else ()
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


def _lay_out(runs: Sequence[_Run], found: Iterator[Part], max_tokens: int) -> int:
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


@dataclass
class _Cut:
    name: str
    rank: int
    kept: float
    kl: list[float] = field(default_factory=list)
    top_changed: list[bool] = field(default_factory=list)


@dataclass
class _Run:
    """One adapter: what it reads, and what was computed, for the tokens that it acted on."""

    label: str
    file: AdapterFile
    name: str
    passages: list[Passage] = field(default_factory=list)
    cuts: list[_Cut] = field(default_factory=list)
    states: dict[str, dict[int, list[Hidden]]] = field(default_factory=dict)  # by whose and layer
    kl: list[float] = field(default_factory=list)
    random_kl: list[float] = field(default_factory=list)

    @property
    def random(self) -> str:
        """The random adapter's name."""
        return f"{self.name} random"

    def add(self, whose: str, reading: Reading, n: int) -> None:
        for layer, hidden in reading.layers.items():
            kept = self.states.setdefault(whose, {}).setdefault(layer, [])
            kept.append(hidden[-n:].copy())

    def result(self) -> AdapterActivations:
        n_tokens = sum(each.n_adapted for each in self.passages)
        few = f"{n_tokens} tokens do not carry a CKA: it needs at least {FEWEST}"
        return AdapterActivations(
            label=self.label,
            n_tokens=n_tokens,
            n_before=sum(each.n_before for each in self.passages),
            kl=float(np.mean(self.kl)),
            random_kl=float(np.mean(self.random_kl)),
            no_cka=few if n_tokens < FEWEST else None,
            layers=tuple(self._layers()),
            ranks=tuple(
                RankLoss(
                    cut.rank,
                    cut.kept,
                    float(np.mean(cut.kl)),
                    max(cut.kl),
                    float(np.mean(cut.top_changed)),
                )
                for cut in self.cuts
            ),
        )

    def _layers(self) -> Iterator[LayerActivations]:
        for layer in self.states["base"]:
            base, adapted, random = (
                np.concatenate(self.states[whose][layer]) for whose in ("base", "adapted", "random")
            )
            below = gram(base)
            yield LayerActivations(
                layer, _states(base, adapted, below), _states(base, random, below)
            )


def _states(base: Hidden, adapted: Hidden, below: Doubles) -> LayerStates:
    """`below` is gram(base)."""
    ratio, cosine = changes(base, adapted)
    delta = adapted.astype(np.float64) - base
    return LayerStates(
        change=float(ratio.mean()),
        cosine=float(cosine.mean()),
        cka=cka(gram(adapted), below),
        cka_delta=cka(gram(delta), below),
        dimension=dimension(delta),
    )


class _Common:
    """Cosines between what adapters add, summed over the tokens that follow all invocations."""

    def __init__(self, n_adapters: int) -> None:
        self.n = 0
        self._n_adapters = n_adapters
        self._sums: dict[int, tuple[Doubles, Doubles]] = {}

    def add(
        self, own: Sequence[Mapping[int, Hidden]], random: Sequence[Mapping[int, Hidden]]
    ) -> None:
        """Deltas of each adapter by layer, all of the same tokens."""
        self.n += len(next(iter(own[0].values())))
        for layer in own[0]:
            zero = np.zeros((self._n_adapters, self._n_adapters))
            sums = self._sums.setdefault(layer, (zero, zero.copy()))
            for total, deltas in zip(sums, (own, random), strict=True):
                for i, j in combinations(range(self._n_adapters), 2):
                    x, y = deltas[i][layer], deltas[j][layer]
                    total[i, j] += len(x) * mean_cosine(x, y)
                    total[j, i] = total[i, j]

    def result(self) -> tuple[DeltaCosines, ...]:
        return tuple(
            DeltaCosines(layer, *(self._matrix(total) for total in sums))
            for layer, sums in self._sums.items()
        )

    def _matrix(self, total: Doubles) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, (total / self.n + np.eye(self._n_adapters)).tolist()))


@contextmanager
def _written(runs: Sequence[_Run], ranks: Sequence[int], seed: int) -> Iterator[dict[str, Path]]:
    """All adapters by name: those given, and random and truncated ones, in files meanwhile."""
    with tempfile.TemporaryDirectory(prefix="alora-gguf-") as folder:
        adapters = dict[str, Path]()
        for i, run in enumerate(runs):
            adapters[run.name] = run.file.path
            adapters[run.random] = Path(folder) / f"{i}-random.gguf"
            write_random(run.file, adapters[run.random], [seed, i])
            lower = sorted({each for each in ranks if each < run.file.rank})
            for rank in (*lower, run.file.rank) if lower else ():
                path = Path(folder) / f"{i}-{rank}.gguf"
                kept = write_cut(run.file, path, rank, overwrite=False).kept
                run.cuts.append(_Cut(f"{run.name} rank {rank}", rank, kept))
                adapters[run.cuts[-1].name] = path
        yield adapters


def _read(probe: Probe, runs: Sequence[_Run], number: int, common: _Common) -> None:
    """One text, with everything."""
    bases = dict[tuple[Tokens, int], Reading]()
    own, random = list[dict[int, Hidden]](), list[dict[int, Hidden]]()
    n_common = min(run.passages[number].n_common for run in runs)
    for run in runs:
        passage = run.passages[number]
        key = passage.tokens, passage.n_rows
        if key not in bases:
            bases[key] = _finite(probe.read(*key), "the base")
        base = bases[key]
        adapted, drawn = (
            _finite(probe.read(*key, name, first=passage.first), f"{run.label}{which}")
            for name, which in ((run.name, ""), (run.random, ", with random weights"))
        )
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
        for whose, reading in (("base", base), ("adapted", adapted), ("random", drawn)):
            run.add(whose, reading, passage.n_adapted)
        rows = range(-passage.n_adapted, 0)
        run.kl += [divergence(adapted.logits[i], base.logits[i]) for i in rows]
        run.random_kl += [divergence(drawn.logits[i], base.logits[i]) for i in rows]
        for cut in run.cuts:
            less = _finite(probe.read(*key, cut.name, first=passage.first), cut.name)
            cut.kl += [divergence(adapted.logits[i], less.logits[i]) for i in rows]
            cut.top_changed += [adapted.logits[i].argmax() != less.logits[i].argmax() for i in rows]
        own.append(
            {i: adapted.layers[i][-n_common:] - base.layers[i][-n_common:] for i in base.layers}
        )
        random.append(
            {i: drawn.layers[i][-n_common:] - base.layers[i][-n_common:] for i in base.layers}
        )
    if len(runs) > 1:
        common.add(own, random)


def _finite(reading: Reading, whose: str) -> Reading:
    if (where := reading.not_finite) is not None:
        raise NotFiniteError(
            f"{whose}: {where} holds values that are not finite, so nothing can be measured there"
        )
    return reading


def _dump(path: Path, run: _Run, base: Path, text: Path | None) -> None:
    """H and h_delta by layer, and where their rows come from."""
    tensors = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int32]]]()
    for layer, hidden in run.states["base"].items():
        h = np.concatenate(hidden)
        tensors[f"h.{layer}"] = h
        tensors[f"h_delta.{layer}"] = np.concatenate(run.states["adapted"][layer]) - h
    places = [
        (number, position, passage.tokens[position])
        for number, passage in enumerate(run.passages)
        for position in range(len(passage.tokens) - passage.n_adapted, len(passage.tokens))
    ]
    for name, column in zip(("text", "position", "token"), zip(*places, strict=True), strict=True):
        tensors[name] = np.array(column, np.int32)
    about = {"adapter": run.file.path, "base": base, "text": text or "probes"}
    write_states(path, tensors, {name: str(value) for name, value in about.items()})
