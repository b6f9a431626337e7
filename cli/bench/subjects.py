"""What is measured: a base, its adapters, contexts that both can have, all of it opened.

Everything that can be wrong with the files is said before the base is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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

from .results import AdapterFacts, BaseFacts

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

    asked     the adapter of the rows about one: the first aLoRA, or the first of all
    aloras    all that can share a context
    question  tokens that are read after the context, at most
    notes     what is measured otherwise than one might expect
    """

    base: BaseFacts
    adapters: tuple[AdapterFacts, ...]
    asked: AdapterFacts
    aloras: tuple[AdapterFacts, ...]
    contexts: tuple[int, ...]
    question: int
    notes: tuple[str, ...]

    @property
    def n_together(self) -> int:
        """The most aLoRAs to ask at once."""
        return max(N_FORKS, len(self.aloras)) if self.aloras else 0


@dataclass(frozen=True, slots=True)
class Subjects:
    """A choice, opened.

    tokens     text of the base, as long as the longest context
    slots      aLoRAs by their names in the model, each in a slot of its own; () if there are none
    questions  what each of them is asked: its invocation
    asked      the first of these; None if there are none
    plain      a plain LoRA's name in the model: of the same weights, or as it was given
    question   what that is asked, and the base
    sampling   that never chooses to end, so that all answers are equally long
    """

    choice: Choice
    model: Model
    threads: int
    gpu_layers: int
    seed: int
    tokens: tuple[int, ...]
    slots: tuple[str, ...]
    questions: dict[str, tuple[int, ...]]
    plain: str
    question: tuple[int, ...]
    sampling: Sampling

    @property
    def asked(self) -> str | None:
        """The aLoRA of the rows about one."""
        return self.slots[0] if self.slots else None


def choose(
    base: Path,
    adapters: Sequence[Path],
    contexts: Sequence[int] | None,
    *,
    usual: Sequence[int],
) -> Choice:
    """Checks files and lengths of contexts. With None these are the `usual` ones, as far as the
    base goes.

    Raises ModelError, AdapterError, InputError.
    """
    found = BaseFile.read(base)
    facts = _base_facts(found)
    given: list[AdapterFacts] = []
    for path in adapters:
        file = AdapterFile.read(path)
        file.check_base(found, found.n_vocab or 2**31)
        given.append(_adapter_facts(file, [each.name for each in given]))
    aloras = tuple(each for each in given if each.kind == "alora")
    question = max((each.n_invocation for each in aloras), default=_QUESTION)
    lengths, notes = _lengths(facts, question, contexts, usual)
    return Choice(
        base=facts,
        adapters=tuple(given),
        asked=aloras[0] if aloras else given[0],
        aloras=aloras,
        contexts=lengths,
        question=question,
        notes=(*_adapter_notes(given, aloras), *notes),
    )


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
    aloras, n = choice.aloras, choice.n_together
    in_slots = [aloras[i % len(aloras)] for i in range(n)]
    slots = {f"{each.name} [slot {i}]": each for i, each in enumerate(in_slots, 1)}
    own = choice.question + LONG_ANSWER + 1
    options = ContextOptions(
        n_ctx=max(WARM, *choice.contexts) + max(n * own, WARM + own),
        n_seq_max=max(N_FORKS, n) + 2,
        n_threads=threads,
        max_adapters=n + 1,
        n_pooled=0,
    )
    with Model(
        choice.base.path,
        options=options,
        n_gpu_layers=gpu_layers,
        verbose=verbose,
        progress=progress,
    ) as model:
        for name, each in slots.items():  # one by one: all files at once may be much to hold
            model.load_adapter(name, each.path)
        if slots:
            plain = f"{choice.asked.name} as a plain LoRA"
            model.load_adapter(plain, choice.asked.path, from_start=True)
        else:
            plain = choice.asked.name
            model.load_adapter(plain, choice.asked.path)
        questions = {name: model.adapter(name).invocation for name in slots}
        n_text = max(WARM, *choice.contexts) + _QUESTION
        theirs = {token for invocation in questions.values() for token in invocation}
        tokens = tuple(random_text(model, n_text, without=theirs, seed=seed))
        yield Subjects(
            choice=choice,
            model=model,
            threads=model.n_threads,
            gpu_layers=gpu_layers,
            seed=seed,
            tokens=tokens[:-_QUESTION],
            slots=tuple(slots),
            questions=questions,
            plain=plain,
            question=next(iter(questions.values()), tokens[-_QUESTION:]),
            sampling=_endless(model),
        )


# Files ----------------------------------------------------------------------------------------


def _base_facts(base: BaseFile) -> BaseFacts:
    summary = inspect_gguf(base.path)
    trained = summary.context_length if isinstance(summary, BaseSummary) else None
    return BaseFacts(
        path=base.path,
        name=summary.name or base.path.stem,
        architecture=base.architecture,
        n_parameters=sum(math.prod(info.shape) for info in base.tensors.values()),
        nbytes=sum(part.stat().st_size for part in base.parts),
        trained=trained or None,
    )


def _adapter_facts(file: AdapterFile, taken: Sequence[str]) -> AdapterFacts:
    name, n = file.name, 1
    while name in taken:
        n += 1
        name = f"{file.name} ({n})"
    return AdapterFacts(
        name=name,
        path=file.path,
        kind="alora" if file.invocation else "lora",
        rank=file.rank,
        n_invocation=len(file.invocation),
    )


def _adapter_notes(given: Sequence[AdapterFacts], aloras: Sequence[AdapterFacts]) -> Iterator[str]:
    plain = [each.name for each in given if each.kind == "lora"]
    if not aloras:
        yield (
            f"there is no aLoRA side: {given[0].name} is a plain LoRA, which changes every token, "
            "so nothing that the base has cached serves it"
        )
        if len(given) > 1:
            yield f"only {given[0].name} was measured: plain LoRAs cannot share a context"
        return
    if plain:
        yield f"left out, since plain LoRAs cannot share a context: {', '.join(plain)}"
    if len(aloras) < N_FORKS:
        n = len(aloras)
        yield (
            f"{n} aLoRA{' was' if n == 1 else 's were'} given; up to {N_FORKS} are made of "
            f"{'it' if n == 1 else 'them'} by loading the same again, each into a slot of its own"
        )


# Contexts -------------------------------------------------------------------------------------


def _lengths(
    base: BaseFacts, question: int, wanted: Sequence[int] | None, usual: Sequence[int]
) -> tuple[tuple[int, ...], list[str]]:
    """The contexts' lengths in ascending order, and notes."""
    room = question + LONG_ANSWER + 1
    longest = _LONGEST if base.trained is None else base.trained - room
    if longest < 1:
        raise ModelError(
            f"{base.path}: was trained for texts of {base.trained} tokens, which leaves no room "
            f"for a question of {question} and an answer of {LONG_ANSWER}"
        )
    if wanted is not None:
        if max(wanted) > longest:
            raise InputError(
                f"--contexts {max(wanted)}: {base.path} was trained for texts of {base.trained} "
                f"tokens, and question and answer take {room}; at most {longest} are left"
            )
        return tuple(sorted(set(wanted))), []
    lengths = [n for n in usual if n <= longest]
    if len(lengths) == len(usual):
        return tuple(lengths), []
    last = longest // _STEP * _STEP or longest
    if last not in lengths:
        lengths.append(last)
    return tuple(lengths), [
        f"contexts end at {last} tokens, since this base was trained for texts of {base.trained}"
    ]


def _endless(model: Model) -> Sampling:
    ends = dict.fromkeys(model.end_tokens, -math.inf)
    return Sampling(temperature=0.0, logit_bias=ends or None)
