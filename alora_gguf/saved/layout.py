"""Whether two contexts agree on what the bytes of a cell mean."""

from __future__ import annotations

from dataclasses import fields

from alora_gguf.engine.layout import CacheLayout
from alora_gguf.errors import SavedSessionError


def check_layout(old: CacheLayout, cache: CacheLayout, *, where: str) -> None:
    """Raises SavedSessionError, whose message begins with `where`, unless cells saved with the
    layout `old` mean the same with `cache`. How values lie (flash_attn) only the cells tell.
    """
    if old.llama_cpp != cache.llama_cpp:
        raise SavedSessionError(
            f"{where}: its cells are those of llama-cpp-python {old.llama_cpp}, but this is "
            f"{cache.llama_cpp}, which may lay them out otherwise; read the conversation again"
        )
    fixes = {
        "type_k": f"open the model with type_k={old.type_k!r}",
        "type_v": f"open the model with type_v={old.type_v!r}",
        "rope_context": f"open the model with n_ctx={old.rope_context}",
        "rotated": "set LLAMA_ATTN_ROT_DISABLE as it was then",
    }
    for name in (f.name for f in fields(CacheLayout) if f.name != "flash_attn"):
        found, expected = getattr(old, name), getattr(cache, name)
        if found != expected:
            raise SavedSessionError(
                f"{where}: was saved with {name} {found!r}, but this model has {expected!r}; "
                f"{fixes.get(name, 'open the model as it was then')}, or read the conversation "
                "again"
            )
