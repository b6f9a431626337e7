"""Installs Ray and runs what works on it: `make test-ray`."""

from __future__ import annotations

import sys

from tests.support.environments import run_tests

if __name__ == "__main__":
    sys.exit(run_tests("ray", ["tests/cluster", *sys.argv[1:]]))
