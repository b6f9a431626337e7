"""train(): from a base's GGUF and conversations to adapters that are converted, verified and
measured.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from alora_gguf._calls import check_kind
from alora_gguf.errors import AloraError, CancelledError, InputError
from alora_gguf.files import abandoned, check_target, reason
from alora_gguf.gguf.base import BaseFile
from alora_gguf.intrinsics import load_contract
from alora_gguf.intrinsics.contract import file_in

from .contract import check_words, made_contract
from .data import Example, Examples, read_examples
from .invocation import instruction_opening
from .records import PathLike, Prepared, Task, TrainReport, Watcher, config_of
from .settings import TrainSettings

_NEEDED: Final = ("torch", "transformers", "peft", "safetensors")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SUFFIX: Final = ".train"
_LOCK: Final = "lock"


def train(
    base: PathLike,
    tasks: Sequence[Task],
    *,
    settings: TrainSettings | None = None,
    also_lora: bool = False,
    question: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> list[TrainReport]:
    """Trains an adapter for each of the `tasks` on the base in the GGUF `base`, converts, verifies
    and scores them; `also_lora` trains the plain twin of each aLoRA too, into NAME.lora.gguf.

    What conversations have before their invocations is computed once, for all tasks and epochs, and
    kept in a folder beside the first task's `out`, with a checkpoint; with `resume` a training that
    ended there goes on, and comes out as if it had never ended. `question` is what the base is
    asked for comparison.

    Nothing is written under a task's name before its adapter is whole. Raises InputError,
    MissingFileError, FileFormatError, ContractError and ModelError before anything is trained;
    AdapterError if nothing better than the base was found, or the adapter fails verify();
    CancelledError if the watcher stopped it before there was anything to keep.
    """
    _require_installed()
    settings = TrainSettings() if settings is None else settings
    watcher = Watcher() if watcher is None else watcher
    _check_kinds(base, tasks, settings, watcher)
    prepared = _checked(tasks, also_lora, settings)
    file = BaseFile.read(base)
    _check_not_read(prepared, [part.path for part in file.files])
    folder = prepared[0].out.with_name(prepared[0].out.name + _SUFFIX)
    _check_folder(folder, resume, overwrite)
    # what was kept when a training was stopped is its own
    own = overwrite or (resume and folder.is_dir())
    for one in prepared:
        for path in filter(None, (one.out, one.contract_file)):
            check_target(path, overwrite=own, what="adapter or contract")
        if one.start is not None:
            config_of(one.start)
        peft = one.peft_out
        if peft is not None and not own and peft.exists():
            raise InputError(
                f"{peft}: exists already; name another directory for PEFT's format, or replace its "
                "files with --force (overwrite=True)"
            )
    from .run import Run

    reports = []
    with (
        _work_folder(folder, resume) as work,
        Run(file, folder, settings, watcher) as run,
    ):
        try:
            run.prepare(prepared, anew=overwrite)
        except CancelledError:
            work.over = work.new and not run.keeps
            raise
        except AloraError:
            work.over = work.new  # nothing is in it that would be of use to another try
            raise
        for each in prepared:
            reports.append(run.train(each, question))
            if reports[-1].over == "stopped":
                return reports
        work.over = True
    return reports


def _require_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"training needs {', '.join(_NEEDED)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed: pip install 'alora-gguf[train]'"
        )


def _checked(tasks: Sequence[Task], also_lora: bool, settings: TrainSettings) -> list[Prepared]:
    """The tasks with their examples and contracts, and behind each its plain twin if there are to
    be some. Raises what can be found wrong without the base.
    """
    if not tasks:
        raise InputError("there are no tasks to train; give at least one")
    found = []
    for task in tasks:
        out = Path(task.out)
        name = task.name or out.name.removesuffix(".gguf")
        if task.kind == "lora" and task.invocation is not None:
            raise InputError(
                f"{name} is a plain LoRA, which has no invocation; leave the invocation out, or "
                "train an aLoRA"
            )
        if not _NAME.fullmatch(name):
            raise InputError(
                f"'{name}' cannot be an adapter's name: expected letters, digits, _, . and -; give "
                "another name or output"
            )
        examples = read_examples(task.data, seed=settings.seed)
        contract, made = _contract(task, name, examples)
        found.append(Prepared(task, name, task.kind, out, examples, contract, made))
        if also_lora and task.kind == "alora":
            twin = replace(
                found[-1],
                name=f"{name}.lora",
                kind="lora",
                out=out.with_name(f"{out.name.removesuffix('.gguf')}.lora.gguf"),
                twin=True,
            )
            found.append(twin)
    for what, each in (("name", "name"), ("output", "out")):
        values = [getattr(one, each) for one in found]
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise InputError(f"two tasks have the {what} '{twice[0]}'; give each its own")
    return found


def _all(examples: Examples) -> list[Example]:
    return [*examples.train, *examples.held_out]


def _contract(task: Task, name: str, examples: Examples) -> tuple[str, bool]:
    """The text of a task's contract, and whether it was made."""
    if task.contract is None:
        given = _all(examples)
        check_words(examples.path, sorted(given, key=lambda each: each.line))
        instruction = None
        if task.repeat:
            opening = instruction_opening(name) if task.invocation is None else task.invocation
            escaped = opening.replace("{", "{{").replace("}", "}}")
            instruction = f"{escaped} {{last_message}}"
        return made_contract(name, [each.answer for each in given], instruction), True
    if task.repeat:
        raise InputError(
            f"{name}: a contract is given, and repeat (--repeat) is for one that is made; give it "
            "the instruction '{last_message}'"
        )
    load_contract(task.contract)  # says what is wrong with it
    return file_in(Path(task.contract)).read_text(encoding="utf-8"), False


def _check_kinds(base: object, tasks: object, settings: object, watcher: object) -> None:
    # by hand: a call that is @checked keeps a second Ctrl-C waiting until its end
    check_kind(
        tasks,
        "tasks",
        lambda given: isinstance(given, (list, tuple)) and all(isinstance(t, Task) for t in given),
        "a list of Task(data=, out=)",
    )
    check_kind(base, "base", lambda x: isinstance(x, (str, os.PathLike)), "a path")
    check_kind(settings, "settings", lambda x: isinstance(x, TrainSettings), "TrainSettings")
    check_kind(watcher, "watcher", lambda x: isinstance(x, Watcher), "a Watcher")


def _check_not_read(tasks: Sequence[Prepared], base: Sequence[Path]) -> None:
    """What is written must not replace what is read, not even with `overwrite`."""
    read = list(base)
    for one in tasks:
        read.append(Path(one.task.data))
        if one.task.contract is not None:
            read.append(file_in(Path(one.task.contract)))
    for one in tasks:
        for out in filter(None, (one.out, one.contract_file)):
            if any(out.exists() and path.exists() and out.samefile(path) for path in read):
                raise InputError(
                    f"{out}: is a file that training reads, and would be replaced; name another "
                    "output"
                )


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Raises InputError where another training is at work, or one that did not end and is neither
    gone on with nor replaced.
    """
    if resume or overwrite or not folder.exists():
        return
    if (folder / _LOCK).is_file():
        with abandoned(folder / _LOCK) as free:
            if not free:
                raise _at_work(folder)
    raise InputError(
        f"{folder}: is there of a training that did not end; go on with --resume (resume=True), or "
        "begin anew with --force (overwrite=True)"
    )


def _at_work(folder: Path) -> InputError:
    return InputError(
        f"{folder}: another training is at work there; wait for its end, or name another output"
    )


@dataclass
class _Work:
    """A folder's: whether it is new, and whether nothing in it is of use any more."""

    new: bool
    over: bool = False


@contextmanager
def _work_folder(folder: Path, resume: bool) -> Iterator[_Work]:
    """Where the work is kept until it is done, and this process's alone."""
    new = not (resume and folder.is_dir())
    work, lock = _Work(new), folder / _LOCK
    try:
        with ExitStack() as stack:
            try:
                folder.mkdir(exist_ok=True)
                lock.touch()
                free = stack.enter_context(abandoned(lock))
                for each in folder.iterdir() if free and new else ():
                    if each.is_dir():
                        shutil.rmtree(each)
                    elif each != lock:
                        each.unlink()
            except OSError as error:
                raise InputError(
                    f"{folder}: cannot be made to keep the work in: {reason(error)}; name an "
                    "output where you may write"
                ) from error
            if not free:
                raise _at_work(folder)
            yield work
    finally:
        if work.over:  # with the lock let go, or the folder could not be removed everywhere
            shutil.rmtree(folder, ignore_errors=True)
