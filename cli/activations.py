"""What `alora-gguf analyse` shows of activations: what adapters do to a base on texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import click

from .render import aligned, plural, printable, with_spread, wrapped

if TYPE_CHECKING:
    from alora_gguf.analyse import Activations, AdapterActivations, LayerStates


_FIGURES: Final = {
    "change": ".3g",
    "cosine": ".3f",
    "cka": ".3f",
    "cka_delta": ".3f",
    "dimension": ".1f",
}
"""Of a layer's states, and how they are written."""


def report(found: Activations, width: int) -> Iterator[str]:
    """The lines of a report of `width` columns, paths and tables apart; styled."""
    where = "the probes" if found.text is None else printable(str(found.text))
    yield click.style(f"On {where}: {plural(found.n_texts, 'text')}", bold=True)
    for each in found.adapters:
        yield ""
        yield from _adapter(each, width)
    if found.cosines:
        yield ""
        yield from _cosines(found, width)
    yield ""
    text = (
        "h: states after a layer, without the adapter; d: what it adds to them. CKA: how alike "
        "tokens are to each other in two sets of states, 1 if one is the other turned, scaled and "
        "shifted. dim: in how many directions d is. random: with random adapters of the same "
        "shapes and norms. KL: of the next token, in nats."
    )
    yield from wrapped(text, width)


def _adapter(each: AdapterActivations, width: int) -> Iterator[str]:
    yield f"{click.style(printable(each.label), bold=True)}: acts on {each.n_tokens:,} tokens"
    random_kl = with_spread(f"{each.random_kl:.3g}", each.random_kl_spread)
    text = f"KL to the base {each.kl:.3g} (random {random_kl})"
    if each.n_before:
        text += f"; {each.n_before:,} rows before its invocation are the base's, bit for bit"
    yield from wrapped(text, width, "  ")
    if each.no_cka is not None:
        yield from wrapped(each.no_cka, width, "  ")
    names = ("|d|/|h|", "random", "cosine", "random", "CKA h+d,h", "random", "CKA d,h", "random")
    rows: list[Sequence[str]] = [("layer", *names, "dim", "random")]
    for layer in each.layers:
        own, random = _cells(layer.states), _cells(layer.random, layer.random_spread)
        both = zip(own, random, strict=True)
        rows.append((str(layer.layer), *(cell for pair in both for cell in pair)))
    yield ""
    yield from aligned(rows, ">" * len(rows[0]), indent=2)
    if each.ranks:
        ranks: list[Sequence[str]] = [("rank", "|dW|^2 kept", "KL", "largest", "top changed")]
        for rank in each.ranks:
            changed = f"{rank.top_changed:.1%}"
            cells = (f"{rank.kept:.2%}", f"{rank.kl:.3g}", f"{rank.largest:.3g}", changed)
            ranks.append((str(rank.rank), *cells))
        yield ""
        yield from aligned(ranks, ">" * len(ranks[0]), indent=2)


def _cells(states: LayerStates, spread: LayerStates | None = None) -> Iterator[str]:
    for name, form in _FIGURES.items():
        value = getattr(states, name)
        text = "-" if value is None else format(value, form)
        yield text if spread is None else with_spread(text, getattr(spread, name))


def _cosines(found: Activations, width: int) -> Iterator[str]:
    """Of each two adapters, by number."""
    yield click.style("Cosine of what they add", bold=True)
    for i, adapter in enumerate(found.adapters):
        yield f"  {i + 1}  {printable(adapter.label)}"
    pairs = [(i, j) for j in range(len(found.adapters)) for i in range(j)]
    pairs.sort()
    rows: list[Sequence[str]] = [
        ("layer", *(text for i, j in pairs for text in (f"{i + 1}, {j + 1}", "random")))
    ]
    for layer in found.cosines:
        cells = list[str]()
        for i, j in pairs:
            random = with_spread(f"{layer.random[i][j]:.3f}", layer.random_spread[i][j])
            cells += [f"{layer.cosines[i][j]:.3f}", random]
        rows.append((str(layer.layer), *cells))
    yield ""
    yield from aligned(rows, ">" * len(rows[0]), indent=2)
    yield ""
    text = f"Over {found.n_common:,} tokens that follow all invocations."
    if len(found.clusters) > 1:
        joined = (
            f"{printable(', '.join(each.first))} with {printable(', '.join(each.second))} "
            f"({each.cosine:.3f})"
            for each in found.clusters
        )
        text += f" The most alike first: {'; '.join(joined)}."
    yield from wrapped(text, width, "  ")
