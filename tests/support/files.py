"""The tiny base and adapters that most tests share, and how they open them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import alora_gguf as ag

from . import tiny_base

INVOCATION = "<certainty>"
FOREVER = 20.0  # seconds: longer than anything takes
# F32 keys and values: what is left between batches of another shape are other orders of summation,
# 1e-5 of the largest logit and not 1e-2
# and no cells of closed sessions, so that tests can count
EXACT = ag.ContextOptions(type_k="f32", type_v="f32", flash_attn="off", n_pooled=0)


@dataclass(frozen=True)
class Files:
    """Paths of the tiny files, the invocation's token ids, and what writes another adapter."""

    folder: Path
    base: Path
    alora: Path
    other: Path
    lora: Path
    invocation: tuple[int, ...]
    write_adapter: Callable[..., Path]

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


def write_files(folder: Path) -> Files:
    """Writes them; the invocation's ids are the base's own."""
    base = tiny_base.write_base(folder / "base.gguf")
    with ag.Model(base, n_ctx=256, n_threads=1) as model:
        invocation = tuple(model.tokenize(INVOCATION))
    return _with_adapters(folder, base, invocation)


def write_window_files(folder: Path, window: int) -> Files:
    """Those of a base three of whose layers see `window` tokens."""
    base = tiny_base.write_swa(folder / "swa.gguf", window=window)
    return _with_adapters(folder, base, (7, 8, 9), architecture="olmo2", layers=range(4))


def write_hybrid_files(folder: Path) -> Files:
    """Those of a base that cannot rewind."""
    base = tiny_base.write_hybrid(folder / "hybrid.gguf")
    return _with_adapters(folder, base, (7, 8, 9), architecture="jamba", layers=(1,))


def _with_adapters(
    folder: Path,
    base: Path,
    invocation: tuple[int, ...],
    *,
    architecture: str = "llama",
    layers: Sequence[int] = range(tiny_base.N_LAYER),
) -> Files:
    write = partial(tiny_base.write_adapter, architecture=architecture, layers=layers)
    return Files(
        folder=folder,
        base=base,
        alora=write(folder / "sure.gguf", invocation=invocation),
        other=write(
            folder / "other.gguf",
            seed=3,
            rank=4,
            invocation=invocation,
            targets=tuple(tiny_base.TARGETS),
        ),
        lora=write(folder / "lora.gguf", seed=4, rank=16),
        invocation=invocation,
        write_adapter=write,
    )
