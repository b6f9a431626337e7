"""The same adapter at several ranks, side by side over depth.

    python -m examples.ranks smollm2 build/ranks

trains an adapter at ranks 4, 8, 16 and 32, and a twin of one of them from another seed, with
`alora-gguf train`; compares what they do to the base on conversations that they were not trained
on; and writes OUT/ranks.md, a table, OUT/ranks.svg, a picture, and OUT/ranks.json. What is there
already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from examples.train_alora.smalltalk import VERDICTS, examples

NAME: Final = "smalltalk"
RANKS: Final = (4, 8, 16, 32)
TWIN: Final = 8
"""The rank that is trained twice."""
FIGURES: Final = {
    "change": "|d| / |h|",
    "dimension": "Dimension of d",
    "cka_delta": "CKA of d and h",
    "cka": "CKA of h + d and h",
}
OF_PAIRS: Final = ("cosines", "random", "random_spread")
SIMILARITIES: Final = ("similarity", "random_similarity", "random_similarity_spread")


def write_lines(out: Path, n: int, n_held_out: int) -> tuple[Path, Path]:
    """The lines to train on, and the held-out ones again for the analysis."""
    data, text = out / f"{NAME}.jsonl", out / "held_out.jsonl"
    lines = [
        {"messages": messages, "answer": VERDICTS[verdict], "split": split}
        for split, count, seed in (("train", n, -1), ("held_out", n_held_out, -2))
        for messages, verdict in examples(count, seed)
    ]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    held_out = [line for line in lines if line["split"] == "held_out"]
    text.write_text("".join(f"{json.dumps(line)}\n" for line in held_out))
    return data, text


def train(base: str, data: Path, out: Path, options: Sequence[str]) -> list[Path]:
    """An adapter of each rank, and the twin; all of one name, and so of one invocation."""
    found = []
    wanted = [(f"rank-{rank}", rank, rank) for rank in RANKS]
    for label, rank, seed in [*wanted, (f"rank-{TWIN}-twin", TWIN, 1000 + TWIN)]:
        adapter = out / f"{label}.gguf"
        found.append(adapter)
        if adapter.exists():
            continue
        trained = out / f"{NAME}.gguf"
        # a seed of its own for each: what they have in common is not where they began
        how = ["-o", str(trained), "--rank", str(rank), "--seed", str(seed), "--force", *options]
        command = [sys.executable, "-m", "alora_gguf", "train", base, str(data), *how]
        subprocess.run(command, check=True)
        trained.replace(adapter)
    return found


def compare(
    base: str, adapters: Sequence[Path], text: Path, out: Path, options: Sequence[str]
) -> dict[str, Any]:
    """What `alora-gguf analyse` finds on the held-out lines; writes its picture."""
    run = ["--base", base, "--text", str(text), "--plot", str(out / "ranks.svg"), "--json"]
    command = [sys.executable, "-m", "alora_gguf", "analyse", *map(str, adapters), *run, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (out / "ranks.json").write_text(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tables(found: dict[str, Any]) -> str:
    """Over depth, in Markdown: what each rank does to the stream, and how alike ranks are."""
    labels = [each["label"] for each in found["adapters"]]
    parts = [f"On {found['activations']['adapters'][0]['n_tokens']} tokens.", ""]
    for name, title in FIGURES.items():
        parts += [f"{title}:", "", *_figure(found, name, labels), ""]
    largest = len(RANKS) - 1
    pairs = [*((i, largest) for i in range(largest)), (RANKS.index(TWIN), len(RANKS))]
    for title, of in (("Cosine of d", _cosines), ("Similarity of what is written", _written)):
        names = [f"{labels[i]}, {labels[j]}" for i, j in pairs]
        rows = of(found, pairs)
        parts += [f"{title}, beside random adapters:", "", *_markdown(["layer", *names], rows), ""]
    return "\n".join(parts)


def _figure(found: dict[str, Any], name: str, labels: Sequence[str]) -> list[str]:
    runs = [run["layers"] for run in found["activations"]["adapters"]]
    rows = []
    for layers in zip(*runs, strict=True):
        cells = [_number(each["states"][name]) for each in layers]
        chance = [_number(layers[len(RANKS) - 1][of][name]) for of in ("random", "random_spread")]
        rows.append([str(layers[0]["layer"]), *cells, "±".join(chance)])
    return _markdown(["layer", *labels, f"random, of rank {RANKS[-1]}"], rows)


def _cosines(found: dict[str, Any], pairs: Sequence[tuple[int, int]]) -> list[list[str]]:
    return [
        [
            str(layer["layer"]),
            *(_beside(*(layer[of][i][j] for of in OF_PAIRS)) for i, j in pairs),
        ]
        for layer in found["activations"]["cosines"]
    ]


def _written(found: dict[str, Any], pairs: Sequence[tuple[int, int]]) -> list[list[str]]:
    """The mean over the matrices of a layer."""
    labels = [each["label"] for each in found["adapters"]]
    by_labels = {(each["first"], each["second"]): each["overlaps"] for each in found["comparisons"]}
    rows = []
    for layer in sorted({each["layer"] for each in found["shared"]}):
        cells = []
        for i, j in pairs:
            overlaps = by_labels[labels[i], labels[j]]
            angles = [each["written"] for each in overlaps if each["layer"] == layer]
            means = (fmean(each[name] for each in angles) for name in SIMILARITIES)
            cells.append(_beside(*means))
        rows.append([str(layer), *cells])
    return rows


def _beside(own: float, random: float, spread: float) -> str:
    return f"{own:.3f} ({random:.3f}±{spread:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *("---:" for _ in heading[1:])]
    return [f"| {' | '.join(row)} |" for row in (heading, ruler, *rows)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.ranks", description=__doc__)
    parser.add_argument("base", help="a GGUF, its name in the store, or smollm2")
    parser.add_argument("out", type=Path, help="a directory")
    parser.add_argument("--lines", type=int, default=200, help="to train on")
    parser.add_argument("--held-out", type=int, default=40, help="lines to analyse on")
    parser.add_argument("--max-tokens", default="1024", help="of those, that adapters act on")
    parser.add_argument("--random", default="5", help="random adapters beside each")
    parser.add_argument("--epochs", default="1")
    parser.add_argument("--rate", default="1e-3", help="the learning rate; 4e-3 for the demo model")
    parser.add_argument("--threads", default="1")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    data, text = write_lines(chosen.out, chosen.lines, chosen.held_out)
    options = ["--epochs", chosen.epochs, "--batch", "4", "--rate", chosen.rate]
    threads = ["--threads", chosen.threads]
    adapters = train(chosen.base, data, chosen.out, [*options, *threads])
    run = ["--random", chosen.random, "--max-tokens", chosen.max_tokens, *threads]
    found = compare(chosen.base, adapters, text, chosen.out, run)
    (chosen.out / "ranks.md").write_text(tables(found))
    print(f"{chosen.out / 'ranks.md'}, ranks.svg and ranks.json are written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
