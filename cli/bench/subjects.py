"""What is measured: a base, its adapters, contexts that both can have, all of it opened.

Everything that can be wrong with the files is said before the base is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alora_gguf.cli.render import plural

from alora_gguf import (
    AdapterFile,
    BaseFile,
    BaseSummary,
    ContextOptions,
    Model,
    Sampling,
    inspect_gguf,
)
from alora_gguf.errors import InputError, ModelError
from alora_gguf.verification import random_text

ANSWER: Final = 8  # tokens of an answer
LONG_ANSWER: Final = 16  # of one whose speed is measured
WARM: Final = 64  # of a context that only warms up
N_FORKS: Final = 8
_LONGEST: Final = 1 << 20
_STEP: Final = 64
_QUESTION: Final = 8  # tokens that a plain LoRA is asked; an aLoRA is asked its invocation


@dataclass(frozen=True, slots=True)
class Choice:
    """Checked files, and the contexts to measure.

    base      facts for people and JSON; `trained` is the longest text it was trained for, or None
    adapters  all that were given, by names that differ
    aloras    those of them that can share a context
    asked     the one of the rows about one: the first aLoRA, or the first of all
    question  tokens that are read after the context, at most
    notes     what is measured otherwise than one might expect
    """

    base: dict[str, Any]
    adapters: dict[str, AdapterFile]
    aloras: tuple[str, ...]
    asked: str
    contexts: tuple[int, ...]
    question: int
    notes: tuple[str, ...]

    def facts(self) -> list[dict[str, Any]]:
        """The adapters for people and JSON."""
        return [
            {"name": name, "path": str(each.path), "kind": "alora" if each.invocation else "lora",
             "rank": each.rank, "n_invocation": len(each.invocation)}
            for name, each in self.adapters.items()
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subjects:
    """A choice, opened.

    method     how it computes, for people and JSON
    tokens     text of the base, as long as the longest context
    slots      aLoRAs by their names in the model, each in a slot of its own, and what each is
               asked: its invocation; {} if there are none
    plain      a plain LoRA's name in the model: of the same weights, or as it was given
    question   what that is asked, and the base
    sampling   that never chooses to end, so that all answers are equally long
    """

    choice: Choice
    model: Model
    method: dict[str, int]
    tokens: tuple[int, ...]
    slots: dict[str, tuple[int, ...]]
    plain: str
    question: tuple[int, ...]
    sampling: Sampling


def choose(
    base: Path, adapters: Sequence[Path], contexts: Sequence[int] | None, *, usual: Sequence[int]
) -> Choice:
    """Checks files and lengths of contexts. With None these are the `usual` ones, as far as the
    base goes.

    Raises ModelError, AdapterError, InputError.
    """
    found = BaseFile.read(base)
    facts = _base_facts(found)
    given: dict[str, AdapterFile] = {}
    for path in adapters:
        file = AdapterFile.read(path)
        file.check_base(found, found.n_vocab or 2**31)
        name, n = file.name, 1
        while name in given:
            n += 1
            name = f"{file.name} ({n})"
        given[name] = file.without_data()
    aloras = tuple(name for name, file in given.items() if file.invocation)
    question = max((len(given[name].invocation) for name in aloras), default=_QUESTION)
    lengths, notes = _lengths(facts, question, contexts, usual)
    notes = [*_adapter_notes(list(given), aloras), *notes]
    asked = (*aloras, *given)[0]
    return Choice(facts, given, aloras, asked, lengths, question, tuple(notes))


@contextmanager
def opened(
    choice: Choice,
    *,
    threads: int | None,
    gpu_layers: int,
    seed: int,
    verbose: bool,
    progress: Callable[[float], None],
) -> Iterator[Subjects]:
    """Loads the base, whose loaded fraction `progress` is called with, and the adapters, and draws
    the contexts' text. Raises what Model() does.
    """
    aloras, files = choice.aloras, choice.adapters
    n = max(N_FORKS, len(aloras)) if aloras else 0  # the most to ask at once
    longest, own = max(WARM, *choice.contexts), choice.question + LONG_ANSWER + 1
    options = ContextOptions(
        n_ctx=longest + max(n * own, WARM + own),
        n_seq_max=max(N_FORKS, n) + 2,
        n_threads=threads,
        max_adapters=n + 1,
        n_pooled=0,
    )
    with Model(
        choice.base["path"],
        options=options,
        n_gpu_layers=gpu_layers,
        verbose=verbose,
        progress=progress,
    ) as model:
        slots = {}
        for i in range(n):  # one by one: all files at once may be much to hold
            name = f"{aloras[i % len(aloras)]} [slot {i + 1}]"
            path = files[aloras[i % len(aloras)]].path
            slots[name] = model.load_adapter(name, path).invocation
        plain = f"{choice.asked} as a plain LoRA" if slots else choice.asked
        model.load_adapter(plain, files[choice.asked].path, from_start=bool(slots))
        theirs = {token for invocation in slots.values() for token in invocation}
        tokens = tuple(random_text(model, longest + _QUESTION, without=theirs, seed=seed))
        yield Subjects(
            choice=choice,
            model=model,
            method={"threads": model.n_threads, "gpu_layers": gpu_layers, "seed": seed},
            tokens=tokens[:longest],
            slots=slots,
            plain=plain,
            question=next(iter(slots.values()), tokens[longest:]),
            sampling=Sampling(
                temperature=0.0, logit_bias=dict.fromkeys(model.end_tokens, -math.inf) or None
            ),
        )


# Files ------------------------------------------------------------------------------------------


def _base_facts(base: BaseFile) -> dict[str, Any]:
    summary = inspect_gguf(base.path)
    trained = summary.context_length if isinstance(summary, BaseSummary) else None
    return {
        "path": str(base.path),
        "name": summary.name or base.path.stem,
        "architecture": base.architecture,
        "n_parameters": sum(math.prod(info.shape) for info in base.tensors.values()),
        "nbytes": sum(part.stat().st_size for part in base.parts),
        "trained": trained or None,
    }


def _adapter_notes(given: Sequence[str], aloras: Sequence[str]) -> Iterator[str]:
    n, plain = len(aloras), [name for name in given if name not in aloras]
    if not aloras:
        yield (
            f"there is no aLoRA side: {given[0]} is a plain LoRA, which changes every token, so "
            "nothing that the base has cached serves it"
        )
        if len(given) > 1:
            yield f"only {given[0]} was measured: plain LoRAs cannot share a context"
        return
    if plain:
        yield f"left out, since plain LoRAs cannot share a context: {', '.join(plain)}"
    if n < N_FORKS:
        were, them = ("was", "it") if n == 1 else ("were", "them")
        yield (
            f"{plural(n, 'aLoRA')} {were} given; up to {N_FORKS} are made of {them} by loading the "
            "same again, each into a slot of its own"
        )


# Contexts ---------------------------------------------------------------------------------------


def _lengths(
    base: dict[str, Any], question: int, wanted: Sequence[int] | None, usual: Sequence[int]
) -> tuple[tuple[int, ...], list[str]]:
    """The contexts' lengths in ascending order, and notes."""
    path, trained = base["path"], base["trained"]
    room = question + LONG_ANSWER + 1
    longest = _LONGEST if trained is None else trained - room
    if longest < 1:
        raise ModelError(
            f"{path}: was trained for texts of {trained} tokens, which leaves no room for a "
            f"question of {question} and an answer of {LONG_ANSWER}"
        )
    if wanted is not None:
        if max(wanted) > longest:
            raise InputError(
                f"--contexts {max(wanted)}: {path} was trained for texts of {trained} tokens, and "
                f"question and answer take {room}; at most {longest} are left"
            )
        return tuple(sorted(set(wanted))), []
    if max(usual) <= longest:
        return tuple(usual), []
    last = longest // _STEP * _STEP or longest
    note = f"contexts end at {last} tokens, since this base was trained for texts of {trained}"
    return tuple(sorted({last, *(n for n in usual if n <= longest)})), [note]
