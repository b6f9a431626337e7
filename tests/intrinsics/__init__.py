"""Tests of contracts: the corpus beside them, and mellea as the peer."""
