"""How PyInstaller packs programs that import alora_gguf: it finds these hooks by an entry point."""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folder of hook-alora_gguf.py."""
    return [str(Path(__file__).parent)]
