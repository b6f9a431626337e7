"""`python -m examples.capacity BENCH.json`: what n conversations times m intrinsics take.

BENCH.json is what `alora-gguf bench BASE ADAPTER --json` printed on the machine that it is about;
of several files each is a row. From what was measured there: what reading, asking and a plain LoRA
take at any length, when asking several pays, and for how many conversations a day it is enough.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from alora_gguf.errors import InputError
from examples.demo_model import program

_DAY: Final = 86400.0  # seconds
_FORMATS: Final = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class Curve:
    """Seconds by tokens, a + b n + c n²: attention's part grows with both lengths."""

    a: float
    b: float
    c: float

    @classmethod
    def of(cls, points: Sequence[tuple[int, float]]) -> Curve:
        """Through what was measured, none of whose parts is negative; with fewer than three lengths
        without the last part.
        """
        n = np.array([float(n) for n, _ in points])
        seconds = np.array([each for _, each in points])
        best, parts = math.inf, np.zeros(3)
        for some in ((0, 1, 2), (0, 1), (1, 2), (1,), (0,)):
            if len(some) > len(points):
                continue
            columns = np.stack([n**i for i in some], axis=1) / seconds[:, None]
            found, *_ = np.linalg.lstsq(columns, np.ones(len(n)), rcond=None)
            off = float(np.abs(columns @ found - 1).max())
            if (found >= 0).all() and off < best:
                best, parts = off, np.zeros(3)
                parts[list(some)] = found
        return cls(*map(float, parts))

    def __call__(self, n: float) -> float:
        return self.a + self.b * n + self.c * n * n


@dataclass(frozen=True)
class Machine:
    """What was measured on one machine.

    read        seconds in which the base reads so many tokens
    ask, lora   seconds to an intrinsic's answer behind so many tokens: cached ones, and none
    together    by how many times asking so many at once takes longer than asking one
    """

    name: str
    threads: int
    read: Curve
    ask: Curve
    lora: Curve
    together: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, path: Path) -> Machine:
        """Raises InputError for a file that bench did not write."""
        try:
            measured = json.loads(path.read_text(encoding="utf-8"))
            contexts = measured["contexts"]
            lengths = [each["n_tokens"] for each in contexts]
            sides = {
                "read": [_median(each["read"]) for each in contexts],
                "ask": [_median(each["alora"]["total"]) for each in contexts],
                "lora": [_median(each["lora"]["total"]) for each in contexts],
            }
            at_once = [
                (each["n_adapters"], _median(each["at_once"])) for each in measured["together"]
            ]
            threads = measured["method"]["threads"]
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{path}: is not what `alora-gguf bench BASE ADAPTER --json` prints, with an aLoRA "
                "and two lengths of contexts or more"
            ) from error
        if len(lengths) < 2 or not at_once:
            raise InputError(
                f"{path}: has {len(lengths)} lengths of contexts, expected two or more: give bench "
                "more --time"
            )
        curves = {
            side: Curve.of(list(zip(lengths, seconds, strict=True)))
            for side, seconds in sides.items()
        }
        one = at_once[0][1]
        together = tuple((n, seconds / one) for n, seconds in at_once)
        return cls(path.stem, threads, **curves, together=together)

    def asking(self, tokens: float, intrinsics: int) -> float:
        """Seconds in which so many intrinsics answer about a cached conversation."""
        counts, times = zip(*self.together, strict=True)
        most, slope = counts[-1], times[-1] / counts[-1]
        factor = float(np.interp(intrinsics, counts, times))
        if intrinsics > most:  # in batches of as many as were measured
            factor = slope * intrinsics
        return self.ask(tokens) * factor

    def new(self, tokens: float, intrinsics: int) -> float:
        """Seconds for a conversation that nobody has read."""
        return self.read(tokens) + self.asking(tokens, intrinsics)

    def loras(self, tokens: float, intrinsics: int) -> float:
        """The same with plain LoRAs, each of which reads it."""
        return intrinsics * self.lora(tokens)

    def pays_from(self, intrinsics: int, factor: float) -> float | None:
        """Tokens of a cached conversation from which asking is so many times as fast as plain
        LoRAs; None if it never is.
        """
        for tokens in range(16, 1 << 17, 16):
            if self.loras(tokens, intrinsics) >= factor * self.asking(tokens, intrinsics):
                return tokens
        return None


def _median(samples: Sequence[float]) -> float:
    return float(np.median(samples))


def table(machines: Sequence[Machine], args: argparse.Namespace) -> list[str]:
    """The page's table."""
    n, m = args.tokens, args.intrinsics
    share = args.machines * (args.efficiency if args.machines > 1 else 1.0)
    lines = [
        f"{args.conversations:,} conversations of {n:,} tokens, {m} intrinsics each, "
        f"{args.machines} x each machine",
        "",
        "| machine | read | ask one | ask all | plain LoRAs | whole work | with plain LoRAs | "
        "conversations a day | 10x from |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in machines:
        whole = args.conversations * each.new(n, m) / share
        theirs = args.conversations * each.loras(n, m) / share
        pays = each.pays_from(m, 10)
        cells = [
            f"{each.name}, {each.threads} threads",
            _told(each.read(n)),
            _told(each.ask(n)),
            _told(each.asking(n, m)),
            _told(each.loras(n, m)),
            _told(whole),
            f"{_told(theirs)} ({theirs / whole:.1f}x)",
            f"{_DAY * share / each.new(n, m):,.0f}",
            "never" if pays is None else f"{pays:,} tokens",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _told(seconds: float) -> str:
    units = ((1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h"))
    for limit, unit, name in units:
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / _DAY:.3g} days"


def draw(machines: Sequence[Machine], intrinsics: int, target: Path) -> None:
    """Seconds for one conversation over its length: new and cached, and with plain LoRAs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    axes: Any = figure.subplots()
    lengths = np.geomspace(64, 16384, 60)
    for i, each in enumerate(machines):
        for style, what, seconds in (
            ("-", "cached", each.asking),
            ("--", "new", each.new),
            (":", "plain LoRAs", each.loras),
        ):
            label = f"{each.name}: {what}"
            axes.plot(lengths, [seconds(n, intrinsics) for n in lengths], style, color=f"C{i}",
                      label=label)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="tokens of the conversation",
             ylabel=f"seconds for {intrinsics} intrinsics")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path, nargs="+", help="what bench --json printed")
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=2048, help="of a conversation")
    parser.add_argument("--intrinsics", type=int, default=5, help="asked about each")
    parser.add_argument("--machines", type=int, default=1, help="of each kind")
    parser.add_argument(
        "--efficiency", type=float, default=0.86, help="of several (benchmarks.cluster's)"
    )
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(argv)
    if min(args.conversations, args.tokens, args.intrinsics, args.machines) < 1:
        parser.error("--conversations, --tokens, --intrinsics and --machines must be 1 or more")
    if not 0 < args.efficiency <= 1:
        parser.error(f"--efficiency must be above 0 and at most 1, got {args.efficiency}")
    if args.plot is not None and args.plot.suffix not in _FORMATS:
        parser.error(f"--plot must end in {', '.join(_FORMATS)}, got {args.plot}")
    machines = [Machine.of(path) for path in args.bench]
    print("\n".join(table(machines, args)))
    if args.plot is not None:
        draw(machines, args.intrinsics, args.plot)
    return 0


if __name__ == "__main__":
    program.run(main)
