"""What an answer costs: first token and whole answer, aLoRA on the cached conversation against a
plain LoRA that reads it again, one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from alora_gguf import Invocation, Model, Timings

LONG: Final = 1800  # tokens; the base's context is 2048, and the longest answer has 128
_LONG_SHARE: Final = 5  # of the conversations timed, every fifth is timed long as well


def rows(
    model: Model,
    base: str,
    task: str,
    asked: dict[str, Invocation],
    prompts: Sequence[str],
    n: int,
) -> list[dict[str, object]]:
    """A row for each side and each length: the conversations as they are, and behind as many other
    ones as make them about LONG tokens.
    """
    lengths = {
        "as they are": list(prompts[:n]),
        "long": [lengthened(model, prompts, i) for i in range(min(len(prompts), n) // _LONG_SHARE)],
    }
    found: list[dict[str, object]] = []
    for length, texts in lengths.items():
        if texts:
            timings, tokens = _time(model, asked, texts)
            where = {"base": base, "intrinsic": task, "length": length}
            size = {"n": len(texts), "conversation_tokens": int(np.median(tokens))}
            found += ({**where, "side": side, **size, **_summary(timings[side])} for side in asked)
    return found


def lengthened(model: Model, prompts: Sequence[str], i: int) -> str:
    """Conversation `i` behind others, LONG tokens at most together (or as long as it is)."""
    text, room = prompts[i], LONG - len(model.tokenize(prompts[i]))
    for step in range(1, len(prompts)):
        other = prompts[(i + step) % len(prompts)]
        room -= len(model.tokenize(other))
        if room < 0:
            break
        text = other + text
    return text


def _time(
    model: Model, asked: dict[str, Invocation], texts: Sequence[str]
) -> tuple[dict[str, list[Timings]], list[int]]:
    timings: dict[str, list[Timings]] = {side: [] for side in asked}
    tokens = []
    for i, text in enumerate([texts[0], *texts]):
        sides = list(asked) if i % 2 else list(reversed(asked))  # neither side is always first
        with model.session() as chat:
            chat.append(text)
            for side in sides:
                verdict = chat.invoke(asked[side])
                if i:  # the first conversation only builds graphs, and is then timed again
                    timings[side].append(verdict.timings)
            tokens.append(len(chat.tokens))
    return timings, tokens[1:]


def _summary(timings: Sequence[Timings]) -> dict[str, object]:
    return {
        "first_token_ms": _spread([(t.first_token or 0.0) * 1e3 for t in timings]),
        "total_ms": _spread([t.total * 1e3 for t in timings]),
        "reused": int(np.median([t.reused for t in timings])),
        "evaluated": int(np.median([t.evaluated for t in timings])),
        "generated": int(np.median([t.generated for t in timings])),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and what 10 % and 90 % stay below."""
    low, middle, high = np.percentile(values, [10, 50, 90])
    return {
        name: round(float(x), 3) for name, x in (("median", middle), ("p10", low), ("p90", high))
    }
