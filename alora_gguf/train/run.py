"""One run of train(): the base in torch, prefixes that all tasks share, and each task's adapter."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from alora_gguf.convert import convert_adapter
from alora_gguf.engine.loading import machine_memory
from alora_gguf.errors import AdapterError, CancelledError, InputError, ModelError
from alora_gguf.files import write_whole
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.writer import write_temperature
from alora_gguf.intrinsics import Contract
from alora_gguf.model import Model
from alora_gguf.verification import verify

from .adapter import CONTRACT, Adapter, shapes_of
from .attention import attend
from .fitting import Fit, Fitting, is_own
from .hf_model import load_model, model_bytes
from .invocation import choose_invocation, ids_of, instruction_opening
from .prefixes import Prefixes, SharedPrefixes
from .records import Estimate, Prepared, TrainReport, Watcher
from .rows import answered, rows_of
from .scores import Scores, score
from .settings import TrainSettings
from .steps import Prefixed, Row

_CONTEXT: Final = 8192  # tokens of a conversation at most, where the base was trained for more
_SHARE_OF_DISK: Final = 0.5  # of what is free, that prefixes may take
_PROBE: Final = 256  # tokens that show how fast the base reads
_SHAPED: Final = 1e-3  # a weight of an adapter that only shows what it will look like
_BESIDE: Final = 1 << 30  # bytes for torch itself, and for what a step computes


class Run:
    """A context manager: the base's memory and the threads' number are given back at its end."""

    def __init__(
        self, base: BaseFile, folder: Path, settings: TrainSettings, watcher: Watcher
    ) -> None:
        self.base, self.folder, self.settings, self.watcher = base, folder, settings, watcher
        self._threads = torch.get_num_threads()
        self._prefixes: Prefixes | None = None
        self._adapter: Adapter | None = None
        self._model: Any = None
        self._prefix_seconds = 0.0
        self._n_ctx = _CONTEXT

    def __enter__(self) -> Run:
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        torch.set_num_threads(self._threads)
        if self._prefixes is not None:
            self._prefixes.close(remove=False)
        self._model = None

    # ---- before anything is trained -------------------------------------------------------------

    def prepare(self, tasks: Sequence[Prepared], *, anew: bool = False) -> None:
        """Loads the base, puts the tasks' examples into tokens, and computes prefixes. Raises
        InputError for a checkpoint of another training, unless that may be thrown away: `anew`.
        """
        self.watcher.stage("Loading the base")
        dtype = self._dtype()
        self._check_memory(dtype)
        self._model = load_model(self.base.path, dtype=dtype)
        self._write_initial(tasks)
        with self._runtime({each.name: self._initial(each) for each in tasks}) as model:
            for task in tasks:
                self.watcher.stage(f"Reading {task.examples.path}")
                self._tokenize(model, task)
        if not anew:
            for task in tasks:
                self._check_checkpoint(task)
        self._open_prefixes(tasks)
        self._say_estimate(tasks)
        if self._prefixes is not None:
            self.watcher.stage("Reading the conversations, once")
            started = time.monotonic()
            self._prefixes.compute(self._progress)
            self._prefix_seconds = time.monotonic() - started

    def _dtype(self) -> str:
        if self.settings.dtype != "auto":
            return self.settings.dtype
        fast = (
            getattr(torch.cpu, f"_is_{name}_supported", None)
            for name in ("amx_tile", "avx512_bf16")
        )
        return "bfloat16" if any(ask is not None and ask() for ask in fast) else "float32"

    def _check_memory(self, dtype: str) -> None:
        needed, there = model_bytes(self.base.path, dtype) + _BESIDE, machine_memory()
        if there and needed > there:
            raise ModelError(
                f"{self.base.path}: training takes {needed / 1e9:,.1f} GB of memory (weights in "
                f"{dtype}), and this machine has {there / 1e9:,.1f} GB; use a smaller base, or a "
                "machine with more"
            )

    def _write_initial(self, tasks: Sequence[Prepared]) -> None:
        """Adapters of the right shapes, converted as they will be: what cannot be converted or
        loaded is refused before anything is trained, and the runtime says how it reads examples.
        """
        with Model(self.base.path, n_ctx=_PROBE, n_seq_max=1) as model:
            self._n_ctx = min(model.n_ctx_train or _CONTEXT, _CONTEXT)
            taken: list[tuple[int, ...]] = []
            for task in tasks:
                if task.kind == "alora":
                    task.text = task.task.invocation or self._opening(model, task, taken)
                    task.invocation = ids_of(model, task.text)
                    taken.append(task.invocation)
                    if task.task.repeat and not model.detokenize(task.invocation[:1]):
                        raise InputError(
                            f"the invocation {task.text!r} begins with a control token and stands "
                            "behind what is repeated; give one of ordinary text, or none"
                        )
        adapter = Adapter(self._model, self.base.architecture, self.settings)
        # one that changes nothing is refused
        shaped = {name: torch.full_like(each, _SHAPED) for name, each in adapter.weights.items()}
        for task in tasks:
            if task.start is not None:
                adapter.start_from(task.start)
            self._write(task, adapter, shaped, self._initial(task))
        self._model = adapter.close()

    def _opening(self, model: Model, task: Prepared, taken: Sequence[tuple[int, ...]]) -> str:
        """An invocation that makes the adapter read its whole instruction, if it has one."""
        if Contract.parse(task.contract).instruction is not None:
            return instruction_opening(task.name)
        return choose_invocation(model, task.name, self.base.chat_template, taken)

    def _tokenize(self, model: Model, task: Prepared) -> None:
        if task.task.contract is not None:  # errors name the file, not the copy of it
            model.set_contract(task.name, task.task.contract)
        given = task.examples
        train = answered(model, task.name, given.train)
        held_out = answered(model, task.name, given.held_out)
        task.examples = replace(given, train=tuple(train), held_out=tuple(held_out))
        task.train = rows_of(model, task.name, train, given.path, self._progress)
        task.held_out = rows_of(model, task.name, held_out, given.path, self._progress)

    def _check_checkpoint(self, task: Prepared) -> None:
        checkpoint = self._checkpoint(task)
        identity = task.hash(self._identity, self.settings)
        if checkpoint.is_file() and not is_own(checkpoint, identity):
            raise InputError(
                f"{checkpoint}: is of a training with other lines, settings or another base, and "
                "going on would throw it away; give the same ones, begin anew with --force "
                "(overwrite=True), or name another output"
            )

    def _open_prefixes(self, tasks: Sequence[Prepared]) -> None:
        shapes = shapes_of(self._model)
        wanted = [row.prefix for each in tasks if each.kind == "alora" for row in _rows(each)]
        if shapes is None or not wanted:
            return
        # what an earlier run has written there already is room, too
        room = shutil.disk_usage(self.folder).free + Prefixes.written(self.folder)
        free = int(room * _SHARE_OF_DISK)
        self._prefixes = Prefixes(
            self._model,
            shapes,
            wanted,
            self.folder,
            limit=min(self.settings.cache_bytes, free),
            identity=f"{self._identity} {self._model.dtype}",
            without_adapter=self._without_adapter,
        )
        self._prefixes.open()

    def _say_estimate(self, tasks: Sequence[Prepared]) -> None:
        """From how fast the base reads some tokens here, and how fast a batch's gradient is."""
        prefixes = self._prefixes
        prefix_seconds = 0.0
        if prefixes is not None:
            ids = torch.arange(_PROBE)[None] % self._model.config.get_text_config().vocab_size
            seconds = _timed(lambda: self._read(ids))
            prefix_seconds = seconds / _PROBE * (prefixes.n_kept - prefixes.n_done_tokens)
        step_seconds = 0.0
        for task in tasks:
            fitting = self._fitting(task)
            rows = task.train[: self.settings.batch]
            if isinstance(fitting.prefixes, Prefixes):  # what comes before is not known yet
                rows = [replace(row, prefix=()) for row in rows]
            step_seconds += _timed(partial(fitting.gradient, rows)) * fitting.steps
            self._end_adapter()
        self.watcher.estimated(
            Estimate(
                prefix_seconds=prefix_seconds,
                step_seconds=step_seconds,
                n_given=0 if prefixes is None else prefixes.n_given,
                n_tokens=0 if prefixes is None else prefixes.n_tokens,
                memory=model_bytes(self.base.path, self._dtype()) + _BESIDE,
                disk=0 if prefixes is None else prefixes.n_bytes,
            )
        )

    def _read(self, ids: torch.Tensor) -> None:
        attend(self._model)
        with torch.no_grad():
            self._model(input_ids=ids, use_cache=False, logits_to_keep=1)

    # ---- a task ---------------------------------------------------------------------------------

    def train(self, task: Prepared, question: str | None) -> TrainReport:
        """Trains, writes, verifies and scores one adapter."""
        self.watcher.stage(f"Training {task.label}")
        fitting = self._fitting(task)
        fitting.resume()
        fit = fitting.run(
            lambda state, steps: self.watcher.moved(state.step, steps, _note(state)),
            self.watcher.stopped,
        )
        self._check_worth(task, fit)
        self._write(task, fitting.adapter, fit.weights, task.out)
        self._end_adapter()
        self._verify(task)
        scores = None
        try:
            if fit.state.over != "stopped":
                scores = self._score(task, question)
        except CancelledError:
            fit.state.over = "stopped"  # the adapter is whole; going on asks again
        if scores is not None and (fitted := scores.temperature) is not None:
            write_temperature(task.out, fitted.kind, fitted.value)
        return self._report(task, fit, scores)

    def _fitting(self, task: Prepared) -> Fitting:
        prefixes: Prefixed | None = self._prefixes
        if task.kind == "lora" and (shapes := shapes_of(self._model)) is not None:
            prefixes = SharedPrefixes(self._model, shapes)
        # without prefixes PEFT looks for the invocation itself
        invocation = task.invocation if prefixes is None and task.kind == "alora" else ()
        self._adapter = Adapter(self._model, self.base.architecture, self.settings, invocation)
        if task.start is not None:
            self._adapter.start_from(task.start)
        return Fitting(
            self._adapter,
            prefixes,
            task.train,
            task.held_out,
            self.settings,
            self._checkpoint(task),
            task.hash(self._identity, self.settings),
        )

    @property
    def _identity(self) -> str:
        """Of the base: its files' names, sizes and times."""
        stats = [(part.path.name, part.path.stat()) for part in self.base.files]
        told = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def _without_adapter(self) -> Any:
        return nullcontext() if self._adapter is None else self._adapter.model.disable_adapter()

    def _end_adapter(self) -> None:
        if self._adapter is not None:
            self._model, self._adapter = self._adapter.close(), None

    def _check_worth(self, task: Prepared, fit: Fit) -> None:
        state = fit.state
        if state.best_step:
            return
        self._end_adapter()
        if state.over == "stopped":
            raise CancelledError(
                f"{task.name}: stopped before anything better than the base was found; --resume "
                "(resume=True) goes on"
            )
        self._checkpoint(task).unlink(missing_ok=True)  # nothing to go on from
        found = f"training found nothing better than the base (a loss of {state.best_loss:.3g} on "
        found += "the held-out examples), and "
        if state.over == "diverged":
            found += f"the loss was no number any more at step {state.step + 1}"
        else:
            found += f"ended at {state.looks[-1]['loss']:.3g}"
        raise AdapterError(
            f"{task.name}: {found}; look at the data, or try a lower rate than "
            f"{self.settings.rate:g}: with --resume (resume=True) nothing is read again"
        )

    # ---- its files ------------------------------------------------------------------------------

    def _folder(self, task: Prepared) -> Path:
        return self.folder / f"{task.name}.peft"

    def _checkpoint(self, task: Prepared) -> Path:
        return self.folder / f"{task.name}.safetensors"

    def _initial(self, task: Prepared) -> Path:
        return self.folder / f"{task.name}.initial.gguf"

    def _write(self, task: Prepared, adapter: Adapter, weights: Any, out: Path) -> None:
        """PEFT's directory, with the contract, and the GGUF made of it."""
        folder = self._folder(task)
        adapter.save(folder, weights, task.invocation, self.base.path.name)
        (folder / CONTRACT).write_text(task.contract, encoding="utf-8")
        convert_adapter(folder, self.base.path, out, name=task.name, overwrite=True)

    def _verify(self, task: Prepared) -> None:
        self.watcher.stage(f"Verifying {task.out}")
        found = verify(self.base.path, task.out)
        if not found.passed:
            raise AdapterError(f"{task.out}: fails verify(): {'; '.join(found.failures)}")

    def _score(self, task: Prepared, question: str | None) -> Scores:
        self.watcher.stage(f"Asking {task.label} about the held-out examples")
        with self._runtime({task.name: task.out}) as model:
            return score(
                model,
                task.name,
                task.examples.held_out,
                training=task.examples.train,
                question=question,
                progress=self._progress,
            )

    def _report(self, task: Prepared, fit: Fit, scores: Scores | None) -> TrainReport:
        if task.peft_out is not None:
            shutil.copytree(self._folder(task), task.peft_out, dirs_exist_ok=True)
        if task.contract_file is not None:
            with write_whole(task.contract_file) as file:
                file.write(task.contract.encode())
        state = fit.state
        return TrainReport(
            name=task.name,
            kind=task.kind,
            out=task.out,
            peft_out=task.peft_out,
            invocation=task.invocation,
            invocation_text=task.text,
            contract=task.contract,
            made=task.made,
            contract_file=task.contract_file,
            n_train=len(task.train),
            n_held_out=len(task.held_out),
            steps=state.step,
            best_step=state.best_step,
            over=state.over,
            seconds=state.seconds,
            prefix_seconds=self._prefix_seconds,
            looks=tuple(state.looks),
            losses=tuple(state.losses),
            scores=scores,
        )

    def _runtime(self, adapters: dict[str, Path]) -> Model:
        return Model(
            self.base.path,
            adapters=adapters,
            n_ctx=self._n_ctx,
            max_adapters=len(adapters),
            n_threads=self.settings.threads,
        )

    @property
    def keeps(self) -> bool:
        """Whether conversations were read, by an earlier try too, that another one goes on with."""
        if self._prefixes is None:
            return Prefixes.written(self.folder) > 0
        return self._prefixes.n_done > 0

    def _progress(self, done: int, total: int) -> None:
        if self.watcher.stopped():
            then = "; --resume (resume=True) goes on" if self.keeps else ""
            raise CancelledError(f"stopped before training began{then}")
        self.watcher.moved(done, total)


def _rows(task: Prepared) -> list[Row]:
    return [*task.train, *task.held_out]


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _note(state: Any) -> str:
    look = state.looks[-1]
    return f"loss {state.losses[-1]:.3f}, held out {look['loss']:.3f}, {look['right']:.0%} right"
