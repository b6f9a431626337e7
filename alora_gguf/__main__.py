"""The console script `alora-gguf`, and `python -m alora_gguf`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits with its status."""
    try:
        from .cli import run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while modules are imported, before a command could say so
        sys.stderr.write("Interrupted.\n")
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
