"""Runs `alora-gguf inspect` on files made for it in the current directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alora_gguf.cli.inspect import command
from click.testing import CliRunner, Result

from tests.support.gguf_bytes import Tensors, gguf_bytes


def inspect(metadata: dict[str, Any], tensors: Tensors, *options: str) -> Result:
    """The command's result; errors are not caught by the funnel here."""
    Path("file.gguf").write_bytes(gguf_bytes(metadata, tensors))
    # color: or click would take escape sequences out of what is not a terminal
    return CliRunner().invoke(command, ["file.gguf", *options], color=True)


def shown(metadata: dict[str, Any], tensors: Tensors) -> str:
    """The table of a file that can be read."""
    result = inspect(metadata, tensors)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    return result.output
