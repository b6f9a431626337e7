"""Benchmarks: both sides of every claim in one run. `python -m benchmarks --help`."""
