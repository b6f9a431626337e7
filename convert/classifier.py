"""A classifier's head of Granite Switch's, as a GGUF that is asked like an activated LoRA."""

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
    MissingFileError,
)
from alora_gguf.files import read_small
from alora_gguf.gguf.adapter import INVOCATION
from alora_gguf.gguf.classifier import BIAS, KIND, LABELS, WEIGHT, label_problem
from alora_gguf.gguf.parser import ValueType
from alora_gguf.gguf.writer import OutTensor, measure_gguf, write_gguf

from .base.model import BaseModel
from .find import open_base
from .hub.reference import is_reference
from .metadata import OUTTYPES, Entry
from .peft.invocation import given_invocation
from .peft.weights import SafetensorsFile
from .report import ConversionReport
from .source import HEAD, IO_YAML, MAX_TEXT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What Granite Switch puts in the place of the control token at which a head reads: what opens a
# turn, in the vocabularies of Granite 4.0 and 4.1, and of 4.2 and others with ChatML.
MARKERS: Final = ("<|start_of_role|>", "<|im_start|>")


def convert_classifier(
    source: str | Path,
    base: str | Path,
    target: Path | None,
    labels: Sequence[str],
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
    labels = tuple(labels)
    if problem := label_problem(labels):
        raise InputError(f"labels: {problem}")
    directory = _directory(source)
    file, io_yaml = directory / HEAD, _contract_of(directory, contract)
    text, said = _contract(io_yaml, labels, name or directory.name, wanted=contract is not False)
    title = name or said
    out = target or Path(f"{title}.gguf")
    check(out, [file, base])
    model = open_base(base)
    n_embd = (model.shape("token_embd.weight") or (0,))[0]
    weight, bias, sha256 = _head(file, labels, n_embd, model)
    _check_apart(labels, model)
    tokens, marker = _marker(invocation, model)
    metadata: list[Entry] = [
        ("general.architecture", ValueType.STRING, model.architecture),
        ("general.type", ValueType.STRING, "adapter"),
        ("general.name", ValueType.STRING, title),
        ("general.file_type", ValueType.UINT32, OUTTYPES["f32"][1]),
        ("adapter.type", ValueType.STRING, KIND),
        (LABELS.format(model.architecture), ValueType.ARRAY, labels),
        (INVOCATION, ValueType.ARRAY, tokens),
    ]
    for key, value in (
        ("alora.invocation_text", marker),
        ("alora.vocab.sha256", model.vocabulary_sha256),
        ("alora.source.sha256", sha256),
        ("alora.io_yaml", text),
    ):
        metadata += [(key, ValueType.STRING, value)] if value is not None else []
    f32 = OUTTYPES["f32"][0]
    tensors = [
        OutTensor(WEIGHT, (n_embd, len(labels)), f32, weight.tobytes),
        OutTensor(BIAS, (len(labels),), f32, bias.tobytes),
    ]
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


def _directory(source: str | Path) -> Path:
    if is_reference(source):
        raise InputError(
            f"{source}: a classifier's head is converted from a directory here; download that with "
            f"{HEAD}, and its io.yaml"
        )
    directory = Path(source)
    if not (directory / HEAD).is_file():
        raise MissingFileError(
            f"{directory / HEAD}: there is no such file; labels are those of a classifier's head: "
            "give its directory, or leave them out for an adapter",
            directory / HEAD,
        )
    return directory


def _contract_of(directory: Path, wanted: str | Path | bool) -> Path | None:
    from alora_gguf.intrinsics.contract import file_in  # imports PyYAML

    if wanted is False:
        return None
    if wanted is not True:
        return file_in(Path(wanted))
    found = (directory / name for name in IO_YAML)
    return next((path for path in found if path.is_file()), None)


def _contract(
    io_yaml: Path | None, labels: tuple[str, ...], name: str, *, wanted: bool
) -> tuple[str | None, str]:
    """The contract's text, made where it is only a name as Granite Switch has it, and the name.
    Raises ContractError for one that asks for other answers.
    """
    from alora_gguf.intrinsics.contract import Contract

    if not wanted:
        return None, name
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


def _head(
    file: Path, labels: Sequence[str], n_embd: int, model: BaseModel
) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    import numpy as np

    with SafetensorsFile(file) as weights:
        if set(weights.tensors) != {"weight", "bias"}:
            raise FileFormatError(
                f"{file}: holds {', '.join(sorted(weights.tensors)) or 'nothing'}, expected weight "
                "and bias, as Granite Switch has a classifier's head"
            )
        shapes = {name: info.shape for name, info in weights.tensors.items()}
        for key, expected in (("weight", (len(labels), n_embd)), ("bias", (len(labels),))):
            if shapes[key] == expected:
                continue
            found = f"{file}: {key} has the shape {list(shapes[key])}, expected {list(expected)}"
            if shapes[key][:1] != expected[:1]:
                raise InputError(
                    f"{found}: {len(labels)} labels are given; give them all, in the order in "
                    "which the head was trained"
                )
            raise AdapterMismatchError(
                f"{found}, for {model.label} computes states of {n_embd} values; use the base it "
                "was trained on"
            )
        weight, bias = (
            np.ascontiguousarray(weights.read(name), np.float32) for name in ("weight", "bias")
        )
        sha256 = weights.sha256()
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise FileFormatError(
            f"{file}: holds NaN or infinite values; its training has diverged, or it is damaged"
        )
    return weight, bias, sha256


def _check_apart(labels: Sequence[str], model: BaseModel) -> None:
    """Raises InputError for labels that begin with the same token: by that they are told apart."""
    seen: dict[int, str] = {}
    for label in labels:
        try:
            first = model.tokenizer.tokenize(label)[0]
        except (AloraError, IndexError):
            return  # a vocabulary that is not read here; whoever loads the file looks again
        if first in seen:
            raise InputError(
                f"labels: '{seen[first]}' and '{label}' begin with the same token, by which they "
                f"are to be told apart, in {model.label}; call one of them otherwise"
            )
        seen[first] = label


def _marker(
    given: str | Sequence[int] | None, model: BaseModel
) -> tuple[tuple[int, ...], str | None]:
    """The tokens after a conversation at whose last one the head reads, and their text."""
    if given is not None:
        found = given_invocation(given, model)
        return found.tokens, found.text
    for text in MARKERS:
        with suppress(AloraError):
            tokens = tuple(model.tokenizer.tokenize(text))
            if len(tokens) == 1:
                return tokens, text
    raise InputError(
        f"{model.label}: has none of the tokens at which Granite Switch's heads read "
        f"({json.dumps(MARKERS)[1:-1]}); say after which text this one was trained to "
        "(--invocation TEXT)"
    )
