"""The static check: what is odd about an adapter that one did not train, told from its weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Final, NamedTuple

from .records import LEVELS, AdapterWeights, Finding, Level, MatrixWeights

OUTLIER: Final = 5.0
"""A layer's ||dW||_F, in medians of the same target over all layers, from which it is told."""

DOMINANT: Final = 0.95
"""The part of ||dW||_F^2 in one direction from which that is told."""

OVERWRITING: Final = 0.3
"""||dW||_2 / ||W||_2 from which it is told."""

_MANY: Final = 0.5  # of the matrices: in fewer, one direction is only worth a note
_FEW: Final = 4  # layers whose median says something
_NAMED: Final = 3  # targets in a message
# The linear maps of attention, MLP, experts and recurrent layers. Others are rarely trained, and
# change the model's vocabulary or which expert is asked.
_USUAL: Final = re.compile(
    r"attn_(q|k|v|qkv|output|gate|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b)"
    r"|ffn_(gate|up|down|gate_up)(_exps|_shexp|_chexps)?"
    r"|ssm_(in|out|x|dt|ba|beta_alpha)"
)


class Rule(NamedTuple):
    """A rule of the check: the level of its findings (the highest, where it depends), and in short
    what it finds.
    """

    level: Level
    summary: str


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "never-trained": Rule("error", "The adapter changes nothing: every dW is 0."),
        "not-finite": Rule("error", "Computing with the adapter overflows float32."),
        "dead-targets": Rule("warning", "Some of the targets are never changed."),
        "outlier-layers": Rule("warning", "A layer is changed far more than the others."),
        "dominant-direction": Rule("warning", "Nearly all of dW is in one direction."),
        "unusual-targets": Rule("warning", "Targets are other than attention, MLP or experts."),
        "overwriting": Rule("warning", "A change is large beside the base's weight."),
        "spare-rank": Rule("note", "The adapter is stored at a higher rank than it has."),
    }
)


def find(adapter: AdapterWeights) -> Iterator[Finding]:
    """What is odd, worst first."""
    found = list(_findings(adapter))
    yield from sorted(found, key=lambda each: -LEVELS.index(each.level))


def _findings(adapter: AdapterWeights) -> Iterator[Finding]:
    if not adapter.alive:
        text = "every dW is 0, so the adapter changes nothing; its B matrices are zero, as before "
        yield _finding("never-trained", [], f"{text}training")
        return
    huge = [m for m in adapter.matrices if not m.finite]
    if huge:
        yield _finding(
            "not-finite",
            huge,
            f"A, B or dW exceed float32's range in {_names(huge)}; the training has diverged, or "
            "alpha is wrong",
        )
    dead = [m for m in adapter.matrices if m.dead]
    if dead:
        yield _finding(
            "dead-targets",
            dead,
            f"dW is 0 in {_names(dead)}; trained, they would have been changed",
        )
    yield from _outliers(adapter)
    yield from _dominant(adapter)
    unusual = [m for m in adapter.matrices if not _USUAL.fullmatch(m.name.rpartition(".")[2])]
    if unusual:
        yield _finding(
            "unusual-targets",
            unusual,
            f"{_names(unusual)} {_are(unusual)} rarely trained; check that the adapter's author "
            "means to change that",
        )
    large = [m for m in adapter.matrices if (m.relative or 0) > OVERWRITING]
    if large:
        most = max(large, key=lambda m: m.relative or 0)
        alora = adapter.kind == "alora"
        after = " after its invocation" if alora else ""
        yield _finding(
            "overwriting",
            large,
            f"||dW||_2 is more than {OVERWRITING:g} of the base's ||W||_2 in {_names(large)}, "
            f"up to {most.relative:.2g} in {most.label}; the base's own abilities may suffer"
            f"{after}",
            "note" if alora else None,
        )
    rank = max(m.numerical_rank for m in adapter.matrices)
    if rank < adapter.rank:
        yield _finding(
            "spare-rank",
            [],
            f"no matrix has more than rank {rank}, but rank {adapter.rank} is stored; "
            f"--write-rank {rank} writes the same adapter smaller",
        )


def _outliers(adapter: AdapterWeights) -> Iterator[Finding]:
    """Against the same target in the other layers: targets differ in size."""
    alike = defaultdict[tuple[str, int | None], list[MatrixWeights]](list)
    for matrix in adapter.alive:
        if matrix.layer is not None:
            alike[matrix.name, matrix.expert].append(matrix)
    found = list[tuple[float, MatrixWeights]]()
    for group in alike.values():
        if len(group) >= _FEW:
            usual = median(m.frobenius for m in group)
            found += [(m.frobenius / usual, m) for m in group if m.frobenius > OUTLIER * usual]
    if found:
        times, most = max(found, key=lambda each: each[0])
        large = [matrix for _, matrix in found]
        yield _finding(
            "outlier-layers",
            large,
            f"||dW||_F is more than {OUTLIER:g} times the median over layers in {_names(large)}, "
            f"up to {times:.3g} times in {most.label}",
        )


def _dominant(adapter: AdapterWeights) -> Iterator[Finding]:
    found = [m for m in adapter.alive if m.rank > 1 and m.stable_rank < 1 / DOMINANT]
    if found:
        level: Level = "warning" if len(found) > _MANY * len(adapter.alive) else "note"
        yield _finding(
            "dominant-direction",
            found,
            f"one direction has more than {DOMINANT:.0%} of ||dW||_F^2 in {_names(found)}; an edit "
            "of one fact or a trigger looks like that, and so does a collapsed training",
            level,
        )


def _finding(
    rule: str, matrices: Sequence[MatrixWeights], message: str, level: Level | None = None
) -> Finding:
    return Finding(rule, level or RULES[rule].level, message, tuple(m.label for m in matrices))


def _names(matrices: Sequence[MatrixWeights]) -> str:
    shown = ", ".join(m.label for m in matrices[:_NAMED])
    more = len(matrices) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _are(matrices: Sequence[MatrixWeights]) -> str:
    return "is" if len(matrices) == 1 else "are"
