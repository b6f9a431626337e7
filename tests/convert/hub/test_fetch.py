"""Adapters and bases on a hub: the real client against a server of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import Pick

from alora_gguf.errors import (
    AloraError,
    FileFormatError,
    HubError,
    InputError,
    MissingFileError,
    UnsupportedAdapterError,
)
from alora_gguf.gguf.header import GGUFHeader
from tests.support.hub_repos import (
    CONFIG,
    LIBRARY,
    Hub,
    adapter_files,
    fetch_adapter,
    fetch_base,
    library_files,
    write_gguf,
)
from tests.support.hub_server import TOKEN, Handler, HubServer, Padded
from tests.support.libraries import LFS, MODELS, README

ANY = Pick()


# Adapters ----------------------------------------------------------------------------------------


def test_one_adapter_of_a_library_and_no_other(server: HubServer, hub: Hub) -> None:
    commit = server.add(LIBRARY, library_files())
    wanted = Pick("answerability", f"ibm-granite/{MODELS[0]}", "alora")
    found = fetch_adapter(f"hf://{LIBRARY}", wanted, hub=hub)
    path = f"answerability/{MODELS[0]}/alora"
    assert found.repo == LIBRARY
    assert found.revision == commit
    assert found.path == path
    assert found.name == "answerability"
    assert found.stem == f"answerability-{MODELS[0]}-alora"
    assert found.licence == "apache-2.0"
    assert json.loads(found.config.read_text()) == CONFIG
    assert found.weights.read_bytes() == f"weights of {path}".encode()
    assert found.io_yaml is not None
    assert found.io_yaml.read_text() == "model: ~\n"
    assert server.files_asked == [
        f"{path}/adapter_config.json",
        f"{path}/io.yaml",
        "README.md",
        f"{path}/adapter_model.safetensors",
    ]
    there = [p for p in found.directory.parents[2].rglob("*") if p.is_file()]
    assert len(there) == 4


def test_a_path_needs_no_options(server: HubServer, hub: Hub) -> None:
    server.add(LIBRARY, library_files())
    path = f"citations/{MODELS[1]}/lora"
    assert fetch_adapter(f"hf://{LIBRARY}/{path}", ANY, hub=hub).path == path
    found = fetch_adapter(f"hf://{LIBRARY}/citations", Pick(None, MODELS[1], "lora"), hub=hub)
    assert found.path == path


def test_an_adapter_at_the_root(server: HubServer, hub: Hub) -> None:
    server.add("me/my-adapter", adapter_files(io__yaml=None, README__md=README))
    found = fetch_adapter("hf://me/my-adapter", ANY, hub=hub)
    assert (found.name, found.stem, found.path) == ("my-adapter", "my-adapter", None)
    assert found.io_yaml is None
    assert found.licence == "apache-2.0"


def test_a_contract_in_a_directory_of_its_own(server: HubServer, hub: Hub) -> None:
    files = adapter_files("answerability/granite/alora", io__yaml=None)
    server.add("o/r", files | {"io_configs/answerability/io.yaml": "x: 1\n"})
    found = fetch_adapter("hf://o/r", ANY, hub=hub)
    assert found.io_yaml is not None
    assert found.io_yaml.read_text() == "x: 1\n"


def test_everything_comes_from_one_commit(server: HubServer, hub: Hub) -> None:
    old = server.add("o/r", adapter_files(README__md="---\nlicense: mit\n---\n"))
    newer: list[str] = []

    def push_in_between(handler: Handler) -> bool:
        if not newer and "/resolve/" in handler.path:
            newer.append(server.add("o/r", adapter_files(io__yaml="changed: 1\n")))
        return False

    server.trouble = push_in_between
    found = fetch_adapter("hf://o/r", ANY, hub=hub)
    assert newer
    assert found.revision == old
    assert found.licence == "mit"
    assert found.io_yaml is not None
    assert found.io_yaml.read_text() == "model: ~\n"
    assert all(f"/{old}/" in a.path for a in server.asked if "/resolve/" in a.path)
    again = fetch_adapter("hf://o/r", ANY, hub=hub)
    assert again.revision == newer[0]
    assert fetch_adapter(f"hf://o/r@{old}", ANY, hub=hub) == found


def test_branches_and_tags(server: HubServer, hub: Hub) -> None:
    server.add("o/r", adapter_files())
    branch = server.add("o/r", adapter_files(), revision="feature/x")
    found = fetch_adapter("hf://o/r@feature%2Fx", ANY, hub=hub)
    assert found.revision == branch
    ref = hub.cache / "models--o--r" / "refs" / "feature" / "x"
    assert ref.read_text() == branch


def test_what_was_fetched_is_not_fetched_again(server: HubServer, hub: Hub) -> None:
    server.add("o/r", adapter_files())
    first = fetch_adapter("hf://o/r", ANY, hub=hub)
    asked = len(server.asked)
    assert fetch_adapter("hf://o/r", ANY, hub=hub) == first
    assert len(server.asked) == asked + 2  # what the revision means now, and to note that


def test_several_adapters_on_a_hub(server: HubServer, hub: Hub) -> None:
    server.add(LIBRARY, library_files())
    with pytest.raises(
        InputError, match=rf"hf://{LIBRARY}: holds 8 adapters, expected one; choose"
    ):
        fetch_adapter(f"hf://{LIBRARY}", ANY, hub=hub)
    with pytest.raises(InputError, match="none of its 8 adapters is for --intrinsic x; there are"):
        fetch_adapter(f"hf://{LIBRARY}", Pick(intrinsic="x"), hub=hub)
    assert server.files_asked == []


def test_a_contradiction_is_found_before_the_weights_are_fetched(
    server: HubServer, hub: Hub
) -> None:
    server.add("o/r", adapter_files("sub"))
    with pytest.raises(InputError, match="hf://o/r: sub: is not what --technology lora asks for"):
        fetch_adapter("hf://o/r", Pick(technology="lora"), hub=hub)
    assert server.files_asked == ["sub/adapter_config.json"]


REFUSED: dict[str, tuple[dict[str, Any], str, type[AloraError], str]] = {
    "no adapter": ({"a.txt": "x"}, "", InputError, "hf://o/r: holds no PEFT adapter"),
    "a model": ({"config.json": {}}, "", InputError, "hf://o/r: holds a whole model"),
    "GGUFs": ({"a.gguf": b"GGUF"}, "", InputError, r"holds GGUF files \(a.gguf\)"),
    "no config": (
        adapter_files(adapter_config__json=None),
        "",
        MissingFileError,
        "hf://o/r/adapter_config.json: there is no such file",
    ),
    "no such path": (
        adapter_files("sub"),
        "/other",
        InputError,
        "o/r has no directory 'other'; it holds sub",
    ),
    "pickle": (
        adapter_files(adapter_model__safetensors=None, adapter_model__bin=b"x"),
        "",
        UnsupportedAdapterError,
        "holds only adapter_model.bin, a pickle",
    ),
    "MLX": (
        adapter_files(adapter_model__safetensors=None, adapters__safetensors=b"x"),
        "",
        UnsupportedAdapterError,
        r"its adapter_config.json is PEFT's, but its weights are not \(adapters\.safetensors",
    ),
    "shards": (
        adapter_files("a", adapter_model__safetensors=None)
        | {"a/adapter_model-00001-of-00002.safetensors": b""},
        "/a",
        UnsupportedAdapterError,
        "its weights are in several files",
    ),
    "large contract": (
        adapter_files(io__yaml=b"#" * ((1 << 20) + 1)),
        "",
        FileFormatError,
        "'io.yaml' has 1048577 bytes, too many for such a file",
    ),
    "large config": (
        adapter_files(adapter_config__json=Padded(b"{", 1 << 40)),
        "",
        FileFormatError,
        "'adapter_config.json' has 1099511627776 bytes",
    ),
    "pointer": (
        adapter_files(io__yaml=LFS),
        "",
        FileFormatError,
        "is a Git LFS pointer, not the file itself",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_repositories_that_will_not_do(server: HubServer, hub: Hub, case: str) -> None:
    files, path, error, message = REFUSED[case]
    server.add("o/r", files)
    with pytest.raises(error, match=message):
        fetch_adapter(f"hf://o/r{path}", ANY, hub=hub)
    assert "adapter_model.bin" not in server.files_asked


def test_a_readme_that_is_a_book_is_left_there(server: HubServer, hub: Hub) -> None:
    server.add("o/r", adapter_files(README__md=README.encode() + b"x" * (1 << 20)))
    assert fetch_adapter("hf://o/r", ANY, hub=hub).licence is None
    assert "README.md" not in server.files_asked


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "C:/x", "a\\..\\x", "a\0b", "a//b", "./a", "a\x1bb"]
)
def test_names_that_leave_the_repository(server: HubServer, hub: Hub, name: str) -> None:
    server.add("o/r", adapter_files() | {name: b"x"})
    with pytest.raises(
        HubError, match=r"lists a file whose name leaves the repository .* nothing was fetched"
    ):
        fetch_adapter("hf://o/r", ANY, hub=hub)
    assert server.files_asked == []


# Bases -------------------------------------------------------------------------------------------


def header_of(reference: str, hub: Hub) -> GGUFHeader:
    header = fetch_base(reference, hub=hub)
    assert isinstance(header, GGUFHeader)
    return header


def test_of_a_gguf_only_the_header(server: HubServer, hub: Hub, small_gguf: Padded) -> None:
    server.add("o/r", {"q4/m.gguf": small_gguf})
    header = header_of("hf://o/r/q4/m.gguf", hub)
    assert header.name == "hf://o/r/q4/m.gguf"
    assert header.architecture == "llama"
    assert header.size == small_gguf.size
    assert len(header.array("tokenizer.ggml.tokens")) == 100
    assert header.tensors["blk.3.attn_q.weight"].shape == (1024, 1 << 18)
    with pytest.raises(FileFormatError, match=r"hf://o/r/q4/m\.gguf: the data .* was not fetched"):
        header.tensor_data("blk.0.attn_q.weight")
    assert sum(asked.sent for asked in server.asked) < 2 << 20 | 1 << 16
    assert [a.range for a in server.asked if a.storage] == ["bytes=0-2097151"]


def test_a_longer_header_takes_more_requests(
    server: HubServer, hub: Hub, large_gguf: Padded
) -> None:
    server.add("o/r", {"m.gguf": large_gguf})
    assert 8 << 20 < len(large_gguf.head) < 16 << 20
    header = header_of("hf://o/r/m.gguf", hub)
    assert header.array("tokenizer.ggml.tokens")[-1] == "token 459999"
    ranges = [asked.range for asked in server.asked if asked.storage]
    assert ranges == [
        "bytes=0-2097151",
        "bytes=2097152-4194303",
        "bytes=4194304-8388607",
        "bytes=8388608-16777215",
    ]


def test_a_server_that_ignores_ranges(server: HubServer, hub: Hub, large_gguf: Padded) -> None:
    server.add("o/r", {"m.gguf": large_gguf})
    server.ignores_ranges = True
    header = header_of("hf://o/r/m.gguf", hub)
    assert header.array("tokenizer.ggml.tokens")[0] == "token 0"
    assert len([a for a in server.asked if a.storage]) == 4
    assert sum(asked.sent for asked in server.asked) < 128 << 20  # of 4 GiB; sockets hold some


def test_no_token_goes_to_the_storage(
    server: HubServer, hub: Hub, small_gguf: Padded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.add("o/r", {"m.gguf": small_gguf, **adapter_files("a")})
    server.repos["o/r"].private = True
    header_of("hf://o/r/m.gguf", hub)
    fetch_adapter("hf://o/r", ANY, hub=hub)
    assert {a.authorization for a in server.asked if not a.storage} == {f"Bearer {TOKEN}"}
    assert {a.authorization for a in server.asked if a.storage} == {None}


def test_a_gguf_that_is_there_already(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    padded = write_gguf(tmp_path / "m.gguf", tokens=5, data_bytes=1 << 16)
    server.add("o/r", {"m.gguf": padded[: padded.size]})
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.endpoint)
    api.hf_hub_download("o/r", "m.gguf", cache_dir=hub.cache)
    asked = len(server.asked)
    header = header_of("hf://o/r/m.gguf", hub)
    assert len(header.tensor_data("blk.0.attn_q.weight")) == 1 << 14
    assert len(server.asked) == asked + 1


def test_of_a_model_the_configuration_and_the_tokenizer(server: HubServer, hub: Hub) -> None:
    files = {name: name for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt")}
    others = {"model.safetensors": b"x", "sub/config.json": {}, "generation_config.json": {}}
    commit = server.add("o/r", {"config.json": {"model_type": "llama"}, **files, **others})
    found = fetch_base("hf://o/r", hub=hub)
    assert isinstance(found, Path)
    assert found.name == commit
    assert sorted(path.name for path in found.iterdir()) == ["config.json", *sorted(files)]
    assert json.loads((found / "config.json").read_text()) == {"model_type": "llama"}
    part = fetch_base(f"hf://o/r@{commit}/sub", hub=hub)
    assert isinstance(part, Path)
    assert [path.name for path in part.iterdir()] == ["config.json"]


BASES: dict[str, tuple[dict[str, Any], str, type[AloraError], str]] = {
    "GGUFs only": (
        {"m-Q4_K_M.gguf": b"", "m-Q8_0.gguf": b"", "README.md": ""},
        "@main",
        InputError,
        "holds GGUF files and no config.json; name one of them: hf://o/r@main/m-Q4_K_M.gguf, "
        "hf://o/r@main/m-Q8_0.gguf",
    ),
    "an adapter": (
        adapter_files("a"),
        "/a",
        InputError,
        "hf://o/r/a: is an adapter, not a base; expected a model's directory or repository, or",
    ),
    "neither": ({"a.txt": ""}, "", InputError, r"has no config.json; .* It holds a.txt"),
    "nothing": ({"a.txt": ""}, "/b", InputError, r"has no config.json; .* It holds nothing"),
    "another file": (
        {"a/m.gguf": b"", "b.txt": ""},
        "/m.gguf",
        InputError,
        r"o/r has no file 'm.gguf'; its GGUF files are a/m.gguf",
    ),
    "no GGUFs": ({"b.txt": ""}, "/m.gguf", InputError, "o/r has no file .*; it has no GGUF files"),
    "empty": ({"m.gguf": b""}, "/m.gguf", FileFormatError, "hf://o/r/m.gguf: the file is empty"),
    "pointer": ({"m.gguf": LFS}, "/m.gguf", FileFormatError, "is not a GGUF file: a Git LFS"),
    "zip": (
        {"m.gguf": Padded(b"PK\x03\x04", 1 << 30)},
        "/m.gguf",
        FileFormatError,
        "is not a GGUF file: a zip archive",
    ),
    "zeros": (
        {"m.gguf": Padded(b"GGUF\x03\0\0\0" + b"\xff" * 16, 1 << 40)},
        "/m.gguf",
        FileFormatError,
        "claims 18446744073709551615 tensors",
    ),
    "absurd header": (
        {
            "m.gguf": Padded(
                b"GGUF\x03\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\0\0\0\x40", 1 << 40
            )
        },
        "/m.gguf",
        FileFormatError,
        "claims a header of more than 1073741855 bytes; it is damaged",
    ),
    "large config": (
        {"config.json": Padded(b"{", 1 << 30)},
        "",
        FileFormatError,
        "'config.json' has 1073741824 bytes, too many",
    ),
}


@pytest.mark.parametrize("case", BASES)
def test_bases_that_will_not_do(server: HubServer, hub: Hub, case: str) -> None:
    files, path, error, message = BASES[case]
    server.add("o/r", files)
    with pytest.raises(error, match=message) as caught:
        fetch_base(f"hf://o/r{path}", hub=hub)
    assert str(caught.value).startswith("hf://o/r")
    assert sum(asked.sent for asked in server.asked) < 4 << 20


def test_a_truncated_gguf(server: HubServer, hub: Hub, small_gguf: Padded) -> None:
    server.add("o/r", {"m.gguf": Padded(small_gguf.head, small_gguf.size - 1)})
    with pytest.raises(
        FileFormatError, match=r"m\.gguf: truncated: tensor 'blk.3.attn_q.weight' end"
    ):
        fetch_base("hf://o/r/m.gguf", hub=hub)
    server.add("o/s", {"m.gguf": small_gguf.head[:500]})
    with pytest.raises(FileFormatError, match=r"hf://o/s/m\.gguf: truncated"):
        fetch_base("hf://o/s/m.gguf", hub=hub)
