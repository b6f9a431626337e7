"""What of a verification's numbers fails, and what is worth a warning, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from .probe import Reading
from .records import BaseFacts, PeftComparison, Verification

ENORMOUS: Final = 10.0
"""A change of so many times the base's own norm is warned of."""

_REPORT: Final = "this is a bug of alora-gguf or llama.cpp, please report it"


def failures(found: Verification, plain: Reading, adapted: Reading) -> Iterator[str]:
    """What makes the adapter fail, most telling first."""
    if found.vocabularies == "different":
        yield (
            f"the base's vocabulary (sha256 {_short(found.base.vocabulary_sha256)}) is not the one "
            f"that the adapter was converted for ({_short(found.adapter.vocabulary_sha256)}); use "
            "the base it was trained on, or convert it again for this one"
        )
    if (where := first_not_finite(plain)) is not None:
        yield (
            f"the base itself computes NaN or infinite values, first in {where}; its file is "
            "damaged, or its weights overflow"
        )
    elif (where := first_not_finite(adapted)) is not None:
        yield (
            f"with the adapter on, NaN or infinite values come up, first in {where}; its weights "
            "are too large, so its training has diverged or its alpha is wrong"
        )
    elif not found.effective:
        yield (
            "the adapter changes nothing: with it, every layer and every logit is bit for bit the "
            "base's; its B matrices are zero, as they are before training"
        )
    if found.finite:  # NaN in a batch reaches tokens that do not attend to it: 0 * NaN is NaN
        yield from _leaks(found)
    if found.peft is not None:
        yield from _apart(found.peft, found.base)


def _leaks(found: Verification) -> Iterator[str]:
    if not found.cells.untouched:
        yield f"the conversation's cells have changed while the adapter was asked; {_REPORT}"
    if found.cells.equal is False:
        yield (
            f"cells of the {found.cells.n_cells} tokens before the invocation are not the base's "
            f"when the adapter reads the whole text; {_REPORT}"
        )
    if found.logits.before_equal is False:
        yield (
            f"layers or logits of the {found.logits.n_before} tokens before the invocation are not "
            f"the base's; {_REPORT}"
        )


def _apart(peft: PeftComparison, base: BaseFacts) -> Iterator[str]:
    ours, allowed = peft.with_adapter, peft.allowed
    cause = "the adapter was converted from another one"
    if not peft.without.typical <= allowed.typical:  # NaN neither
        cause = f"{peft.base} and {base.path} are not the same model"
    if peft.close and peft.same_effect:
        return
    if not ours.typical <= allowed.typical:
        yield (
            f"logits are off by {ours.typical:.1e} of PEFT's largest at a typical token, where "
            f"{allowed.typical:g} is allowed for {allowed.type}; {cause}"
        )
    elif not peft.close:
        yield (
            f"logits are off by {ours.largest:.1e} of PEFT's largest at the worst token, where "
            f"{allowed.largest} is allowed for {allowed.type}; {cause}"
        )
    else:
        yield (
            "what the adapter adds to the logits is not what it adds in PEFT (cosine "
            f"{peft.effect_cosine:.3f}, at least {allowed.cosine:g} is expected for "
            f"{allowed.type}); {cause}"
        )


def warnings(found: Verification) -> Iterator[str]:
    """What is odd, and may be meant."""
    if found.base.vocabulary_sha256 is None:
        yield "the base has no vocabulary to compare with the one the adapter was converted for"
    elif found.adapter.vocabulary_sha256 is None:
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
            + "; check the adapter's alpha and rank"
        )
    if found.cells.equal is None and found.adapter.kind == "alora":
        yield (
            "this model's memory cannot be cut, so cells before the invocation were compared only "
            "as the conversation's own; layers and logits before it were compared all the same"
        )


def first_not_finite(reading: Reading) -> str | None:
    """Where a value is NaN or infinite first, such as "layer 3"; None if nowhere."""
    for layer, hidden in reading.layers.items():
        if not np.isfinite(hidden).all():
            return f"layer {layer}"
    return None if np.isfinite(reading.logits).all() else "the logits"


def differ(plain: Reading, adapted: Reading) -> bool:
    """Whether any value does; adding a 0 may make a -0 a 0, which does not count."""
    return not np.array_equal(plain.logits, adapted.logits) or any(
        not np.array_equal(plain.layers[i], adapted.layers[i]) for i in plain.layers
    )


def _short(sha256: str | None) -> str:
    return f"{sha256[:12]}…" if sha256 else "none"
