"""Training adapters on the GGUF that will serve them: `alora-gguf train` (the extra `train`).

train() does all of it, for the Tasks it is given. score() alone says what an adapter is worth,
load_model() makes a base's GGUF transformers' model of it.
"""

from __future__ import annotations

from .data import Example, Examples, read_examples
from .hf_model import load_model
from .records import Estimate, Task, TrainReport, Watcher
from .scores import Scores, score
from .settings import TrainSettings
from .training import train

__all__ = [
    "Estimate",
    "Example",
    "Examples",
    "Scores",
    "Task",
    "TrainReport",
    "TrainSettings",
    "Watcher",
    "load_model",
    "read_examples",
    "score",
    "train",
]
