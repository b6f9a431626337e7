"""`alora-gguf verify`: whether an adapter works on a base, as a report or as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import alora_gguf as ag

from . import options
from .bases import NamedBase, checked_file
from .chart import bars
from .progress import Progress
from .render import colour, columns, plural, printable, size_text, wrapped

if TYPE_CHECKING:
    from alora_gguf.verification import AdapterFacts, BaseFacts, PeftComparison, Verification

_LABEL: Final = 14  # of a row, with the space behind it
_MARK: Final = 6  # of a check, likewise
_KINDS: Final = {"alora": "aLoRA", "lora": "plain LoRA", "vector": "steering vector"}
_COLOURS: Final = {"ok": "green", "FAIL": "red", "note": "yellow"}


@click.command("verify")
@click.argument("base", shell_complete=options.store_names("base"))
@click.argument("adapter", shell_complete=options.store_names("adapter"))
@click.option(
    "--peft",
    metavar="DIR",
    type=options.FilePath(),
    help="The PEFT directory that the adapter was converted from: compare logits with PEFT's. "
    "Needs torch, transformers and peft: the extra `train`.",
)
@click.option(
    "--hf-base",
    metavar="DIR",
    type=options.FilePath(),
    help="The transformers directory of the base, for --peft; by default the one that the "
    "adapter's configuration names.",
)
@options.threads
@options.gpu_layers
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random text."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    *,
    base: str,
    adapter: str,
    peft: Path | None,
    hf_base: Path | None,
    as_json: bool,
    **measured: Any,
) -> None:
    """Measure what an adapter or steering vector does to a base, and whether that is right.

    BASE and ADAPTER are names in the store or paths of GGUF files; BASE may be smollm2, and ADAPTER
    one of its own. Those in the store must have the SHA-256 that they were stored with.

    Loads both, reads a random text without the adapter and with it, and compares: cells, layers and
    logits before the invocation (of a vector, the reply) must be the base's, bit for bit; after it
    they must have changed, to finite numbers. Shows how much each layer's output changes.

    The exit status is 0 if the adapter passes and 1 if it fails, or cannot be loaded on this base.
    """
    if hf_base is not None and peft is None:
        raise click.UsageError("--hf-base is only used with --peft; give both")
    # what loading warns of stands in the report
    logging.getLogger("alora_gguf").addHandler(logging.NullHandler())
    paths = [checked_file(base, "base")]
    paths.append(checked_file(adapter, "adapter", NamedBase.of(base)))
    with Progress("Loading") as progress:
        how = {"peft": peft, "hf_base": hf_base, **measured}
        found = ag.verify(*paths, progress=progress.fraction, **how)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        for line in report(found, columns()):
            click.echo(line, color=colour())
    if not found.passed:
        raise ag.AdapterError(f"{adapter}: fails on {base}; the report says why")


def report(found: Verification, width: int) -> Iterator[str]:
    """The lines of a report of `width` columns, paths apart; styled."""
    yield from wrapped(f"{found.adapter.path} on {found.base.path}", width)
    yield ""
    for label, text in _facts(found):
        yield from wrapped(text, width, f"  {label:<{_LABEL}}")
    yield ""
    for passed, text in _checks(found):
        yield from _marked("ok" if passed else "FAIL", text, width)
    yield ""
    yield from _changes(found, width)
    said = [("note", text) for text in found.warnings] + [("FAIL", text) for text in found.failures]
    for mark, text in said:
        yield from _marked(mark, text, width)
    if said:
        yield ""
    verdict, fg = ("passes", "green") if found.passed else ("FAILS", "red")
    yield click.style(f"{printable(found.adapter.name)} {verdict}.", fg=fg, bold=True)


def _facts(found: Verification) -> Iterator[tuple[str, str]]:
    base, adapter, text = found.base, found.adapter, found.text
    yield "base", f"{base.name or 'without a name'}, {base.architecture}, {_weights(base)}"
    kind = _KINDS[adapter.kind]
    yield "adapter", f"{adapter.name}, {kind} of rank {adapter.rank}, {_weights(adapter)}"
    if adapter.operation is not None:
        yield "operation", f"{adapter.operation}, made for the scale {adapter.alpha:g}"
    layers = {layer for target in adapter.targets for layer in target.layers}
    names = ", ".join(dict.fromkeys(target.name for target in adapter.targets) or adapter.acts_on)
    yield "targets", names + (f" in {plural(len(layers), 'layer')}" if layers else "")
    reads = f"'{adapter.invocation_text}', " if adapter.invocation_text else ""
    invoked = reads + plural(len(adapter.invocation), "token")
    always = "none; it begins at the reply" if text.first else "none; it is on for every token"
    yield "invocation", invoked if adapter.invocation else always
    read = f"{len(text.tokens)} tokens with seed {text.seed}, the adapter on at the last "
    yield "text", f"{read}{text.n_adapted}; {plural(found.n_threads, 'thread')}"


def _checks(found: Verification) -> Iterator[tuple[bool, str]]:
    """What must be so, and whether it is."""
    cells, logits, begin = found.cells, found.logits, found.adapter.begins_at
    what = "a weight" if found.adapter.kind != "vector" else "a layer"
    yield True, f"every target is {what} of this base, of the right shape"
    if found.vocabularies != "unknown":
        text = "the base's vocabulary is the one that the adapter was converted for"
        yield found.vocabularies == "equal", text
    for equal, what in (
        (logits.before_equal, f"layers and logits of {logits.n_before}"),
        (cells.equal, f"cells of {cells.n_cells}"),
    ):
        text = f"before {begin}: {what} tokens are the base's, bit for bit, in one batch"
        if equal is not None:
            yield equal, f"{text} with adapted ones"
    text = (
        f"asked on a fork, it reuses {cells.reused} of {cells.n_cells} tokens and leaves the "
        "conversation's cells as they were, byte for byte"
    )
    if found.adapter.kind == "lora":
        text += "; a plain LoRA changes every token, so it re-reads everything"
    yield cells.untouched, text
    yield found.finite, "every layer and every logit is finite"
    yield found.effective, "it changes what the base computes"
    if found.peft is not None:
        yield from _beside_peft(found.peft)


def _beside_peft(peft: PeftComparison) -> Iterator[tuple[bool, str]]:
    allowed, ours, plain = peft.allowed, peft.with_adapter, peft.without
    limits = f"{allowed.typical:g} is allowed at a typical token"
    if allowed.largest is not None:
        limits += f", {allowed.largest:g} at the worst"
    text = (
        f"beside PEFT, logits are off by {ours.largest:.1e} of the largest at the worst of "
        f"{peft.n_rows} tokens, {ours.typical:.1e} at a typical one (without the adapter "
        f"{plain.largest:.1e} and {plain.typical:.1e}); for {allowed.type} {limits}"
    )
    yield peft.close, text
    if peft.effect_clear:
        text = (
            f"what it adds to the logits has a cosine of {peft.effect_cosine:.4f} with what it "
            f"adds in PEFT; at least {allowed.cosine:g} is expected"
        )
        yield peft.same_effect, text


def _changes(found: Verification, width: int) -> Iterator[str]:
    logits, n = found.logits, found.text.n_adapted
    where = f"From {found.adapter.begins_at} on" if found.text.first else "Everywhere"
    yield click.style(f"{where} ({n} tokens)", bold=True)
    before = _token(logits.top_base, logits.text_base)
    top = f"stays {before}"
    if logits.top_adapter != logits.top_base:
        top = f"changes from {before} to {_token(logits.top_adapter, logits.text_adapter)}"
    text = (
        f"Logits differ by up to {logits.largest:.2g} of the largest; the likeliest token is "
        f"another at {logits.n_top_changed} of {n}. After the last token it {top}, and "
        f"KL(base || adapter) is {logits.kl:.2g} nats."
    )
    yield from wrapped(text, width, "  ")
    if found.layers:
        text = "Each layer's output, |h - h_base| / |h_base|, mean over these tokens:"
        yield from wrapped(text, width, "  ")
        heading, rows = bars(found.layers, width)
        yield from ("", heading)
        for label, bar in rows:
            yield (label + click.style(bar, fg="cyan")) if bar else label.rstrip()
    yield ""


def _marked(mark: str, text: str, width: int) -> Iterator[str]:
    first, *more = wrapped(text, width, " " * (_MARK + 2))
    yield f"  {click.style(mark, fg=_COLOURS[mark])}{first[2 + len(mark) :]}"
    yield from more


def _weights(facts: BaseFacts | AdapterFacts) -> str:
    return f"{facts.type}, {facts.n_parameters:,} parameters, {size_text(facts.nbytes)}"


def _token(token: int, text: str | None) -> str:
    return f"token {token}" if text is None else f"{text!r} ({token})"
