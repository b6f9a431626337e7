"""python -m tests.fast [OPTIONS OF PYTEST]: tests that take neither long nor PyTorch.

CI's fast lane runs them with a worker per core, and so do its jobs on macOS and Windows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

FOLDERS: Final = (
    "tests/chat",
    "tests/decide",
    "tests/demo",
    "tests/engine",
    "tests/generate",
    "tests/gguf",
    "tests/intrinsics",
    "tests/packaging",
    "tests/saved",
)
MARKED: Final = "not slow and not stock and not parity"
OPTIONS: Final = ("-n", "logical", "--dist", "loadfile", "-m", MARKED)


def main(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "pytest", *OPTIONS, *arguments, *FOLDERS]
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.run(command, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
