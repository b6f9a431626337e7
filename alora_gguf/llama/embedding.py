"""What stock's embed() and from_pretrained() need: a context of their own, and a file."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import llama_cpp
from llama_cpp import _internals as internals

from alora_gguf.errors import InputError

if TYPE_CHECKING:
    from .llama import Llama

_NO_POOLING: Final = 0  # LLAMA_POOLING_TYPE_NONE


class Embedder:
    """The Llama that stock's embed() sees: with a context for embeddings, on the same weights, so
    that what was read stays.
    """

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        params = type(llama.context_params).from_buffer_copy(llama.context_params)
        params.embeddings = True
        params.n_outputs_max = 0
        params.n_seq_max = min(llama.n_batch, llama_cpp.llama_max_parallel_sequences())
        self.context_params = params
        # freed with the model
        self._ctx = internals.LlamaContext(model=llama._model, params=params, verbose=False)
        self._batch = internals.LlamaBatch(n_tokens=llama.n_batch, embd=0, n_seq_max=1)
        if self._ctx.pooling_type() == _NO_POOLING:
            params.n_seq_max = 1  # stock reads several texts of a batch at wrong offsets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    def reset(self) -> None:
        """Its cells are gone already."""


def fetch_model(
    repo_id: str,
    filename: str | None,
    additional_files: Sequence[str],
    *,
    local_dir: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
) -> str:
    """Downloads what is not there yet and returns the path of the file that `filename`, a name or a
    glob pattern, means. Raises InputError unless each pattern means exactly one file, and what
    huggingface_hub raises.
    """
    from huggingface_hub import HfApi

    if filename is None:
        raise InputError('filename is missing: a name, or a pattern such as "*q4_0.gguf"')
    folder = None if local_dir is None else os.fspath(local_dir)
    cache = None if cache_dir is None else os.fspath(cache_dir)
    api = HfApi()
    known = [file.rfilename for file in api.model_info(repo_id).siblings or ()]
    names = [_only_match(repo_id, pattern, known) for pattern in (filename, *additional_files)]
    paths = [
        api.hf_hub_download(repo_id=repo_id, filename=name, local_dir=folder, cache_dir=cache)
        for name in names
    ]
    return str(paths[0])


def _only_match(repo_id: str, pattern: str, names: Sequence[str]) -> str:
    found = [name for name in names if fnmatch.fnmatch(name, pattern)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{repo_id}: several files match {pattern!r}: {', '.join(found)}")
    models = ", ".join(name for name in names if name.endswith(".gguf")) or "none"
    raise InputError(f"{repo_id}: no file matches {pattern!r}; its GGUF files: {models}")
