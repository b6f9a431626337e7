"""`alora-gguf export-index`: a library that others find adapters in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import Pick, convert_adapter, export_index

from alora_gguf import cli
from alora_gguf.errors import AdapterMismatchError, InputError
from alora_gguf.gguf.header import read_header
from tests.support.make_gguf import rewritten
from tests.support.peft_files import Case, sound_case

CONTRACT = "model: ~\nresponse_format: ~\ntransformations: ~\n"
NAME_ALONE = "name: second\n"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    case = sound_case(tmp_path)
    case.write()
    (case.source / "io.yaml").write_text(CONTRACT)
    return case


def adapters(case: Case, folder: Path) -> list[Path]:
    """An aLoRA and a LoRA of one name, one whose contract is a name alone, one without any."""
    found = []

    def convert(file: str, contract: str | None = CONTRACT, **more: Any) -> None:
        (case.source / "io.yaml").unlink(missing_ok=True)
        if contract is not None:
            (case.source / "io.yaml").write_text(contract)
        found.append(folder / file)
        convert_adapter(case.source, case.base, found[-1], **more)

    convert("1.gguf", name="first")
    convert("2.gguf", NAME_ALONE, name="second")
    convert("3.gguf", None, name="third")
    case.config["alora_invocation_tokens"] = None
    case.write()
    convert("4.gguf", name="first")
    return found


def test_a_library_and_its_index(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, out = adapters(case, tmp_path), tmp_path / "library"
    arguments = ["export-index", *map(str, files), str(out), "--base", str(case.base)]
    assert cli.run([*arguments, "--model", "tiny-1b"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"{out}: 4 adapters for tiny-1b, 28.5 kB",
        "  first/tiny-1b/alora: 14 modules of rank 4",
        "  second/tiny-1b/alora: 14 modules of rank 4",
        "  third/tiny-1b/alora: 14 modules of rank 4",
        "  first/tiny-1b/lora: 14 modules of rank 4",
        "vLLM: vllm serve tiny-1b --enable-lora --max-lora-rank 8 --lora-modules "
        f"first={out}/first/tiny-1b/lora",
    ]
    assert said.err.splitlines() == [
        "warning: second: is not in adapter_index.json: its contract is a name alone, which mellea "
        "refuses",
        "warning: third: has no contract (io.yaml), by which Granite Switch finds an adapter and "
        "mellea reads its answers; convert it again with --contract",
    ]
    assert json.loads((out / "adapter_index.json").read_text()) == {
        "model": "tiny-1b",
        "adapters": [
            {
                "adapter_name": "first",
                "io_config": "io_configs/first/io.yaml",
                "technology": technology,
            }
            for technology in ("alora", "lora")
        ],
    }
    assert (out / "io_configs/first/io.yaml").read_text() == CONTRACT


def test_convert_finds_each_of_them_again(case: Case, tmp_path: Path) -> None:
    files, out = adapters(case, tmp_path), tmp_path / "library"
    report = export_index(files, case.base, out, model="tiny-1b")
    assert [each.out.relative_to(out).parts[2] for each in report.adapters] == [
        "alora", "alora", "alora", "lora",
    ]  # fmt: skip
    picks = [Pick("first"), Pick("second"), Pick("third"), Pick("first", technology="lora")]
    for pick, file in zip(picks, files, strict=True):
        target = tmp_path / "again.gguf"
        again = convert_adapter(out, case.base, target, pick=pick, overwrite=True)
        first, second = read_header(file), read_header(again.out)
        assert first.metadata.get("alora.io_yaml") == second.metadata.get("alora.io_yaml")
        invocation = "adapter.alora.invocation_tokens"
        assert first.metadata.get(invocation) == second.metadata.get(invocation)
        for name in first.tensors:
            assert bytes(first.tensor_data(name)) == bytes(second.tensor_data(name)), name


def test_a_base_is_called_as_it_calls_itself(case: Case, tmp_path: Path) -> None:
    case.convert()
    base = rewritten(case.base, tmp_path / "named.gguf", {"general.name": "Org/Tiny 1B Instruct"})
    report = export_index([case.out], base, tmp_path / "library")
    assert report.model == "Tiny-1B-Instruct"


def test_json(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.convert()
    out = tmp_path / "library"
    arguments = ["export-index", str(case.out), str(out), "--base", str(case.base), "--json"]
    assert cli.run([*arguments, "--model", "it"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["out"], said["model"], said["warnings"]) == (str(out), "it", [])
    (adapter,) = said["adapters"]
    assert adapter["kind"] == "alora"
    assert Path(adapter["out"]).is_dir()


@pytest.mark.parametrize("model", ["", ".", "..", "a/b", "a\\b", "a b", "-x", "a."])
def test_a_name_that_is_no_directory_s(model: str, case: Case, tmp_path: Path) -> None:
    case.convert()
    with pytest.raises(InputError, match=r"the base: is called .*give another name with --model"):
        export_index([case.out], case.base, tmp_path / "library", model=model)
    other = rewritten(case.out, tmp_path / "other.gguf", {"general.name": model or "?"})
    with pytest.raises(InputError, match=r"other.gguf: is called .*convert writes --name"):
        export_index([other], case.base, tmp_path / "library", model="it")
    assert not (tmp_path / "library").exists()


def test_names_that_two_have(case: Case, tmp_path: Path) -> None:
    first, *_, lora = adapters(case, tmp_path)
    with pytest.raises(InputError, match=r"are both called 'first'; leave one out"):
        export_index([first, first], case.base, tmp_path / "library", model="it")
    other = rewritten(lora, tmp_path / "other.gguf", {"alora.io_yaml": CONTRACT + "name: x\n"})
    with pytest.raises(InputError, match="'first', but have not the same contract"):
        export_index([first, other], case.base, tmp_path / "library", model="it")
    assert not (tmp_path / "library").exists()


def test_nothing_is_left_of_one_that_fails(case: Case, tmp_path: Path) -> None:
    first, second, *_ = adapters(case, tmp_path)
    foreign = rewritten(second, tmp_path / "other.gguf", {"general.architecture": "qwen2"})
    with pytest.raises(AdapterMismatchError, match="was made for the architecture 'qwen2'"):
        export_index([first, foreign], case.base, tmp_path / "library", model="it")
    with pytest.raises(InputError, match="there are no adapters to export"):
        export_index([], case.base, tmp_path / "library", model="it")
    assert not [path for path in tmp_path.iterdir() if "library" in path.name]
