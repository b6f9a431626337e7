"""What a benchmark found: the samples of every side, and ratios of their medians.

Samples are in the order they were taken in; seconds unless it says otherwise.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from alora_gguf.cli.measure import HOW, ratio

Samples = tuple[float, ...]
Way = Literal["alora", "lora", "base"]


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """The base; `trained` is the longest text it was trained for, None if its file does not say."""

    path: Path
    name: str
    architecture: str
    n_parameters: int
    nbytes: int
    trained: int | None


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter that was given; a plain LoRA has no invocation."""

    name: str
    path: Path
    kind: Literal["alora", "lora"]
    rank: int
    n_invocation: int


@dataclass(frozen=True, slots=True)
class Asked:
    """One way of asking: the tokens of a question's prompt that were in the cache already and those
    that were read; for each question the time to the first token, and to the end.
    """

    reused: int
    evaluated: int
    first_token: Samples
    total: Samples


@dataclass(frozen=True, slots=True)
class AtContext:
    """Questions about a context of `n_tokens`: to the aLoRA and to the base on its cached cells, to
    the plain LoRA that reads it all. `read` is how long the base took to read it, once for all its
    questions. None: not measured.
    """

    n_tokens: int
    read: Samples
    alora: Asked | None
    lora: Asked | None
    base: Asked | None

    def side(self, way: Way) -> Asked | None:
        """One of the three."""
        return {"alora": self.alora, "lora": self.lora, "base": self.base}[way]


@dataclass(frozen=True, slots=True)
class Together:
    """So many aLoRAs asked about one cached context, to the end of all answers."""

    n_tokens: int
    n_adapters: int
    at_once: Samples
    one_by_one: Samples


@dataclass(frozen=True, slots=True)
class Decoding:
    """Tokens per second of long answers after `n_tokens`, with the adapter and without one."""

    n_tokens: int
    adapter: Samples
    base: Samples


@dataclass(frozen=True, slots=True)
class Memory:
    """Cells in use by a context of `n_tokens` and its forks, each of which has a question and an
    answer; and what as many contexts of their own would take.
    """

    n_tokens: int
    n_forks: int
    cells: int
    cells_apart: int
    cell_nbytes: float


@dataclass(frozen=True, slots=True)
class Method:
    """How it was measured; `gpu_layers` is -1 for all of them. `asked` is the adapter of all rows
    but those about several.
    """

    threads: int
    gpu_layers: int
    seed: int
    rounds: int
    seconds: int
    answer_tokens: int
    asked: str


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Everything a benchmark found; what could not be measured is absent, and `notes` say why."""

    version: str
    base: BaseFacts
    adapters: tuple[AdapterFacts, ...]
    method: Method
    contexts: tuple[AtContext, ...]
    together: tuple[Together, ...]
    decoding: Decoding | None
    memory: Memory | None
    notes: tuple[str, ...]
    elapsed: float
    interrupted: bool

    @property
    def has_alora(self) -> bool:
        """Whether an activated LoRA was among the adapters."""
        return any(adapter.kind == "alora" for adapter in self.adapters)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        shown: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        shown["plain_lora"] = HOW if self.has_alora else None
        for row, into in zip(self.contexts, shown["contexts"], strict=True):
            into["ratios"] = _context_ratios(row)
        for several, into in zip(self.together, shown["together"], strict=True):
            into["one_by_one_to_at_once"] = ratio(several.one_by_one, several.at_once)
        if self.decoding is not None:
            shown["decoding"]["base_to_adapter"] = ratio(self.decoding.base, self.decoding.adapter)
        if self.memory is not None:
            memory = self.memory
            shown["memory"]["apart_to_forks"] = memory.cells_apart / memory.cells
        return shown


def _context_ratios(row: AtContext) -> dict[str, dict[str, float | None]]:
    """By what was timed: plain LoRA to aLoRA, and aLoRA to no adapter."""
    found: dict[str, dict[str, float | None]] = {"first_token": {}, "total": {}}
    for what, into in found.items():
        alora, lora, base = (
            None if side is None else getattr(side, what)
            for side in (row.alora, row.lora, row.base)
        )
        into["lora_to_alora"] = ratio(lora, alora) if lora and alora else None
        into["alora_to_base"] = ratio(alora, base) if alora and base else None
        into["lora_to_base"] = ratio(lora, base) if lora and base else None
    return found
