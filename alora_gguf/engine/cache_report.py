"""What the KV cache holds, and why: for programs that show it, and for whoever wonders where the
room has gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from .runtime import Runtime
from .tokens import Provenance, Spans

Kind = Literal["session", "closed", "call"]
_WHY: Final[dict[Kind, str]] = {
    "session": "an open conversation",
    "closed": "a closed one, kept for others that begin like it until room is needed",
    "call": "an invocation or a call under way",
}


@dataclass(frozen=True, slots=True)
class CacheSpan:
    """Cells in a row that one computed: positions [begin, end), an adapter's name (or, if it is not
    loaded any more, the beginning of its hash; None: the base) and its scale. Of several together
    `adapter` has all names and scales, such as "legal at 0.8 + formal", and `scale` is 1.
    """

    begin: int
    end: int
    adapter: str | None
    scale: float


@dataclass(frozen=True, slots=True)
class CacheHolder:
    """A sequence of cells.

    kind      what it is there for; `why` says it in words
    cells     that it has
    alone     of those, the ones that no other holder shares: what ending it would free
    promised  further cells that are kept for it
    spans     who computed its cells; None while a call is changing it
    """

    kind: Kind
    cells: int
    alone: int
    promised: int
    spans: tuple[CacheSpan, ...] | None

    @property
    def why(self) -> str:
        """What it is there for."""
        return _WHY[self.kind]


@dataclass(frozen=True, slots=True)
class CacheReport:
    """One model's cache at a moment, in cells; one cell holds one token of one position.

    `used` counts shared cells once, `promised` ones are kept for calls under way, `free` is the
    rest of `n_cells`. `n_sequences` can exist at a time, `free_sequences` of them do not.
    """

    n_cells: int
    used: int
    promised: int
    free: int
    n_sequences: int
    free_sequences: int
    holders: tuple[CacheHolder, ...]

    def __str__(self) -> str:
        promised = f", {self.promised} promised" if self.promised else ""
        lines = [
            f"{self.used} of {self.n_cells} cells used{promised}, {self.free} free; "
            f"{self.n_sequences - self.free_sequences} of {self.n_sequences} sequences"
        ]
        for holder in self.holders:
            lines.append(f"{holder.cells:>8} cells ({holder.alone} its own): {holder.why}")
            for span in holder.spans or ():
                who = "the base" if span.adapter is None else span.adapter
                at = "" if span.adapter is None or span.scale == 1 else f" at {span.scale:g}"
                lines.append(f"{'':>10}{span.begin} to {span.end}: {who}{at}")
        return "\n".join(lines)


def report(runtime: Runtime) -> CacheReport:
    """Model.cache_report()'s work."""
    engine = runtime.engine
    _ = engine.ctx
    names = runtime.names()
    known: dict[int, tuple[Kind, Spans | None]] = {}
    for sequence in runtime.prefix_cache.open_sequences():
        with sequence.borrow() as there:
            known[sequence.seq] = ("session", sequence.cached.spans if there else None)
    for entry in runtime.prefix_cache.entries:
        known[entry.seq] = ("closed", entry.cached.spans)
    with engine.condition:
        cells = engine.cells
        holders = [
            CacheHolder(
                kind=kind,
                cells=cells.length(seq),
                alone=cells.freed_by(seq, 0),
                promised=cells.promised_to(seq),
                spans=None if spans is None else named(spans, cells.length(seq), names),
            )
            for seq in cells.sequences
            for kind, spans in [known.get(seq, ("call", None))]
        ]
        return CacheReport(
            n_cells=cells.n_cells,
            used=cells.used(),
            promised=cells.promised(),
            free=cells.free(),
            n_sequences=cells.n_seqs,
            free_sequences=cells.free_sequences,
            holders=tuple(holders),
        )


def named(spans: Spans, n: int, names: Mapping[str, str]) -> tuple[CacheSpan, ...]:
    """The spans of `n` cells with adapters' `names`, by the hash of what they compute."""
    ends = [*(begin for begin, _ in spans[1:]), n]
    return tuple(
        CacheSpan(begin, end, _who(by, names), by.scale)
        for (begin, by), end in zip(spans, ends, strict=True)
        if begin < end
    )


def _who(by: Provenance, names: Mapping[str, str]) -> str | None:
    if by.identity is None:
        return None
    if not by.parts or by.identity in names:
        return names.get(by.identity, by.identity[:12])
    return " + ".join(
        names.get(identity, identity[:12]) + ("" if scale == 1 else f" at {scale:g}")
        for identity, scale in by.parts
    )
