"""Fits an adapter to its examples: epochs of steps, looks at what is held out, stopping early, and
a checkpoint from which it goes on bit for bit.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alora_gguf.errors import FileFormatError

from .adapter import Adapter
from .prefixes import SharedPrefixes, Tokens, n_common
from .settings import TrainSettings
from .steps import Prefixed, Row, losses

_POOL: Final = 8  # batches whose rows are sorted by length together, so that they pad little
_FLOOR: Final = 0.1  # of the learning rate, at the end
_CLIP: Final = 1.0  # the gradient's norm, at most
_EVERY: Final = 30.0  # seconds between checkpoints
_MEMORY: Final = 1 << 30  # bytes of prefixes and of logits that rows computed together may take
_ACTIVATIONS: Final = 40  # values that a token of a row takes in a layer, in widths of the model
_HELD_OUT_AT_ONCE: Final = 64  # rows


@dataclass
class State:
    """Where training is: all that a checkpoint has beside tensors."""

    step: int = 0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = 0
    since_best: int = 0
    looks: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    over: str = ""


@dataclass(frozen=True)
class Fit:
    """What came of it.

    weights  the best ones, by their loss on the held-out examples
    state    `over` says why it ended: "epochs", "early", "stopped", or "diverged": a loss was no
             number any more, and the weights after it are worthless
    """

    weights: dict[str, Tensor]
    state: State


@contextmanager
def _opened(checkpoint: Path) -> Iterator[Any]:
    try:
        with safe_open(str(checkpoint), "pt") as file:
            yield file
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise FileFormatError(
            f"{checkpoint}: is no checkpoint that can be gone on from: {error}; remove it"
        ) from error


def is_own(checkpoint: Path, identity: str) -> bool:
    """Whether a checkpoint is there, and of the training that `identity` stands for."""
    if not checkpoint.is_file():
        return False
    with _opened(checkpoint) as file:
        return bool(json.loads(file.metadata()["state"])["identity"] == identity)


def _groups(prefixes: Sequence[Tokens], most: int) -> list[list[int]]:
    """Rows by their numbers, at most so many together, which have half of their prefixes in common:
    taken into one step, they are read once.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(prefixes)), key=lambda i: (prefixes[i], i)):
        last = groups[-1] if groups else []
        shared = n_common(prefixes[last[0]], prefixes[i]) if last else 0
        if last and len(last) < most and 2 * shared >= len(prefixes[i]):
            last.append(i)
        else:
            groups.append([i])
    return groups


class Fitting:
    """One adapter's training."""

    def __init__(
        self,
        adapter: Adapter,
        prefixes: Prefixed | None,
        train: Sequence[Row],
        held_out: Sequence[Row],
        settings: TrainSettings,
        checkpoint: Path,
        identity: str,
    ) -> None:
        """`identity` stands for all that decides the result: a checkpoint of another one is not
        taken up.
        """
        self.adapter, self.prefixes, self.settings = adapter, prefixes, settings
        self.train, self.held_out = train, held_out
        self.checkpoint, self.identity = checkpoint, identity
        self.state = State()
        per_epoch = math.ceil(len(train) / settings.batch)
        self.steps = per_epoch * settings.epochs  # if it does not stop early
        self._optimizer = torch.optim.AdamW(
            adapter.parameters, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self._best = adapter.weights
        self._look_every = max(1, per_epoch // settings.looks)
        self._shares = isinstance(prefixes, SharedPrefixes)
        self._groups = [[i] for i in range(len(train))]
        if self._shares:
            self._groups = _groups([row.prefix for row in train], settings.batch)

    def resume(self) -> bool:
        """Goes on from the checkpoint, if there is one of this training."""
        if not is_own(self.checkpoint, self.identity):
            return False
        with _opened(self.checkpoint) as file:
            about = json.loads(file.metadata()["state"])
            del about["identity"]
            tensors = {name: file.get_tensor(name) for name in [*file.keys()]}
        self.state = State(**about)
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "adam": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.adapter.restore(parts["now"])
        self._best = parts["best"]
        held = self._optimizer.state_dict()
        for i, _ in enumerate(self.adapter.parameters):
            kept = {
                key: parts["adam"].get(f"{i}/{key}") for key in ("step", "exp_avg", "exp_avg_sq")
            }
            if all(each is not None for each in kept.values()):
                held["state"][i] = kept
        self._optimizer.load_state_dict(held)
        return True

    def run(
        self,
        report: Callable[[State, int], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Fit:
        """Trains to the end, or until `stopped()`. `report` is called after each step."""
        state, noted = self.state, time.monotonic()
        begun = noted - state.seconds
        if not state.looks:
            self._look()
        while not state.over:
            if stopped():
                state.over = "stopped"
                break
            if not self._step():
                state.over = "diverged"
                break
            state.seconds = time.monotonic() - begun
            looks = state.step % self._look_every == 0 or state.step == self.steps
            if looks:
                self._look()
            if state.step >= self.steps:
                state.over = "epochs"
            report(state, self.steps)
            if looks or time.monotonic() - noted > _EVERY:
                self.save()
                noted = time.monotonic()
        state.seconds = time.monotonic() - begun
        over = state.over
        if over in ("stopped", "diverged"):
            state.over = ""  # of the checkpoint: one can go on from there
        self.save()
        state.over = over
        return Fit(self._best, state)

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        tensors = {f"now/{name}": each for name, each in self.adapter.weights.items()}
        tensors |= {f"best/{name}": each for name, each in self._best.items()}
        for i, held in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{i}/{key}": each.clone().contiguous() for key, each in held.items()}
        about = json.dumps({**asdict(self.state), "identity": self.identity})
        part = self.checkpoint.with_suffix(".part")
        save_file(tensors, str(part), {"state": about})
        part.replace(self.checkpoint)

    def gradient(self, rows: Sequence[Row]) -> float:
        """Adds a batch's gradient to the parameters'; returns its loss."""
        weight = sum(sum(row.weights) for row in rows)
        total = 0.0
        for part in self._parts(rows):
            found = losses(self.adapter.model, self.prefixes, part)
            (found.total / weight).backward()  # type: ignore[no-untyped-call]
            total += found.total.item()
        return total / weight

    def _step(self) -> bool:
        """Returns whether it could be taken: from a loss that is no number nothing comes back."""
        state, settings = self.state, self.settings
        for group in self._optimizer.param_groups:
            group["lr"] = settings.rate * self._rate(state.step)
        loss = self.gradient(self._batch(state.step))
        norm = torch.nn.utils.clip_grad_norm_(self.adapter.parameters, _CLIP)
        if not (math.isfinite(loss) and math.isfinite(norm.item())):
            self._optimizer.zero_grad()
            return False
        self._optimizer.step()
        self._optimizer.zero_grad()
        state.step += 1
        state.losses.append(loss)
        return True

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / (self.settings.warmup + 1))
        fallen = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return warm * (_FLOOR + (1 - _FLOOR) * fallen)

    def _batch(self, step: int) -> list[Row]:
        """The rows of a step: each epoch has another order, which seed and epoch decide."""
        size = self.settings.batch
        per_epoch = math.ceil(len(self.train) / size)
        epoch, number = divmod(step, per_epoch)
        rng = random.Random(f"{self.settings.seed} {epoch}")  # noqa: S311 - no secret
        groups = list(self._groups)
        rng.shuffle(groups)
        order = [i for group in groups for i in group]
        batches: list[list[int]] = []
        for first in range(0, len(order), size * _POOL):
            pool = order[first : first + size * _POOL]
            if not self._shares:
                pool.sort(key=self._length)
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(batches)
        return [self.train[i] for i in batches[number]]

    def _length(self, i: int) -> tuple[int, int]:
        row = self.train[i]
        return len(row.prefix), len(row.asked) + len(row.reply)

    def _sorted(self, rows: Sequence[Row]) -> list[Row]:
        """Beside one another those that share a beginning, if that helps, or are of one length."""
        if self._shares:
            return sorted(rows, key=lambda row: row.prefix)
        return sorted(rows, key=lambda row: len(row.prefix))

    def _parts(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Rows that fit into memory together."""
        parts: list[list[Row]] = []
        for row in self._sorted(rows):
            if parts and self._bytes([*parts[-1], row]) <= _MEMORY:
                parts[-1].append(row)
            else:
                parts.append([row])
        return parts

    def _bytes(self, rows: Sequence[Row]) -> int:
        """What rows take together, at most: what is known before them, and what the others of
        their tokens keep for the way back.
        """
        config = self.adapter.model.config.get_text_config()
        before = max(len(row.prefix) for row in rows)
        n = len(rows) * max(len(row.asked) + len(row.reply) for row in rows)
        known = 0
        if self.prefixes is None:
            n += len(rows) * before
        else:
            if isinstance(self.prefixes, SharedPrefixes):
                n += self.prefixes.n_tokens([row.prefix for row in rows])
            values = sum(heads * (k + v) for heads, k, v in self.prefixes.shapes)
            known = len(rows) * before * values
        each = config.num_hidden_layers * config.hidden_size * _ACTIVATIONS
        logits = sum(len(row.reply) for row in rows) * config.vocab_size * 3
        return int(4 * (known + n * each + logits))

    def _look(self) -> None:
        """At the held-out examples."""
        state = self.state
        total = weight = right = 0.0
        rows = self._sorted(self.held_out)
        with torch.no_grad():
            for first in range(0, len(rows), _HELD_OUT_AT_ONCE):
                for part in self._parts(rows[first : first + _HELD_OUT_AT_ONCE]):
                    found = losses(self.adapter.model, self.prefixes, part)
                    total, weight = total + found.total.item(), weight + found.weight
                    right += sum(found.right)
        loss = total / weight
        state.looks.append({"step": state.step, "loss": loss, "right": right / len(rows)})
        if loss < state.best_loss:
            state.best_loss, state.best_step, state.since_best = loss, state.step, 0
            self._best = self.adapter.weights
        else:
            state.since_best += 1
            if self.settings.patience and state.since_best >= self.settings.patience:
                state.over = "early"
