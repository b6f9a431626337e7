"""`alora-gguf demo`: several adapters asked about one cached conversation, and what that costs."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from alora_gguf import Session, Verdict
    from alora_gguf.demo import Demo

_REPLY_TOKENS = 8


@dataclass(frozen=True)
class _Comparison:
    """The same questions asked both ways: `alora` all at once, `lora` one after another."""

    n_tokens: int
    names: tuple[str, ...]
    alora: list[Verdict]
    alora_seconds: float
    lora: list[Verdict]
    lora_seconds: float
    base_untouched: bool


@click.command()
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(threads: int | None, as_json: bool) -> None:
    """Ask five adapters about one long conversation at once, then the plain-LoRA way.

    The base and its adapters are small, seeded and random, made on the spot: the times are real,
    the answers mean nothing.
    """
    from alora_gguf import Model
    from alora_gguf.demo import conversation, write_demo

    with tempfile.TemporaryDirectory(prefix="alora-gguf-demo-") as directory:
        _say(as_json, "Making a small base with random weights and five PEFT adapters for it ...")
        demo = write_demo(Path(directory))
        _say(as_json, "Converting the adapters to GGUF ...")
        adapters = _convert(demo)

        with Model(demo.base, adapters=adapters, n_ctx=8192, n_threads=threads) as model:
            session = model.session()
            timings = session.append(conversation())
            _say(
                as_json,
                f"Reading a conversation of {len(session.tokens)} tokens took "
                f"{timings.total:.2f} s. From here on it stays in the KV cache.\n",
            )
            result = _compare(session)
    click.echo(_as_json(result) if as_json else _as_text(result))


def _say(as_json: bool, text: str) -> None:
    """Progress goes to stderr where stdout is for a machine."""
    click.echo(text, err=as_json)


def _convert(demo: Demo) -> dict[str, str]:
    """Adapter GGUFs beside their PEFT directories: each intrinsic and its plain-LoRA twin."""
    from alora_gguf.convert import convert_adapter

    adapters = {}
    for kind, sources in (("", demo.alora), ("-lora", demo.lora)):
        for name, source in sources.items():
            out = source.with_suffix(".gguf")
            convert_adapter(source, demo.base, out)
            adapters[name + kind] = str(out)
    return adapters


def _compare(session: Session) -> _Comparison:
    from alora_gguf import Invocation
    from alora_gguf.demo import INTRINSICS, invocation_of

    before = session.state()
    # the first batch of a shape builds its graph; neither side should pay for that
    session.invoke_many([Invocation(name, max_tokens=2) for name in INTRINSICS])

    started = time.perf_counter()
    alora = session.invoke_many([Invocation(name, max_tokens=_REPLY_TOKENS) for name in INTRINSICS])
    alora_seconds = time.perf_counter() - started

    # a plain LoRA is on for every token, so nothing that the base computed can be kept
    started = time.perf_counter()
    lora = []
    for name in INTRINSICS:
        suffix = "".join(invocation_of(name))
        lora.append(session.invoke(Invocation(f"{name}-lora", suffix, max_tokens=_REPLY_TOKENS)))
    lora_seconds = time.perf_counter() - started

    return _Comparison(
        n_tokens=len(session.tokens),
        names=INTRINSICS,
        alora=alora,
        alora_seconds=alora_seconds,
        lora=lora,
        lora_seconds=lora_seconds,
        base_untouched=session.state() == before,
    )


def _as_text(result: _Comparison) -> str:
    def cells(verdict: Verdict) -> str:
        t = verdict.timings
        first = (t.first_token or 0.0) * 1000
        return f"{t.reused:>7}{t.evaluated:>6}{first:>10.0f} ms"

    lines = [
        f"{'':16}{'aLoRA, all in one batch':^26}   {'plain LoRA, one by one':^26}",
        f"{'':16}{'reused  read  first token':>26}   {'reused  read  first token':>26}",
    ]
    for name, alora, lora in zip(result.names, result.alora, result.lora, strict=True):
        lines.append(f"{name:16}{cells(alora)}   {cells(lora)}")
    ratio = result.lora_seconds / result.alora_seconds
    untouched = "are" if result.base_untouched else "are NOT"
    lines += [
        "",
        f"{len(result.names)} verdicts of {_REPLY_TOKENS} tokens: {result.alora_seconds:.2f} s "
        f"against {result.lora_seconds:.2f} s, {ratio:.0f} times as fast.",
        f"The conversation's {result.n_tokens} cells {untouched} byte for byte what they were.",
        "",
        "Next: alora-gguf convert --help, for adapters of your own.",
    ]
    return "\n".join(lines)


def _as_json(result: _Comparison) -> str:
    import json
    from dataclasses import asdict

    return json.dumps(
        {
            "n_tokens": result.n_tokens,
            "base_untouched": result.base_untouched,
            "alora": {
                "seconds": result.alora_seconds,
                "timings": {v.adapter: asdict(v.timings) for v in result.alora},
            },
            "lora": {
                "seconds": result.lora_seconds,
                "timings": {v.adapter: asdict(v.timings) for v in result.lora},
            },
        },
        indent=2,
    )
