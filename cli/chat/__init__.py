"""`alora-gguf chat`: a conversation in the terminal, judged by adapters while it stays cached."""

from .command import command

__all__ = ["command"]
