"""What train() is told, what it tells, and what it returns."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alora_gguf._calls import checked
from alora_gguf.errors import InputError

from .data import Examples
from .scores import Scores
from .settings import TrainSettings

if TYPE_CHECKING:
    from .steps import Row

PathLike = str | os.PathLike[str]


@checked
@dataclass(frozen=True, kw_only=True)
class Task:
    """One adapter to train.

    data        JSON lines of conversations and answers (see read_examples())
    out         the GGUF to write
    name        the adapter's; by default that of `out`
    contract    an io.yaml, or what has one; None: one is made of the answers
    invocation  a text; None: one is chosen of the base's control tokens, or, where the contract has
                an instruction, the name in angle brackets, which begins that
    repeat      whether a contract that is made has an instruction, which says the last message once
                more: the adapter reads that itself, with what stood before it, and not only its own
                few tokens
    peft_out    a directory for the adapter in PEFT's format, with its contract
    start       a directory in PEFT's format, such as an earlier peft_out, whose weights training
                begins with: of this base, and of the same rank, alpha and targets. A plain twin
                begins with none
    kind        "alora", or "lora" for a plain one, which reads the conversations with its own
                weights: there is nothing to read once, and no invocation
    """

    data: PathLike
    out: PathLike
    name: str | None = None
    contract: PathLike | None = None
    invocation: str | None = None
    repeat: bool = False
    peft_out: PathLike | None = None
    start: PathLike | None = None
    kind: Literal["alora", "lora"] = "alora"


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What came of a task.

    out, peft_out  the files that were written
    invocation     its token ids, and as text; empty for a plain LoRA
    contract       the text of its io.yaml; `made` of the answers and written to `contract_file`,
                   or given
    n_train, n_held_out  examples
    steps, best_step, over  how many there were, which was the best, and why it ended: "epochs",
                   "early", "stopped" by the caller, or "diverged": the next step's loss was no
                   number, and `out` is the best before
    seconds        of the steps, and of the keys and values before them
    looks          at the held-out examples: step, loss and the share of right replies
    losses         of each step
    scores         through the runtime, on the held-out examples; None if it was stopped. If they
                   have a temperature, it is in the file, and decide() divides by it
    """

    name: str
    kind: str
    out: Path
    peft_out: Path | None
    invocation: tuple[int, ...]
    invocation_text: str
    contract: str
    made: bool
    contract_file: Path | None
    n_train: int
    n_held_out: int
    steps: int
    best_step: int
    over: str
    seconds: float
    prefix_seconds: float
    looks: tuple[dict[str, float], ...]
    losses: tuple[float, ...] = field(repr=False)
    scores: Scores | None

    def to_dict(self) -> dict[str, Any]:
        """What json.dumps() takes."""
        told = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(self).items()
        }
        return {**told, "scores": None if self.scores is None else self.scores.to_dict()}


@dataclass(frozen=True)
class Estimate:
    """What a training takes, before it starts: seconds of prefixes and of steps, tokens of prefixes
    (as often as they occur, and to compute), bytes of memory and of the disk.
    """

    prefix_seconds: float
    step_seconds: float
    n_given: int
    n_tokens: int
    memory: int
    disk: int


class Watcher:
    """What is told on the way; a subclass shows it. Every method may be called from the thread that
    train() runs on.
    """

    def stage(self, text: str) -> None:
        """Something begins, such as "reading"."""

    def moved(self, done: int, total: int, note: str = "") -> None:
        """So much of it is done."""

    def estimated(self, found: Estimate) -> None:
        """Before the first task's training."""

    def stopped(self) -> bool:
        """Asked after each step: whether to end here, with the best so far."""
        return False


def weights_file(folder: Path) -> Path:
    """The weights of an adapter in PEFT's format."""
    return folder / "adapter_model.safetensors"


def config_of(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of an adapter in PEFT's format, whose weights are there, too. Raises
    InputError.
    """
    wanted = "expected a directory in PEFT's format, as --peft-out writes it"
    file = folder / "adapter_config.json"
    for each in (file, weights_file(folder)):
        if not each.is_file():
            raise InputError(f"{folder}: has no {each.name}, {wanted}; check the path")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); {wanted}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{file}: is {type(fields).__name__}, expected an object; {wanted}")
    return fields


@dataclass
class Prepared:
    """A task that was checked, with its examples in tokens."""

    task: Task
    name: str
    kind: str  # "alora" or "lora"
    out: Path
    examples: Examples
    contract: str
    made: bool
    twin: bool = False  # of the task before it, as a plain LoRA
    invocation: tuple[int, ...] = ()
    text: str = ""
    train: list[Row] = field(default_factory=list)
    held_out: list[Row] = field(default_factory=list)

    @property
    def contract_file(self) -> Path | None:
        """Where a contract that was made is written, to be read and changed."""
        if not self.made or self.twin:
            return None
        return self.out.with_name(f"{self.out.name.removesuffix('.gguf')}.io.yaml")

    @property
    def peft_out(self) -> Path | None:
        """Where it is written in PEFT's format: a plain twin beside the other."""
        if self.task.peft_out is None:
            return None
        path = Path(self.task.peft_out)
        return path.with_name(f"{path.name}.lora") if self.twin else path

    @property
    def start(self) -> Path | None:
        """Whose weights it begins with; a plain twin is trained from nothing."""
        given = self.task.start
        return None if given is None or self.twin else Path(given)

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.name}, as a plain LoRA" if self.twin else self.name

    def hash(self, base: str, settings: TrainSettings) -> str:
        """Of all that decides the weights."""
        told = hashlib.sha256(json.dumps([base, self.kind, settings.deciding()]).encode())
        if self.start is not None:
            told.update(weights_file(self.start).read_bytes())
        for row in (*self.train, *self.held_out):
            told.update(repr(asdict(row)).encode())
        return told.hexdigest()
