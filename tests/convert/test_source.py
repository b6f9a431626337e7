"""Where an adapter's files are found, and what is said where they are not what they should be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from alora_gguf.convert import Pick
from alora_gguf.convert.find import find_source
from alora_gguf.convert.peft.config import read_config
from alora_gguf.convert.source import licence_of

from alora_gguf.errors import (
    AloraError,
    FileFormatError,
    InputError,
    MissingFileError,
    UnsupportedAdapterError,
)
from tests.support.libraries import LFS, MODELS, README, write_adapter, write_library
from tests.support.peft_files import sound_case

PICKLE = (
    r"adapter_model\.bin, a pickle, which can run any code when it is loaded.*"
    r"safe_serialization=True\) writes adapter_model\.safetensors"
)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return write_library(tmp_path / "lib")


def test_an_adapter_on_its_own(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "My Adapter, v2", readme=README)
    found = find_source(directory)
    assert found.directory == directory
    assert found.config == directory / "adapter_config.json"
    assert found.weights == directory / "adapter_model.safetensors"
    assert found.io_yaml == directory / "io.yaml"
    assert found.licence == "apache-2.0"
    assert found.name == "My Adapter, v2"
    assert found.stem == "My-Adapter-v2"
    assert (found.repo, found.revision, found.path) == (None, None, None)
    assert find_source(str(directory)) == found


def test_without_the_files_that_may_be_missing(tmp_path: Path) -> None:
    found = find_source(write_adapter(tmp_path / "a", io_yaml=None))
    assert found.io_yaml is None
    assert found.licence is None


def test_a_name_from_the_directory_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_adapter(tmp_path / "sure"))
    assert find_source(".").name == "sure"
    (tmp_path / "latest").symlink_to(tmp_path / "sure")
    assert find_source(tmp_path / "latest").name == "sure"


@pytest.mark.parametrize(
    ("directory", "stem"),
    [
        ("..hidden..", "hidden"),
        ("-rf", "rf"),
        ("ä/ö", "adapter"),
        ("a" * 200, "a" * 100),
        ("a;b|c d", "a-b-c-d"),
    ],
)
def test_file_names_are_safe(tmp_path: Path, directory: str, stem: str) -> None:
    assert find_source(write_adapter(tmp_path / directory)).stem == stem


def test_a_directory_whose_name_is_no_unicode(tmp_path: Path) -> None:
    found = find_source(write_adapter(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))))
    assert found.name == "caf?"
    assert found.stem == "caf"


def test_an_adapters_own_licence_comes_first(library: Path) -> None:
    directory = library / "answerability" / MODELS[0] / "lora"
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    found = find_source(library, Pick("answerability", MODELS[0], "lora"))
    assert found.licence == "mit"
    (directory / "README.md").write_text("no front matter")
    found = find_source(library, Pick("answerability", MODELS[0], "lora"))
    assert found.licence == "apache-2.0"


def test_contracts_in_a_directory_of_their_own(library: Path) -> None:
    directory = library / "answerability" / MODELS[0] / "alora"
    (directory / "io.yaml").rename(directory / "other.yaml")
    apart = library / "io_configs" / "answerability"
    apart.mkdir(parents=True)
    (apart / "io.yaml").write_text("model: ~\n")
    (library / "adapter_index.json").write_text("{}")
    options = {"intrinsic": "answerability", "model": MODELS[0]}
    assert find_source(library, Pick(technology="alora", **options)).io_yaml == apart / "io.yaml"
    beside = directory.parent / "lora" / "io.yaml"
    assert find_source(library, Pick(technology="lora", **options)).io_yaml == beside


NAMED = "name: {}\nmodel: ~\nresponse_format: ~\ntransformations: ~\n"


@pytest.mark.parametrize(
    ("path", "said", "name", "stem"),
    [
        ("peft/alora/jailbreak", "jailbreak", "jailbreak", "jailbreak"),
        ("w/alora/run3", "smalltalk", "smalltalk", "smalltalk"),
        ("w/alora/run3", None, "run3", "run3"),
        ("w/alora/run3", "a b/c", "run3", "run3"),  # no name of a file
        ("w/run3/alora", "smalltalk", "smalltalk", "smalltalk"),
        ("run3", "smalltalk", "smalltalk", "smalltalk"),
        ("alora/jailbreak", "jailbreak", "jailbreak", "jailbreak"),
        ("answerability/alora/granite-4.0-micro", "answerability", "answerability",
         "answerability-granite-4.0-micro-alora"),
        ("answerability/granite-4.0-micro/alora", None, "answerability",
         "answerability-granite-4.0-micro-alora"),
        ("answerability/alora/granite-4.0-micro", None, "answerability",
         "answerability-granite-4.0-micro-alora"),
        ("requirement-check/alora/gpt-oss-20b", "requirement_check", "requirement-check",
         "requirement-check-gpt-oss-20b-alora"),
        ("guardian-core/m/alora", "guardian-core", "guardian-core", "guardian-core-m-alora"),
        ("sure/alora/GRANITE_3.3-2b-instruct", "other", "sure",
         "sure-GRANITE_3.3-2b-instruct-alora"),
    ],
)  # fmt: skip
def test_a_name_is_the_contracts_unless_a_librarys_path_has_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    said: str | None,
    name: str,
    stem: str,
) -> None:
    directory = write_adapter(tmp_path / path, io_yaml=NAMED.format(said or "~"))
    assert (find_source(directory).name, find_source(directory).stem) == (name, stem)
    assert find_source(tmp_path).stem == stem
    monkeypatch.chdir(directory)
    assert find_source(".").stem == stem


def test_someones_own_directories_are_no_library(tmp_path: Path) -> None:
    found = find_source(write_adapter(tmp_path / "runs" / "exp1" / "lora", io_yaml=None))
    assert (found.name, found.stem) == ("lora", "lora")


def test_the_only_adapter_below_a_directory(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "repo" / "checkpoint-100")
    assert find_source(tmp_path / "repo").directory == directory
    write_adapter(tmp_path / "repo" / ".cache" / "old")  # hidden directories are not looked into
    assert find_source(tmp_path / "repo").directory == directory


def test_an_adapter_hides_the_checkpoints_below_it(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "run")
    write_adapter(directory / "checkpoint-100")
    assert find_source(directory).directory == directory


def test_what_is_no_directory(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a")
    with pytest.raises(InputError, match="is a file, expected the adapter's directory it lies in"):
        find_source(directory / "io.yaml")
    with pytest.raises(InputError, match=r"directory it lies in \(here .*/a\); give that$"):
        find_source(directory / "adapter_config.json")
    with pytest.raises(
        MissingFileError, match=r"none: there is no such directory; give an ada.*hf://owner/repo"
    ):
        find_source(tmp_path / "none")
    with pytest.raises(InputError, match="is a web address, expected hf://owner/repo"):
        find_source("https://huggingface.co/ibm-granite/granitelib-rag-r1.0")
    with pytest.raises(AloraError, match="a\0b: "):
        find_source("a\0b")
    with pytest.raises(FileFormatError, match="cannot be read: File name too long"):
        find_source("a" * 300)


def test_directories_without_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds no PEFT adapter: there is no adapter_config.json in it or below"
    ):
        find_source(tmp_path)
    (tmp_path / "classifier_head.safetensors").touch()
    with pytest.raises(InputError, match=r"holds a classifier's head .* and no adapter;.*--labels"):
        find_source(tmp_path)
    (tmp_path / "classifier_head.safetensors").unlink()
    (tmp_path / "base.gguf").touch()
    with pytest.raises(InputError, match=r"holds GGUF files \(base.gguf\), which need no conv"):
        find_source(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(InputError, match=r"holds a whole model \(config.json\), not an adapter; "):
        find_source(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(InputError, match=r"model \(model-00001-of-00002.safetensors\).*merged"):
        find_source(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(
        MissingFileError, match=r"/adapter_config\.json: there is no such file; an adapter's"
    ):
        find_source(tmp_path)


def test_a_head_beside_it_is_left_out_and_said(tmp_path: Path) -> None:
    case = sound_case(tmp_path)
    case.write()
    assert case.convert().warnings == ()
    (case.source / "classifier_head.safetensors").touch()
    assert case.convert(overwrite=True).warnings == (
        "classifier_head.safetensors beside it is left out: it is a classifier of its own, "
        "converted with --labels",
    )


def test_weights_that_will_not_do(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a")
    weights = directory / "adapter_model.safetensors"
    weights.rename(directory / "adapter_model.bin")
    with pytest.raises(UnsupportedAdapterError, match=PICKLE):
        find_source(directory)
    weights.touch()
    assert find_source(directory).weights == weights
    weights.unlink()
    (directory / "adapter_model.bin").unlink()
    with pytest.raises(
        MissingFileError, match=r"/adapter_model\.safetensors: there is no such file; download the"
    ):
        find_source(directory)
    for name in (
        "adapter_model.safetensors.index.json",
        "adapter_model-00001-of-00002.safetensors",
    ):
        (directory / name).touch()
        with pytest.raises(
            UnsupportedAdapterError, match=rf"its weights are in several files \(.*{name}"
        ):
            find_source(directory)
    weights.mkdir()
    with pytest.raises(FileFormatError, match=r"safetensors: is a directory, a pipe or a device"):
        find_source(directory)


def test_something_else_under_a_files_name(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a")
    contract = directory / "io.yaml"
    contract.write_bytes(LFS)
    with pytest.raises(FileFormatError, match=r"io\.yaml: is a Git LFS pointer.*git lfs pull"):
        find_source(directory)
    contract.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(FileFormatError, match=r"io\.yaml: is an HTML page saved under this name"):
        find_source(directory)
    contract.write_bytes(b"#" * (1 << 20))
    assert find_source(directory).io_yaml == contract
    contract.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(FileFormatError, match="has more than 1048576 bytes, too many for"):
        find_source(directory)
    contract.unlink()
    os.mkfifo(contract)
    with pytest.raises(FileFormatError, match=r"io\.yaml: is a directory, a pipe or a device"):
        find_source(directory)


def test_something_else_under_the_configurations_name(tmp_path: Path) -> None:

    config = tmp_path / "adapter_config.json"
    for content, message in (
        (LFS, "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"),
        (b"\n<html>", "is an HTML page saved under this name"),
        (b"PK\x03\x04", "is a zip archive"),
        (b" " * ((16 << 20) + 1), "has more than 16777216 bytes"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds list, expected a JSON object"),
        (b"\xff", "is not JSON"),
    ):
        config.write_bytes(content)
        with pytest.raises(FileFormatError, match=message):
            read_config(config)
    config.unlink()
    with pytest.raises(MissingFileError, match=r"adapter_config.json: there is no such file"):
        read_config(config)
    config.mkdir()
    with pytest.raises(FileFormatError, match="is a directory, expected a file; check the path"):
        read_config(config)


# Licences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        (README, "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("---\ntags:\n- lora\nlicense:\n- mit\n- cc-by-4.0\nx: 1\n---\n", "mit, cc-by-4.0"),
        ("---\nlicense: 'other' # see below\n---\n", "other"),
        ("---\nbroken: [\nlicense: mit\n---\n", "mit"),
        ("# Title\n---\nlicense: mit\n---\n", None),
        ("---\ntags: []\n---\nlicense: mit\n", None),
        ("---\nlicense: mit\n", None),
        ("---\nnested:\n  license: mit\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: {a: b}\n---\n", None),
        ("---\nlicense: 5\n---\n", None),
        ("---\nlicense:\n---\n", None),
        ("---\nlicense: ''\n---\n", None),
        ("---\nlicense: []\n---\n", None),
        ("---\nlicense: [mit, 5]\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", None),
        ("---\nlicense: " + "[" * 5000 + "\n---\n", None),
        ("---\nlicense: |\n" + "  " + "x" * 190 + "\n  " + "y" * 190 + "\n---\n", None),
        ('---\nlicense: "a\\u001b[31m"\n---\n', None),
        ("---\n" + "license:\n " * 3 + "\n---\n", None),
        ("", None),
    ],
)
def test_licences_of_readmes(readme: str, licence: str | None) -> None:
    assert licence_of(readme) == licence


def test_readmes_that_are_no_text(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a")
    readme = directory / "README.md"
    readme.write_bytes(b"\xef\xbb\xbf---\nlicense: mit\nx: \xff\n---\n")
    assert find_source(directory).licence == "mit"
    readme.write_bytes(os.urandom(2 << 20))
    assert find_source(directory).licence is None


def test_a_library_converts(tmp_path: Path) -> None:
    from alora_gguf.convert import convert_adapter

    case = sound_case(tmp_path)
    case.write()
    library = tmp_path / "lib"
    for technology in ("alora", "lora"):
        shutil.copytree(case.source, library / "sure" / "model" / technology)
    report = convert_adapter(library, case.base, case.out, pick=Pick(technology="alora"))
    assert report.name == "sure"
