"""`alora-gguf run`: intrinsics asked about conversations, for scripts; JSON in, JSON out."""

from .command import command

__all__ = ["command"]
