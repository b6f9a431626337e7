"""What a merge cost: the built-in probes, read by the base with the adapter and by the merged
model.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from alora_gguf.errors import InputError, ModelError
from alora_gguf.model import Model
from alora_gguf.options import ContextOptions
from alora_gguf.verification.probe import Reading, divergence, open_probe, random_text

from .merge_records import MergeCost
from .passages import Tokens, parts

_TEXTS: Final = 8
_MOST: Final = 256  # tokens of a text
_ADAPTER: Final = "adapter"


def measure_cost(base: Path, adapter: Path, merged: Path, n_threads: int | None) -> MergeCost:
    """Reads a few texts with each of the two. Raises what opening a model does."""
    options = ContextOptions(
        n_ctx=2 * _MOST, n_seq_max=1, n_threads=n_threads, max_adapters=1, n_pooled=0
    )
    with Model(base, adapters={_ADAPTER: adapter}, options=options) as model:
        texts = _texts(model)
        adapted = _read(model, texts, adapter)
        plain = _read(model, texts, None)
    with Model(merged, options=options) as model:
        found = _read(model, texts, None)
    both = list(zip(adapted, found, strict=True))
    wanted, written = (np.concatenate([r.logits for r in side]) for side in (adapted, found))
    kl = [divergence(p, q) for p, q in zip(wanted, written, strict=True)]
    before = np.concatenate([each.logits for each in plain])
    own = [divergence(p, q) for p, q in zip(wanted, before, strict=True)]
    return MergeCost(
        n_tokens=sum(len(one.logits) for one, _ in both),
        kl=float(np.mean(kl)),
        kl_largest=float(np.max(kl)),
        kl_adapter=float(np.mean(own)),
        top_changed=float(np.mean(wanted.argmax(axis=-1) != written.argmax(axis=-1))),
        largest=float(np.abs(wanted - written).max() / np.abs(wanted).max()),
    )


def _texts(model: Model) -> list[Tokens]:
    """The probes in tokens; random ones for a base that has no vocabulary."""
    most = min(_MOST, model.n_ctx_train or _MOST)
    try:
        found = [
            (*part.opened, *part.after) for part in islice(parts(model, None, opened=True), _TEXTS)
        ]
    except (InputError, ModelError):
        drawn = random_text(model, most, without=(), seed=0)
        return [tuple(drawn)]
    return [tokens[:most] for tokens in found]


def _read(model: Model, texts: list[Tokens], adapter: Path | None) -> list[Reading]:
    longest = max(map(len, texts))
    adapters = {} if adapter is None else {_ADAPTER: adapter}
    name = None if adapter is None else _ADAPTER
    with open_probe(model, adapters, n_tokens=longest, n_rows=longest) as probe:
        return [probe.read(tokens, len(tokens), name) for tokens in texts]
