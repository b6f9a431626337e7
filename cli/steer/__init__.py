"""`alora-gguf steer`: vectors of contrast pairs and of prompts, and what they do."""

from __future__ import annotations

import click

from .derive import derive
from .match import match
from .sweep import sweep

__all__ = ["command"]


@click.group("steer")
def command() -> None:
    """Make steering vectors, and measure them.

    A vector is a small GGUF file that changes what flows through a model, and is loaded and named
    like an adapter: `alora-gguf chat -m BASE -a formal=formal.gguf`.
    """


for each in (derive, match, sweep):
    command.add_command(each)
