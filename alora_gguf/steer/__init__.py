"""Steering vectors, made and measured: derive(), sweep(), match(), and the records that they
return.
"""

from __future__ import annotations

from alora_gguf.gguf.vector import HOOKS, OPERATIONS

from .deriving import DeriveOptions, derive
from .matching import MatchOptions, match
from .pairs import Pair, Question, read_pairs, read_questions
from .records import (
    METHODS,
    Candidate,
    Derivation,
    Effect,
    Interval,
    LayerSeparation,
    Match,
    Step,
    Sweep,
)
from .running import RunOptions
from .sweeping import SCALES, SweepOptions, sweep

__all__ = [
    "HOOKS",
    "METHODS",
    "OPERATIONS",
    "SCALES",
    "Candidate",
    "Derivation",
    "DeriveOptions",
    "Effect",
    "Interval",
    "LayerSeparation",
    "Match",
    "MatchOptions",
    "Pair",
    "Question",
    "RunOptions",
    "Step",
    "Sweep",
    "SweepOptions",
    "derive",
    "match",
    "read_pairs",
    "read_questions",
    "sweep",
]
