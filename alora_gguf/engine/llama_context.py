"""A llama_context: opened from a file and options, its cells and what their bytes
depend on, and the locks that guard both.

Who may use it when is decided above (admission.py, scheduler.py).
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from alora_gguf.errors import CancelledError, ClosedError, ModelError
from alora_gguf.gguf.base import BaseFile
from alora_gguf.options import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    CancelToken,
    ContextOptions,
    default_threads,
)

from . import native as _native
from .cells import CellAllocator
from .library import LLAMA_CPP_PYTHON
from .native import Native
from .vocab import Vocabulary

Memory = Literal["attention", "recurrent", "hybrid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """What the meaning of a cell's bytes depends on, besides the base.

    llama_cpp      release of llama-cpp-python whose llama.cpp wrote them
    memory         what the base remembers with
    type_k/type_v  types of keys and values
    flash_attn     "on", "off" or "auto", as asked for; llama.cpp lays values out by it
    swa_full       whether a sliding window's cache has a cell for every token
    window         tokens of the sliding window, 0 without one
    rotated        whether llama.cpp rotates keys and values before it quantizes them
    rope_context   n_ctx, for a base that chooses its RoPE factors by it, else 0
    """

    llama_cpp: str
    memory: Memory
    type_k: str
    type_v: str
    flash_attn: str
    swa_full: bool
    window: int
    rotated: bool
    rope_context: int

    @classmethod
    def of(
        cls,
        options: ContextOptions,
        base: BaseFile,
        *,
        n_ctx: int,
        memory: Memory,
        window: int,
        swa_full: bool = True,
    ) -> CacheLayout:
        """That of a context with `n_ctx` cells; `window` is llama_model_n_swa()."""
        quantized = {options.type_k, options.type_v} - {"f32", "f16", "bf16"}
        return cls(
            llama_cpp=LLAMA_CPP_PYTHON,
            memory=memory,
            type_k=options.type_k,
            type_v=options.type_v,
            flash_attn=options.flash_attn,
            swa_full=swa_full,
            window=window,
            # llama.cpp reads the variable with atoi()
            rotated=bool(quantized) and _atoi(os.environ.get("LLAMA_ATTN_ROT_DISABLE", "")) == 0,
            rope_context=n_ctx if any("rope_factors_long" in name for name in base.tensors) else 0,
        )


def _atoi(text: str) -> int:
    match = re.match(r"\s*[+-]?\d+", text)
    return int(match[0]) if match else 0


_GIVE_WAY: Final = 0.02  # seconds
_STEP: Final = 50e-6


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Fields of llama.cpp's parameters that no option names, and values for them as ctypes takes
    them. Those that options name stay theirs.

    model    fields of llama_model_params
    context  fields of llama_context_params
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)

    def model_params(self, llama: Any) -> Any:
        """llama_model_params: llama.cpp's defaults with these fields."""
        return _with_fields(llama.llama_model_default_params(), self.model)

    def context_params(self, llama: Any) -> Any:
        """llama_context_params: llama.cpp's defaults with these fields."""
        return _with_fields(llama.llama_context_default_params(), self.context)


def _with_fields(params: Any, fields: Mapping[str, Any]) -> Any:
    for name, value in fields.items():
        setattr(params, name, value)
    return params


def load_weights(
    native: Native,
    path: Path,
    n_gpu_layers: int,
    *,
    tuning: Tuning,
    cancel: CancelToken | None = None,
    progress: Callable[[float], None] | None = None,
) -> int:
    """A llama_model, to be freed by the caller. `progress` is called with the loaded fraction, 0 to
    1. Raises ModelError, CancelledError, and what `progress` raises.
    """
    llama = native.llama
    failed: list[BaseException] = []

    def on_progress(fraction: float, _user_data: object) -> bool:
        """llama.cpp's callback, on this thread; returning false ends the loading."""
        try:
            if progress is not None:
                progress(fraction)
        except BaseException as error:
            failed.append(error)
        return not failed and not (cancel is not None and cancel.cancelled)

    params = tuning.model_params(llama)
    params.n_gpu_layers = n_gpu_layers
    callback = llama.llama_progress_callback(on_progress)
    if cancel is not None or progress is not None:
        params.progress_callback = callback
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if failed:
        if model:
            llama.llama_model_free(model)
        raise failed.pop()  # or this frame and the error would refer to one another
    if not model and cancel is not None and cancel.cancelled:
        raise CancelledError(f"{path}: loading was cancelled")
    if not model:
        raise ModelError(f"{path}: llama.cpp cannot load this model{native.log.tail()}")
    return int(model)


def open_context(
    native: Native, path: Path, model: int, options: ContextOptions, tuning: Tuning
) -> int:
    """A llama_context on `model`, to be freed by the caller before it. Raises ModelError."""
    llama = native.llama
    params = tuning.context_params(llama)
    trained = llama.llama_model_n_ctx_train(model)
    params.n_ctx = options.n_ctx or min(trained or 4096, 4096)
    params.n_batch = min(options.n_batch, params.n_ctx)
    params.n_ubatch = min(options.n_ubatch, params.n_batch)
    params.n_seq_max = options.n_seq_max
    # rows of logits are what makes the worst-case compute buffer large: n_batch of them would
    # take 260 MB for a vocabulary of 128k; llama.cpp wants one per sequence at least
    params.n_outputs_max = max(min(options.rows, params.n_batch), options.n_seq_max)
    params.n_threads = params.n_threads_batch = options.n_threads or default_threads()
    params.type_k, params.type_v = CACHE_TYPES[options.type_k], CACHE_TYPES[options.type_v]
    params.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
    params.kv_unified = True  # forks share cells only in a unified cache
    params.swa_full = True  # and a fork in the middle needs cells that a sliding window drops
    params.no_perf = True
    ctx = llama.llama_init_from_model(model, params)
    if not ctx:
        raise ModelError(
            f"{path}: no context of {params.n_ctx} cells (keys {options.type_k}, values "
            f"{options.type_v}) could be made{native.log.tail()}; a smaller n_ctx or other cache "
            "types may help"
        )
    return int(ctx)


class FairLock:
    """A reentrant lock. Python's own may be taken again by the thread that just released it, time
    after time; give_way() lets those who wait for it come first.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: set[int] = set()  # threads; changed by single atomic operations only

    def acquire(self, blocking: bool = True) -> bool:
        """Takes the lock; says whether it did, which it may not have if not `blocking`."""
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        me = threading.get_ident()
        self._waiting.add(me)
        try:
            return self._lock.acquire()
        finally:
            self._waiting.discard(me)

    def release(self) -> None:
        """Gives it back."""
        self._lock.release()

    def give_way(self) -> None:
        """For who has just released it: returns when those who were waiting have had it, or some
        milliseconds later.
        """
        waiting = self._waiting.copy()
        until = time.monotonic() + _GIVE_WAY
        while waiting & self._waiting and time.monotonic() < until:
            time.sleep(_STEP)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class LlamaContext:
    """A loaded model, one context on it, and which sequence has which cells.

    `lock` guards the context and is held over each C call. `condition` guards `cells` and whatever
    waits for them; it is held for moments only, and notified when something is given back. Who
    needs both takes the lock first. Refers to nothing that refers back to it, so that the weights
    are freed as soon as nobody uses them.
    """

    def __init__(
        self,
        path: Path,
        options: ContextOptions,
        *,
        n_gpu_layers: int,
        verbose: bool,
        tuning: Tuning,
        cancel: CancelToken | None = None,
        progress: Callable[[float], None] | None = None,
        adopt: tuple[int, int] | None = None,
    ) -> None:
        """With `adopt`, a llama_model and a llama_context on it that the caller made from `path`
        and `options` and frees after close(), nothing is loaded.
        """
        self.native = native = _native.load()
        self.llama = llama = native.llama
        self.path, self.options, self.tuning, self.verbose = path, options, tuning, verbose
        self.lock = FairLock()
        self.condition = threading.Condition()
        with self.logged():
            if adopt is not None:
                model, ctx = adopt
                self._read_model(model)
            else:
                model = load_weights(
                    native, path, n_gpu_layers, tuning=tuning, cancel=cancel, progress=progress
                )
                try:
                    self._read_model(model)
                    ctx = open_context(native, path, model, options, tuning)
                except BaseException:
                    llama.llama_model_free(model)
                    raise
        self._ctx = ctx
        self.memory = llama.llama_get_memory(ctx)
        # freed at exit if not before
        free = _free if adopt is None else _leave
        self._finalizer = weakref.finalize(self, free, llama, ctx, model)
        native.interrupt(ctx, False)  # installs the callback
        self.n_batch: int = llama.llama_n_batch(ctx)
        self.cells = CellAllocator(llama.llama_n_seq_max(ctx), llama.llama_n_ctx(ctx))
        self._abandoned: deque[int] = deque()

    def _read_model(self, model: int) -> None:
        llama = self.llama
        if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
            raise ModelError(
                f"{self.path}: is an encoder or encoder-decoder model; only decoder models can "
                "hold a conversation"
            )
        self.vocab = Vocabulary(llama, model, str(self.path))
        recurrent = llama.llama_model_is_recurrent(model)
        hybrid = llama.llama_model_is_hybrid(model)
        self.memory_kind: Memory = "recurrent" if recurrent else "hybrid" if hybrid else "attention"
        self.rewinds = self.memory_kind == "attention"
        self.window: int = llama.llama_model_n_swa(model)

    def free(self) -> None:
        """Frees context and weights; idempotent. The caller holds both locks."""
        self.vocab.close()
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether the context is gone; true after free(), and while the interpreter exits."""
        return not self._finalizer.alive

    @property
    def ctx(self) -> int:
        """The llama_context. Raises ClosedError when it is gone."""
        if self.closed:
            raise ClosedError(f"{self.path}: the model was closed")
        return self._ctx

    def logged(self) -> AbstractContextManager[None]:
        """Keeps what llama.cpp logs on this thread meanwhile for errors, and shows it if the model
        is verbose.
        """
        return self.native.log.capture(verbose=self.verbose)

    # Sequences -----------------------------------------------------------------------------------

    def copy(self, source: int, target: int, n: int) -> None:
        """Lets `target` see the first `n` cells of `source`; the caller holds the lock."""
        end = n if self.rewinds else -1
        self.llama.llama_memory_seq_cp(self.memory, source, target, 0, end)

    def remove_from(self, seq: int, n: int) -> int:
        """Removes the cells from position `n` on and returns how many are left: `n`, or 0 where the
        memory cannot rewind. The caller holds both locks.
        """
        if self.closed:
            n = 0  # they went with the context
        elif not self.llama.llama_memory_seq_rm(self.memory, seq, n, -1):
            self.llama.llama_memory_seq_rm(self.memory, seq, -1, -1)
            n = 0
        self.cells.truncate(seq, n)
        self.condition.notify_all()
        return self.cells.length(seq)

    def drop(self, seq: int) -> None:
        """Gives a sequence back: its activations, its cells, its id."""
        self.abandon(seq)
        if not self.closed:
            self.collect()

    def abandon(self, seq: int) -> None:
        """Marks a sequence for dropping at the next call. Takes no lock and calls no C, so that
        garbage collection may do it at any moment on any thread.
        """
        self._abandoned.append(seq)

    def collect(self) -> bool:
        """Gives abandoned sequences' activations, cells and ids back; says if there were any."""
        if not self._abandoned:
            return False
        with self.lock, self.condition:
            ctx = self.ctx
            while self._abandoned:
                seq = self._abandoned[0]  # stays in the list until it is really gone
                self.native.deactivate(ctx, seq)
                self.llama.llama_memory_seq_rm(self.memory, seq, -1, -1)
                self.cells.release(seq)
                self._abandoned.popleft()
            self.condition.notify_all()
        return True


def _free(llama: Any, ctx: int, model: int) -> None:
    llama.llama_free(ctx)  # before its weights
    llama.llama_model_free(model)


def _leave(_llama: Any, _ctx: int, _model: int) -> None:
    """They are the caller's."""
