"""What the workflows in .github run beside a build: versions, notes, checks of wheels, SBOMs.

version, wheel, sbom and upstream are commands, `python -m release.NAME`, and docs/releasing.md says
when they are used. program.py is what `make program` freezes.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ReleaseError(Exception):
    """A release cannot go on; the text says what to do."""
