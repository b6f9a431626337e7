"""What an adapter is worth on examples that it never saw, asked through the runtime: beside the
base that is merely asked, and beside never looking.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Final

import numpy as np

import alora_gguf as ag
from alora_gguf.errors import CacheFullError, InputError

from . import figures
from .asking import Asking, Deciding, Said, asking
from .data import Example
from .figures import Column, Estimate

ADAPTER: Final = "adapter"
BASE: Final = "base"
BLIND: Final = "never looking"
SAME: Final = "last message"
MIN_FITTED: Final = 50
"""Examples below which no temperature is fitted: its error would be as large as what it mends."""
MIN_WRONG: Final = 5
"""Wrong answers, likewise: without any, the best temperature is none, and every answer certain."""
Progress = Callable[[int, int], None]
Statistic = Callable[..., float]


@dataclass(frozen=True)
class Row:
    """What one system is worth.

    figures     by name, each with its 95 % interval
    behind      by how much the adapter is above it in each figure, over the same examples
    unreadable  answers that could not be read, which count as wrong
    seconds     an answer's mean, with the conversation read before
    read        tokens computed for an answer, in the mean
    reused      tokens that the cache held for it, in the mean
    """

    figures: Mapping[str, Estimate]
    behind: Mapping[str, Estimate] = field(default_factory=dict)
    unreadable: int = 0
    seconds: float = 0.0
    read: float = 0.0
    reused: float = 0.0


@dataclass(frozen=True)
class Temperature:
    """A temperature that calibrates the adapter's probabilities.

    value    fitted on all held-out examples
    kind     the question's type in files: "noul" or "choice"
    figures  with temperatures of cross-fitting: each example's was fitted on others
    """

    value: float
    kind: str
    figures: Mapping[str, Estimate]


@dataclass(frozen=True)
class Scores:
    """What score() found.

    kind          of the answers: "decision", "text" or "json"
    n             examples
    categories    of decisions; the calibration of two is that of the second
    rows          by system: "adapter", "base", "base, 4 examples", "never looking"
    temperature   one that makes the log loss less, by more than chance; None if there is none
    conversation  tokens of a conversation that were read and that were reused, in the mean
    said          by system, the answers in the order of the examples
    """

    name: str
    kind: str
    n: int
    categories: tuple[str, ...]
    rows: Mapping[str, Row]
    temperature: Temperature | None
    conversation: tuple[float, float]
    said: Mapping[str, tuple[Said, ...]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """What json.dumps() takes: all but `said`."""
        plain = {key: value for key, value in vars(self).items() if key != "said"}
        rows = {name: asdict(row) for name, row in self.rows.items()}
        heat = None if self.temperature is None else asdict(self.temperature)
        return {**plain, "rows": rows, "temperature": heat}

    def __str__(self) -> str:
        """A table for people, up to 100 columns wide."""
        return "\n".join(_lines(self))


def score(
    model: ag.Model,
    name: str,
    examples: Sequence[Example],
    *,
    shots: Sequence[Example] = (),
    training: Sequence[Example],
    question: str | None = None,
    progress: Progress | None = None,
    cancel: ag.CancelToken | None = None,
) -> Scores:
    """Asks the adapter `name` and the base about `examples`, which neither was trained on.

    The base is asked `question` (None: the contract's instruction, or what its schema says of the
    last field), without examples and, where there are `shots`, with these as earlier turns. What
    never looks says what most of `training` say. `progress` is called with conversations done and
    all of them.

    An enumeration gives accuracy, macro_f1, of two categories auroc, and ece, brier and log_loss
    of the probabilities (figures.py has each definition), and a temperature, cross-fitted, where it
    helps. A text gives exact_match, which minds neither case nor white space, and token_f1, which
    is SQuAD's; other JSON gives exact_match of the value, and of each field. Intervals of accuracy
    and exact_match are Wilson's, others and differences are from a bootstrap over examples.

    Raises InputError where there are no examples, or an answer is not one of the contract's;
    UnknownAdapterError, ContractError, CancelledError, CacheFullError.
    """
    for what, given in (("examples to score on", examples), ("training examples", training)):
        if not given:
            raise InputError(f"there are no {what}; give at least one")
    asked = asking(model, name, question, [*examples, *training])
    for each in (*examples, *training, *shots):
        asked.right(each)
    return scored(asked, examples, _ask_all(asked, examples, shots, progress, cancel), training)


def scored(
    asked: Asking,
    examples: Sequence[Example],
    answers: Mapping[str, Sequence[Said]],
    training: Sequence[Example],
) -> Scores:
    """What `answers` to the examples are worth, by system, "adapter" among them; by "" what it took
    to read the conversations. Raises InputError as score() does.
    """
    right = [asked.right(each) for each in examples]
    said = {system: tuple(each) for system, each in answers.items()}
    read = said.pop("")
    common = _commonest([asked.right(each) for each in training])
    if isinstance(asked, Deciding):
        counts = Counter(asked.right(each) for each in training)
        shares = tuple(counts[i] / len(training) for i in range(len(asked.names)))
        said[BLIND] = (Said(common, shares),) * len(examples)
    else:
        said[BLIND] = (Said(common),) * len(examples)
    if asked.kind == "text":
        said[SAME] = tuple(Said(each.messages[-1].content) for each in examples)
    measured = {system: _measures(asked, right, each) for system, each in said.items()}
    return Scores(
        asked.name,
        asked.kind,
        len(examples),
        asked.names if isinstance(asked, Deciding) else (),
        {system: _row(measured, system, each) for system, each in said.items()},
        _temperature(asked, right, said[ADAPTER]) if isinstance(asked, Deciding) else None,
        (fmean(each.read for each in read), fmean(each.reused for each in read)),
        said,
    )


# Asking ------------------------------------------------------------------------------------------


def _ask_all(
    asked: Asking,
    examples: Sequence[Example],
    shots: Sequence[Example],
    progress: Progress | None,
    cancel: ag.CancelToken | None,
) -> dict[str, tuple[Said, ...]]:
    """All answers by system; by "" what it took to read the conversations."""
    model = asked.model
    few = f"{BASE}, {len(shots)} example{'s' * (len(shots) != 1)}"
    systems = ["", ADAPTER, BASE, *([few] if shots else [])]
    found: dict[str, dict[int, Said]] = {system: {} for system in systems}
    passes = [False, *([True] if shots else [])]
    done, total = 0, len(passes) * len(examples)
    for with_shots in passes:
        for i in neighbours(examples):
            example = examples[i]
            try:
                if with_shots:
                    with model.chat(messages=asked.turns(shots, example)) as chat:
                        chat.read(cancel=cancel)
                        found[few][i] = asked.base(chat, example, cancel)
                else:
                    with model.chat(messages=example.messages, documents=example.documents) as chat:
                        took = chat.read(cancel=cancel)
                        found[""][i] = Said(None, (), took.total, took.evaluated, took.reused)
                        found[ADAPTER][i] = asked.adapter(chat, example, cancel)
                        found[BASE][i] = asked.base(chat, example, cancel)
            except CacheFullError as error:
                raise CacheFullError(f"the example of line {example.line}: {error}") from error
            done += 1
            if progress is not None:
                progress(done, total)
    return {system: tuple(each[i] for i in range(len(examples))) for system, each in found.items()}


def neighbours(examples: Sequence[Example]) -> list[int]:
    """The examples in an order in which those that begin alike stand together, so that the cache
    still holds what they share.
    """

    def words(i: int) -> tuple[tuple[str, ...], ...]:
        documents = tuple(each.text for each in examples[i].documents)
        return documents, tuple(each.content for each in examples[i].messages)

    return sorted(range(len(examples)), key=words)


# Measuring ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measure:
    """A figure of a system, of all examples and of resamples; `hits` where it is a share."""

    values: Column
    hits: int | None = None

    def estimate(self, n: int) -> Estimate:
        if self.hits is not None:
            return figures.wilson(self.hits, n)
        return figures.estimate(self.values)


def _measures(
    asked: Asking, right: Sequence[Any], said: Sequence[Said], shares: Column | None = None
) -> dict[str, _Measure]:
    if isinstance(asked, Deciding):
        labels = np.array(right)
        if shares is None:
            shares = np.array([each.shares for each in said])
        predicted = np.array([-1 if each.value is None else each.value for each in said])
        return _of_decisions(labels, predicted, shares)
    found = {}
    if asked.kind == "text":
        texts = list(zip(right, (each.value for each in said), strict=True))
        same = [b is not None and figures.plain(a) == figures.plain(b) for a, b in texts]
        f1 = np.array([0.0 if b is None else figures.token_f1(a, b) for a, b in texts])
        found["token_f1"] = _Measure(figures.resamples(figures.mean, f1))
    else:
        pairs = [(a, each.value) for a, each in zip(right, said, strict=True)]
        same = [_key(a) == _key(b) for a, b in pairs]
        for name in _fields(right):
            found[name] = _share([_field(a, name) == _field(b, name) for a, b in pairs])
    return {"exact_match": _share(same), **found}


def _of_decisions(labels: Column, predicted: Column, shares: Column) -> dict[str, _Measure]:
    sure, so = figures.confidences(labels, shares)
    found = {"accuracy": _share(list(labels == predicted))}
    statistics: dict[str, tuple[Statistic, tuple[Column, ...]]] = {
        "macro_f1": (figures.macro_f1, (labels, predicted)),
        "auroc": (figures.auroc, (sure, so)),
        "ece": (figures.calibration_error, (sure, so)),
        "brier": (figures.brier, (labels, shares)),
        "log_loss": (figures.mean, (figures.log_losses(labels, shares),)),
    }
    if shares.shape[1] != 2 or so.all() or not so.any():
        del statistics["auroc"]  # nothing to tell apart
    for name, (statistic, columns) in statistics.items():
        found[name] = _Measure(figures.resamples(statistic, *columns))
    return found


def _share(hits: Sequence[Any]) -> _Measure:
    column = np.array(hits, dtype=float)
    return _Measure(figures.resamples(figures.mean, column), int(column.sum()))


def _row(measured: Mapping[str, Mapping[str, _Measure]], system: str, said: Sequence[Said]) -> Row:
    n, own, best = len(said), measured[system], measured[ADAPTER]
    behind = {}
    if system != ADAPTER:
        behind = {name: figures.estimate(best[name].values - own[name].values) for name in own}
    return Row(
        {name: each.estimate(n) for name, each in own.items()},
        behind,
        sum(each.value is None for each in said),
        fmean(each.seconds for each in said),
        fmean(each.read for each in said),
        fmean(each.reused for each in said),
    )


def _temperature(asked: Deciding, right: Sequence[int], said: Sequence[Said]) -> Temperature | None:
    n_wrong = sum(each.value != label for each, label in zip(said, right, strict=True))
    if len(said) < MIN_FITTED or n_wrong < MIN_WRONG:
        return None
    labels, shares = np.array(right), np.array([each.shares for each in said])
    crossed = figures.cross_fitted(labels, shares)
    saved = figures.log_losses(labels, shares) - figures.log_losses(labels, crossed)
    if figures.bootstrap(figures.mean, saved).low <= 0:
        return None
    value = figures.fitted_temperature(labels, shares)
    measured = _measures(asked, right, said, crossed)
    names = ("ece", "brier", "log_loss")
    found = {name: measured[name].estimate(len(said)) for name in names}
    return Temperature(value, asked.temperature_kind, found)


def _commonest(values: Sequence[Any]) -> Any:
    """What most of them are; the first of those that are as common."""
    keys = list(map(_key, values))
    most, _ = Counter(keys).most_common(1)[0]
    return values[keys.index(most)]


def _key(value: Any) -> str:
    """Equal for what is equal in JSON, where 1 is not true."""
    return json.dumps(value, sort_keys=True)


def _fields(values: Sequence[Any]) -> list[str]:
    """Those that all objects have; none where not all are objects."""
    shared = [set(each) if isinstance(each, Mapping) else set() for each in values]
    return sorted(set.intersection(*shared))


def _field(value: Any, name: str) -> str:
    return _key(value[name]) if isinstance(value, Mapping) and name in value else ""


# As text -----------------------------------------------------------------------------------------

_SHARES: Final = frozenset({"accuracy", "macro_f1", "exact_match", "token_f1"})  # in percent
_TITLES: Final = {
    "accuracy": "accuracy, %",
    "macro_f1": "macro F1, %",
    "auroc": "AUROC",
    "ece": "ECE",
    "brier": "Brier",
    "log_loss": "log loss",
    "exact_match": "exact match, %",
    "token_f1": "token F1, %",
}


def _lines(scores: Scores) -> Iterator[str]:
    yield f"{scores.name} on {scores.n} held-out example{'s' * (scores.n != 1)}"
    rows = scores.rows
    table = [["", *rows]]
    for name in rows[ADAPTER].figures:
        cells = [_cell(name, row.figures.get(name)) for row in rows.values()]
        table.append([_TITLES.get(name, f"{name}, %"), *cells])
    asked = [row.seconds for row in rows.values()]
    table.append(["seconds", *(f"{each:.3f}" if each else "" for each in asked)])
    table.append(["tokens read", *(f"{row.read:.0f}" if row.read else "" for row in rows.values())])
    if any(row.unreadable for row in rows.values()):
        table.append(["unreadable", *(str(row.unreadable) for row in rows.values())])
    yield from _aligned(table)
    yield ""
    yield f"The {ADAPTER} less the others, over the same examples"
    others = {system: row for system, row in rows.items() if system != ADAPTER}
    table = [["", *others]]
    for name in rows[ADAPTER].figures:
        cells = [_cell(name, row.behind.get(name), "+") for row in others.values()]
        table.append([_TITLES.get(name, f"{name}, %"), *cells])
    yield from _aligned(table)
    if (heat := scores.temperature) is not None:
        found = ", ".join(
            f"{_TITLES[name]} {_cell(name, each)}" for name, each in heat.figures.items()
        )
        yield ""
        yield f"With a temperature of {heat.value:.2f}: {found}"
        yield "(cross-fitted: measured with temperatures that were fitted on other examples)"


def _cell(name: str, found: Estimate | None, sign: str = "") -> str:
    if found is None:
        return ""
    many, digits = (1, 3) if name in _TITLES.keys() - _SHARES else (100, 1)
    value, low, high = (
        f"{many * each:{sign}.{digits}f}" for each in (found.value, found.low, found.high)
    )
    return f"{value} ({low}..{high})"


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()
