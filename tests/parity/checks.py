"""How close to PEFT is close enough, and what to say where it is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alora_gguf.engine.llama_context import Logits

from .sides import Sides

TOLERANCE = 5e-3  # of the largest logit: what the project promises
# and what these sizes allow: at most 3e-6 was measured, and 5e-4 with GELU, as ggml's is a table of
# half-precision numbers on the CPU, in which the last bit of an input may move a step
_TIGHT, _TIGHT_GELU = 1e-4, 2e-3
_GELU = (
    *("gemma", "gemma2", "gemma3", "starcoder2", "gpt2", "gpt_bigcode", "gpt_neox", "bloom"),
    "phi",
)


def error(ours: Logits, theirs: Logits) -> float:
    """The largest difference at any position, relative to the largest logit."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_close(sides: Sides, ours: Logits, theirs: Logits, what: str) -> None:
    """Checks all rows against what the family allows."""
    family = sides.tiny.family
    bound = _TIGHT_GELU if family in _GELU else _TIGHT
    if family.startswith("gemma4"):  # whose scores are not scaled down: differences grow
        bound = TOLERANCE
    found = error(ours, theirs)
    if not found <= bound:  # NaN neither
        worst = int(np.abs(ours - theirs).reshape(-1, ours.shape[-1]).max(axis=-1).argmax())
        raise AssertionError(
            f"{sides.tiny.family}, {what}: off by {found:.1e} of the largest logit, where {bound} "
            f"is allowed; most at row {worst} of {len(ours)}"
        )


def assert_greedy(
    sides: Sides,
    prompt: Sequence[int],
    name: str | None,
    output: Sequence[int],
    n: int,
    *,
    each_once: bool = False,
) -> None:
    """Checks that `output` is PEFT's own greedy output after `prompt`, of `n` tokens; of those that
    it has not yet said with `each_once`.

    PEFT reads prompt and output in one pass, activated where the prompt says. If at each position
    it finds likeliest what stands there, then, by induction, it would have written the same; and
    that takes a pass per output instead of one per token.
    """
    assert len(output) == n
    read = [*prompt, *output[:-1]]
    rows = sides.theirs(read, name, first=sides.first(prompt, name))[len(prompt) - 1 :].copy()
    largest = np.abs(rows).max()
    if each_once:
        for i, token in enumerate(output[:-1]):
            rows[i + 1 :, token] = -np.inf
    ranked = np.sort(rows, axis=-1)
    lead = (ranked[:, -1] - ranked[:, -2]) / largest
    for i, (ours, theirs) in enumerate(zip(output, rows.argmax(axis=-1), strict=True)):
        assert ours == theirs, (
            f"{name or 'base'}: token {i} of {n} is {ours}, PEFT's is {theirs}, which leads by "
            f"{lead[i]:.1e} of the largest logit"
        )
