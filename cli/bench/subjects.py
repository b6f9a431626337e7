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

from alora_gguf.cli.render import plural, printable

import alora_gguf as ag
from alora_gguf.threads import default_threads
from alora_gguf.verification import random_text

Facts = dict[str, Any]

ANSWER: Final = 8  # tokens of an answer
LONG_ANSWER: Final = 16  # of one whose speed is measured
WARM: Final = 64  # of a context that only warms up
N_FORKS: Final = 8
_LONGEST: Final = 1 << 20
_STEP: Final = 64
_NAME: Final = 200  # characters of an adapter's own name, to which others are added
_QUESTION: Final = 8  # tokens that a plain LoRA is asked; an aLoRA is asked its invocation


@dataclass(frozen=True, slots=True)
class Choice:
    """Checked files, and the contexts to measure.

    base      facts, as JSON has them; `trained` is the longest text it was trained for, or None
    adapters  likewise of all that were given, by names that differ
    aloras    those of them that can share a context
    asked     the one of the rows about one: the first aLoRA, or the first of all
    question  tokens that are read after the context, at most
    notes     what is measured otherwise than one might expect
    """

    base: Facts
    adapters: list[Facts]
    aloras: list[Facts]
    asked: Facts
    contexts: list[int]
    question: int
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Subjects:
    """A choice, opened.

    method     how it computes, as JSON has it
    tokens     text of the base, as long as the longest context
    slots      aLoRAs by their names in the model, each in a slot of its own, and what each is
               asked: its invocation; {} if there are none
    plain      a plain LoRA's name in the model: of the same weights, or as it was given
    question   what that is asked, and the base
    sampling   that never chooses to end, so that all answers are equally long
    """

    choice: Choice
    model: ag.Model
    method: dict[str, int]
    tokens: tuple[int, ...]
    slots: dict[str, tuple[int, ...]]
    plain: str
    question: tuple[int, ...]
    sampling: ag.Sampling


def choose(
    base: Path, adapters: Sequence[Path], contexts: Sequence[int] | None, *, usual: Sequence[int]
) -> Choice:
    """Checks files and lengths of contexts. With None these are the `usual` ones, as far as the
    base goes.

    Raises ModelError, AdapterError, InputError.
    """
    found = ag.BaseFile.read(base)
    facts = _base_facts(found)
    given: list[Facts] = []
    for path in adapters:
        file = ag.AdapterFile.read(path)
        file.check_base(found, found.n_vocab or 2**31)
        own = printable(file.name)[:_NAME]
        name, n = own, 1
        while name in [each["name"] for each in given]:
            n += 1
            name = f"{own} ({n})"
        kind, n_invocation = file.kind, len(file.invocation)
        each = {"name": name, "path": str(file.path), "kind": kind, "rank": file.rank}
        given.append({**each, "n_invocation": n_invocation})
    aloras = [each for each in given if each["kind"] == "alora"]
    question = max((each["n_invocation"] for each in aloras), default=_QUESTION)
    lengths, notes = _lengths(facts, question, contexts, usual)
    notes = [*_adapter_notes(given, len(aloras)), *notes]
    return Choice(facts, given, aloras, (aloras or given)[0], lengths, question, notes)


@contextmanager
def opened(
    choice: Choice,
    *,
    n_threads: int | None,
    n_gpu_layers: int,
    seed: int,
    verbose: bool,
    progress: Callable[[float], None],
) -> Iterator[Subjects]:
    """Loads the base, whose loaded fraction `progress` is called with, and the adapters, and draws
    the contexts' text. Raises what Model() does.
    """
    aloras, asked = choice.aloras, choice.asked
    n = max(N_FORKS, len(aloras)) if aloras else 0  # the most to ask at once
    longest, own = max(WARM, *choice.contexts), choice.question + LONG_ANSWER + 1
    options = ag.ContextOptions(
        n_ctx=longest + max(n * own, WARM + own),
        n_seq_max=max(N_FORKS, n) + 2,
        n_threads=n_threads or default_threads(),  # the same for all that is compared
        max_adapters=n + 1,
        n_pooled=0,
    )
    with ag.Model(
        choice.base["path"],
        options=options,
        n_gpu_layers=n_gpu_layers,
        verbose=verbose,
        progress=progress,
    ) as model:
        slots = {}
        for i in range(n):  # one by one: all files at once may be much to hold
            each = aloras[i % len(aloras)]
            name = f"{each['name']} [slot {i + 1}]"
            slots[name] = model.load_adapter(name, each["path"]).invocation
        plain = f"{asked['name']} as a plain LoRA" if slots else asked["name"]
        model.load_adapter(plain, asked["path"], from_start=bool(slots))
        theirs = {token for invocation in slots.values() for token in invocation}
        tokens = tuple(random_text(model, longest + _QUESTION, without=theirs, seed=seed))
        yield Subjects(
            choice=choice,
            model=model,
            method={"threads": model.n_threads, "gpu_layers": n_gpu_layers, "seed": seed},
            tokens=tokens[:longest],
            slots=slots,
            plain=plain,
            question=next(iter(slots.values()), tokens[longest:]),
            sampling=ag.Sampling(
                temperature=0.0, logit_bias=dict.fromkeys(model.end_tokens, -math.inf) or None
            ),
        )


# Files ------------------------------------------------------------------------------------------


def _base_facts(base: ag.BaseFile) -> Facts:
    summary = ag.inspect_gguf(base.path)
    trained = summary.context_length if isinstance(summary, ag.BaseSummary) else None
    return {
        "path": str(base.path),
        "name": summary.name or base.path.stem,
        "architecture": base.architecture,
        "n_parameters": sum(math.prod(info.shape) for info in base.tensors.values()),
        "nbytes": sum(part.stat().st_size for part in base.parts),
        "trained": trained or None,
    }


def _adapter_notes(given: list[Facts], n: int) -> Iterator[str]:
    """Of adapters of which `n` are aLoRAs."""
    first, plain = given[0]["name"], [each["name"] for each in given if each["kind"] == "lora"]
    if not n:
        yield (
            f"there is no aLoRA side: {first} is a plain LoRA, which changes every token, so "
            "nothing that the base has cached serves it"
        )
        if len(given) > 1:
            yield f"only {first} was measured: plain LoRAs cannot share a context"
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
    base: Facts, question: int, wanted: Sequence[int] | None, usual: Sequence[int]
) -> tuple[list[int], list[str]]:
    """The contexts' lengths in ascending order, and notes."""
    path, trained = base["path"], base["trained"]
    room = question + LONG_ANSWER + 1
    longest = _LONGEST if trained is None else trained - room
    if longest < 1:
        raise ag.ModelError(
            f"{path}: was trained for texts of {trained} tokens, which leaves no room for a "
            f"question of {question} and an answer of {LONG_ANSWER}"
        )
    if wanted is not None:
        if max(wanted) > longest:
            raise ag.InputError(
                f"--contexts {max(wanted)}: {path} was trained for texts of {trained} tokens, and "
                f"question and answer take {room}; at most {longest} are left"
            )
        return sorted(set(wanted)), []
    if max(usual) <= longest:
        return list(usual), []
    last = longest // _STEP * _STEP or longest
    note = f"contexts end at {last} tokens, since this base was trained for texts of {trained}"
    return sorted({last, *(n for n in usual if n <= longest)}), [note]
