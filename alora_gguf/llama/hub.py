"""Models on the Hugging Face Hub: which file a pattern means, and where it lies once fetched."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence

from alora_gguf.errors import InputError


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
