"""The trained files in our runtime: which there are, how each side is asked, what it answers."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf import ContextOptions, Invocation, Model, Sampling
from alora_gguf.errors import InputError

from . import verdicts
from .chat import INTRINSICS, render, role_marker, turn

if TYPE_CHECKING:
    from .tasks import Question

EXAMPLE: Final = Path(__file__).parent
ROOT: Final = EXAMPLE.parents[1]
SHIPPED: Final = "Q8_0"
BASES: Final = ("F16", SHIPPED, "Q4_0")
SIDES: Final = ("alora", "lora", "base")
N_CTX: Final = 4608  # a conversation of the base's 2048 tokens, and once more for a LoRA's re-read
_MAX_TOKENS: Final = {"query_rewrite": 128}
_MAX_TOKENS_OTHERWISE: Final = 64
_REPLY_TOKENS: Final = 96
_GREEDY: Final = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Files:
    """What is evaluated: the base of each type, and by intrinsic the aLoRA and its LoRA twin.

    `others` are further files that results depend on.
    """

    bases: dict[str, Path]
    alora: dict[str, Path]
    lora: dict[str, Path]
    others: tuple[Path, ...] = ()

    @classmethod
    def shipped(cls, bases: Sequence[str] = (SHIPPED,), tasks: Sequence[str] = INTRINSICS) -> Files:
        """The shipped files for some intrinsics; bases of other types are written into build/.
        Raises InputError if a file is missing.
        """
        package = ROOT / "alora_gguf" / "demo"
        alora = {name: package / f"{name}.gguf" for name in tasks}
        lora = {name: EXAMPLE / "lora" / f"{name}.gguf" for name in tasks}
        base, trained = package / "base.gguf", EXAMPLE / "base" / "model.safetensors"
        others = (EXAMPLE / "certainty_eval.jsonl",) if "uncertainty" in tasks else ()
        needed = [base, *alora.values(), *lora.values(), *others]
        needed += [trained] if set(bases) - {SHIPPED} else []
        missing = [path.relative_to(ROOT).as_posix() for path in needed if not path.is_file()]
        if missing:
            raise InputError(
                f"{', '.join(missing)}: missing; `make demo-model` trains and writes the demo model"
            )
        found = {name: base if name == SHIPPED else _write_base(name) for name in bases}
        return cls(found, alora, lora, others)

    def adapters(self, tasks: Iterable[str] = INTRINSICS) -> dict[str, Path]:
        """All adapters by the names that the evaluation invokes them by."""
        twins = {lora_name(task): self.lora[task] for task in tasks}
        return {**{task: self.alora[task] for task in tasks}, **twins}

    def hashes(self) -> dict[str, dict[str, object]]:
        """Size and SHA-256 of every file by its path."""
        paths = {
            *self.bases.values(),
            *self.alora.values(),
            *self.lora.values(),
            *self.others,
        }
        names = {
            (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix(): path
            for path in paths
        }
        return {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in ((name, names[name].read_bytes()) for name in sorted(names))
        }


def _write_base(name: str) -> Path:
    from .base_gguf import write_base_gguf

    target = ROOT / "build" / "demo-model" / f"base-{name}.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_base_gguf(EXAMPLE / "base", target, name.lower())  # type: ignore[arg-type]
    return target


def lora_name(task: str) -> str:
    """What the LoRA twin is loaded as."""
    return f"{task}-lora"


# Asking ------------------------------------------------------------------------------------------


def invocations(task: str) -> dict[str, Invocation]:
    """How each side is asked, behind the conversation. The two adapters get the same text."""
    n = _MAX_TOKENS.get(task, _MAX_TOKENS_OTHERWISE)
    marker = role_marker(task)
    said = verdicts.ASKED[task]
    asked = (turn("user", said) if said else "") + role_marker("assistant")
    return {
        "alora": Invocation(task, marker, max_tokens=n, sampling=_GREEDY),
        "lora": Invocation(lora_name(task), marker, max_tokens=n, sampling=_GREEDY),
        "base": Invocation(None, asked, max_tokens=n, sampling=_GREEDY),
    }


class Models:
    """The same files opened `workers` times, one thread each: a model this small gains more from
    two conversations at a time than from two threads on one. Also a context manager.
    """

    def __init__(self, base: Path, adapters: dict[str, Path], workers: int) -> None:
        with ExitStack() as stack:
            self._free: queue.Queue[Model] = queue.Queue()
            for _ in range(workers):
                self._free.put(stack.enter_context(open_model(base, adapters, 1)))
            self._pool = ThreadPoolExecutor(workers)
            stack.callback(self._pool.shutdown, cancel_futures=True)  # an error need not wait long
            self._stack = stack.pop_all()

    def map(self, work: Callable[[Model, Any], Any], items: Sequence[Any]) -> list[Any]:
        """`work(model, item)` of every item, in order; the first error is raised."""

        def one(item: Any) -> Any:
            model = self._free.get()
            try:
                return work(model, item)
            finally:
                self._free.put(model)

        return list(self._pool.map(one, items))

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def open_model(base: Path, adapters: dict[str, Path], n_threads: int) -> Model:
    """A model with room for a conversation, its forks, and a LoRA's re-reading of it."""
    options = ContextOptions(
        n_ctx=N_CTX, n_seq_max=4, n_threads=n_threads, max_adapters=len(adapters) or 1
    )
    return Model(base, adapters=adapters, options=options)


def ask(model: Model, task: str, prompt: str) -> dict[str, str]:
    """The text of each side's answer about a conversation."""
    asked = invocations(task)
    with model.session() as chat:
        chat.append(prompt)
        # the two that use the base's cells, in one batch; then the LoRA, which re-reads all of it
        alora, base = chat.invoke_many([asked["alora"], asked["base"]])
        lora = chat.invoke(asked["lora"])
    return {"alora": alora.text, "lora": lora.text, "base": base.text}


def read(side: str, task: str, text: str) -> str | None:
    """What a side's text says: the adapters were trained to give exactly JSON, the base was not."""
    reader = verdicts.read_base if side == "base" else verdicts.read
    return reader(task, text)


def reply(model: Model, question: Question, seed: int) -> tuple[str, str]:
    """The base's own answer: the likeliest, and one drawn at temperature 1 from all tokens."""
    plain = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
    with model.session() as chat:
        chat.append(render(question.documents, question.messages))
        marker = role_marker("assistant")
        greedy, sampled = chat.invoke_many(
            [
                Invocation(None, marker, max_tokens=_REPLY_TOKENS, sampling=sampling)
                for sampling in (_GREEDY, plain)
            ]
        )
    return greedy.text, sampled.text
