"""Classifiers' heads: Granite Switch's, which become GGUFs of their own, and those that PEFT trains
with a LoRA.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alora_gguf.errors import (
    AdapterMismatchError,
    AloraError,
    ContractError,
    FileFormatError,
    InputError,
)
from alora_gguf.files import read_small
from alora_gguf.gguf.adapter import INVOCATION
from alora_gguf.gguf.head import BIAS, KIND, LABELS, WEIGHT, label_problem
from alora_gguf.gguf.parser import ValueType
from alora_gguf.gguf.writer import OutTensor, measure_gguf, write_gguf

from .base.model import BaseModel
from .find import open_base
from .hub.reference import is_reference
from .metadata import CONTRACT, OUTTYPES, Entry
from .peft.config import FILE_NAME
from .peft.invocation import given_invocation
from .peft.weights import SafetensorsFile
from .plan import SCORE
from .report import ConversionReport
from .source import HEAD, IO_YAML, MAX_TEXT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

# What Granite Switch puts in the place of the control token at which a head reads: what opens a
# turn, in the vocabularies of Granite 4.0 and 4.1, and of 4.2 and others with ChatML.
MARKERS: Final = ("<|start_of_role|>", "<|im_start|>")


def convert_classifier(
    source: str | Path,
    base: str | Path,
    target: Path | None,
    labels: tuple[str, ...],
    *,
    name: str | None,
    invocation: str | Sequence[int] | None,
    contract: str | Path | bool,
    overwrite: bool,
    dry_run: bool,
    check: Callable[[Path, Sequence[str | Path]], None],
    progress: Callable[[int, int], None] | None,
) -> ConversionReport:
    """convert_adapter()'s work where `labels` are given; `check` refuses a target that cannot be
    written, or is one of the inputs.
    """
    start = time.perf_counter()
    directory = Path(source)
    file, io_yaml = directory / HEAD, _contract_of(directory, contract)
    text, said = made_contract(io_yaml, labels, name or directory.name, is_asked=True)
    text = None if contract is False else text
    title = name or said
    out = target or Path(f"{title}.gguf")
    check(out, [file, base])
    model = open_base(base)
    head, sha256 = _read(file, labels, model)
    check_labels(labels, model)
    tokens, marker = _marker(invocation, model)
    metadata: list[Entry] = [
        ("general.architecture", ValueType.STRING, model.architecture),
        ("general.type", ValueType.STRING, "adapter"),
        ("general.name", ValueType.STRING, title),
        ("general.file_type", ValueType.UINT32, OUTTYPES["f32"][1]),
        ("adapter.type", ValueType.STRING, KIND),
        labels_entry(labels, model),
        (INVOCATION, ValueType.ARRAY, tokens),
    ]
    for key, value in (
        ("alora.invocation_text", marker),
        ("alora.vocab.sha256", model.vocabulary_sha256),
        ("alora.source.sha256", sha256),
        (CONTRACT, text),
    ):
        metadata += [(key, ValueType.STRING, value)] if value is not None else []
    tensors = head_tensors(*head)
    if dry_run:
        nbytes = measure_gguf(metadata, tensors, progress)
    else:
        nbytes = write_gguf(out, metadata, tensors, overwrite=overwrite, progress=progress)
    return ConversionReport(
        out=out,
        written=not dry_run,
        name=title,
        kind=KIND,
        architecture=model.architecture,
        invocation=tokens,
        invocation_text=marker,
        targets={},
        ranks=(),
        alpha=0.0,
        folded=0,
        outtype="f32",
        nbytes=nbytes,
        seconds=time.perf_counter() - start,
        source_sha256=sha256,
        warnings=tuple(how for _, how in model.departures),
        contract=io_yaml,
        labels=labels,
    )


def holds_head(source: str | Path) -> bool:
    """Whether it is a directory here with a classifier's head and no adapter."""
    if is_reference(source):
        return False
    directory = Path(source)
    return (directory / HEAD).is_file() and not (directory / FILE_NAME).exists()


def check_labels(labels: Sequence[str], model: BaseModel | None = None) -> None:
    """Raises InputError for labels that are none, and for those that begin with the same token of
    the base: by that they are told apart.
    """
    if problem := label_problem(labels):
        raise InputError(f"labels: {problem}")
    if model is None:
        return
    try:
        firsts = [tokens[0] for tokens in model.tokenizer.tokenize_all(labels)]
    except (AloraError, IndexError):
        return  # a vocabulary that is not read here; whoever asks it looks again
    seen: dict[int, str] = {}
    for label, first in zip(labels, firsts, strict=True):
        if first in seen:
            raise InputError(
                f"labels: '{seen[first]}' and '{label}' begin with the same token, by which they "
                f"are to be told apart, in {model.label}; call one of them otherwise"
            )
        seen[first] = label


def labels_entry(labels: tuple[str, ...], model: BaseModel) -> Entry:
    """The metadata that says what a head's rows stand for."""
    return LABELS.format(model.architecture), ValueType.ARRAY, labels


def labelled(
    metadata: Sequence[Entry], labels: tuple[str, ...], model: BaseModel, contract: str | None
) -> list[Entry]:
    """An adapter's metadata with what its head's rows stand for, and with another contract."""
    kept = [entry for entry in metadata if entry[0] != CONTRACT]
    said: list[Entry] = [] if contract is None else [(CONTRACT, ValueType.STRING, contract)]
    return [*kept, labels_entry(labels, model), *said]


def head_tensors(weight: Floats, bias: Floats) -> list[OutTensor]:
    """A head [n_labels, n_embd] and its bias [n_labels] as they are stored."""
    n_labels, n_embd = weight.shape
    f32 = OUTTYPES["f32"][0]
    return [
        OutTensor(WEIGHT, (n_embd, n_labels), f32, weight.tobytes),
        OutTensor(BIAS, (n_labels,), f32, bias.tobytes),
    ]


def peft_head(
    weights: SafetensorsFile, labels: tuple[str, ...], model: BaseModel
) -> list[OutTensor]:
    """The head that PEFT trained with a LoRA. Raises InputError and FileFormatError."""
    check_labels(labels, model)
    import numpy as np

    if SCORE not in weights.tensors:
        raise FileFormatError(
            f"{weights.path}: has no '{SCORE}', though {FILE_NAME} says that it classifies "
            "(task_type SEQ_CLS); save it with PEFT's save_pretrained()"
        )
    weight = _checked(weights, SCORE, (len(labels), _n_embd(model)), model)
    return head_tensors(weight, np.zeros(len(labels), np.float32))


def _contract_of(directory: Path, wanted: str | Path | bool) -> Path | None:
    from alora_gguf.intrinsics.contract import file_in  # imports PyYAML

    if wanted is False:
        return None
    if wanted is not True:
        return file_in(Path(wanted))
    found = (directory / name for name in IO_YAML)
    return next((path for path in found if path.is_file()), None)


def made_contract(
    io_yaml: Path | None, labels: tuple[str, ...], name: str, *, is_asked: bool = False
) -> tuple[str | None, str]:
    """The text of a classifier's contract, made where there is none or it is only a name, as with
    Granite Switch; and the name. Raises ContractError for one that asks for other answers, or, of a
    head that `is_asked` at the beginning of a turn, elsewhere.
    """
    from alora_gguf.intrinsics.contract import Contract

    if io_yaml is not None:
        text = read_small(io_yaml, MAX_TEXT)
        said = Contract.parse(text, str(io_yaml))
        name = said.name or name
        if not said.free_text:
            if said.choices != labels:
                raise ContractError(
                    f"{io_yaml}: choices are {list(said.choices)}, expected the labels, "
                    f"{list(labels)}; correct it, or convert without it (--no-contract)"
                )
            if is_asked and said.parameter("add_generation_prompt") is not False:
                raise ContractError(
                    f"{io_yaml}: has a generation prompt, before which its head reads; add "
                    "extra_body: {add_generation_prompt: false} to parameters"
                )
            return text.decode(), name
    import yaml

    made = {
        "name": name,
        "model": None,
        "choices": list(labels),
        "response_format": None,
        "transformations": None,
        # the head reads where a turn begins, whoever's it were
        "parameters": {"extra_body": {"add_generation_prompt": False}},
    }
    return yaml.safe_dump(made, sort_keys=False, allow_unicode=True), name


def _read(
    file: Path, labels: tuple[str, ...], model: BaseModel
) -> tuple[tuple[Floats, Floats], str]:
    with SafetensorsFile(file) as weights:
        if set(weights.tensors) != {"weight", "bias"}:
            raise FileFormatError(
                f"{file}: holds {', '.join(sorted(weights.tensors)) or 'nothing'}, expected weight "
                "and bias, as Granite Switch has a classifier's head"
            )
        weight = _checked(weights, "weight", (len(labels), _n_embd(model)), model)
        bias = _checked(weights, "bias", (len(labels),), model)
        return (weight, bias), weights.sha256()


def _n_embd(model: BaseModel) -> int:
    return (model.shape("token_embd.weight") or (0,))[0]


def _checked(
    weights: SafetensorsFile, name: str, expected: tuple[int, ...], model: BaseModel
) -> Floats:
    """A tensor's values. Raises InputError, AdapterMismatchError, FileFormatError."""
    import numpy as np

    shape = weights.tensors[name].shape
    if shape != expected:
        found = f"{weights.path}: {name} has the shape {list(shape)}, expected {list(expected)}"
        if shape[:1] != expected[:1]:
            raise InputError(
                f"{found}: {expected[0]} labels are given; give them all, in the order in which "
                "the head was trained"
            )
        raise AdapterMismatchError(
            f"{found}, for {model.label} computes states of {expected[-1]} values; use the base it "
            "was trained on"
        )
    values = np.ascontiguousarray(weights.read(name), np.float32)
    if not np.isfinite(values).all():
        raise FileFormatError(
            f"{weights.path}: {name} holds NaN or infinite values; its training has diverged, or "
            "the file is damaged"
        )
    return values


def _marker(
    given: str | Sequence[int] | None, model: BaseModel
) -> tuple[tuple[int, ...], str | None]:
    """The tokens after a conversation at whose last one the head reads, and their text."""
    if given is not None:
        found = given_invocation(given, model)
        return found.tokens, found.text
    with suppress(AloraError):
        for text, tokens in zip(MARKERS, model.tokenizer.tokenize_all(MARKERS), strict=True):
            if len(tokens) == 1:
                return tuple(tokens), text
    raise InputError(
        f"{model.label}: has none of the tokens at which Granite Switch's heads read "
        f"({json.dumps(MARKERS)[1:-1]}); say after which text this one was trained to "
        "(--invocation TEXT)"
    )
