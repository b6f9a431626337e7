"""A second context on a model's weights, in which what every layer computes can be seen.

Owns how a text is read there, how two readings of it differ, and random texts; what the numbers
mean is the business of measuring.py, and of analyse.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine.llama_context import LlamaContext, Logits, Run
from alora_gguf.engine.loading import Tuning, open_context
from alora_gguf.engine.runtime import Runtime
from alora_gguf.errors import DecodeError, ModelError, NotFiniteError
from alora_gguf.generate.sampling import log_total
from alora_gguf.gguf.vector import Hook
from alora_gguf.model import Model
from alora_gguf.options import ContextOptions

from .ggml import load_ggml

# how upstream's graphs name what a layer adds its results to; views of it have a longer name
_BLOCK: Final = re.compile(rb"l_out-([0-9]+)")
_SHOWN: Final = re.compile(rb"alora_shown-([0-9]+)")  # what flows at another hook
_BATCH: Final = 512
_KINDS: Final = 512  # different tokens that a random text is made of
TINY: Final = 1e-30  # in place of a norm of 0

Doubles = NDArray[np.float64]
Hidden = NDArray[np.float32]
"""What flows at one layer's hook, behind its block the residual stream: [n_rows, n_embd]."""


@dataclass(frozen=True)
class Reading:
    """What was computed for the last rows of a text: `logits` [n_rows, n_vocab], and `layers` by
    number; none for an architecture whose graph does not name them.
    """

    logits: Logits
    layers: Mapping[int, Hidden]

    @property
    def named(self) -> dict[str, Hidden]:
        """All of it, in the order in which it is computed."""
        layers = {f"layer {i}": hidden for i, hidden in self.layers.items()}
        return {**layers, "the logits": self.logits}

    @property
    def not_finite(self) -> str | None:
        """Where a value is NaN or infinite first, such as "layer 3"."""
        return next((name for name, x in self.named.items() if not np.isfinite(x).all()), None)

    def same_rows(self, other: Reading, n: int) -> bool:
        """Whether the first `n` rows are the same bits, NaN and the sign of 0 included."""
        theirs = other.named
        return all(x[:n].tobytes() == theirs[name][:n].tobytes() for name, x in self.named.items())


@contextmanager
def open_probe(
    model: Model,
    adapters: Mapping[str, str | os.PathLike[str]],
    *,
    n_tokens: int,
    n_rows: int,
    hook: Hook = "block",
) -> Iterator[Probe]:
    """A context of its own on a model's weights, with `adapters` by name; it reads texts of up to
    `n_tokens` tokens and shows what flows at a `hook` for up to `n_rows` of each. Raises ModelError
    if there is no room for it, and what loading adapters raises.
    """
    runtime = model._runtime
    native, llama, theirs = runtime.engine.native, runtime.engine.llama, runtime.engine.ctx
    tap = _Tap(load_ggml(native.path.parent), hook)
    callback = llama.ggml_backend_sched_eval_callback(tap.see)
    n_batch = max(n_rows, min(n_tokens, _BATCH))
    # F32 cells and plain attention: what is seen is what the weights do
    options = ContextOptions(
        n_ctx=max(n_tokens, n_batch),
        n_batch=n_batch,
        n_ubatch=n_batch,
        n_seq_max=1,
        n_outputs=n_rows,
        n_threads=runtime.engine.context.n_threads_now,
        n_pooled=0,
        max_adapters=max(1, len(adapters)),
        type_k="f32",
        type_v="f32",
        flash_attn="off",
    )
    weights, watched = llama.llama_get_model(theirs), Tuning(context={"cb_eval": callback})
    with native.log.capture():
        ctx = open_context(native, runtime.base.path, weights, options, watched)
    try:
        context = LlamaContext(runtime.base.path, options, adopt=(weights, ctx))
        inner = Runtime(runtime.base, context)
        try:
            inner.bank.load(adapters)
            if hook != "block":
                native.show(ctx, hook)
            yield Probe(inner, tap)
        finally:
            inner.close()
    finally:
        llama.llama_free(ctx)


class Probe:
    """What open_probe() opens; `hook` is what it shows."""

    def __init__(self, runtime: Runtime, tap: _Tap) -> None:
        self._runtime, self._tap, self.hook = runtime, tap, tap.hook

    def read(
        self,
        tokens: Sequence[int],
        n_rows: int,
        adapter: str | None = None,
        *,
        first: int | None = None,
        scale: float = 1.0,
    ) -> Reading:
        """What is computed of `tokens`, the last `n_rows` of them in one batch; with an adapter
        from position `first` on, by default from where its invocation begins. Values that are not
        finite are shown as they are, and logits as NaN then. Raises DecodeError.
        """
        runtime, n_head = self._runtime, len(tokens) - n_rows
        engine = runtime.engine
        seq = engine.allocate()
        try:
            with runtime.bank.using(adapter, scale) as use:
                begin = use.first_position(tokens, runtime.vocab) if first is None else first
                if adapter is not None and begin is not None:
                    engine.activate(seq, begin, use.slot, use.scale)
                if n_head:
                    engine.decode([Run(seq, tokens[:n_head], "none")])
                with self._tap.watching(n_rows) as layers:
                    try:
                        (logits,) = engine.decode([Run(seq, tokens[n_head:], "all")])
                    except NotFiniteError:
                        logits = np.full((n_rows, runtime.vocab.n_tokens), np.nan, np.float32)
        finally:
            engine.drop(seq)
        return Reading(cast(Logits, logits), dict(sorted(layers.items())))


class _Tap:
    """llama.cpp's evaluation callback: copies what flows at the layers' hooks in one batch.

    It is asked about every node before it is computed, and shown those it wanted afterwards.
    Nothing may be raised through C, an interrupt included: watching() raises it later.
    """

    def __init__(self, ggml: Any, hook: Hook) -> None:
        self._ggml, self.hook = ggml, hook
        self._name = _BLOCK if hook == "block" else _SHOWN
        self._rows = 0  # of the batch that is watched; 0: none is
        self._layers: dict[int, Hidden] = {}
        self._failure: BaseException | None = None

    @contextmanager
    def watching(self, n_rows: int) -> Iterator[Mapping[int, Hidden]]:
        """What is copied meanwhile, by layers."""
        self._rows, self._layers = n_rows, {}
        try:
            yield self._layers
        finally:
            self._rows = 0
            if self._failure is not None:
                raise self._failure

    def see(self, tensor: int, ask: bool, _user_data: object) -> bool:
        try:
            if not self._rows or self._failure is not None:
                return not ask
            match = self._name.fullmatch(self._ggml.ggml_get_name(tensor))
            if match is None:
                return not ask
            if not ask:
                self._copy(tensor, int(match[1]))
        except BaseException as error:
            self._failure = error
        return True

    def _copy(self, tensor: int, layer: int) -> None:
        ggml = self._ggml
        if layer in self._layers and self.hook != "block":
            raise ModelError(
                f"layer {layer} has several of what '{self.hook}' names, which are added up; use "
                "the hook 'block'"
            )
        n, nbytes = ggml.ggml_nelements(tensor), ggml.ggml_nbytes(tensor)
        parts, left = divmod(ggml.ggml_nrows(tensor), self._rows)
        if left or nbytes != 4 * n or not ggml.ggml_is_contiguous(tensor):
            raise DecodeError(
                f"layer {layer} gives {ggml.ggml_nrows(tensor)} rows and {nbytes} bytes of {n} "
                f"values, expected float32 values in rows for {self._rows} tokens"
            )
        values = np.empty(n, np.float32)
        ggml.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, nbytes)
        # [n_embd, n_tokens], and a third dimension where there are several streams
        streams = values.reshape(parts, self._rows, -1)
        self._layers[layer] = streams.transpose(1, 0, 2).reshape(self._rows, -1)


def relative_error(ours: Logits, theirs: Logits) -> float:
    """The largest difference, relative to the largest of `theirs`; NaN if one is not finite."""
    with np.errstate(invalid="ignore"):
        largest = np.abs(theirs.astype(np.float64)).max()
        return float(np.abs(ours.astype(np.float64) - theirs).max() / max(largest, TINY))


def changes(base: Hidden, adapted: Hidden) -> tuple[Doubles, Doubles]:
    """Of each row |adapted - base| / |base|, and the cosine between the two; NaN where a value is
    not finite.
    """
    a, b = adapted.astype(np.float64), base.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        norm_a, norm_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        ratio = np.linalg.norm(a - b, axis=-1) / np.maximum(norm_b, TINY)
        return ratio, np.sum(a * b, axis=-1) / np.maximum(norm_a * norm_b, TINY)


def divergence(p: Logits, q: Logits) -> float:
    """KL(p || q) of two rows of logits, in nats."""
    with np.errstate(invalid="ignore"):
        a, b = p.astype(np.float64), q.astype(np.float64)
        log_p, log_q = a - log_total(a), b - log_total(b)
        return float(np.sum(np.exp(log_p) * (log_p - log_q)))


def random_text(model: Model, n: int, *, without: Collection[int], seed: int) -> list[int]:
    """`n` random tokens that read as text, as far as the model says how they read, and begin as its
    texts do; none of them is in `without`, nor ends a reply. Raises ModelError if there are none.
    """
    vocab, rng = model._runtime.engine.vocab, np.random.default_rng(seed)
    avoided = frozenset(without)
    kinds = [token for token in rng.permutation(model.n_vocab).tolist() if token not in avoided]
    if vocab.has_text:
        readable = (t for t in kinds if vocab.piece(t) and not vocab.is_end(t))
        kinds = list(islice(readable, _KINDS)) or kinds
    if not kinds:
        raise ModelError(f"{model.path}: has no tokens besides those of the invocation")
    kinds = kinds[:_KINDS]
    drawn: list[int] = [kinds[i] for i in rng.integers(0, len(kinds), n).tolist()]
    bos = vocab.bos_to_add()
    return drawn if bos is None else [bos, *drawn[1:]]
