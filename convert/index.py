"""export_index(): several adapters as a library, as IBM's lie on the hub, and an index of them.

Granite Switch's composer and our own convert and pull find adapters by their paths in a library,
`<name>/<model>/<technology>/`; mellea finds what they answer by `adapter_index.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alora_gguf._calls import checked
from alora_gguf.errors import ContractError, ConvertError, InputError
from alora_gguf.files import check_directory, write_whole_directory

from .base.match import model_name
from .export import Exported, ExportReport
from .find import open_base

if TYPE_CHECKING:
    from alora_gguf.intrinsics.index import Entry


@dataclass(frozen=True)
class ExportIndexReport:
    """The outcome of export_index().

    out       the directory
    model     the base's name in it
    adapters  what was written, each in a directory of its own below `out`
    warnings  which of them mellea or Granite Switch will not find, one sentence each
    """

    out: Path
    model: str
    adapters: tuple[ExportReport, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        adapters = [each.to_dict() for each in self.adapters]
        return {**vars(self), "out": str(self.out), "adapters": adapters}


@checked
def export_index(
    adapters: Sequence[str | Path], base: str | Path, out: str | Path, *, model: str | None = None
) -> ExportIndexReport:
    """Writes adapter GGUFs as a library of PEFT directories, `<name>/<model>/<alora or lora>/`, and
    adapter_index.json with io_configs/, by which mellea finds their contracts.

    adapters  the GGUFs, each with a name of its own, but for a LoRA and an aLoRA of the same
    base      the model that they are for, as for convert_adapter()
    out       the directory, which must not exist or be empty; it appears whole or not at all
    model     what the base is called in paths, such as "granite-4.1-3b"; None for its own name

    Raises what export_adapter() does, and InputError for names that two of them have, or that are
    no directory's.
    """
    from alora_gguf.intrinsics.index import write_index  # imports PyYAML

    target = check_directory(Path(out))
    if not adapters:
        raise InputError("there are no adapters to export; name at least one")
    opened = open_base(base)
    name = _directory_name(
        re.sub(r"\s+", "-", model_name(opened.names[0])) if model is None else model,
        "the base", "give another name with --model (model=)",
    )  # fmt: skip
    found = [Exported(each, opened) for each in adapters]
    _check_names(found)
    with write_whole_directory(target, error=ConvertError) as folder:
        reports = []
        for each in found:
            path = Path(each.file.name, name, each.kind)
            (folder / path).mkdir(parents=True)
            reports.append(each.report(target / path, each.write(folder / path)))
        entries: list[Entry] = []
        warnings = list(_entries(found, entries))
        write_index(folder, name, entries)
    return ExportIndexReport(target, name, tuple(reports), tuple(warnings))


def _check_names(found: Sequence[Exported]) -> None:
    """That paths are different, and contracts of one name alike."""
    taken: dict[tuple[str, str], Exported] = {}
    for each in found:
        name, file = each.file.name, each.file
        _directory_name(name, str(file.path), "rename it: convert writes --name")
        for kind in ("alora", "lora"):
            other = taken.get((name, kind))
            if other is not None and kind == each.kind:
                raise InputError(
                    f"{file.path} and {other.file.path} are both called '{name}'; leave one out, "
                    "or convert one again with another --name"
                )
            if other is not None and other.file.io_yaml != file.io_yaml:
                raise InputError(
                    f"{file.path} and {other.file.path} are both called '{name}', but have not the "
                    "same contract (io.yaml); convert one again with another --name"
                )
        taken[name, each.kind] = each


def _directory_name(name: str, whose: str, way_out: str) -> str:
    """The name, if it can be one part of a path everywhere."""
    if re.fullmatch(r"[^\W_][\w.+-]*", name) and not name.endswith("."):
        return name
    raise InputError(
        f"{whose}: is called {name!r:.80}, expected letters, digits, '.', '-', '_' and '+', as a "
        f"directory will have that name; {way_out}"
    )


def _entries(found: Sequence[Exported], entries: list[Entry]) -> Iterator[str]:
    """Fills the index's `entries`; what cannot be in it is told."""
    from alora_gguf.intrinsics.contract import Contract
    from alora_gguf.intrinsics.index import Entry, check_readable

    for each in found:
        name, text = each.file.name, each.file.io_yaml
        if text is None:
            yield (
                f"{name}: has no contract (io.yaml), by which Granite Switch finds an adapter and "
                "mellea reads its answers; convert it again with --contract"
            )
            continue
        try:
            check_readable(Contract.parse(text, source=str(each.file.path)))
        except ContractError as error:
            yield f"{name}: is not in adapter_index.json: {error}"
            continue
        entries.append(Entry(name, each.kind, text))
