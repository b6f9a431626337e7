"""match(): the vector that does what a prompt does, and how much of that it does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf._calls import Within, checked
from alora_gguf.errors import InputError
from alora_gguf.files import check_target
from alora_gguf.gguf.vector import Directions, VectorOrigin
from alora_gguf.gguf.vector_writer import write_vector
from alora_gguf.messages import Message
from alora_gguf.model import Model

from .directions import Doubles, bootstrap
from .pairs import Question, read_before, read_questions
from .records import Candidate, Match
from .running import (
    BASE,
    Passage,
    Progress,
    RunOptions,
    Steering,
    check_apart,
    check_layers,
    fitting,
    layers_given,
    log_softmax,
    next_logits,
    open_model,
    open_reader,
    prompt_tokens,
    replies,
    states,
    told,
)
from .writing import generator, random_parts, written

PathLike = str | os.PathLike[str]

_SCALES: Final = (0.5, 0.7, 0.85, 1.2, 1.5, 2.0)  # tried at the best layers, beside 1
_SINGLE: Final = (0.5, 0.7, 0.85, 0.95)  # of the depth: layers that are tried alone
_BEGIN: Final = (0.0, 0.2, 0.4, 0.6)  # of the depth: where runs begin that are tried
_END: Final = 0.95  # of the depth: where they end
_N_SEARCH: Final = 12  # training questions that layers and scales are chosen on
_N_RANDOM: Final = 3


@checked
@dataclass(frozen=True, slots=True)
class MatchOptions:
    """How a prompt's vector is found.

    layers    where it acts, zero-based: at the first what the prompt changes up to there, at each
              further one what it changes more; None: chosen on training questions
    n_tokens  of each reply that is read with the prompt and without, at most
    seed      of what is held out, and of random vectors
    """

    layers: Sequence[Annotated[int, Within(0)]] | None = None
    n_tokens: Annotated[int, Within(1, 1024)] = 24
    seed: Annotated[int, Within(0)] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", layers_given(self.layers))


@checked
def match(
    base: PathLike,
    prompt: PathLike,
    questions: PathLike,
    output: PathLike,
    *,
    options: MatchOptions | None = None,
    run: RunOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Match:
    """Makes the vector that stands in for a `prompt`: a file of a system prompt, or .json with
    messages that stand before a question; and writes it to `output`.

    The base replies to the `questions` (JSON lines, each with a `prompt`) with the prompt, and
    reads its replies again without. The vector is the mean difference of its states at those
    tokens; at which layers and which scale is chosen on the training questions, and how much of the
    prompt's effect on the next token that recovers is said of the held-out ones, beside random
    vectors.
    `progress` is called with the fraction that is done.

    Raises what Model() does for `base`, MissingFileError and FileFormatError for the files,
    InputError for too few questions, replies that are empty, a prompt that changes nothing, or an
    `output` that exists or is read; ModelError without a chat template.
    """
    how = options or MatchOptions()
    check_target(Path(output), overwrite=overwrite, what="vector")
    read = {"base": base, "prompt's file": prompt, "file of questions": questions}
    check_apart(Path(output), read)
    before, found = read_before(prompt), read_questions(questions, seed=how.seed)
    _check_systems(before, found, Path(questions))
    check_layers(base, how.layers)
    step = _Steps(progress)
    with open_model(base, {}, run) as model:
        texts = _replied(model, before, found, how, Path(questions))
        step(0.2)
        train = [text for text, each in zip(texts, found, strict=True) if each.split == "train"]
        held_out = [text for text, q in zip(texts, found, strict=True) if q.split == "held_out"]
        shifts = _shifts(model, train)
        step(0.4)
        path, architecture = Path(model.path), model.architecture
    if not any(shift.any() for shift in shifts.values()):
        raise InputError(
            f"{prompt}: changes nothing of what the base computes behind it; is it what the chat "
            "template says without it?"
        )
    if how.layers is not None and (wrong := [i for i in how.layers if i not in shifts]):
        raise InputError(f"layers has {wrong[0]}, but {path.name} has layers 0 to {max(shifts)}")
    search = _Search(base, run, architecture, shifts, train[:_N_SEARCH])
    best = search.best(None if how.layers is None else tuple(how.layers), step)
    parts = _parts(shifts, best.layers, best.scale)
    vectors = {"vector": parts}
    vectors |= {f"random {i}": random_parts(parts, [how.seed, i]) for i in range(_N_RANDOM)}
    with written(architecture, vectors) as paths, open_model(base, paths, run) as model:
        tests = [_test(model, text, [*paths]) for text in held_out]
    step(1.0)
    figures = _Figures(tests, how.seed)
    matched = Match(
        base=path,
        prompt=Path(prompt),
        questions=Path(questions),
        output=Path(output),
        layers=best.layers,
        scale=best.scale,
        recovered=figures.recovered,
        interval=figures.interval,
        random=figures.random,
        agreement=figures.agreement,
        without=figures.without,
        kl=figures.kl,
        tokens_saved=float(np.mean([len(t.given.prompt) - len(t.bare.prompt) for t in texts])),
        n_train=len(train),
        n_held_out=len(held_out),
        n_tokens=figures.n_tokens,
        seed=how.seed,
        candidates=tuple(search.tried),
    )
    said = {"held_out_questions": len(held_out), "recovered": round(matched.recovered, 4)}
    write_vector(
        Path(output),
        parts,
        architecture=architecture,
        name=Path(output).stem,
        origin=VectorOrigin(
            base_model=path.stem,
            method="mean difference with and without a prompt",
            contrast=f"{Path(prompt).name}, {len(found)} questions of {Path(questions).name}",
            validation=json.dumps(said),
            generator=generator("match"),
        ),
        overwrite=overwrite,
    )
    return matched


class _Steps:
    """Progress that may be left out."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __call__(self, done: float) -> None:
        if self._progress is not None:
            self._progress(done)


# What is read ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Replied:
    """A reply behind a question with the prompt, where it comes from, and without."""

    given: Passage
    bare: Passage


def _check_systems(before: Sequence[Message], questions: Sequence[Question], file: Path) -> None:
    if not any(each.role == "system" for each in before):
        return
    for each in questions:
        if any(message.role == "system" for message in each.messages):
            raise InputError(
                f"{file}: line {each.line}: has a system message, beside the one of the prompt "
                "that is to be matched; leave it out"
            )


def _replied(
    model: Model,
    before: Sequence[Message],
    questions: Sequence[Question],
    how: MatchOptions,
    file: Path,
) -> list[_Replied]:
    """What the base replies with the prompt, the likeliest, to each question."""
    prompts = []
    for each in questions:
        where = f"{file}: line {each.line}: with the prompt and a reply it"
        with told(model, where):
            with_it = prompt_tokens(model, [*before, *each.messages])
        fitting(model, Passage(with_it, (0,) * how.n_tokens), where)
        prompts.append((with_it, prompt_tokens(model, each.messages)))
    found, said = list[_Replied](), replies(model, [a for a, _ in prompts], BASE, how.n_tokens)
    for each, (with_it, without), (tokens, _) in zip(questions, prompts, said, strict=True):
        if not tokens:
            raise InputError(
                f"{file}: line {each.line}: with the prompt the base replies nothing to it; leave "
                "it out"
            )
        found.append(_Replied(Passage(with_it, tokens), Passage(without, tokens)))
    return found


def _shifts(model: Model, texts: Sequence[_Replied]) -> dict[int, Doubles]:
    """By layer what the prompt changes in the states that the replies' tokens are chosen from, the
    mean over all tokens, [n_embd].
    """
    sums, n = dict[int, Doubles](), 0
    both = [side for text in texts for side in (text.given, text.bare)]
    with open_reader(model, both) as probe:
        for text in texts:
            rows = len(text.given.after) + 1
            given, bare = states(probe, text.given, rows), states(probe, text.bare, rows)
            for layer, hidden in given.items():
                change = (hidden[:-1].astype(np.float64) - bare[layer][:-1]).sum(axis=0)
                sums[layer] = sums.get(layer, 0.0) + change
            n += rows - 1
    return {layer: total / n for layer, total in sums.items()}


# Choosing ----------------------------------------------------------------------------------------


class _Search:
    """Layers and scales, by what they recover on training questions; `tried` has all."""

    def __init__(
        self,
        base: PathLike,
        run: RunOptions | None,
        architecture: str,
        shifts: Mapping[int, Doubles],
        texts: Sequence[_Replied],
    ) -> None:
        self._base, self._run, self._architecture = base, run, architecture
        self._shifts, self._texts = shifts, texts
        self.tried = list[Candidate]()

    def best(self, layers: tuple[int, ...] | None, step: Callable[[float], None]) -> Candidate:
        """The best one there is; at `layers` if they are given."""
        wanted = _places(sorted(self._shifts)) if layers is None else [layers]
        found = self._try([(each, 1.0) for each in wanted])
        step(0.65)
        self._try([(found.layers, scale) for scale in _SCALES])
        step(0.85)
        return max(self.tried, key=lambda each: each.recovered)

    def _try(self, wanted: Sequence[tuple[tuple[int, ...], float]]) -> Candidate:
        wanted = [*dict.fromkeys(wanted)]
        vectors = {
            f"candidate {i}": _parts(self._shifts, layers, scale)
            for i, (layers, scale) in enumerate(wanted)
        }
        with (
            written(self._architecture, vectors) as paths,
            open_model(self._base, paths, self._run) as model,
        ):
            tests = [_test(model, text, [*paths]) for text in self._texts]
        whole = sum(test.without for test in tests)
        lost = np.sum([test.kl for test in tests], axis=0)
        tried = [
            Candidate(layers, scale, float(1 - kl / whole))
            for (layers, scale), kl in zip(wanted, lost, strict=True)
        ]
        self.tried += tried
        return max(tried, key=lambda each: each.recovered)


def _places(every: Sequence[int]) -> list[tuple[int, ...]]:
    """Single layers, and runs that end near the last one, which alone is left out."""
    some = every[:-1] or every
    last = round(_END * (len(some) - 1))
    single = [(some[round(part * (len(some) - 1))],) for part in _SINGLE]
    runs = [tuple(some[int(part * len(some)) : last + 1]) for part in _BEGIN]
    return [each for each in dict.fromkeys([*single, *runs]) if each]


def _parts(
    shifts: Mapping[int, Doubles], layers: Sequence[int], scale: float
) -> tuple[Directions, ...]:
    """At the first of `layers` what the prompt changes up to there, and at each further one what it
    changes more: a stream that was moved stays moved.
    """
    found, before = list[Directions](), 0.0 * shifts[layers[0]]
    for layer in layers:
        values = np.asarray(shifts[layer] - before, np.float32)[None, :]
        found.append(Directions(layer, "block", "add", scale, values))
        before = shifts[layer]
    return tuple(found)


# Testing -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Test:
    """Of one reply: KL(with the prompt || .) summed over its tokens, without anything and with each
    vector; and how many of its tokens are the likeliest ones there.
    """

    without: float
    kl: tuple[float, ...]
    n_tokens: int
    bare_right: int
    right: tuple[int, ...]


def _test(model: Model, text: _Replied, names: Sequence[str]) -> _Test:
    jobs = [(BASE, text.given), (BASE, text.bare)]
    jobs += [(Steering(name), text.bare) for name in names]
    reply, kls, right = np.array(text.given.after), list[float](), list[int]()
    wanted = np.zeros((0, 0))
    for i, logits in next_logits(model, jobs):
        found = log_softmax(logits[: len(reply)])
        if i == 0:
            wanted = found
            continue
        kls.append(float((np.exp(wanted) * (wanted - found)).sum()))
        right.append(int((found.argmax(axis=1) == reply).sum()))
    return _Test(kls[0], tuple(kls[1:]), len(reply), right[0], tuple(right[1:]))


class _Figures:
    """What the tests of the held-out questions come to: of the vector, and of random ones."""

    def __init__(self, tests: Sequence[_Test], seed: int) -> None:
        self._without = np.array([test.without for test in tests])
        self._kl = np.array([test.kl for test in tests])
        n_tokens, every = sum(test.n_tokens for test in tests), np.arange(len(tests))
        others = range(1, self._kl.shape[1])
        self.recovered = self._recovered(every)
        self.interval = bootstrap(len(tests), self._recovered, seed)
        self.random = float(np.mean([self._recovered(every, i) for i in others]))
        self.agreement = sum(test.right[0] for test in tests) / n_tokens
        self.without = sum(test.bare_right for test in tests) / n_tokens
        self.kl = float(self._without.sum()) / n_tokens
        self.n_tokens = n_tokens

    def _recovered(self, rows: NDArray[np.intp], column: int = 0) -> float:
        return float(1 - self._kl[rows, column].sum() / max(self._without[rows].sum(), 1e-12))
