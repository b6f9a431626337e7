"""What adapters change and where, told from their weights and by running them: analyse(),
truncate(), merge(), and the records that they return.
"""

from __future__ import annotations

from .activation_records import (
    ActivationOptions,
    Activations,
    AdapterActivations,
    DeltaCosines,
    LayerActivations,
    LayerStates,
    Merge,
    RankLoss,
)
from .analysing import analyse
from .findings import RULES, Rule
from .merge_records import MergeCost, Merging
from .merging import merge
from .records import (
    LEVELS,
    AdapterWeights,
    Analysis,
    Angles,
    Comparison,
    Finding,
    LayerWeights,
    Level,
    MatrixWeights,
    Overlap,
    RandomWeights,
    SharedBasis,
    SharedRank,
    TargetWeights,
    Totals,
    TruncatedMatrix,
    Truncation,
)
from .reporting import check_sarif, sarif, write_sarif
from .truncating import check_truncation, truncate

__all__ = [
    "LEVELS",
    "RULES",
    "ActivationOptions",
    "Activations",
    "AdapterActivations",
    "AdapterWeights",
    "Analysis",
    "Angles",
    "Comparison",
    "DeltaCosines",
    "Finding",
    "LayerActivations",
    "LayerStates",
    "LayerWeights",
    "Level",
    "MatrixWeights",
    "Merge",
    "MergeCost",
    "Merging",
    "Overlap",
    "RandomWeights",
    "RankLoss",
    "Rule",
    "SharedBasis",
    "SharedRank",
    "TargetWeights",
    "Totals",
    "TruncatedMatrix",
    "Truncation",
    "analyse",
    "check_sarif",
    "check_truncation",
    "merge",
    "sarif",
    "truncate",
    "write_sarif",
]
