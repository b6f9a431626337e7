"""Installs clients of HTTP servers and runs them against ours: `make test-clients`."""

from __future__ import annotations

import sys

from tests.support.environments import run_tests

if __name__ == "__main__":
    sys.exit(run_tests("clients", ["tests/clients", *sys.argv[1:]]))
