"""Fixtures of the Python tests: one tiny base and some adapters, written once per run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_base

import alora_gguf as ag
from alora_gguf.engine.scheduler import BatchWindow

INVOCATION = "<certainty>"
FOREVER = 20.0  # seconds: longer than anything takes
# F32 keys and values: what is left between batches of another shape are other orders of summation,
# 1e-5 of the largest logit and not 1e-2
# and no cells of closed sessions, so that tests can count
EXACT = ag.ContextOptions(type_k="f32", type_v="f32", flash_attn="off", n_pooled=0)


@dataclass(frozen=True)
class Files:
    """Paths of the tiny files, and the invocation's token ids."""

    folder: Path
    base: Path
    alora: Path
    other: Path
    lora: Path
    invocation: tuple[int, ...]

    def model(self, **options: object) -> ag.Model:
        """A model with the three adapters."""
        arguments: dict[str, object] = {
            "adapters": {"sure": self.alora, "other": self.other, "lora": self.lora},
            "n_ctx": 1024,
            "n_threads": 1,
            "options": EXACT,
        }
        arguments.update({k: v for k, v in options.items() if v is not None})
        return ag.Model(self.base, **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tiny")
    base = tiny_base.write_base(folder / "base.gguf")
    with ag.Model(base, n_ctx=256, n_threads=1) as model:
        invocation = tuple(model.tokenize(INVOCATION))
    return Files(
        folder=folder,
        base=base,
        alora=tiny_base.write_adapter(folder / "sure.gguf", invocation=invocation),
        other=tiny_base.write_adapter(
            folder / "other.gguf",
            seed=3,
            rank=4,
            invocation=invocation,
            targets=tuple(tiny_base.TARGETS),
        ),
        lora=tiny_base.write_adapter(folder / "lora.gguf", seed=4, rank=16),
        invocation=invocation,
    )


@pytest.fixture
def model(files: Files) -> Iterator[ag.Model]:
    with files.model() as opened:
        yield opened


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, no caller gives up waiting for another one to share a batch."""
    served = BatchWindow.served

    def long_since(self: BatchWindow, threads: Collection[int], _: float) -> None:
        served(self, threads, FOREVER)

    monkeypatch.setattr("alora_gguf.engine.scheduler._LONGEST_WAIT", FOREVER)
    monkeypatch.setattr(BatchWindow, "served", long_since)
