"""What the workflows in .github run beside a build: versions, notes, checks of wheels, SBOMs.

Each module is a command, `python -m release.NAME`, that needs nothing but Python, and
docs/releasing.md says when it is used.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ReleaseError(Exception):
    """A release cannot go on; the text says what to do."""
