"""`alora-gguf inspect`: what an adapter's or a base's GGUF holds, for eyes or as JSON."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import click

import alora_gguf as ag

from .bases import NamedBase, named_file
from .options import store_names
from .render import aligned, plural, printable, shortened, size_text, wrapped

if TYPE_CHECKING:
    Summary = ag.AdapterSummary | ag.VectorSummary | ag.ClassifierSummary | ag.BaseSummary

CONTRACT = "alora.io_yaml"  # the key
_WIDTH = 80
_LABEL = 15  # of the rows above the tables, with the space behind it
_MAX_PROBLEMS = 10
_KINDS = {
    "alora": "aLoRA adapter",
    "lora": "LoRA adapter",
    "vector": "steering vector",
    "classifier": "classifier's head",
    "model": "base model",
    "vocabulary": "vocabulary without weights",
    "mmproj": "multimodal projector (mmproj)",
    "imatrix": "importance matrix (imatrix)",
}
_OPERATIONS = {
    "add": "add: h + s·v",
    "project": "project: h - s·V Vᵀ h, what points along it is taken out",
    "project_positive": "project_positive: h - s·V relu(Vᵀ h), on one side only",
    "add_keep_norm": "add_keep_norm: h + s·v, brought back to the length of h",
}
_HOOKS = {
    "block": "the stream behind the block",
    "attention": "what attention returns",
    "ffn": "what the FFN returns",
}
# shown as rows of their own
_ROWS = {
    "general.architecture", "general.type", "general.name", "general.size_label", "adapter.type",
    "adapter.lora.alpha", "adapter.alora.invocation_tokens", "alora.invocation_text",
    "controlvector.model_hint", "glp.mode", "glp.hook_point", "glp.alpha_default", "glp.rank",
    "glp.layer_ids_zero_based",
}  # fmt: skip


@click.command("inspect")
@click.argument("path", metavar="FILE.gguf", shell_complete=store_names("base"))
@click.option(
    "-m",
    "--model",
    "base",
    metavar="BASE",
    shell_complete=store_names("base"),
    help="A base that the adapter or steering vector should fit, as a name or path: if it does "
    "not, that is one of the problems. Reads the adapter's weights too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything, uncut, as JSON.")
def command(path: str, base: str | None, as_json: bool) -> None:
    """Say what a GGUF file is: an adapter, a steering vector, a base model, or something else.

    FILE.gguf may also be a name in the store.

    Only the header is read, so this is quick for any size; the weights' values are not looked at.

    A malformed adapter (half a pair, ranks that differ, a contract that cannot be read) or vector
    is shown as well, with what is wrong under "problems", and the exit status is 0. A file that is
    no GGUF, truncated or damaged is an error with status 1.

    The table cuts long texts with "…" and shows control characters as escapes; --json has
    everything whole, with "io.yaml" under metadata, alora.io_yaml.
    """
    summary = ag.inspect_gguf(named_file(path))
    problems = [*contract_problems(summary), *(_misfits(summary, base) if base else ())]
    summary = replace(summary, problems=(*summary.problems, *problems))
    if as_json:
        text = json.dumps(summary.to_dict(), indent=2, allow_nan=False)
        click.echo(text.replace("\x7f", "\\u007f"))  # all else is escaped already
    else:
        click.echo(table(summary))


def contract_problems(summary: Summary) -> Iterator[str]:
    """What is wrong with the contract in an adapter's file, if anything is."""
    try:
        _ = CONTRACT in summary.metadata and ag.load_contract(summary.path)
    except ag.FileFormatError as error:
        yield f"the adapter cannot be asked as an intrinsic: {error}"


def _misfits(summary: Summary, base: str) -> Iterator[str]:
    """Why an adapter or vector cannot be used on a base, if it cannot."""
    if isinstance(summary, ag.BaseSummary):
        raise ag.InputError(
            f"{summary.path}: is neither an adapter nor a steering vector, so there is nothing to "
            "fit to a base; leave --model out"
        )
    read = ag.BaseFile.read(NamedBase.of(base).path)
    try:
        ag.read_adapter(summary.path).check_base(read, read.n_vocab or 2**31)
    except ag.AdapterError as error:
        yield str(error)


def table(summary: Summary) -> str:
    """The summary as text of at most 80 columns, apart from the path."""
    kind = _KINDS.get(summary.kind, printable(f"file of the kind '{summary.kind}'"))
    lines = [
        f"  {label:<{_LABEL}}{_cut(text, _WIDTH - _LABEL - 2)}"
        for label, text in _rows(summary)
        if text is not None
    ]
    if isinstance(summary, ag.AdapterSummary):
        lines += _targets(summary)
    lines += _metadata(summary)
    lines += _problems(summary.problems)
    first = f"{printable(str(summary.path))}: {kind}, {size_text(summary.nbytes)}"
    return "\n".join([first, *(_cut(line, _WIDTH) for line in lines)])


def _cut(text: str, width: int) -> str:
    """`text` as it is printed, in at most `width` columns."""
    return shortened(printable(text[: width + 1]), width)  # enough, and a file may hold megabytes


def _rows(summary: Summary) -> Iterator[tuple[str, str | None]]:
    """What the file says of itself; None is left out."""
    yield "name", summary.name
    yield "architecture", summary.architecture
    if isinstance(summary, ag.AdapterSummary):
        yield from _adapter_rows(summary)
    elif isinstance(summary, ag.VectorSummary):
        yield from _vector_rows(summary)
    elif isinstance(summary, ag.ClassifierSummary):
        yield from _classifier_rows(summary)
    else:
        yield from _base_rows(summary)
    yield "file", f"GGUF version {summary.gguf_version}, {plural(summary.n_tensors, 'tensor')}"
    yield "weights", f"{summary.n_parameters:,} parameters, {size_text(summary.weights_nbytes)}"
    for total in summary.types:
        held = f"{size_text(total.nbytes):>9} in {plural(total.n_tensors, 'tensor')}"
        yield "", f"{total.type:<7} {held}"


def _adapter_rows(summary: ag.AdapterSummary) -> Iterator[tuple[str, str | None]]:
    alpha, text = summary.alpha, summary.invocation_text
    yield "invocation", None if text is None else f"'{text}'"
    if summary.invocation:
        yield "tokens", ", ".join(map(str, summary.invocation[:_WIDTH]))
    elif summary.kind == "lora":
        yield "invocation", "none; it is on for every token"
    yield "alpha", "none" if alpha is None else f"{alpha:g}"
    if summary.ranks:
        scales = sorted({(target.rank, target.scale) for target in summary.targets})
        scale = ", ".join(f"{scale:g} at rank {rank}" for rank, scale in scales)
        if not alpha:  # llama.cpp does not tell the two apart
            scale = "1, as there is no alpha" if alpha is None else "1, as alpha is 0"
        elif len(scales) == 1:
            scale = f"{scales[0][1]:g} (alpha/rank)"
        yield "rank", ", ".join(map(str, summary.ranks))
        yield "scale", scale


def _classifier_rows(summary: ag.ClassifierSummary) -> Iterator[tuple[str, str | None]]:
    yield "labels", ", ".join(summary.labels) or None
    yield "reads", f"states of {summary.n_embd} values" if summary.n_embd else None
    yield "invocation", None if summary.invocation_text is None else f"'{summary.invocation_text}'"
    yield "tokens", ", ".join(map(str, summary.invocation[:_WIDTH])) or None


def _vector_rows(summary: ag.VectorSummary) -> Iterator[tuple[str, str | None]]:
    yield "operation", _OPERATIONS.get(summary.operation or "", summary.operation)
    yield "acts on", _HOOKS.get(summary.hook or "")
    yield "layers", _ranges(summary.layers)
    many = f"{summary.rank} in each layer, " if summary.rank > 1 else ""
    yield "directions", f"{many}{summary.n_embd} wide" if summary.n_embd else None
    yield "scale", None if summary.scale is None else f"{summary.scale:g}"
    if summary.invocation:
        text = summary.invocation_text
        yield "invocation", None if text is None else f"'{text}'"
        yield "tokens", ", ".join(map(str, summary.invocation[:_WIDTH]))
    else:
        yield "begins", "at the reply"


def _base_rows(summary: ag.BaseSummary) -> Iterator[tuple[str, str | None]]:
    yield "size label", summary.size_label
    if (split := summary.split) is not None:
        held = plural(summary.n_tensors, "tensor")
        if split.n_tensors is not None:
            held = f"{summary.n_tensors} of {split.n_tensors} tensors"
        yield "split", f"part {split.part} of {split.n_parts}, with {held}"
        yield "", "part 1 has the metadata" if split.part > 1 else None
    for label, value, more in (
        ("layers", summary.layers, ""),
        ("embedding", summary.n_embd, ""),
        ("heads", summary.heads, ""),
        ("kv heads", summary.kv_heads, ""),
        ("context", summary.context_length, ""),
        ("experts", summary.experts, f", {summary.experts_used} used for each token"),
    ):
        if value:
            text = _by_layer(value) if isinstance(value, tuple) else str(value)
            yield label, text + (more if summary.experts_used else "")
    if (vocabulary := summary.vocabulary) is not None:
        facts = (
            ("", vocabulary.size, " tokens"),
            ("tokenizer ", vocabulary.model, ""),
            ("pre-tokenizer ", vocabulary.pre, ""),
        )
        parts = [f"{before}{value}{after}" for before, value, after in facts if value is not None]
        yield "vocabulary", ", ".join(parts) or "of unknown size"
        yield "chat template", "yes" if vocabulary.has_chat_template else "none"
    if summary.tied_output is not None:
        yield "output", "tied to token_embd" if summary.tied_output else "has its own weight"


def _by_layer(values: Sequence[int]) -> str:
    """Such as "0, but 8 in layers 5, 15"; of many different values only their range."""
    usual, *others = (value for value, _ in Counter(values).most_common())
    if len(others) > 2:
        return f"{min(values)} to {max(values)}, differing by layer"
    where = (
        f"{value} in layers {_ranges([i for i, v in enumerate(values) if v == value])}"
        for value in others
    )
    return f"{usual}, but {'; '.join(where)}" if others else f"{usual} in every layer"


def _ranges(layers: Sequence[int]) -> str:
    """Ascending numbers in short: "0-3, 7, 9-11"; "-" for none."""
    runs = []
    for _, group in groupby(enumerate(layers), key=lambda item: item[1] - item[0]):
        run = [layer for _, layer in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(runs) or "-"


def _targets(summary: ag.AdapterSummary) -> list[str]:
    """The table of targets; layers that do not fit behind their row follow below it."""
    targets = summary.targets
    if not targets:
        return []
    cells = [["target", "rank", "type", "n_in -> n_out", "size"]]
    for t in targets:
        shape = f"{t.n_in} -> {t.n_out}"
        cells.append([_cut(t.name, 20), str(t.rank), t.type, shape, size_text(t.nbytes)])
    align = "<><<>"
    if any(target.n_experts for target in targets):
        align = "<><<>>"
        for row, n in zip(cells, ["experts", *(t.n_experts for t in targets)], strict=True):
            row.insert(4, str(n or "-"))
    beside = ["layers", *(_ranges(target.layers) for target in targets)]
    indent = " " * (max(len(row[0]) for row in cells) + 4)
    lines = [""]
    for start, layers in zip(aligned(cells, align, indent=2), beside, strict=True):
        if len(start) + 2 + len(layers) <= _WIDTH:
            lines.append(f"{start}  {layers}")
        else:
            lines += [f"{start}  below", *wrapped(f"layers {layers}", _WIDTH, indent)]
    return lines


def _metadata(summary: Summary) -> list[str]:
    """The keys that have no row; of a model only those that say where it comes from."""
    lines = []
    for key, value in summary.metadata.items():
        about = key.startswith(("general.", "alora."))
        if key in _ROWS or key.startswith("tokenizer.") or (summary.kind == "model" and not about):
            continue
        start, text = f"    {_cut(key, 40)}:", _value(value)
        if key == CONTRACT and isinstance(value, str):
            start, text = "    io.yaml:", _contract(value)
        if len(start) + len(text) >= _WIDTH and len(text) <= _WIDTH - 6:
            lines += [start, f"      {text}"]  # a hash, for instance, stays whole
        else:
            lines.append(f"{start} {text}")
    return ["", "  metadata", *lines] if lines else []


def _contract(text: str) -> str:
    """How large a contract is, and where it says too little; what is wrong with it is a problem."""
    size = f"{len(text.encode())} bytes"
    with contextlib.suppress(ag.ContractError):
        if ag.Contract.parse(text).free_text:
            return f"{size}, a name alone: answers are free text"
    return size


def _value(value: object) -> str:
    if isinstance(value, ag.ArraySummary):
        return f"{value.count} values of type {value.array_of}"
    if isinstance(value, tuple):
        return ", ".join(map(_value, value[:_WIDTH]))
    if isinstance(value, float):
        return f"{value:g}"
    return _cut(str(value), _WIDTH)


def _problems(problems: Sequence[str]) -> list[str]:
    lines = ["", "  problems"] if problems else []
    for problem in problems[:_MAX_PROBLEMS]:
        lines += wrapped(_cut(problem, 400), _WIDTH, "    ", hang="      ", long_words=True)
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"    and {len(problems) - _MAX_PROBLEMS} more; --json has them all")
    return lines
