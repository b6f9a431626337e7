"""The converter's fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.peft_files import Case, sound_case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return sound_case(tmp_path)
