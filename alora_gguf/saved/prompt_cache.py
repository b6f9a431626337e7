"""Beginnings of conversations on disk, so that another process need not read them again: one saved
session for each, named by the hash of all that its cells depend on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from alora_gguf.engine.activation import ActiveAdapter
from alora_gguf.engine.runtime import Runtime
from alora_gguf.engine.sequence import TokenSequence
from alora_gguf.engine.tokens import BASE, spans_for
from alora_gguf.errors import (
    AloraError,
    CacheFullError,
    InputError,
    MissingFileError,
    SavedSessionError,
)
from alora_gguf.files import remove_abandoned
from alora_gguf.options import CancelToken, Progress, Timings

from .session_file import SavedSession, read_saved, write_saved
from .snapshot import check, fill, snapshot

MIN_TOKENS: Final = 256
"""Fewer are read about as fast as their file is."""

LIMIT: Final = 8 << 30
"""Bytes that the files of a folder may have together; the least recently used give way."""

_SUFFIX: Final = ".session"
_NAME: Final = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_LOG: Final = logging.getLogger("alora_gguf")


class PromptCache:
    """What a folder holds; for any thread, and for several processes at once.

    Nothing that goes wrong with a file stops a conversation: a damaged one is read anew and
    replaced, one that cannot be written is not kept; `logging`'s `alora_gguf` is told.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int = LIMIT) -> None:
        """Makes the folder if it is not there, for its owner only. Raises InputError."""
        self.folder, self._limit = Path(os.path.expanduser(folder)).absolute(), limit  # noqa: PTH111
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"prompt_cache: {self.folder}: expected a folder, or a place for one: "
                f"{error.strerror or error}; name another"
            ) from error

    def recall(
        self,
        runtime: Runtime,
        sequence: TokenSequence,
        tokens: list[int],
        base: ActiveAdapter,
        cancel: CancelToken | None,
        progress: Progress | None,
    ) -> Timings:
        """Sees to it that the sequence, whose lock the caller holds, has cells of `tokens` as the
        base computes them, unless they are few. Where neither it nor another conversation has them,
        `tokens` becomes its conversation: out of a file, or by reading them, which makes the file.

        Returns how many were reused and read, without times. Raises CacheFullError, CancelledError.
        """
        if len(tokens) < MIN_TOKENS or sequence.holds(tokens, base):
            return Timings()
        file = self._file(runtime, tokens)
        if self._load(runtime, sequence, tokens, file):
            return Timings(reused=len(tokens), reuse_note="the beginning is from the prompt cache")
        read = sequence.prefill(tokens, base, cancel=cancel, progress=progress)
        try:
            # no logits: what follows is read anyway
            self._keep(replace(snapshot(runtime, sequence, {}), logits=b""), file)
        except (AloraError, OSError, MemoryError) as error:
            _LOG.warning("the prompt cache does not keep what was read: %s", error)
        return read

    def _keep(self, saved: SavedSession, file: Path) -> None:
        size = len(saved.state)
        if size > self._limit:
            _LOG.warning(
                "the prompt cache does not keep what was read: %d bytes, and all files may have %d",
                size,
                self._limit,
            )
            return
        write_saved(file, saved)
        self._make_room(file)

    def _file(self, runtime: Runtime, tokens: Sequence[int]) -> Path:
        about: dict[str, Any] = {
            "base": asdict(runtime.fingerprint),
            "cache": asdict(runtime.layout),
            # which decide the last bits of cells
            "attention": runtime.engine.options.attention,
            "n_gpu_layers": runtime.engine.options.offloaded,
        }
        if servers := len(runtime.engine.options.servers):
            about["rpc"] = servers
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        key.update(np.array(tokens, "<i4").tobytes())
        return self.folder / f"{key.hexdigest()}{_SUFFIX}"

    def _load(
        self, runtime: Runtime, sequence: TokenSequence, tokens: list[int], file: Path
    ) -> bool:
        """Fills the sequence, whatever it held, with what the file has; says whether it has it."""
        before = sequence.tokens
        try:
            saved = read_saved(file)
            check(runtime, saved)
            if list(saved.tokens) != tokens or saved.spans != spans_for(None, BASE):
                raise SavedSessionError(f"{file}: is another conversation's")
            if saved.n_cached != len(tokens):
                raise SavedSessionError(f"{file}: lacks cells")
            sequence.cut(0)
            fill(sequence, saved)
        except MissingFileError:
            return False
        except CacheFullError:
            sequence.go_back(before)
            return False  # reading finds room, or says why there is none
        except (AloraError, OSError) as error:
            sequence.go_back(before)
            problem = str(error).partition("; ")[0]  # what follows is advice on saved sessions
            _LOG.warning("the prompt cache reads a beginning anew: %s", problem)
            return False
        except BaseException:
            sequence.go_back(before)
            raise
        with suppress(OSError):
            os.utime(file)  # the most recently used
        return True

    def _make_room(self, newest: Path) -> None:
        """Removes what killed writers left, and the least recently used files of ours until the
        rest are within the limit.
        """
        for part in self.folder.glob(f".*{_SUFFIX}.*.part"):
            remove_abandoned(self.folder / f"{part.name[1:].partition(_SUFFIX)[0]}{_SUFFIX}")
        found = list[tuple[float, int, Path]]()
        for file in self.folder.iterdir():
            with suppress(OSError):  # another process may have removed it
                if _NAME.fullmatch(file.name):
                    about = file.stat()
                    found.append((about.st_mtime, about.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found, key=lambda each: (each[2] == newest, each[0])):
            if total <= self._limit:
                return
            with suppress(OSError):  # it may be open in another process, on Windows
                file.unlink()
                total -= size
