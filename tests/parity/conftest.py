"""Every family with every set of targets, opened once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from tests.support.tiny_families import FAMILIES

from .sides import Sides


@pytest.fixture(
    scope="session", params=product(FAMILIES, ("attention", "all-linear")), ids="-".join
)
def sides(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    pytest.importorskip("peft")
    family, targets = request.param
    both = Sides.open(family, targets, tmp_path_factory.mktemp(family))
    with both.model:
        yield both
        both.check_nothing_skipped()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """For what does not depend on the family."""
    pytest.importorskip("peft")
    both = Sides.open("llama", "all-linear", tmp_path_factory.mktemp("llama"))
    with both.model:
        yield both
        both.check_nothing_skipped()
