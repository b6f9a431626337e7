"""Oracles and tiny models for the tests. Nothing here is part of the package."""
