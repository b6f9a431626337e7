"""A second context on a model's weights, in which what every layer computes can be seen.

Owns how a text is read there, and random texts; what the numbers mean is measuring.py's business.
"""

from __future__ import annotations

import ctypes
import re
import sys
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine.context import Engine
from alora_gguf.engine.llama_context import Batch, Logits
from alora_gguf.engine.loading import Tuning, open_context
from alora_gguf.errors import DecodeError, ModelError
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.model import Model
from alora_gguf.options import ContextOptions

# how upstream's graphs name what a layer adds its results to; views of it have a longer name
_LAYER: Final = re.compile(rb"l_out-([0-9]+)")
_LIBRARIES: Final = {"darwin": "libggml-base.dylib", "win32": "ggml-base.dll"}
_BATCH: Final = 512
_KINDS: Final = 512  # different tokens that a random text is made of
TINY: Final = 1e-30  # in place of a norm of 0

Doubles = NDArray[np.float64]
Hidden = NDArray[np.float32]
"""The residual stream after one layer, [n_rows, n_embd]."""


@dataclass(frozen=True)
class Reading:
    """What was computed for the last rows of a text: `logits` [n_rows, n_vocab], and `layers` by
    number; none for an architecture whose graph does not name them.
    """

    logits: Logits
    layers: Mapping[int, Hidden]


class Probe:
    """A context of one sequence with F32 cells, and one adapter in its bank; also a context
    manager. It must be closed before its model, and keeps the engine alive until then.
    """

    def __init__(self, engine: Engine, adapter: AdapterFile, *, n_cells: int, n_rows: int) -> None:
        """For texts of up to `n_cells` tokens and readings of up to `n_rows`; `adapter` with its
        data. Raises ModelError if there is no room for it, AdapterError.
        """
        native, llama = engine.native, engine.llama
        self._engine, self._llama = engine, llama
        self._tap = _Tap(_ggml(native.path.parent))
        self._n_batch = max(n_rows, min(n_cells, _BATCH))
        callback = llama.ggml_backend_sched_eval_callback(self._tap.see)
        # F32 cells and plain attention: what is seen is what the weights do
        options = ContextOptions(
            n_ctx=max(n_cells, self._n_batch),
            n_batch=self._n_batch,
            n_ubatch=self._n_batch,
            n_seq_max=1,
            n_outputs=n_rows,
            n_threads=llama.llama_n_threads(engine.ctx),
            type_k="f32",
            type_v="f32",
            flash_attn="off",
        )
        weights, watched = llama.llama_get_model(engine.ctx), Tuning(context={"cb_eval": callback})
        with native.log.capture():
            self._ctx = open_context(native, engine.path, weights, options, watched)
        # callback and engine as arguments: both must outlive the context
        self._finalizer = weakref.finalize(self, _free, llama, self._ctx, callback, engine)
        try:
            native.bank_reserve(self._ctx, 1, adapter.rank)
            self._slot = native.adapter_add(self._ctx, adapter.data, str(adapter.path))
        except BaseException:
            self.close()
            raise
        self._batch = Batch(llama, self._n_batch)
        self._n_vocab = int(llama.llama_vocab_n_tokens(engine.vocab.handle))

    def close(self) -> None:
        """Frees the context; a second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, tokens: Sequence[int], *, first: int | None, n_rows: int) -> Reading:
        """Reads `tokens` with the adapter on from position `first` on (None: not at all), the last
        `n_rows` of them in one batch. Raises DecodeError.
        """
        llama, native = self._llama, self._engine.native
        memory = llama.llama_get_memory(self._ctx)
        if memory:
            llama.llama_memory_clear(memory, True)
        native.deactivate(self._ctx, 0)
        if first is not None:
            native.activate(self._ctx, 0, first, self._slot, 1.0)
        n_head = len(tokens) - n_rows
        for at in range(0, n_head, self._n_batch):
            self._decode(tokens[at : min(n_head, at + self._n_batch)], at, rows=False)
        self._tap.open(n_rows)
        try:
            self._decode(tokens[n_head:], n_head, rows=True)
        finally:
            layers = self._tap.close()
        pointer = llama.llama_get_logits(self._ctx)
        if not pointer:
            raise DecodeError(f"{self._engine.path}: llama.cpp gave no logits")
        logits = np.ctypeslib.as_array(pointer, (n_rows, self._n_vocab)).copy()
        return Reading(logits, layers)

    def _decode(self, tokens: Sequence[int], position: int, *, rows: bool) -> None:
        self._batch.n = 0
        self._batch.add(tokens, position, 0)
        self._batch.logits[: len(tokens)] = rows
        log = self._engine.native.log
        with log.capture():
            status = self._llama.llama_decode(self._ctx, self._batch.struct())
            self._tap.check()
            if status:
                raise DecodeError(
                    f"{self._engine.path}: {len(tokens)} tokens could not be decoded (status "
                    f"{status}){log.tail()}"
                )


class _Tap:
    """llama.cpp's evaluation callback: copies the layers' outputs of one batch.

    It is asked about every node before it is computed, and shown those it wanted afterwards.
    Nothing may be raised through C, an interrupt included: check() raises it later.
    """

    def __init__(self, ggml: Any) -> None:
        self._ggml = ggml
        self._rows = 0  # of the batch that is watched; 0: none is
        self._layers: dict[int, Hidden] = {}
        self._failure: BaseException | None = None

    def open(self, n_rows: int) -> None:
        self._rows, self._layers = n_rows, {}

    def close(self) -> dict[int, Hidden]:
        self._rows = 0
        return dict(sorted(self._layers.items()))

    def check(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def see(self, tensor: int, ask: bool, _user_data: object) -> bool:
        try:
            if not self._rows or self._failure is not None:
                return not ask
            match = _LAYER.fullmatch(self._ggml.ggml_get_name(tensor))
            if match is None:
                return not ask
            if not ask:
                self._copy(tensor, int(match[1]))
        except BaseException as error:
            self._failure = error
        return True

    def _copy(self, tensor: int, layer: int) -> None:
        ggml = self._ggml
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


def _ggml(folder: Path) -> Any:
    """The functions of ggml.h and ggml-backend.h that look at a tensor."""
    library = ctypes.CDLL(str(folder / _LIBRARIES.get(sys.platform, "libggml-base.so")))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result in (
        ("ggml_get_name", ctypes.c_char_p),
        ("ggml_nelements", ctypes.c_int64),
        ("ggml_nrows", ctypes.c_int64),
        ("ggml_nbytes", size),
        ("ggml_is_contiguous", ctypes.c_bool),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = [pointer], result
    library.ggml_backend_tensor_get.argtypes = [pointer, pointer, size, size]
    library.ggml_backend_tensor_get.restype = None
    return library


def _free(llama: Any, ctx: int, _callback: object, _engine: Engine) -> None:
    llama.llama_free(ctx)


def relative_error(ours: Logits, theirs: Logits) -> float:
    """The largest difference, relative to the largest of `theirs`; NaN if one is not finite."""
    with np.errstate(invalid="ignore"):
        largest = np.abs(theirs.astype(np.float64)).max()
        return float(np.abs(ours.astype(np.float64) - theirs).max() / max(largest, TINY))


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
