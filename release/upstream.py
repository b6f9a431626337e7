"""Whether there is a newer llama-cpp-python than native/upstream.txt pins.

Prints `version=` and its number, or nothing behind the sign where there is none, as a workflow
takes an output.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable

from . import ROOT, ReleaseError

NAME = "llama-cpp-python"


def pinned() -> str:
    pin = (ROOT / "native/upstream.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{NAME}==(\S+) ", pin, re.MULTILINE)
    if found is None:
        raise ReleaseError(f"native/upstream.txt: expected {NAME}==VERSION --hash=sha256:DIGEST")
    return found[1]


def published() -> list[str]:
    """The releases that pip's index has, without those that are not final."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "index", "versions", "--json", NAME], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ReleaseError(f"pip could not list the releases of {NAME}:\n{done.stderr.strip()}")
    versions = json.loads(done.stdout)["versions"]
    return [str(version) for version in versions]


def newer(versions: Iterable[str], than: str) -> str:
    """The newest of `versions` that is newer, or an empty text."""

    def key(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split("."))

    final = [each for each in versions if re.fullmatch(r"\d+(\.\d+)+", each)]
    newest = max(final, key=key, default=than)
    return newest if key(newest) > key(than) else ""


def main() -> int:
    try:
        print(f"version={newer(published(), pinned())}")
    except (ReleaseError, ValueError, KeyError) as error:
        print(f"release.upstream: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
