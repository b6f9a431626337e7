"""How long a call took and how much of its context it did not have to read again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Counts in tokens, times in seconds.

    `reused` tokens were in the cache already, `evaluated` ones of the prompt were read by this
    call, `generated` ones were sampled, drafted before or not. `first_token` runs from the call to
    the first sampled token (None if nothing was sampled), `total` to the end. `reuse_note` says in
    words why not more was reused, or is "".
    """

    reused: int = 0
    evaluated: int = 0
    generated: int = 0
    first_token: float | None = None
    total: float = 0.0
    reuse_note: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Sampled tokens per second after the first; None if there was no second one."""
        if self.first_token is None or self.generated < 2 or self.total <= self.first_token:
            return None
        return (self.generated - 1) / (self.total - self.first_token)
