"""`python -m benchmarks.train`: a training step and an epoch, PEFT's ordinary way against ours.

The base, the batches and the processor are the same; sides take turns. PEFT computes whole
conversations, forward and backward; ours what comes after their prefixes, whose keys and values
were computed once. The first epoch's figure has that in it. Of a plain LoRA, which has to compute
everything, ours computes once a step what conversations begin with alike.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

import alora_gguf as ag
from alora_gguf.gguf.base import BaseFile
from alora_gguf.train.adapter import Adapter, shapes_of
from alora_gguf.train.hf_model import load_model
from alora_gguf.train.prefixes import Prefixes, SharedPrefixes
from alora_gguf.train.settings import TrainSettings
from alora_gguf.train.steps import Prefixed, Row, losses

from . import options
from .measure import timed
from .models import SHAPES
from .models import base as made_base
from .report import machine

READ: Final = 512  # tokens
TOKENS: Final = 4000  # of a step's prefixes, about: PEFT's way keeps all of them for the way back
BATCH: Final = 8  # conversations a step at most, which is what training takes by default
SUFFIX: Final = 16  # tokens, of which the invocation is the first part
DOCUMENTS, DOCUMENT, QUESTION = 2, 200, 20  # of a plain LoRA's step: how many, and their tokens
INVOCATION: Final = (11, 12, 13, 14)


def rows(n: int, prefix: int, n_vocab: int, seed: int) -> list[Row]:
    """Random conversations of one length, each with another reply."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(100, n_vocab, (n, prefix + SUFFIX), generator=generator).tolist()
    at = SUFFIX - len(INVOCATION)
    return [Row(tuple(each[:prefix]), INVOCATION, tuple(each[-at:])) for each in tokens]


class Side:
    """An adapter that is trained on batches, in one of the two ways."""

    def __init__(self, file: BaseFile, invocation: tuple[int, ...] = ()) -> None:
        """With an `invocation` PEFT finds out itself where the adapter begins to act."""
        self.base: Any = load_model(file.path)
        self.prefixes: Prefixed | None = None
        self.adapter = Adapter(self.base, file.architecture, TrainSettings(), invocation)
        self.optimizer = torch.optim.AdamW(self.adapter.parameters, lr=1e-3)

    def keep(self, batches: Sequence[Sequence[Row]], folder: Path) -> None:
        """Computes prefixes, once for all epochs."""
        shapes = shapes_of(self.base)
        assert shapes is not None
        wanted = [row.prefix for batch in batches for row in batch]
        self.prefixes = Prefixes(
            self.base, shapes, wanted, folder, limit=1 << 40,
            without_adapter=self.adapter.model.disable_adapter,
        )  # fmt: skip
        self.prefixes.open()
        self.prefixes.compute()

    def step(self, batch: Sequence[Row]) -> float:
        """Returns the loss."""
        found = losses(self.adapter.model, self.prefixes, batch)
        loss = found.total / found.weight
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def gradient(self, batch: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Of each weight that is trained; no step is taken."""
        found = losses(self.adapter.model, self.prefixes, batch)
        (found.total / found.weight).backward()  # type: ignore[no-untyped-call]
        named = self.adapter.model.named_parameters()
        copied = {name: each.grad.clone() for name, each in named if each.requires_grad}
        self.optimizer.zero_grad()
        return copied


def gradients(theirs: Side, ours: Side, batch: Sequence[Row]) -> str:
    """How far ours are off PEFT's in the weight where they are farthest off, relative to it: as
    keys and values are kept, and if they were kept in half the bytes.
    """
    ours.adapter.restore(theirs.adapter.weights)  # AdamW makes much of little, step by step
    right = theirs.gradient(batch)
    assert isinstance(ours.prefixes, Prefixes)
    kept = ours.prefixes._values_kept
    exact, found = kept.clone(), []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        kept.copy_(exact.to(dtype))
        off = ours.gradient(batch)
        worst = max(float((off[n] - g).norm() / g.norm()) for n, g in right.items())
        found.append(f"{str(dtype).removeprefix('torch.')} {worst:.1e}")
    kept.copy_(exact)
    return f"        gradients off PEFT's, by what is kept: {', '.join(found)}"


def main(argv: list[str] | None = None) -> int:
    parser = options.parser("benchmarks.train", __doc__)
    parser.add_argument("base", nargs="?", type=Path, help="a GGUF; by default a random one")
    options.several(parser, "--prefixes", "250,1000,4000", options.number())
    parser.add_argument("--batch", type=options.number(), help="conversations a step, up to 8")
    parser.add_argument("--steps", type=options.number(), default=2, help="of an epoch")
    parser.add_argument("--rounds", type=options.number(), default=2)
    parser.add_argument("--gradients", action="store_true", help="compare them, too")
    parser.add_argument("--threads", type=options.number(), default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        file = BaseFile.read(args.base or made_base(SHAPES["135m"]))
    except ag.AloraError as error:
        parser.error(str(error))
    print(f"{machine()}; torch {torch.__version__} in F32, {args.threads} threads")
    print(
        f"{file.path.name}, rank 8 on attention, {args.steps} steps an epoch; "
        f"{SUFFIX} tokens after each prefix, {args.rounds} rounds"
    )
    print(_reading(file, args), flush=True)
    print("prefix  batch  PEFT's step     ours    step  first epoch  losses differ by")
    for prefix in args.prefixes:
        print(_line(file, prefix, args), flush=True)
    print(_plain(file, args), flush=True)
    return 0


def _reading(file: BaseFile, args: Any) -> str:
    """Who reads prefixes: torch in F32, or the runtime, which has the file's own types."""
    base: Any = load_model(file.path)
    seconds: dict[str, list[float]] = {"torch": [], "runtime": []}
    with ag.Model(file.path, n_ctx=2 * READ, n_seq_max=1, n_threads=args.threads) as model:
        for turn in range(-1, args.rounds):
            ids = [(100 + 7919 * i + turn) % model.n_vocab for i in range(READ)]
            with model.session() as session, torch.no_grad():
                works = {
                    "torch": lambda ids=ids: base(torch.tensor([ids]), logits_to_keep=1),
                    "runtime": lambda ids=ids, session=session: session.sync(ids),
                }
                for name, work in works.items():
                    taken = timed(work)
                    seconds[name] += [taken] if turn >= 0 else []
    speeds = {name: READ / statistics.median(each) for name, each in seconds.items()}
    return (
        f"reading {READ} tokens: torch {speeds['torch']:.0f} a second, "
        f"the runtime {speeds['runtime']:.0f} ({speeds['torch'] / speeds['runtime']:.2f}x)"
    )


def _line(file: BaseFile, prefix: int, args: Any) -> str:
    theirs, ours = Side(file, INVOCATION), Side(file)
    n_vocab = theirs.base.config.get_text_config().vocab_size
    batch_size = args.batch or max(1, min(BATCH, TOKENS // prefix))
    batches = [rows(batch_size, prefix, n_vocab, seed) for seed in range(args.steps)]
    with tempfile.TemporaryDirectory() as folder:
        once = timed(lambda: ours.keep(batches, Path(folder)))
        peft, own, apart = _steps(theirs, ours, batches, args.rounds)
        compared = gradients(theirs, ours, batches[0]) if args.gradients else ""
    first = args.steps * peft / (once + args.steps * own)
    return (
        f"{prefix:>6}  {batch_size:>5}  {peft:>9.2f} s  {own:>5.2f} s  {peft / own:>5.0f}x  "
        f"{first:>10.1f}x  {apart:>16.1e}" + (f"\n{compared}" if compared else "")
    )


def _plain(file: BaseFile, args: Any) -> str:
    theirs, ours = Side(file), Side(file)
    shapes = shapes_of(ours.base)
    assert shapes is not None
    ours.prefixes = SharedPrefixes(ours.base, shapes)
    n_vocab = theirs.base.config.get_text_config().vocab_size
    batches = []
    for seed in range(args.steps):
        documents = rows(DOCUMENTS, DOCUMENT, n_vocab, seed)
        asked = rows(BATCH, QUESTION, n_vocab, 100 + seed)
        whose = [documents[i % DOCUMENTS] for i in range(BATCH)]
        batches.append(
            [
                replace(row, prefix=(*document.prefix, *row.prefix))
                for row, document in zip(asked, whose, strict=True)
            ]
        )
    peft, own, apart = _steps(theirs, ours, batches, args.rounds)
    return (
        f"a plain LoRA, {BATCH} questions of {QUESTION} tokens about {DOCUMENTS} documents of "
        f"{DOCUMENT}: PEFT's step {peft:.2f} s, ours {own:.2f} s, {peft / own:.1f}x, losses differ "
        f"by {apart:.1e}"
    )


def _steps(
    theirs: Side, ours: Side, batches: Sequence[Sequence[Row]], rounds: int
) -> tuple[float, float, float]:
    """Medians of seconds that steps take, and how far their losses were apart at most."""
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    apart = 0.0
    for turn in range(-1, rounds):
        batch, found = batches[turn % len(batches)], {}
        sides = [("theirs", theirs), ("ours", ours)]
        for name, side in sides[:: 1 if turn % 2 else -1]:
            started = time.perf_counter()
            found[name] = side.step(batch)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
        apart = max(apart, abs(found["theirs"] - found["ours"]) / found["theirs"])
    peft, own = (statistics.median(each) for each in seconds.values())
    return peft, own, apart


if __name__ == "__main__":
    raise SystemExit(main())
