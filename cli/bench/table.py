"""A benchmark's result as text: tables of medians within 80 columns, and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import click
from alora_gguf.cli.measure import median, ratio
from alora_gguf.cli.render import plural, size_text, wrapped

from .results import Asked, AtContext, BenchResult, Decoding, Memory, Samples

_NONE: Final = "-"


def report(result: BenchResult, width: int) -> Iterator[str]:
    """Its lines, styled; sentences are `width` columns wide, tables at most 80."""
    yield from _opening(result, width)
    if result.contexts:
        yield ""
        yield _bold("To the first token")
        yield from _by_context(result.contexts, lambda asked: asked.first_token)
        yield ""
        yield _bold(f"To the end of an answer of {result.method.answer_tokens} tokens")
        yield from _by_context(result.contexts, lambda asked: asked.total)
    if result.together:
        yield ""
        yield from _together(result)
    if result.decoding is not None:
        yield ""
        yield from _decoding(result.decoding)
    if result.memory is not None:
        yield ""
        yield from _memory(result.memory)
    yield ""
    yield from _closing(result, width)


def duration(seconds: float) -> str:
    """Three digits: 0.31 ms, 12.3 ms, 456 ms, 1.81 s, 12.3 s."""
    ms = 1000 * seconds
    number, unit = (ms, "ms") if ms < 999.5 else (seconds, "s")
    digits = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {unit}"


def times(value: float) -> str:
    """A ratio: 1.07x, 12.3x, 456x."""
    return f"{value:.0f}x" if value >= 99.95 else f"{value:.{1 if value >= 9.995 else 2}f}x"


def _parameters(n: int) -> str:
    return f"{n / 1e6:.1f} million parameters" if n < 1e9 else f"{n / 1e9:.2f} billion parameters"


def computed_by(result: BenchResult) -> str:
    """Threads, and layers on the GPU if there are any."""
    threads, layers = plural(result.method.threads, "thread"), result.method.gpu_layers
    if not layers:
        return threads
    return f"{threads}, {'all layers' if layers < 0 else plural(layers, 'layer')} on the GPU"


def _opening(result: BenchResult, width: int) -> Iterator[str]:
    base = result.base
    yield from wrapped(
        f"{base.name} ({base.architecture}, {_parameters(base.n_parameters)}, "
        f"{size_text(base.nbytes)}) on {computed_by(result)}",
        width,
    )
    for adapter in result.adapters:
        kind = f"plain LoRA of rank {adapter.rank}"
        if adapter.kind == "alora":
            invocation = plural(adapter.n_invocation, "token")
            kind = f"aLoRA of rank {adapter.rank}, invoked by {invocation}"
        yield from wrapped(f"{adapter.name}: {kind}", width, "  ", hang="    ")


def _by_context(contexts: tuple[AtContext, ...], of: Callable[[Asked], Samples]) -> Iterator[str]:
    yield _dim(
        f"  {'context':>8}{'aLoRA':>11}{'plain LoRA':>12}{'no adapter':>12}"
        f"{'LoRA/aLoRA':>13}{'aLoRA/none':>12}"
    )
    for row in contexts:
        alora, lora, base = (
            None if side is None else of(side) for side in (row.alora, row.lora, row.base)
        )
        yield (
            f"  {row.n_tokens:>8}{_median(alora):>11}{_median(lora):>12}{_median(base):>12}"
            f"{_ratio(lora, alora):>13}{_ratio(alora, base):>12}"
        )


def _together(result: BenchResult) -> Iterator[str]:
    n = result.together[0].n_tokens
    yield _bold(f"Several aLoRAs asked after {n} tokens, to the end of all answers")
    yield _dim(f"  {'aLoRAs':>8}{'one batch':>11}{'one by one':>12}{'ratio':>12}")
    for row in result.together:
        yield (
            f"  {row.n_adapters:>8}{duration(median(row.at_once)):>11}"
            f"{duration(median(row.one_by_one)):>12}"
            f"{times(ratio(row.one_by_one, row.at_once)):>12}"
        )


def _decoding(row: Decoding) -> Iterator[str]:
    yield _bold(f"Decoding after {row.n_tokens} tokens")
    adapter, base = median(row.adapter), median(row.base)
    yield f"  {'with the adapter':<18}{adapter:>10.1f} tokens/s"
    yield f"  {'no adapter':<18}{base:>10.1f} tokens/s{times(ratio(row.base, row.adapter)):>12}"


def _memory(row: Memory) -> Iterator[str]:
    yield _bold(f"Memory of {row.n_forks} questions and answers after {row.n_tokens} tokens")
    sizes = [size_text(round(n * row.cell_nbytes)) for n in (row.cells, row.cells_apart)]
    yield f"  {'one context, forked':<22}{row.cells:>8} cells{sizes[0]:>12}"
    apart = f"{row.n_forks} contexts"
    factor = times(row.cells_apart / row.cells)
    yield f"  {apart:<22}{row.cells_apart:>8} cells{sizes[1]:>12}{factor:>10}"


def _closing(result: BenchResult, width: int) -> Iterator[str]:
    rounds = [len(row.lora.total) if row.lora else 0 for row in result.contexts] or [0]
    least, most = min(rounds), max(rounds)
    how_many = plural(most, "round") if least == most else f"{least} to {most} rounds"
    text = f"Medians of {how_many}, measured in {result.elapsed:.0f} s."
    if result.has_alora:
        text += (
            f" The aLoRA is '{result.method.asked}', asked on the cells that the base has computed,"
            " like the base itself; the plain LoRA has the same weights, is on from the first token"
            " and reads everything."
        )
    else:
        text += (
            f" The plain LoRA is '{result.method.asked}', which reads everything; the base is asked"
            " on the cells that it has computed."
        )
    yield from wrapped(text, width, long_words=True)
    for note in result.notes:
        yield from wrapped(f"{note[:1].upper()}{note[1:]}.", width)


def _median(samples: Samples | None) -> str:
    return duration(median(samples)) if samples else _NONE


def _ratio(above: Samples | None, below: Samples | None) -> str:
    return times(ratio(above, below)) if above and below else _NONE


def _bold(text: str) -> str:
    return click.style(text, bold=True)


def _dim(text: str) -> str:
    return click.style(text, dim=True)
