"""Runs upstream's convert_lora_to_gguf.py, the tests' peer, several times in one process.

As a program: the upstream tree, then a JSON list of argument lists. It is a script that cannot be
imported, and each start of it costs seconds for torch and transformers.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """One conversion: a PEFT directory and its base's HF directory to a GGUF."""

    adapter: Path
    base: Path
    out: Path
    outtype: str

    def arguments(self) -> list[str]:
        paths = ["--base", str(self.base), "--outfile", str(self.out)]
        return [str(self.adapter), *paths, "--outtype", self.outtype]


def stock_convert(requests: Sequence[Request]) -> None:
    """Converts with the stock script, which must succeed."""
    from .upstream import upstream_tree

    argument_lists = json.dumps([request.arguments() for request in requests])
    run = subprocess.run(
        [sys.executable, __file__, str(upstream_tree()), argument_lists],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # small tensors: more threads only spin
    )
    if run.returncode:
        raise RuntimeError(f"convert_lora_to_gguf.py failed:\n{run.stderr}")


def main() -> None:
    tree = sys.argv[1]
    sys.path[0] = tree  # the script's own folder, in place of this one's
    for arguments in json.loads(sys.argv[2]):
        sys.argv = ["convert_lora_to_gguf.py", *arguments]
        runpy.run_path(f"{tree}/convert_lora_to_gguf.py", run_name="__main__")


if __name__ == "__main__":
    main()
