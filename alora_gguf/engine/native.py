"""Finds and loads our libllama, checks that it is the one we were written for, and binds alora.h.

The llama.h part of the API is llama_cpp's own ctypes module, made to use our library.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from alora_gguf import errors
from alora_gguf.gguf.vector import Directions, Hook

from .library import LLAMA_CPP_PYTHON, library_dir, other_release, vendored_binding

API_VERSION: Final = 9

_MAX_DEVICES: Final = 256
_MAX_TEXT: Final = 1 << 30  # bytes; llama.cpp counts them, and tokens, in 32 bits
_NO_MEMORY: Final = -5
_STATUS: Final[dict[int, type[errors.AloraError]]] = {
    -1: errors.InputError,
    -2: errors.AdapterFormatError,
    -3: errors.AdapterMismatchError,
    -4: errors.AdapterInUseError,
    -5: errors.AdapterError,
    -6: errors.RpcError,
}


@dataclass(frozen=True, slots=True)
class Stats:
    """What the bank and the graphs of a context amount to; the fields are explained in alora.h."""

    n_reserves: int
    n_graphs: int
    n_nodes: int
    compute_bytes: int
    bank_bytes: int
    n_targets: int
    n_slots: int
    n_adapters: int
    rank: int
    n_attention: int
    n_skipped: int
    n_vectors: int
    n_steered: int


class _StatsStruct(ctypes.Structure):
    """struct alora_stats: five int64_t, then int32_t."""

    _fields_ = [
        (field.name, ctypes.c_int64 if i < 5 else ctypes.c_int32)
        for i, field in enumerate(fields(Stats))
    ]


_HOOKS: Final = {"block": 0, "attention": 1, "ffn": 2}  # enum alora_hook
_EDITS: Final = {"add": 0, "project": 1, "project_positive": 2, "add_keep_norm": 3}  # alora_edit
_ATTENTION: Final = {"upstream": 0, "auto": 1, "stock": 2, "ours": 3}  # enum alora_attention_mode


class _PartStruct(ctypes.Structure):
    """struct alora_part."""

    _fields_ = [
        ("layer", ctypes.c_int32),
        ("hook", ctypes.c_int32),
        ("edit", ctypes.c_int32),
        ("n_directions", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("directions", ctypes.POINTER(ctypes.c_float)),
    ]


class Log:
    """llama.cpp's log: handed to logging's `alora_gguf.llama_cpp`, shown on stderr for models that
    are `verbose`, and the latest warnings and errors kept for error messages.

    llama.cpp has one log per process and writes to it on the thread that called it, so what a call
    logs is its own: see capture(). ALORA_VERBOSE=1 in the environment shows everything.
    """

    _WARN, _ERROR, _CONT = 3, 4, 5
    _KEPT = 8  # lines
    _LEVELS: Final = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}

    def __init__(self) -> None:
        self._logger = logging.getLogger("alora_gguf.llama_cpp")
        self._logger.addHandler(logging.NullHandler())  # silent unless the program wants it
        self._all = os.environ.get("ALORA_VERBOSE", "0") not in ("", "0")
        self._thread = _ThreadLog()

    def write(self, level: int, text: bytes | None, _user_data: object) -> None:
        """llama.cpp's callback."""
        thread, piece = self._thread, (text or b"").decode("utf-8", "replace")
        if (self._all or thread.verbose) and sys.stderr is not None:
            sys.stderr.write(piece)
        if level != self._CONT:
            thread.level, thread.line = level, ""
        thread.line += piece
        if not thread.line.endswith("\n"):
            return
        line, thread.line = thread.line.strip(), ""
        if line and thread.level in (self._WARN, self._ERROR):
            thread.recent.append(line)
            del thread.recent[: -self._KEPT]
        at = self._LEVELS.get(thread.level, logging.DEBUG)
        if line and self._logger.isEnabledFor(at):
            self._logger.log(at, "%s", line)

    def capture(self, *, verbose: bool = False) -> AbstractContextManager[None]:
        """Around one call: tail() has what was logged on this thread meanwhile, and nothing else;
        that is shown if `verbose`.
        """
        return _Capture(self._thread, verbose)

    def tail(self) -> str:
        """This thread's latest warnings and errors as the end of a sentence, or nothing."""
        recent = self._thread.recent
        return f" (llama.cpp: {'; '.join(recent)})" if recent else ""


class _ThreadLog(threading.local):
    """What one thread has logged."""

    def __init__(self) -> None:
        self.recent: list[str] = []
        self.verbose = False
        self.level = 0
        self.line = ""


class _Capture:
    """See Log.capture(); around every decode, so no generator."""

    __slots__ = ("_before", "_thread", "_verbose")

    def __init__(self, thread: _ThreadLog, verbose: bool) -> None:
        self._thread, self._verbose = thread, verbose

    def __enter__(self) -> None:
        thread = self._thread
        self._before = thread.recent, thread.verbose
        thread.recent, thread.verbose = [], self._verbose

    def __exit__(self, *_: object) -> None:
        self._thread.recent, self._thread.verbose = self._before


class Native:
    """The loaded library: `llama` is llama_cpp's binding of llama.h, the methods are alora.h's."""

    def __init__(self, llama: Any, path: Path) -> None:
        self.llama = llama
        self.path = path
        self.log = Log()
        self._lib = ctypes.CDLL(str(path))
        self._bind()
        self._callback = llama.llama_log_callback(self.log.write)
        llama.llama_log_set(self._callback, None)
        llama.llama_backend_init()

    def _bind(self) -> None:
        try:
            version = self._lib.alora_api_version
        except AttributeError:
            raise errors.LibraryError(
                f"{self.path}: has no adapter bank, so it is a stock llama.cpp and not the library "
                "of alora-gguf; unset ALORA_LIB_DIR, or install alora-gguf again"
            ) from None
        version.restype = ctypes.c_int32
        if version() != API_VERSION:
            raise errors.LibraryError(
                f"{self.path}: speaks version {version()} of the alora API, expected "
                f"{API_VERSION}; install alora-gguf again so that both parts are of one version"
            )
        ctx, i32 = ctypes.c_void_p, ctypes.c_int32
        i32s, bools = ctypes.POINTER(i32), ctypes.POINTER(ctypes.c_bool)
        texts = ctypes.POINTER(ctypes.c_char_p)
        prototypes: dict[str, tuple[list[Any], Any]] = {
            "alora_last_error": ([], ctypes.c_char_p),
            "alora_bank_reserve": ([ctx, i32, i32], i32),
            "alora_adapter_add": ([ctx, ctypes.c_char_p, ctypes.c_size_t], i32),
            "alora_adapter_remove": ([ctx, i32], i32),
            "alora_vector_add": ([ctx, ctypes.POINTER(_PartStruct), i32, i32], i32),
            "alora_combine": ([ctx, i32, i32s, ctypes.POINTER(ctypes.c_float)], i32),
            "alora_show": ([ctx, i32], i32),
            "alora_activate": ([ctx, i32, i32, i32, ctypes.c_float], i32),
            "alora_deactivate": ([ctx, i32], i32),
            "alora_slot_at": ([ctx, i32, i32, ctypes.POINTER(ctypes.c_float)], i32),
            "alora_finite_cells": ([ctx, i32, i32s, i32s, i32s, bools], i32),
            "alora_finite_batch": ([ctx, self.llama.llama_batch], i32),
            "alora_clear_free_cells": ([ctx], i32),
            "alora_keep_cells": ([ctx], i32),
            "alora_attention_set": ([ctx, i32], i32),
            "alora_interrupt": ([ctx, ctypes.c_bool], i32),
            "alora_tokenize": (
                [ctx, ctypes.c_char_p, i32, i32s, i32, ctypes.c_bool, ctypes.c_bool, i32s],
                i32,
            ),
            "alora_token_attributes": ([ctx, i32s], i32),
            "alora_stats_get": ([ctx, ctypes.POINTER(_StatsStruct)], i32),
            "alora_rpc_devices": ([texts, i32, ctypes.POINTER(ctypes.c_void_p), i32], i32),
            "alora_rpc_check": ([texts, i32], i32),
            "alora_rpc_serve": ([ctypes.c_char_p, ctypes.c_char_p, i32], i32),
        }
        for name, (argtypes, restype) in prototypes.items():
            function = getattr(self._lib, name)
            function.argtypes, function.restype = argtypes, restype

    def last_error(self) -> str:
        """The sentence of this thread's last failure in alora.h, or ""."""
        text: bytes = self._lib.alora_last_error()
        return text.decode("utf-8", "replace")

    def _check(self, status: int, what: str) -> int:
        if status >= 0:
            return status
        kind = _STATUS.get(status, errors.AloraError)
        raise kind(f"{what}: {self.last_error() or f'failed with status {status}'}")

    def bank_reserve(self, ctx: int, n_adapters: int, rank: int) -> None:
        """alora_bank_reserve(): makes room for so many adapters of up to `rank`."""
        self._check(self._lib.alora_bank_reserve(ctx, n_adapters, rank), "adapter bank")

    def adapter_add(self, ctx: int, gguf: bytes, what: str) -> int:
        """alora_adapter_add(): the slot of the adapter in a GGUF file's bytes."""
        return self._check(self._lib.alora_adapter_add(ctx, gguf, len(gguf)), what)

    def vector_add(self, ctx: int, parts: Sequence[Directions], n_embd: int, what: str) -> int:
        """alora_vector_add(): the slot of a steering vector whose directions are `n_embd` wide.

        Raises AdapterMismatchError where the base is of another width, or its graph has no such
        place.
        """
        arrays = [np.ascontiguousarray(part.values, np.float32) for part in parts]
        for array in arrays:
            if array.ndim != 2 or array.shape[1] != n_embd:
                raise errors.InputError(
                    f"{what}: expected directions [n, {n_embd}], found {list(array.shape)}"
                )
        structs = (_PartStruct * len(parts))(
            *(
                _PartStruct(
                    part.layer,
                    _HOOKS[part.hook],
                    _EDITS[part.operation],
                    array.shape[0],
                    part.scale,
                    array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
                )
                for part, array in zip(parts, arrays, strict=True)
            )
        )
        return self._check(self._lib.alora_vector_add(ctx, structs, len(parts), n_embd), what)

    def combine(
        self, ctx: int, slots: Sequence[int], scales: Sequence[float], what: str = "combination"
    ) -> int:
        """alora_combine(): a slot that stands for others, each at its scale."""
        n = len(slots)
        status = self._lib.alora_combine(
            ctx, n, (ctypes.c_int32 * n)(*slots), (ctypes.c_float * n)(*scales)
        )
        return self._check(status, what)

    def show(self, ctx: int, hook: Hook) -> None:
        """alora_show(): graphs have copies of what flows at a hook, "alora_shown-<layer>"."""
        self._check(self._lib.alora_show(ctx, _HOOKS[hook]), f"hook '{hook}'")

    def adapter_remove(self, ctx: int, slot: int, what: str) -> None:
        """alora_adapter_remove(): frees a slot, of an adapter, a vector or a combination."""
        self._check(self._lib.alora_adapter_remove(ctx, slot), what)

    def activate(self, ctx: int, seq: int, first: int, slot: int, scale: float) -> None:
        """alora_activate(): tokens of `seq` from position `first` on use `slot`."""
        self._check(self._lib.alora_activate(ctx, seq, first, slot, scale), "activation")

    def deactivate(self, ctx: int, seq: int) -> None:
        """alora_deactivate(): ends all activations of `seq`."""
        self._check(self._lib.alora_deactivate(ctx, seq), "activation")

    def slot_at(self, ctx: int, seq: int, pos: int) -> tuple[int, float]:
        """(slot, scale) of a token of `seq` at `pos`."""
        scale = ctypes.c_float()
        slot = self._lib.alora_slot_at(ctx, seq, pos, ctypes.byref(scale))
        return self._check(slot, "slot"), scale.value

    def not_finite(self, ctx: int, ranges: Sequence[tuple[int, int, int]]) -> list[int]:
        """alora_finite_cells(): which of the ranges, each (sequence, begin, end), have cells that
        hold what is not finite.
        """
        n = len(ranges)
        array, finite = ctypes.c_int32 * n, (ctypes.c_bool * n)()
        seqs, begins, ends = zip(*ranges, strict=True)
        status = self._lib.alora_finite_cells(
            ctx, n, array(*seqs), array(*begins), array(*ends), finite
        )
        if not self._check(status, "cells"):
            return []
        return [i for i in range(n) if not finite[i]]

    def batch_is_finite(self, ctx: int, batch: Any) -> bool:
        """alora_finite_batch(): whether what a llama_batch has written is."""
        status = self._lib.alora_finite_batch(ctx, batch)
        return status == 0 or not self._check(status, "cells")

    def clear_free_cells(self, ctx: int) -> None:
        """alora_clear_free_cells(): cells that no sequence has are zero afterwards."""
        self._check(self._lib.alora_clear_free_cells(ctx), "cells")

    def keep_cells(self, ctx: int) -> None:
        """alora_keep_cells(): no sequence loses cells outside its sliding window."""
        self._check(self._lib.alora_keep_cells(ctx), "cells")

    def set_attention(self, ctx: int, mode: str) -> None:
        """alora_attention_set(): "auto" or "upstream"; for comparisons also "stock", upstream's for
        adapted tokens too, and "ours" wherever that can compute.
        """
        self._check(self._lib.alora_attention_set(ctx, _ATTENTION[mode]), "attention")

    def interrupt(self, ctx: int, on: bool) -> None:
        """Whether a llama_decode() that runs now, or is called while it is on, stops soon."""
        self._check(self._lib.alora_interrupt(ctx, on), "interrupt")

    def tokenize(
        self, vocab: int, text: bytes, what: str, *, add_special: bool, parse_special: bool
    ) -> list[int]:
        """alora_tokenize(): the token ids of a text in UTF-8; `what` has a vocabulary of texts."""
        size, made = len(text) + 8, ctypes.c_int32()  # no more tokens than bytes, and a few
        if size > _MAX_TEXT:
            raise errors.InputError(f"{what}: expected at most {_MAX_TEXT} bytes of text")
        try:
            while True:
                tokens = (ctypes.c_int32 * size)()
                status = self._lib.alora_tokenize(
                    vocab, text, len(text), tokens, size, add_special, parse_special, made
                )
                if status == _NO_MEMORY:
                    raise MemoryError
                self._check(status, what)
                if made.value >= 0:
                    return tokens[: made.value]
                if -made.value <= size:
                    raise errors.InputError(f"{what}: llama.cpp could not tokenize the text")
                size = -made.value
        except MemoryError:
            raise errors.InputError(
                f"{what}: there is not enough memory to split a text of {len(text)} bytes into "
                "tokens; pass shorter ones"
            ) from None

    def token_attributes(self, vocab: int, n_tokens: int) -> list[int]:
        """alora_token_attributes(): those of all tokens."""
        attributes = (ctypes.c_int32 * n_tokens)()
        self._check(self._lib.alora_token_attributes(vocab, attributes), "vocabulary")
        return list(attributes)

    def stats(self, ctx: int) -> Stats:
        """alora_stats_get()."""
        raw = _StatsStruct()
        self._check(self._lib.alora_stats_get(ctx, ctypes.byref(raw)), "statistics")
        return Stats(*(getattr(raw, field.name) for field in fields(Stats)))

    def rpc_devices(self, endpoints: Sequence[str]) -> ctypes.Array[ctypes.c_void_p]:
        """alora_rpc_devices(): what llama_model_params.devices may point at, while it lives. Raises
        RpcError.
        """
        found = (ctypes.c_void_p * _MAX_DEVICES)()
        n = len(endpoints)
        if self._lib.alora_rpc_devices(_texts(endpoints), n, found, _MAX_DEVICES) < 0:
            raise errors.RpcError(f"{self.last_error()}{self.log.tail()}")
        return found

    def rpc_check(self, endpoints: Sequence[str], what: str) -> None:
        """alora_rpc_check(): raises RpcError if one of the servers was lost."""
        if endpoints:
            self._check(self._lib.alora_rpc_check(_texts(endpoints), len(endpoints)), what)

    def rpc_serve(self, endpoint: str, cache: Path | None, n_threads: int) -> None:
        """alora_rpc_serve(): serves until the process ends. Raises RpcError if it cannot."""
        folder = None if cache is None else os.fsencode(cache)
        self._check(self._lib.alora_rpc_serve(endpoint.encode(), folder, n_threads), "rpc-server")


def _texts(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(each.encode() for each in texts))


_loaded: list[Native] = []  # the library, never an engine: a process can load only one
_loading = threading.Lock()


def load() -> Native:
    """Loads the library at the first call. Raises LibraryError, with what to do about it."""
    with _loading:
        if not _loaded:
            override = os.environ.get("ALORA_LIB_DIR")
            _loaded.append(_load(Path(override) if override else library_dir()))
        return _loaded[0]


def _our_release() -> str:
    """How to get the llama_cpp that we are built for."""
    if vendored_binding():
        return "pip uninstall llama-cpp-python, and the one that alora-gguf brings is used"
    return (
        f"pip install llama-cpp-python=={LLAMA_CPP_PYTHON} "
        '--config-settings="cmake.define.LLAMA_BUILD=OFF"'
    )


def _another_release(version: str) -> errors.LibraryError:
    return errors.LibraryError(
        f"llama-cpp-python is {version}, expected {LLAMA_CPP_PYTHON}, whose structs the native "
        f"library has: {_our_release()}"
    )


def _load(folder: Path) -> Native:
    early = sys.modules.get("llama_cpp.llama_cpp")
    if early is None:
        if (other := other_release()) is not None:  # which may not even load with our library
            raise _another_release(other)
        os.environ["LLAMA_CPP_LIB_PATH"] = str(folder)
    try:
        package = importlib.import_module("llama_cpp")
        llama = importlib.import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        raise errors.LibraryError(
            f"{error.name} is not installed, which llama-cpp-python is part of or needs: "
            + ("install alora-gguf again" if vendored_binding() else _our_release())
        ) from None
    except (FileNotFoundError, RuntimeError, OSError, AttributeError) as error:
        raise errors.LibraryError(
            f"{folder}: the native library cannot be loaded: {error}; install alora-gguf again, or "
            "point ALORA_LIB_DIR at the folder that holds libllama"
        ) from error
    path = Path(llama._lib._name)
    if path.resolve().parent != folder.resolve():
        raise errors.LibraryError(
            f"llama_cpp was already imported with another library ({path}), expected one from "
            f"{folder}: import alora_gguf before anything imports llama_cpp"
        )
    if package.__version__ != LLAMA_CPP_PYTHON:
        raise _another_release(package.__version__)
    return Native(llama, path)
