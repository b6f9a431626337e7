"""Commands whose output nobody reads any more end without a word, as others in a pipe do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from alora_gguf.demo import base_path
from tests.support.pulling import MAIN


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
@pytest.mark.parametrize("arguments", [["--help"], ["inspect", str(base_path())], ["list", "-h"]])
def test_a_reader_that_is_gone(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        command = [sys.executable, "-c", MAIN, *arguments]
        run = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=60)
    assert (run.returncode, run.stderr) == (1, b"")
