"""How far two readings of a text lie apart: in logits, and in the residual stream by layer."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine.batch import Logits

from .probe import Reading
from .records import LayerChange, LogitsChange

Doubles = NDArray[np.float64]

_TINY: Final = 1e-30  # in place of a norm of 0


def logits_change(base: Reading, adapted: Reading, n_before: int) -> LogitsChange:
    """Of readings whose first `n_before` rows no adapter should have changed."""
    before = slice(0, n_before)
    ours, theirs = adapted.logits[n_before:], base.logits[n_before:]
    equal = same_bits(base.logits[before], adapted.logits[before]) and all(
        same_bits(base.layers[i][before], adapted.layers[i][before]) for i in base.layers
    )
    return LogitsChange(
        n_before=n_before,
        before_equal=equal if n_before else None,
        largest=relative_error(ours, theirs),
        kl=divergence(theirs[-1], ours[-1]),
        n_top_changed=int(np.sum(ours.argmax(axis=-1) != theirs.argmax(axis=-1))),
        top_base=int(theirs[-1].argmax()),
        top_adapter=int(ours[-1].argmax()),
    )


def layer_changes(base: Reading, adapted: Reading, n_before: int) -> tuple[LayerChange, ...]:
    """Of the rows from `n_before` on."""
    return tuple(
        _layer_change(i, base.layers[i][n_before:], adapted.layers[i][n_before:])
        for i in base.layers
    )


def _layer_change(layer: int, base: Logits, adapted: Logits) -> LayerChange:
    a, b = adapted.astype(np.float64), base.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # not finite: the result is NaN then
        norm_a, norm_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        ratio = np.linalg.norm(a - b, axis=-1) / np.maximum(norm_b, _TINY)
        cosine = np.sum(a * b, axis=-1) / np.maximum(norm_a * norm_b, _TINY)
    return LayerChange(layer, float(ratio.mean()), float(ratio.max()), float(cosine.mean()))


def relative_error(ours: Logits, theirs: Logits) -> float:
    """The largest difference, relative to the largest of `theirs`; NaN if one is not finite."""
    with np.errstate(invalid="ignore"):
        largest = np.abs(theirs.astype(np.float64)).max()
        return float(np.abs(ours.astype(np.float64) - theirs).max() / max(largest, _TINY))


def typical(rows: Logits | Doubles) -> float:
    """The median of each row's largest absolute value."""
    return float(np.median(np.abs(rows).max(axis=-1)))


def cosine(a: Doubles, b: Doubles) -> float:
    """Between two arrays as a whole; 1 if both are zero, 0 if one is."""
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if 0.0 in norms:
        return float(norms[0] == norms[1])
    return float(np.sum(a / norms[0] * (b / norms[1])))


def divergence(p: Logits, q: Logits) -> float:
    """KL(p || q) of two rows of logits, in nats."""
    with np.errstate(invalid="ignore"):
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        return float(np.sum(np.exp(log_p) * (log_p - log_q)))


def same_bits(a: Logits, b: Logits) -> bool:
    """Whether two arrays are the same to the last bit, NaN and the sign of 0 included."""
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _log_softmax(row: Logits) -> Doubles:
    wide = row.astype(np.float64)
    wide -= wide.max()
    shifted: Doubles = wide - np.log(np.sum(np.exp(wide)))
    return shifted
