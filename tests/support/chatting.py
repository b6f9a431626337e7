"""What the tests of `alora-gguf chat` share: what a chat did, and a base that talks without end."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alora_gguf.cli.chat.asking import Place, Sign, Watched
from alora_gguf.cli.verdicts import Good

import alora_gguf as ag

GREEDY = ag.GenerateOptions(max_tokens=64, sampling=ag.Sampling(temperature=0.0))


@dataclass(frozen=True)
class Tiny:
    """A base of random weights, which never ends a reply by itself if it is greedy."""

    base: Path
    bare: Path  # without a chat template
    alora: Path
    lora: Path


@dataclass(frozen=True)
class Outcome:
    """What a chat did: its exit status, stdout and stderr; times and numbers are masked."""

    status: int
    out: str
    err: str


def watching(
    name: str,
    place: Place,
    sign: Sign = "",
    bound: float = 0.0,
    good: Good | None = None,
    **call: Any,
) -> Watched:
    """An intrinsic that is asked at every turn."""
    return Watched(ag.IntrinsicCall(name, **call), place, sign, bound, good)


Chatting = Callable[..., Outcome]


def masked(text: str) -> str:
    """Without times, probabilities and percentages: they differ between machines."""
    text = re.sub(r"\b\d+ ms\b", "T ms", text)
    text = re.sub(r"\b\d+\.\d+(e-\d+)?\b|\b\de-\d+\b", "P", text)
    return re.sub(r"\b\d+%", "P%", text)
