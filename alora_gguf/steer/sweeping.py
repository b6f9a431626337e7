"""sweep(): what a vector does over scales, and what that costs, beside random vectors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np

from alora_gguf._calls import Within, check_kind, checked
from alora_gguf.errors import InputError, MissingFileError, NotFiniteError
from alora_gguf.files import check_target, read_small
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.vector import Directions, VectorFile
from alora_gguf.gguf.vector_writer import write_vector
from alora_gguf.messages import Message
from alora_gguf.model import Model

from .directions import bootstrap, typical_norm
from .pairs import Pair, read_pairs, split_of
from .records import Effect, Interval, Step, Sweep
from .running import (
    BASE,
    Passage,
    Progress,
    RunOptions,
    Steering,
    Tokens,
    check_apart,
    fitting,
    mean_logprob,
    neutral_passages,
    next_logits,
    open_model,
    open_reader,
    passages,
    prompt_tokens,
    replies,
    states,
    told,
)
from .writing import SUMS, random_parts, written

PathLike = str | os.PathLike[str]
Score = Callable[[str, str], float]
"""What a reply is worth: called with the question and the reply."""

SCALES: Final = (-1.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
_VECTOR: Final = "vector"
_N_NORMS: Final = 8  # passages that |h| is measured on
_MORE_REPEATS: Final = 0.2  # than the base has
_GRAM: Final = 3  # tokens
_LARGEST_TEXT: Final = 16 << 20  # bytes


def _is_score(value: object) -> bool:
    return isinstance(value, (int, float, np.number, np.bool_)) and math.isfinite(value)


def _is_scale(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and -1000 <= float(value) <= 1000


@checked
@dataclass(frozen=True, slots=True)
class SweepOptions:
    """What a vector is measured at, and with what.

    scales      as an activation has them; 0, which is the base, comes by itself
    n_random    random vectors of the same norms beside it
    bound       what may become of perplexities: so many times the base's
    match       a regular expression: the score of a reply is 1 if it is found in it
    score       or a function of question and reply
    n_replies   questions that replies are written to; 0: none
    n_tokens    of a reply, at most
    text        a file of neutral text; None: a few questions with answers
    seed        of what is held out, of random vectors, and of intervals
    """

    scales: Sequence[Annotated[float, Within(-1000, 1000)]] = SCALES
    n_random: Annotated[int, Within(0, 64)] = 3
    bound: Annotated[float, Within(1, 1000)] = 2.0
    match: str | None = None
    score: Score | None = None
    n_replies: Annotated[int, Within(0, 10_000)] = 6
    n_tokens: Annotated[int, Within(1, 4096)] = 48
    text: PathLike | None = None
    seed: Annotated[int, Within(0)] = 0

    def __post_init__(self) -> None:
        for each in self.scales:
            check_kind(each, "each of scales", _is_scale, "a number in [-1000, 1000]")
        wanted = sorted({float(each) for each in self.scales} - {0.0})
        if not wanted:
            raise InputError("scales has none but 0, at which a vector does nothing; give others")
        object.__setattr__(self, "scales", tuple(wanted))
        if self.match is not None and self.score is not None:
            raise InputError("match and score exclude each other; give one of them")
        if self.match is not None:
            try:
                re.compile(self.match)
            except re.error as error:
                raise InputError(
                    f"match is {self.match!r:.60}, which is not a regular expression: {error}"
                ) from None
        if (self.match is not None or self.score is not None) and not self.n_replies:
            raise InputError("n_replies is 0, but a score needs replies; give at least 1")

    @property
    def scorer(self) -> Score | None:
        """What replies are scored with."""
        if self.match is None:
            return self.score
        pattern = re.compile(self.match)
        return lambda _, reply: float(pattern.search(reply) is not None)


@checked
def sweep(
    base: PathLike,
    vector: PathLike,
    pairs: PathLike,
    *,
    options: SweepOptions | None = None,
    output: PathLike | None = None,
    run: RunOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """What a `vector` does at several scales, on the held-out `pairs` (JSON lines; see Pair): the
    log-odds of the positive against the negative answers, and a score of replies if `options` has
    one; and whether what is written stays fluent. Beside it the same of random vectors of the same
    norms, which tells what any disturbance does.

    Suggests the largest scale up to which everything is within the bound. With an `output` the
    vector is written there so that an activation's scale of 1 is that one. `progress` is called
    with the fraction that is done.

    Raises what Model() does for `base` and `vector`, and derive() for the `pairs`; InputError if
    there are neither answers nor a score, nothing to suggest for the `output`, or if that is a file
    that is read, other than the vector.
    """
    how = options or SweepOptions()
    if output is not None:
        check_target(Path(output), overwrite=overwrite, what="vector")
        read = {"base": base, "file of pairs": pairs}
        check_apart(Path(output), read if how.text is None else {**read, "text": how.text})
    file = VectorFile.read(vector)
    held_out = split_of(read_pairs(pairs, seed=how.seed), "held_out")
    _check_pairs(held_out, how, Path(pairs))
    text = None if how.text is None else _text(Path(how.text))
    random = {f"random {i}": random_parts(file.parts, [how.seed, i]) for i in range(how.n_random)}
    with (
        written(BaseFile.read(base).architecture, random) as paths,
        open_model(base, {_VECTOR: file.path, **paths}, run) as model,
    ):
        work = _Work(model, how, held_out, Path(pairs), text, progress)
        unit = _unit(model, file, work.passages)
        found = work.measure([_VECTOR, *random])
        path, architecture = Path(model.path), model.architecture
    result = _result(found, how, [_VECTOR, *random])
    suggested = _suggested(result)
    made = Sweep(
        base=path,
        vector=file.path,
        pairs=Path(pairs),
        n_pairs=len(held_out),
        n_random=how.n_random,
        unit=unit,
        bound=how.bound,
        seed=how.seed,
        questions=work.questions,
        steps=result,
        suggested=suggested,
        output=None if output is None else Path(output),
    )
    if output is not None:
        _write(file, made, architecture, overwrite=overwrite)
    return made


def _check_pairs(pairs: Sequence[Pair], how: SweepOptions, file: Path) -> None:
    if how.scorer is None and not any(pair.answers for pair in pairs):
        raise InputError(
            f"{file}: its pairs have no answers whose odds could be told; give pairs with a "
            "prompt, or score replies with --match or --score (match=, score=)"
        )
    if how.scorer is not None and not any(pair.question for pair in pairs):
        raise InputError(
            f"{file}: its pairs are texts, to which nothing can be replied; give pairs with a "
            "prompt, or leave the score out"
        )


def _text(path: Path) -> str:
    try:
        text = read_small(path, _LARGEST_TEXT, what="text").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8: {error}") from None
    except MissingFileError:
        raise
    if not text.strip():
        raise InputError(f"{path}: is empty, expected a text")
    return text


# Measuring ---------------------------------------------------------------------------------------


@dataclass
class _Found:
    """What was measured of one vector at one scale: by pair, by neutral passage, by reply. It is
    not `finite` where the scale is so large that the model computes no numbers any more.
    """

    log_odds: dict[int, float]
    finite: bool = True
    text: float = 0.0
    replies: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    reply: float | None = None
    repeats: float | None = None


class _Work:
    """All that is read and written."""

    def __init__(
        self,
        model: Model,
        how: SweepOptions,
        pairs: Sequence[Pair],
        file: Path,
        text: str | None,
        progress: Progress | None,
    ) -> None:
        self._model, self._how, self._progress = model, how, progress
        self._pairs = {
            i: passages(model, pair, file) for i, pair in enumerate(pairs) if pair.answers
        }
        asked = [pair.question for pair in pairs if pair.question is not None]
        asked = list(dict.fromkeys(asked))[: how.n_replies]
        self.questions = tuple(_said(each) for each in asked)
        where = f"{file}: a prompt with its reply"
        with told(model, where):
            self._prompts = [prompt_tokens(model, each) for each in asked]
        for prompt in self._prompts:
            fitting(model, Passage(prompt, (0,) * how.n_tokens), where)
        self._neutral = neutral_passages(model, text)
        if not self._neutral:
            raise InputError(f"{how.text}: has too few tokens to tell anything; give a longer text")
        self.passages = [both[1] for both in self._pairs.values()] or self._neutral

    def measure(self, names: Sequence[str]) -> dict[Steering, _Found]:
        """Of the base and of each vector at each scale."""
        steerings = [BASE, *(Steering(name, s) for name in names for s in self._how.scales)]
        found = {each: _Found({}) for each in steerings}
        total, done = len(self._pairs) + len(self._neutral) + len(steerings), 0
        if self._prompts:  # first: what cannot be scored should not be found out in the end
            self._write_replies(BASE, found[BASE])
        done = self._tell(done, total)
        for i, sides in self._pairs.items():
            for each, (above, below) in self._means(found, sides):
                found[each].log_odds[i] = above - below
            done = self._tell(done, total)
        for passage in self._neutral:
            for each, (mean,) in self._means(found, [passage]):
                found[each].text += mean / len(self._neutral)
            done = self._tell(done, total)
        for each in steerings[1:]:
            if self._prompts and found[each].finite:
                self._write_replies(each, found[each])
            done = self._tell(done, total)
        return found

    def _means(
        self, found: Mapping[Steering, _Found], texts: Sequence[Passage]
    ) -> Iterator[tuple[Steering, list[float]]]:
        """The mean log-probability of each of the `texts` under what was finite so far, and is."""
        steerings = [each for each in found if found[each].finite]
        means = self._logprobs([(each, text) for each in steerings for text in texts])
        for i, each in enumerate(steerings):
            some = means[i * len(texts) : (i + 1) * len(texts)]
            found[each].finite = all(map(math.isfinite, some))
            if found[each].finite:
                yield each, some

    def _logprobs(self, jobs: Sequence[tuple[Steering, Passage]]) -> list[float]:
        """Mean log-probabilities; NaN where a vector leaves none."""
        try:
            return [
                mean_logprob(logits, jobs[i][1].after)
                for i, logits in next_logits(self._model, jobs)
            ]
        except NotFiniteError:
            if len(jobs) == 1:
                if jobs[0][0] == BASE:
                    raise
                return [math.nan]
            return [each for job in jobs for each in self._logprobs([job])]

    def _write_replies(self, steering: Steering, found: _Found) -> None:
        """Greedy ones, and what the base makes of them."""
        try:
            written = replies(self._model, self._prompts, steering, self._how.n_tokens)
        except NotFiniteError:
            if steering == BASE:
                raise
            found.finite = False
            return
        found.replies = tuple(text for _, text in written)
        jobs = [
            (BASE, Passage(prompt, tokens))
            for prompt, (tokens, _) in zip(self._prompts, written, strict=True)
            if tokens
        ]
        if jobs:
            found.reply = float(np.mean(self._logprobs(jobs)))
        found.repeats = repeats([tokens for tokens, _ in written])
        if (score := self._how.scorer) is not None:
            scores = list(map(score, self.questions, found.replies))
            for each in scores:
                check_kind(each, "what score returns", _is_score, "a finite number")
            found.scores = tuple(map(float, scores))

    def _tell(self, done: int, total: int) -> int:
        if self._progress is not None:
            self._progress((done + 1) / total)
        return done + 1


def repeats(written: Sequence[Tokens]) -> float:
    """The share of all 3-grams that occurred before in the same reply."""
    n, again = 0, 0
    for tokens in written:
        grams = [tokens[i : i + _GRAM] for i in range(len(tokens) - _GRAM + 1)]
        n, again = n + len(grams), again + len(grams) - len(set(grams))
    return again / n if n else 0.0


def _said(messages: Sequence[Message]) -> str:
    return next((each.content for each in reversed(messages) if each.role == "user"), "")


def _unit(model: Model, file: VectorFile, texts: Sequence[Passage]) -> float | None:
    """The lengths of what it adds, relative to |h| at its hook, added up; None if it projects."""
    if any(part.operation not in SUMS for part in file.parts):
        return None
    rows: dict[int, list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]] = {}
    some = texts[:_N_NORMS]
    with open_reader(model, some, file.parts[0].hook) as probe:
        for passage in some:
            for layer, hidden in states(probe, passage, max(1, len(passage.after))).items():
                rows.setdefault(layer, []).append(hidden)
    return float(
        sum(
            abs(part.scale)
            * np.linalg.norm(part.values[0].astype(np.float64))
            / typical_norm(rows[part.layer])
            for part in file.parts
        )
    )


# What it comes to --------------------------------------------------------------------------------


def _result(
    found: Mapping[Steering, _Found], how: SweepOptions, names: Sequence[str]
) -> tuple[Step, ...]:
    base = found[BASE]
    zero = Step(0.0, _effect(base, base), None, None, fluent=True)
    steps = [zero]
    for scale in how.scales:
        vector, *random = (found[Steering(name, scale)] for name in names)
        effect, beside = _effect(vector, base), [_effect(each, base) for each in random]
        steps.append(
            Step(
                scale,
                effect,
                _interval(vector, how.seed),
                _mean(beside),
                fluent=_fluent(effect, zero.vector, how.bound),
                random_spread=_spread(beside),
            )
        )
    return tuple(sorted(steps, key=lambda step: step.scale))


def _effect(found: _Found, base: _Found) -> Effect:
    if not found.finite:
        return Effect(None, None, None, None, None, None)
    odds = [*found.log_odds.values()]
    ratio = None
    if found.reply is not None and base.reply is not None:
        ratio = float(np.exp(base.reply - found.reply))
    return Effect(
        log_odds=float(np.mean(odds)) if odds else None,
        preferred=float(np.mean([each > 0 for each in odds])) if odds else None,
        score=float(np.mean(found.scores)) if found.scores else None,
        text_ratio=float(np.exp(min(base.text - found.text, 500.0))),
        reply_ratio=ratio,
        repeats=found.repeats,
        replies=found.replies,
    )


def _interval(found: _Found, seed: int) -> Interval | None:
    """Of the log-odds, or without pairs that have some of the score."""
    values = np.array([*found.log_odds.values()] or found.scores)
    if len(values) < 2 or not found.finite:
        return None
    return bootstrap(len(values), lambda i: float(values[i].mean()), seed)


def _mean(effects: Sequence[Effect]) -> Effect | None:
    """Of several random vectors; replies are the first one's."""
    if not effects:
        return None

    def mean(name: str) -> float | None:
        values = [getattr(each, name) for each in effects]
        return None if None in values else float(np.mean(values))

    return replace(
        effects[0],
        log_odds=mean("log_odds"),
        preferred=mean("preferred"),
        score=mean("score"),
        text_ratio=mean("text_ratio"),
        reply_ratio=mean("reply_ratio"),
        repeats=mean("repeats"),
    )


def _spread(effects: Sequence[Effect]) -> float | None:
    """The standard deviation of several random vectors' effects."""
    values = [each.score if each.log_odds is None else each.log_odds for each in effects]
    known = [each for each in values if each is not None]
    return float(np.std(known, ddof=1)) if len(known) == len(values) > 1 else None


def _fluent(effect: Effect, base: Effect, bound: float) -> bool:
    if effect.text_ratio is None or effect.text_ratio > bound:
        return False
    if (effect.reply_ratio or 0.0) > bound:
        return False
    return (effect.repeats or 0.0) <= (base.repeats or 0.0) + _MORE_REPEATS


def _suggested(steps: Sequence[Step]) -> float | None:
    """The largest positive scale up to which all are fluent."""
    found = None
    for step in steps:
        if step.scale > 0:
            if not step.fluent:
                break
            found = step.scale
    return found


def _write(file: VectorFile, made: Sweep, architecture: str, *, overwrite: bool) -> None:
    """The vector, so that scale 1 is the suggested one."""
    if made.suggested is None or made.output is None:
        raise InputError(
            f"{file.path}: is within the bound of {made.bound:g} at none of the scales; give "
            "smaller ones, or a larger bound"
        )
    parts: list[Directions] = [
        replace(part, scale=part.scale * made.suggested) for part in file.parts
    ]
    write_vector(
        made.output,
        parts,
        architecture=file.architecture or architecture,
        name=made.output.stem,
        invocation=file.invocation,
        invocation_text=file.invocation_text,
        origin=file.origin,
        overwrite=overwrite,
    )
