"""What `alora-gguf analyse` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import click

from . import activations
from .render import aligned, printable, shortened, with_spread, wrapped

if TYPE_CHECKING:
    from alora_gguf.analyse import AdapterWeights, Analysis, Comparison, SharedBasis, Totals

_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "cyan"}
_NAME: Final = 20  # columns of a target's name, at most


def report(found: Analysis, width: int) -> Iterator[str]:
    """The lines of a report of `width` columns, paths and tables apart; styled."""
    alone = len(found.adapters) == 1
    for adapter in found.adapters:
        yield from _adapter(adapter, width)
        if alone:
            yield from ("", *_layers(adapter), "", *_targets(adapter))
        yield ""
    if not alone:
        yield from _depth(found.adapters)
        yield ""
        yield from _pairs(found, width)
        yield ""
    if found.activations is not None:
        yield from activations.report(found.activations, width)
        yield ""
    text = (
        "dW is what is added to a weight W: norms |dW|, singular values s. stable: sum of s^2 / "
        "largest s^2. effective: exp of the entropy of s. 99 %: the fewest s with 99 % of the sum "
        f"of s^2. random: {found.n_random} adapters of the same shapes and norm whose A and B are "
        "random, the mean and the standard deviation."
    )
    yield from wrapped(text, width)


def _adapter(adapter: AdapterWeights, width: int) -> Iterator[str]:
    kind = "aLoRA" if adapter.kind == "alora" else "plain LoRA"
    about = f"{kind} of rank {adapter.rank}, {adapter.architecture}"
    name = click.style(printable(adapter.label), bold=True)
    yield f"{name}: {printable(about)}, {adapter.n_parameters:,} parameters"
    totals, n = adapter.totals, len(adapter.layers)
    if adapter.alive:
        beside = ", ".join(
            with_spread(f"{getattr(totals.random, name):.1f}", getattr(totals.random_spread, name))
            for name in ("stable_rank", "effective_rank", "energy_rank")
        )
        text = (
            f"|dW|_F {totals.frobenius:.4g} over {_matrices(totals.n_matrices)}, ranks "
            f"{totals.stable_rank:.1f} stable, {totals.effective_rank:.1f} effective, "
            f"{totals.energy_rank:.1f} for 99 % (random {beside}); utilisation "
            f"{totals.utilisation:.0%}"
        )
        if n:
            text += f"; concentration {adapter.concentration:.2f} (even: {1 / n:.2f})"
        yield from wrapped(text, width, "  ")
    for finding in adapter.findings:
        first, *more = wrapped(f"{finding.message} [{finding.rule}]", width, " " * 11)
        mark = click.style(f"{finding.level:<9}", fg=_COLOURS[finding.level])
        yield f"  {mark}{first[11:]}"
        yield from more


def _matrices(n: int) -> str:
    return "1 matrix" if n == 1 else f"{n} matrices"


def _layers(adapter: AdapterWeights) -> Iterator[str]:
    """One row a layer, with a bar of its share."""
    if not adapter.layers:
        return
    rows = [("layer", *_heading(adapter.layers[0].totals), "")]
    largest = max(layer.totals.share for layer in adapter.layers)
    for layer in adapter.layers:
        bar = "#" * round(8 * layer.totals.share / largest) if largest else ""
        rows.append((str(layer.layer), *_cells(layer.totals), bar))
    yield from aligned(rows, ">" * (len(rows[0]) - 1) + "<", indent=2)


def _targets(adapter: AdapterWeights) -> list[str]:
    rows = [("target", *_heading(adapter.totals), "dead")]
    for target in adapter.targets:
        dead = f"{target.totals.n_dead} of {target.totals.n_matrices}"
        name = shortened(printable(target.name), _NAME)
        rows.append((name, *_cells(target.totals), dead))
    return aligned(rows, "<" + ">" * (len(rows[0]) - 1), indent=2)


def _heading(totals: Totals) -> tuple[str, ...]:
    relative = () if totals.relative is None else ("|dW|2/|W|2",)
    norms = ("|dW|_F", "share", "|dW|_2", "random", *relative)
    return (*norms, "stable", "effective", "random", "99 %")


def _cells(totals: Totals) -> tuple[str, ...]:
    relative = () if totals.relative is None else (f"{totals.relative:.3f}",)
    random, spread = totals.random, totals.random_spread
    return (
        f"{totals.frobenius:.3g}",
        f"{totals.share:.0%}",
        f"{totals.spectral:.3g}",
        with_spread(f"{random.spectral:.3g}", spread.spectral),
        *relative,
        f"{totals.stable_rank:.1f}",
        f"{totals.effective_rank:.1f}",
        with_spread(f"{random.effective_rank:.1f}", spread.effective_rank),
        f"{totals.energy_rank:.1f}",
    )


# Several ----------------------------------------------------------------------------------------


def _depth(adapters: Sequence[AdapterWeights]) -> Iterator[str]:
    """|dW|_F and effective rank of all, side by side; columns by number."""
    yield click.style("Side by side", bold=True)
    for i, adapter in enumerate(adapters):
        yield f"  {i + 1}  {printable(adapter.label)}"
    layers = sorted({layer.layer for adapter in adapters for layer in adapter.layers})
    found = [{layer.layer: layer.totals for layer in adapter.layers} for adapter in adapters]
    numbers = [str(i + 1) for i in range(len(adapters))]
    first = [f"|dW|_F {numbers[0]}", *numbers[1:]]
    rows = [["layer", *first, f"effective {numbers[0]}", *numbers[1:]]]
    for layer in layers:
        totals = [each.get(layer) for each in found]
        norms = ["-" if t is None else f"{t.frobenius:.3g}" for t in totals]
        ranks = ["-" if t is None else f"{t.effective_rank:.1f}" for t in totals]
        rows.append([str(layer), *norms, *ranks])
    yield ""
    yield from aligned(rows, ">" * len(rows[0]), indent=2)


def _pairs(found: Analysis, width: int) -> Iterator[str]:
    """How similar the spaces are that each two write and read, and what all could share."""
    yield click.style("Spaces in common", bold=True)
    text = (
        "Mean squared cosine of the principal angles: 1 if one space contains the other. written: "
        "columns of dW, from B; read: rows of dW, from A."
    )
    yield from wrapped(text, width, "  ")
    numbers = {adapter.label: str(i + 1) for i, adapter in enumerate(found.adapters)}
    heading = ("", "written", "random", "read", "random", "cosine of dW", "apart")
    rows: list[tuple[str, ...]] = [heading]
    rows += [_pair(each, numbers) for each in found.comparisons]
    yield ""
    yield from aligned(rows, "<>>>>>>", indent=2)
    if len(found.comparisons) == 1 and found.comparisons[0].overlaps:
        yield from ("", *_pair_by_layer(found.comparisons[0]))
    if found.shared:
        yield ""
        for side, verb in (("written", "write"), ("read", "read")):
            yield from wrapped(_sharing(found.shared, side, verb), width, "  ")


def _pair(each: Comparison, numbers: dict[str, str]) -> tuple[str, ...]:
    name = f"{numbers[each.first]}, {numbers[each.second]}"
    if not each.overlaps:
        return (name, "-", "-", "-", "-", "-", str(each.n_apart))
    cosine = sum(overlap.cosine for overlap in each.overlaps) / len(each.overlaps)
    return (name, *_similar(each), f"{cosine:.3f}", str(each.n_apart))


def _similar(each: Comparison, layer: int | None = None) -> Iterator[str]:
    """What two write and read, each beside chance."""
    for similarity, random, spread in (each.mean("written", layer), each.mean("read", layer)):
        yield f"{similarity:.3f}"
        yield with_spread(f"{random:.3f}", spread)


def _pair_by_layer(each: Comparison) -> list[str]:
    rows: list[tuple[str, ...]] = [("layer", "written", "random", "read", "random")]
    layers = sorted({o.layer for o in each.overlaps if o.layer is not None})
    rows += [(str(layer), *_similar(each, layer)) for layer in layers]
    return aligned(rows, ">" * len(rows[0]), indent=2)


def _sharing(shared: Sequence[SharedBasis], side: str, verb: str) -> str:
    n = len(shared)
    ranks = [getattr(each, side) for each in shared]
    together, apart, by_chance = (
        sum(getattr(rank, name) for rank in ranks) / n for name in ("together", "apart", "random")
    )
    many = max(each.n_adapters for each in shared)
    whose = "both" if many == 2 else f"all {many}"
    return (
        f"99 % of what {whose} {verb} could share a basis of rank {together:.1f}; their own bases "
        f"add up to {apart:.1f}, and random spaces would share one of {by_chance:.1f} (means over "
        f"{n} of the matrices)."
    )
