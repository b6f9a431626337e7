"""Installs libraries that use llama_cpp.Llama and runs examples on ours: `make test-peers`."""

from __future__ import annotations

import sys

from tests.support.environments import run_tests

# it pins an older llguidance than this package needs, and works with that
WITHOUT_REQUIREMENTS = ["guidance==0.3.1", "guidance-stitch==0.1.5"]

if __name__ == "__main__":
    sys.exit(run_tests("peers", ["tests/peers"], requirements=True, alone=WITHOUT_REQUIREMENTS))
