"""Whether an adapter works on a base, here: loads both, reads a text with and without the adapter,
and says what changed, where, and what must not have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import numpy as np

from alora_gguf._calls import checked
from alora_gguf.errors import InputError, ModelError, NotFiniteError
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile, vocabulary_sha256
from alora_gguf.gguf.classifier import ClassifierFile
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.inspection import AdapterSummary, inspect_gguf, type_totals
from alora_gguf.gguf.parser import TensorInfo
from alora_gguf.gguf.vector import VectorFile, read_adapter
from alora_gguf.intrinsics.contract import contract_problem
from alora_gguf.model import Model
from alora_gguf.options import ContextOptions, check_int
from alora_gguf.threads import default_threads

from .probe import Reading, changes, divergence, open_probe, random_text, relative_error
from .records import (
    AdapterFacts,
    BaseFacts,
    CellsCheck,
    LayerChange,
    LogitsChange,
    Text,
    Verification,
    Vocabularies,
    failures,
    warnings,
)

_N_TEXT: Final = 256
_N_BEFORE: Final = 16  # of those looked at besides
_N_AFTER: Final = 32
_SUBSTANTIAL: Final = 0.05  # of a base's parameters
_NAME: Final = "adapter"
_VOCABULARY_KEY: Final = "alora.vocab.sha256"

PathLike = str | os.PathLike[str]


@checked
def verify(
    base: PathLike,
    adapter: PathLike,
    *,
    n_threads: int | None = None,
    seed: int = 0,
    peft: PathLike | None = None,
    hf_base: PathLike | None = None,
    n_gpu_layers: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Verification:
    """Measures the adapter or steering vector in the GGUF file `adapter` on the base in the GGUF
    file `base`, with random tokens drawn with `seed`. The last of them are a vector's reply.

    `peft` is the PEFT directory that the adapter was converted from: then logits are compared with
    PEFT's on the transformers directory `hf_base`, by default the one that the adapter's own
    configuration names. That needs the extra `train`.

    `n_gpu_layers` layers go to the GPU, all if it is negative; `progress` is called with the loaded
    fraction of the base's weights.

    What can be measured is in the result, good or bad. Raises what Model() raises for files that
    cannot be used together, and InputError.
    """
    check_int(seed, "seed", 0)
    if hf_base is not None and peft is None:
        raise InputError("hf_base is only used with peft, the adapter's PEFT directory; give both")
    base_file, file = BaseFile.read(base), read_adapter(adapter)
    if isinstance(file, ClassifierFile):
        raise InputError(
            f"{file.path}: is a classifier's head, which changes nothing that could be measured; "
            "`alora-gguf inspect -m BASE` says whether it fits a base"
        )
    reference = None
    if peft is not None and isinstance(file, VectorFile):
        raise InputError(
            f"{file.path}: is a steering vector, which PEFT does not know; leave peft out"
        )
    if peft is not None:
        from .peft_reference import PeftReference

        reference = PeftReference.find(peft, hf_base)
    n_cells = _N_TEXT + len(file.invocation) + _N_AFTER
    options = ContextOptions(
        n_ctx=2 * n_cells,
        n_seq_max=2,
        n_threads=n_threads or default_threads(),
        max_adapters=1,
        n_pooled=0,
    )
    with Model(
        base,
        adapters={_NAME: adapter},
        options=options,
        n_gpu_layers=n_gpu_layers,
        progress=progress,
    ) as model:
        said = [file.io_yaml and contract_problem(model.contract, _NAME)]
        text = _draw(model, file, seed)
        cells = _check_cells(model, text)
        n_tokens = len(text.tokens)
        with open_probe(model, {_NAME: adapter}, n_tokens=n_tokens, n_rows=text.n_rows) as probe:
            plain = probe.read(text.tokens, text.n_rows)
            first = text.first if file.begins == "reply" else None
            adapted = probe.read(text.tokens, text.n_rows, _NAME, first=first)
        logits = _logits_change(plain, adapted, text, model)
    facts = _base_facts(base_file), _adapter_facts(file)
    wrong = plain.not_finite, adapted.not_finite
    found = Verification(
        base=facts[0],
        adapter=facts[1],
        n_threads=model.n_threads,
        n_gpu_layers=n_gpu_layers,
        vocabularies=_compare(*(each.vocabulary_sha256 for each in facts)),
        text=text,
        cells=cells,
        finite=wrong == (None, None),
        effective=_differ(plain, adapted),
        logits=logits,
        layers=tuple(_layer_changes(plain, adapted, text.n_adapted)),
        peft=reference.compare(*facts, text, plain.logits, adapted.logits) if reference else None,
        failures=(),
        warnings=(),
    )
    return replace(
        found,
        failures=(*failures(found, *wrong), *filter(None, said)),
        warnings=(*(how for _, how in base_file.departures), *warnings(found)),
    )


# What is read ---------------------------------------------------------------------------------


def _draw(model: Model, file: AdapterFile | VectorFile, seed: int) -> Text:
    """Random tokens around the invocation, none of them in it."""
    invocation = file.invocation
    trained = model.n_ctx_train
    room = (trained or _N_TEXT + len(invocation) + _N_AFTER) - len(invocation)
    n_after = max(1, min(_N_AFTER, room // 2))
    n_text = min(_N_TEXT, room - n_after)
    if n_text < 1:
        raise ModelError(
            f"{model.path}: was trained for texts of {trained} tokens, which leaves no room for "
            f"the adapter's invocation of {len(invocation)}; use the base it was trained on"
        )
    drawn = random_text(model, n_text + n_after, without=invocation, seed=seed)
    tokens = (*drawn[:n_text], *invocation, *drawn[n_text:])
    n_adapted = len(invocation) + n_after
    if file.begins == "start":
        return Text(seed, tokens, 0, n_adapted, n_adapted)
    n_rows = min(_N_BEFORE, n_text) + n_adapted
    return Text(seed, tokens, n_text, n_rows, n_adapted)


def _check_cells(model: Model, text: Text) -> CellsCheck:
    """By sessions, as everyone uses them."""
    n_text = text.first or len(text.tokens) - text.n_adapted
    with model.session() as conversation:
        conversation.sync(text.tokens[:n_text])
        before = conversation.state()
        reused = n_text
        with conversation.fork() as fork, suppress(NotFiniteError):  # which is said elsewhere
            reused = fork.append(text.tokens[n_text:], adapter=_NAME).reused
        untouched = conversation.state() == before
    equal = None
    if text.first:
        base = _cells(model, text.tokens, text.first, None)
        adapted = _cells(model, text.tokens, text.first, _NAME)
        equal = None if None in (base, adapted) else base == adapted
    return CellsCheck(n_text, reused, untouched, equal)


def _cells(model: Model, tokens: tuple[int, ...], n: int, adapter: str | None) -> bytes | None:
    """The first `n` cells of a text that was read in one batch; None if they cannot be cut out, or
    nothing is kept of it.
    """
    with model.session() as session:
        try:
            session.sync(tokens, adapter=adapter)
        except NotFiniteError:
            return None
        session.rewind(n)
        return session.state() if model.rewinds and session.cached == n else None


# Who is who -----------------------------------------------------------------------------------


def _base_facts(base: BaseFile) -> BaseFacts:
    header = read_header(base.path)
    name = header.metadata.get("general.name")
    return BaseFacts(
        path=base.path,
        name=name if isinstance(name, str) else None,
        architecture=base.architecture,
        nbytes=sum(part.size for part in base.files),
        vocabulary_sha256=vocabulary_sha256(header),
        **_weights(base.tensors.values()),
    )


def _adapter_facts(file: AdapterFile | VectorFile) -> AdapterFacts:
    if isinstance(file, VectorFile):
        return _vector_facts(file)
    summary = inspect_gguf(file.path)
    sha256 = summary.metadata.get(_VOCABULARY_KEY)
    return AdapterFacts(
        path=file.path,
        name=file.name,
        kind=file.kind,
        nbytes=summary.nbytes,
        rank=file.rank,
        alpha=file.alpha,
        targets=summary.targets if isinstance(summary, AdapterSummary) else (),
        invocation=file.invocation,
        invocation_text=file.invocation_text,
        vocabulary_sha256=sha256 if isinstance(sha256, str) else None,
        identity=file.identity,
        **_weights(info for pair in file.pairs for info in (pair.a, pair.b)),
    )


def _vector_facts(file: VectorFile) -> AdapterFacts:
    header = read_header(file.path)
    sha256 = header.metadata.get(_VOCABULARY_KEY)
    return AdapterFacts(
        path=file.path,
        name=file.name,
        kind="vector",
        nbytes=header.size,
        rank=file.rank,
        alpha=file.scale,
        targets=(),
        invocation=file.invocation,
        invocation_text=file.invocation_text,
        vocabulary_sha256=sha256 if isinstance(sha256, str) else None,
        identity=file.identity,
        operation=file.parts[0].operation,
        acts_on=file.targets,
        **_weights(header.tensors.values()),
    )


def _weights(tensors: Iterable[TensorInfo]) -> dict[str, Any]:
    """How many they are; of the types that a substantial part of them has, the one of the fewest
    bits per weight.
    """
    types = type_totals(tensors)
    n = sum(total.n_parameters for total in types)
    substantial = (total for total in types if total.n_parameters >= _SUBSTANTIAL * n)
    coarsest = min(substantial, key=lambda total: total.nbytes / total.n_parameters)
    bits = 8 * coarsest.nbytes / coarsest.n_parameters
    return {"n_parameters": n, "type": coarsest.type, "bits_per_weight": bits}


def _compare(base: str | None, adapter: str | None) -> Vocabularies:
    if base is None or adapter is None:
        return "unknown"
    return "equal" if base == adapter else "different"


# What changed -----------------------------------------------------------------------------------


def _logits_change(base: Reading, adapted: Reading, text: Text, model: Model) -> LogitsChange:
    n_before = text.n_rows - text.n_adapted
    ours, theirs = adapted.logits[n_before:], base.logits[n_before:]
    tops = int(theirs[-1].argmax()), int(ours[-1].argmax())
    known = model._runtime.vocab.has_text
    texts = [model.detokenize([top], special=True) if known else None for top in tops]
    return LogitsChange(
        n_before=n_before,
        before_equal=adapted.same_rows(base, n_before) if n_before else None,
        largest=relative_error(ours, theirs),
        kl=divergence(theirs[-1], ours[-1]),
        n_top_changed=int(np.sum(ours.argmax(axis=-1) != theirs.argmax(axis=-1))),
        top_base=tops[0],
        top_adapter=tops[1],
        text_base=texts[0],
        text_adapter=texts[1],
    )


def _layer_changes(base: Reading, adapted: Reading, n_adapted: int) -> Iterator[LayerChange]:
    """Of the last rows."""
    for layer in base.layers:
        rows = base.layers[layer][-n_adapted:], adapted.layers[layer][-n_adapted:]
        ratio, cosine = changes(*rows)
        yield LayerChange(layer, float(ratio.mean()), float(ratio.max()), float(cosine.mean()))


def _differ(plain: Reading, adapted: Reading) -> bool:
    """Whether any value does; adding a 0 may make a -0 a 0, which does not count."""
    return any(not np.array_equal(x, adapted.named[name]) for name, x in plain.named.items())
