"""What verify() finds out about an adapter on a base: plain records, for programs and for JSON, and
in sentences what of it fails or is odd.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from alora_gguf.gguf.inspection import Target, plain

Vocabularies = Literal["equal", "different", "unknown"]

ENORMOUS: Final = 10.0
"""A change of so many times the base's own norm is warned of."""

_TOO_LARGE: Final = (
    "weights are too large, so its training has diverged or its alpha is wrong",
    "directions times their scale are too large",
)
_REPORT: Final = "this is a bug of alora-gguf or llama.cpp, please report it"


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """The base. `type` is the coarsest ggml type of a substantial part of its weights, and
    `bits_per_weight` what that takes; `vocabulary_sha256` is None if it has no vocabulary.
    """

    path: Path
    name: str | None
    architecture: str
    nbytes: int
    n_parameters: int
    type: str
    bits_per_weight: float
    vocabulary_sha256: str | None


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """The adapter; `type` and `bits_per_weight` as of the base. `vocabulary_sha256` is that of the
    base it was converted for, None if the file does not say; `invocation` is () for a plain LoRA.

    Of a steering vector `alpha` is the strength it was made for, `rank` the most directions that a
    layer has, `acts_on` where they act, such as "blk.12" and "blk.13.ffn", and `operation` what
    they do there; `acts_on` is () and `operation` None for weights, as `targets` is () for it.
    """

    path: Path
    name: str
    kind: Literal["alora", "lora", "vector"]
    nbytes: int
    n_parameters: int
    type: str
    bits_per_weight: float
    rank: int
    alpha: float
    targets: tuple[Target, ...]
    invocation: tuple[int, ...]
    invocation_text: str | None
    vocabulary_sha256: str | None
    identity: str
    operation: str | None = None
    acts_on: tuple[str, ...] = ()

    @property
    def begins_at(self) -> str:
        """What it begins at, in words, where that is not the first token."""
        return "the invocation" if self.invocation else "the reply"


@dataclass(frozen=True, slots=True)
class Text:
    """What was read: random tokens, drawn with `seed`, then the invocation, then more of them.

    `first` is where the adapter begins, 0 for a plain LoRA; for a vector without an invocation the
    tokens from there on stand for a reply. `n_rows` of the last tokens were
    looked at, of which the last `n_adapted` are computed with the adapter.
    """

    seed: int
    tokens: tuple[int, ...]
    first: int
    n_rows: int
    n_adapted: int


@dataclass(frozen=True, slots=True)
class CellsCheck:
    """Bytes of cells, as a session computes them.

    n_cells       of the text before the adapter begins
    reused        of those, by a fork that the adapter then read the rest on
    untouched     whether the conversation's own cells were the same bytes after that
    equal         whether the cells before the invocation are the base's, bit for bit, where the
                  adapter reads everything in one batch; None for a plain LoRA, which changes all,
                  and where the model's memory cannot be cut there
    """

    n_cells: int
    reused: int
    untouched: bool
    equal: bool | None


@dataclass(frozen=True, slots=True)
class LogitsChange:
    """How the adapter's logits differ from the base's.

    n_before       rows before the invocation, and whether those are the same bits (`before_equal`;
                   None if there are none)
    largest        the largest difference in the rows after, relative to the base's largest logit
    kl             KL(base || adapter) after the last token, in nats
    n_top_changed  rows whose likeliest token is another
    top_base, top_adapter   the likeliest after the last token
    text_base, text_adapter   and how those read, None in a base without a vocabulary
    """

    n_before: int
    before_equal: bool | None
    largest: float
    kl: float
    n_top_changed: int
    top_base: int
    top_adapter: int
    text_base: str | None = None
    text_adapter: str | None = None


@dataclass(frozen=True, slots=True)
class LayerChange:
    """How the residual stream after a layer differs, over the adapted tokens: |h - h_base| /
    |h_base|, its mean and largest, and the mean cosine between the two.
    """

    layer: int
    change: float
    largest: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Distance:
    """How far rows of logits lie from PEFT's, relative to the largest logit of PEFT's: at the worst
    token, and `typical`, the median of every token's own largest difference.
    """

    largest: float
    typical: float


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a comparison with PEFT allows, by the coarser of the base's and the adapter's types.

    `largest` is None where the worst token says nothing: what rounding of weights does to a single
    one has no useful bound. `cosine` is the least for what the adapter adds.
    """

    type: str
    typical: float
    largest: float | None
    cosine: float


@dataclass(frozen=True, slots=True)
class PeftComparison:
    """Logits of the last `n_rows` tokens beside PEFT's, computed in float32 from the directories
    `adapter` and `base`.

    without, with_adapter   how far ours are from PEFT's, without the adapter and with it
    effect                  what it adds to the logits in PEFT, measured like Distance.typical
    effect_cosine           the cosine between that and what it adds here
    """

    adapter: Path
    base: Path
    n_rows: int
    without: Distance
    with_adapter: Distance
    allowed: Allowed
    effect: float
    effect_cosine: float

    @property
    def close(self) -> bool:
        """Whether the adapter's logits are as close to PEFT's as is allowed; NaN is not."""
        ours, allowed = self.with_adapter, self.allowed
        worst = allowed.largest is None or ours.largest <= allowed.largest
        return worst and ours.typical <= allowed.typical

    @property
    def effect_clear(self) -> bool:
        """Whether the effect stands out from what the base's type costs, so that it says more."""
        return self.effect > 3 * self.without.typical

    @property
    def same_effect(self) -> bool:
        """Whether the adapter adds here what it adds in PEFT, as far as that can be told."""
        return not self.effect_clear or self.effect_cosine >= self.allowed.cosine


@dataclass(frozen=True)
class Verification:
    """All of it. `failures` and `warnings` are sentences; without failures the adapter passed.

    `finite` is whether all values are, and `effective` whether the adapter changes any. `layers` is
    () for an architecture whose graph does not name its layers' outputs.
    """

    base: BaseFacts
    adapter: AdapterFacts
    n_threads: int
    n_gpu_layers: int
    vocabularies: Vocabularies
    text: Text
    cells: CellsCheck
    finite: bool
    effective: bool
    logits: LogitsChange
    layers: tuple[LayerChange, ...]
    peft: PeftComparison | None
    failures: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; numbers that are not finite become strings."""
        return {"passed": self.passed, **plain(self)}


# In sentences -----------------------------------------------------------------------------------


def failures(
    found: Verification, plain_wrong: str | None, adapted_wrong: str | None
) -> Iterator[str]:
    """What makes the adapter fail, most telling first; `..._wrong` is where a value is not finite
    first, without the adapter and with it.
    """
    if found.vocabularies == "different":
        yield (
            f"the base's vocabulary (sha256 {_short(found.base.vocabulary_sha256)}) is not the one "
            f"that the adapter was converted for ({_short(found.adapter.vocabulary_sha256)}); use "
            "the base it was trained on, or convert it again for this one"
        )
    if plain_wrong is not None:
        yield (
            f"the base itself computes NaN or infinite values, first in {plain_wrong}; its file is "
            "damaged, or its weights overflow"
        )
    elif adapted_wrong is not None:
        yield (
            f"with the adapter on, NaN or infinite values come up, first in {adapted_wrong}; its "
            f"{_TOO_LARGE[found.adapter.kind == 'vector']}"
        )
    elif not found.effective:
        why = "its B matrices are zero, as they are before training"
        if found.adapter.kind == "vector":
            why = "its scale is 0, or nothing that flows there points along its directions"
        yield (
            "the adapter changes nothing: with it, every layer and every logit is bit for bit the "
            f"base's; {why}"
        )
    if found.finite:  # NaN in a batch reaches tokens that do not attend to it: 0 * NaN is NaN
        yield from _leaks(found)
    if found.peft is not None:
        yield from _apart(found.peft, found.base)


def _leaks(found: Verification) -> Iterator[str]:
    begin = found.adapter.begins_at
    if not found.cells.untouched:
        yield f"the conversation's cells have changed while the adapter was asked; {_REPORT}"
    if found.cells.equal is False:
        yield (
            f"cells of the {found.cells.n_cells} tokens before {begin} are not the base's "
            f"when the adapter reads the whole text; {_REPORT}"
        )
    if found.logits.before_equal is False:
        yield (
            f"layers or logits of the {found.logits.n_before} tokens before {begin} are not "
            f"the base's; {_REPORT}"
        )


def _apart(peft: PeftComparison, base: BaseFacts) -> Iterator[str]:
    ours, allowed = peft.with_adapter, peft.allowed
    cause = "the adapter was converted from another one"
    if not peft.without.typical <= allowed.typical:  # NaN neither
        cause = f"{peft.base} and {base.path} are not the same model"
    if not ours.typical <= allowed.typical:
        problem = (
            f"logits are off by {ours.typical:.1e} of PEFT's largest at a typical token, where "
            f"{allowed.typical:g} is allowed for {allowed.type}"
        )
    elif not peft.close:
        problem = (
            f"logits are off by {ours.largest:.1e} of PEFT's largest at the worst token, where "
            f"{allowed.largest} is allowed for {allowed.type}"
        )
    elif not peft.same_effect:
        problem = (
            "what the adapter adds to the logits is not what it adds in PEFT (cosine "
            f"{peft.effect_cosine:.3f}, at least {allowed.cosine:g} is expected for {allowed.type})"
        )
    else:
        return
    yield f"{problem}; {cause}"


def warnings(found: Verification) -> Iterator[str]:
    """What is odd, and may be meant."""
    adapter = found.adapter
    reads_no_tokens = adapter.kind == "vector" and not adapter.invocation
    if reads_no_tokens:
        pass  # whatever the vocabulary
    elif found.base.vocabulary_sha256 is None:
        yield "the base has no vocabulary to compare with the one the adapter was converted for"
    elif adapter.vocabulary_sha256 is None and adapter.kind != "vector":
        yield (
            "the adapter does not say which vocabulary it was converted for; alora-gguf convert "
            "writes it where the base is a GGUF"
        )
    if not found.layers:
        yield (
            f"llama.cpp's graph of the architecture '{found.base.architecture}' does not name its "
            "layers' outputs, so changes by layer are not known"
        )
    enormous = [change.layer for change in found.layers if change.change > ENORMOUS]
    if enormous:
        yield (
            f"the change is enormous, more than {ENORMOUS:g} times the base's own norm, in layer "
            f"{enormous[0]}"
            + (f" and {len(enormous) - 1} more" if enormous[1:] else "")
            + f"; check the adapter's {'scale' if adapter.kind == 'vector' else 'alpha and rank'}"
        )
    if found.cells.equal is None and found.text.first:
        yield (
            f"this model's memory cannot be cut, so cells before {adapter.begins_at} were compared "
            "only as the conversation's own; layers and logits before it were compared all the same"
        )


def _short(sha256: str | None) -> str:
    return f"{sha256[:12]}…" if sha256 else "none"
