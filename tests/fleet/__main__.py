"""Installs vLLM for the CPU, and Granite Switch, and asks them what we ask: `make test-fleet`."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.environments import ROOT, installed

# of another build of torch than the CPU's, and not needed for text
BROKEN = ("torchvision", "torchaudio", "torchcodec")


def main(arguments: list[str]) -> int:
    vllm, failed = installed("fleet", without=BROKEN)
    switch, failed = (vllm, failed) if failed else installed("granite-switch")
    if failed:
        return failed
    # they want other versions of what we need, so that each is asked in a process of its own
    environment = {
        **os.environ,
        "ALORA_TEST_VLLM": str(vllm),
        "ALORA_TEST_GRANITE_SWITCH": str(switch),
    }
    command = [sys.executable, "-m", "pytest", "tests/fleet", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
