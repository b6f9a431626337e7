"""Contracts whose answer is a decision: one of some categories, each with a probability."""

from __future__ import annotations

from dataclasses import dataclass, replace

from alora_gguf.errors import InputError

from .contract import Contract
from .reply import Path
from .rules import Likelihood
from .yaml_file import Scalar


@dataclass(frozen=True, slots=True)
class Categories:
    """What a contract decides between.

    contract  with a rule that weighs the categories, whether the file has one or lists choices
    place     where replies have the category
    names     of the categories
    yes       which of two is the number 1 where the other is 0; None: they are no yes and no
    """

    contract: Contract
    place: Path
    names: tuple[Scalar, ...]
    yes: int | None = None

    @classmethod
    def of(cls, contract: Contract) -> Categories:
        """What `contract` decides between. Raises InputError for one that decides nothing."""
        rules = [each for each in contract.transformations if isinstance(each, Likelihood)]
        if not rules and contract.choices:
            numbered = tuple((name, float(i)) for i, name in enumerate(contract.choices))
            weighs = Likelihood((), numbered)
            return cls(replace(contract, transformations=(weighs,)), (), contract.choices)
        steps = rules[0].input_path if len(rules) == 1 else (None,)
        place = tuple(step for step in steps if step is not None)
        if len(place) < len(steps):
            found = "none" if not rules else f"{len(rules)}, or one for many places"
            raise InputError(
                f"{contract.source}: its answer is no decision: expected choices, or one rule of "
                f"likelihood for one place of the reply, found {found}"
            )
        names = tuple(name for name, _ in rules[0].categories_to_values)
        return cls(contract, place, names, rules[0].yes)
