"""`alora-gguf pull` of adapters: what is fetched, converted and stored, and what is said of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alora_gguf import Invocation, Model
from alora_gguf.gguf.base import vocabulary_sha256
from alora_gguf.gguf.header import read_header
from alora_gguf.intrinsics.contract import Contract
from tests.support.hub_server import Handler
from tests.support.pulling import Pulling
from tests.support.pulls import IO_YAML, TRAINED_ON, library, peft_files, without

LIBRARY = "ibm-granite/granitelib-rag-r1.0"
ONE = ("--intrinsic", "answerability", "--model", "granite-4.1-3b")
ALORA = (*ONE, "--technology", "alora")


@pytest.fixture(scope="module", params=[True, False], ids=["model first", "technology first"])
def both_layouts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], str]:
    """A library's files, and the path of one adapter in it."""
    files = library(tmp_path_factory.mktemp("library"), intrinsic_first=request.param)
    parts = ("granite-4.1-3b", "alora") if request.param else ("alora", "granite-4.1-3b")
    return files, "/".join(("answerability", *parts))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return library(tmp_path_factory.mktemp("library"))


def test_both_layouts(pulling: Pulling, both_layouts: tuple[dict[str, bytes], str]) -> None:
    files, path = both_layouts
    commit = pulling.server.add(LIBRARY, files)
    outcome = pulling("pull", LIBRARY, *ALORA, "--base", pulling.base)
    assert (outcome.status, outcome.err) == (0, "")
    entry = pulling.store.get("answerability", "adapter")
    stored = pulling.store.path(entry)
    assert outcome.out.splitlines() == [
        f"answerability: aLoRA, {stored.stat().st_size / 1000:.1f} kB",
        f"  from    {LIBRARY}/{path}",
        f"  commit  {commit}",
        "  base    tiny.gguf",
        f"  file    {stored}",
    ]
    about = entry.about
    assert (about.repository, about.commit, about.sources) == (LIBRARY, commit, (path,))
    assert (about.technology, about.architecture) == ("alora", "llama")
    assert (about.base, about.base_model) == ("tiny.gguf", TRAINED_ON)
    assert about.vocabulary_sha256 == vocabulary_sha256(read_header(pulling.base))
    assert pulling.server.files_asked == [
        f"{path}/adapter_config.json",
        f"{path}/io.yaml",
        "README.md",
        f"{path}/adapter_model.safetensors",
    ]
    assert pulling.left_over() == []


def test_what_is_stored_is_used_by_its_name(pulling: Pulling, files: dict[str, bytes]) -> None:
    """From nothing but the hub to a model that runs the adapter."""
    pulling.server.add("me/tiny-GGUF", {"tiny-Q4_K_M.gguf": pulling.base.read_bytes()})
    pulling.server.add(LIBRARY, files)
    assert pulling("pull", "me/tiny-GGUF", "--file", "*Q4_K_M*").status == 0
    assert pulling("pull", LIBRARY, *ALORA, "--base", "TINY-q4_k_m").status == 0
    assert pulling.store.get("answerability").about.base == "tiny-Q4_K_M"
    base = pulling.store.resolve("tiny-Q4_K_M", "base")
    adapter = pulling.store.resolve("answerability", "adapter")
    with Model(base, adapters={"answerability": adapter}, n_ctx=256, n_threads=1) as model:
        with model.session() as session:
            session.append("The library opens at nine.")
            verdict = session.invoke(Invocation("answerability", max_tokens=2))
        assert len(verdict.tokens) == 2
    header = read_header(adapter)
    assert header.metadata["alora.io_yaml"] == IO_YAML
    assert Contract.parse(str(header.metadata["alora.io_yaml"]), "io.yaml").instruction is None


def test_a_broken_contract_is_refused_and_can_be_replaced_or_left_out(
    pulling: Pulling, files: dict[str, bytes], tmp_path: Path
) -> None:
    own = "answerability/granite-4.1-3b/alora/io.yaml"
    pulling.server.add(LIBRARY, files | {own: b"model: ["})
    pull = ("pull", LIBRARY, *ALORA, "--base", pulling.base)
    message = pulling.error(*pull)
    assert re.search(rf"/{own}:1: expected YAML, found a problem: ", message)
    assert message.endswith("(--contract FILE), or without one (--no-contract)")
    assert pulling.store.contents().entries == ()
    assert pulling.left_over() == []
    assert pulling(*pull, "--no-contract").status == 0
    stored = pulling.store.resolve("answerability", "adapter")
    assert "alora.io_yaml" not in read_header(stored).metadata
    (tmp_path / "own.yaml").write_text(IO_YAML)
    assert pulling(*pull, "--contract", tmp_path / "own.yaml", "--force").status == 0
    stored = pulling.store.resolve("answerability", "adapter")
    assert read_header(stored).metadata["alora.io_yaml"] == IO_YAML
    beside = ("--file", "x.gguf", "--no-contract")
    assert (
        "--no-contract is for an adapter that has to be converted"
        in pulling("pull", LIBRARY, *beside).err
    )


def test_as_json(pulling: Pulling, files: dict[str, bytes]) -> None:
    commit = pulling.server.add(LIBRARY, files)
    outcome = pulling("pull", f"hf://{LIBRARY}", *ALORA, "--base", pulling.base, "--json")
    assert outcome.err == ""
    report = outcome.json
    entry = pulling.store.get("answerability")
    assert report.pop("path") == str(pulling.store.path(entry))
    assert report.pop("changed") is True
    assert report.pop("warnings") == []
    assert report == json.loads((pulling.home / "entries" / "answerability.json").read_text())
    assert report["format"] == 1
    assert report["commit"] == commit
    assert report["files"][0]["name"] == "answerability.gguf"


def test_the_other_options(pulling: Pulling, files: dict[str, bytes]) -> None:
    branch = pulling.server.add(LIBRARY, without(files, "citations"), revision="r1.1")
    pulling.server.add(LIBRARY, {"README.md": "empty\n"})
    source = f"{LIBRARY}@r1.1/answerability/granite-4.1-8b/lora"
    options = ("--name", "sure-8b", "--outtype", "f32", "--base", pulling.base)
    outcome = pulling("pull", source, *options)
    assert outcome.out.splitlines()[0].startswith("sure-8b: LoRA, ")
    entry = pulling.store.get("sure-8b")
    assert entry.about.commit == branch
    assert entry.about.technology == "lora"
    header = read_header(pulling.store.path(entry))
    assert {tensor.type_name for tensor in header.tensors.values()} == {"F32"}


def test_an_invocation_that_the_configuration_lacks(pulling: Pulling, tmp_path: Path) -> None:
    pulling.server.add("me/sure", peft_files(tmp_path / "peft", alora=False))
    options = ("--invocation", "<|assistant|>", "--base", pulling.base)
    outcome = pulling("pull", "me/sure", *options)
    assert outcome.out.startswith("sure: aLoRA, ")
    assert outcome.err.startswith("warning: adapter_config.json names no invocation")


# What there is, where something is not -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--intrinsic", "answerabilty"),
            "none of its 8 adapters is for --intrinsic answerabilty; there are "
            "answerability/granite-4.1-3b/alora, answerability/granite-4.1-3b/lora, "
            "answerability/granite-4.1-8b/alora, answerability/granite-4.1-8b/lora, "
            "citations/granite-4.1-3b/alora, citations/granite-4.1-3b/lora, "
            "citations/granite-4.1-8b/alora, citations/granite-4.1-8b/lora",
        ),
        (
            ("--intrinsic", "citations", "--model", "granite-5"),
            "none of its 8 adapters is for --intrinsic citations --model granite-5; there are ans",
        ),
        (
            ONE[:2],
            "holds 4 adapters for --intrinsic answerability, expected one; choose with --model "
            "(granite-4.1-3b, granite-4.1-8b), --technology (alora, lora): ",
        ),
    ],
    ids=["intrinsic", "model", "model not given"],
)
def test_what_is_not_there(
    pulling: Pulling, files: dict[str, bytes], options: tuple[str, ...], message: str
) -> None:
    pulling.server.add(LIBRARY, files)
    error = pulling.error("pull", LIBRARY, *options, "--base", pulling.base)
    assert error.startswith(f"hf://{LIBRARY}: {message}")
    assert pulling.server.files_asked == []
    assert pulling.store.contents().entries == ()


def test_model_and_technology_follow_from_the_base(
    pulling: Pulling, both_layouts: tuple[dict[str, bytes], str], tmp_path: Path
) -> None:
    files, path = both_layouts
    pulling.server.add(LIBRARY, files)
    base = tmp_path / "granite-4.1-3b-Q8_0.gguf"
    base.write_bytes(pulling.base.read_bytes())
    outcome = pulling("pull", LIBRARY, "--intrinsic", "answerability", "--base", base)
    assert outcome.status == 0, outcome
    assert f"  from    {LIBRARY}/{path}\n" in outcome.out
    assert outcome.out.startswith("answerability: aLoRA, ")
    other = ("--intrinsic", "citations", "--model", "granite-4.1-8b", "--technology", "lora")
    assert pulling("pull", LIBRARY, *other, "--base", base).out.startswith("citations: LoRA, ")


def test_what_a_repository_holds(pulling: Pulling, files: dict[str, bytes]) -> None:
    pulling.server.add(LIBRARY, files)
    pulling.server.add("me/both", {"a/x.gguf": b"0" * 1500, **without(files, "citations")})
    outcome = pulling("pull", LIBRARY, "--list")
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [intrinsic, model, technology]
        for intrinsic in ("answerability", "citations")
        for model in ("granite-4.1-3b", "granite-4.1-8b")
        for technology in ("alora", "lora")
    ]
    assert all(line.endswith(" kB") for line in lines)
    assert outcome.err == (
        f"Fetch one: alora-gguf pull hf://{LIBRARY} --intrinsic NAME --base BASE for an adapter\n"
    )
    found = pulling("pull", "me/both/a", "--list")
    assert found.out == "a/x.gguf      1.5 kB\n"
    listed = pulling("pull", "me/both", "--list", "--json").json
    assert listed[0]["model"] == "granite-4.1-3b"
    assert listed[-1] == {"kind": "gguf", "path": "a/x.gguf", "bytes": 1500}
    assert pulling.server.files_asked == []
    pulling.server.add("me/none", {"notes.txt": b"x"})
    assert "me/none: holds no PEFT adapter" in pulling.error("pull", "me/none", "--list")


def test_a_technology_that_is_not_there(pulling: Pulling, files: dict[str, bytes]) -> None:
    pulling.server.add(LIBRARY, {k: v for k, v in files.items() if "/alora/" not in k})
    error = pulling.error("pull", LIBRARY, *ALORA, "--base", pulling.base)
    assert error.startswith(
        f"hf://{LIBRARY}: none of its 4 adapters is for --intrinsic answerability --model "
        "granite-4.1-3b --technology alora; there are answerability/granite-4.1-3b/lora, "
    )


def test_a_file_that_is_not_there(pulling: Pulling, files: dict[str, bytes]) -> None:
    path = "answerability/granite-4.1-3b/alora"
    pulling.server.add(LIBRARY, without(files, f"{path}/adapter_model.safetensors"))
    assert pulling.error("pull", LIBRARY, *ALORA, "--base", pulling.base) == (
        f"hf://{LIBRARY}: {path}/adapter_model.safetensors: there is no such file; download the "
        "adapter again, or save it with PEFT's save_pretrained(), which writes it beside "
        "adapter_config.json"
    )


def test_bases_that_are_not_there(pulling: Pulling, files: dict[str, bytes]) -> None:
    pulling.server.add(LIBRARY, files)
    empty = f"nothing named 'granite' is a base in the store {pulling.home}; add one with "
    assert pulling.error("pull", LIBRARY, *ALORA, "--base", "granite") == (
        f"{empty}`alora-gguf pull`; or give the path of a GGUF"
    )
    assert pulling.error("pull", LIBRARY, *ALORA, "--base", "./granite.gguf") == (
        "granite.gguf: there is no such file or directory; expected the base model: a GGUF, a "
        "directory with config.json, or hf://owner/repo"
    )
    assert pulling("pull", LIBRARY, *ALORA, "--base", pulling.base).status == 0
    assert pulling.error("pull", LIBRARY, *ALORA, "--base", "Answerability") == (
        "'answerability' is an adapter, expected a base; add one with `alora-gguf pull`"
    )
    missing = pulling("pull", LIBRARY, *ALORA)
    assert missing.status == 2
    assert missing.out == ""
    assert missing.err.endswith(
        "Error: give --base, the model that the adapter is for; or, for a GGUF that is stored as "
        "it is, --file; --list shows what there is\n"
    )


def test_a_repository_of_ggufs(pulling: Pulling) -> None:
    pulling.server.add("me/tiny-GGUF", {"tiny.gguf": pulling.base.read_bytes()})
    assert pulling.error("pull", "me/tiny-GGUF", "--base", pulling.base) == (
        "hf://me/tiny-GGUF: holds GGUF files (tiny.gguf), which need no conversion (`alora-gguf "
        "pull --file` stores one), and no adapter_config.json; give the PEFT adapter's directory"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "granite",
            "hf://granite: is not a reference to a hub, expected hf://owner/repo[@revision]",
        ),
        ("a/../../b", "hf://a/../../b: is not a reference to a hub"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b: is a web address, expected a"),
        ("datasets/a/b", "hf://datasets/a/b: is not a reference to a hub"),
    ],
)
def test_what_is_no_repository(pulling: Pulling, text: str, message: str) -> None:
    assert pulling.error("pull", text, "--base", pulling.base).startswith(message)
    assert pulling.server.asked == []


# The same again, something else under the same name ----------------------------------------------


def test_the_same_again_changes_nothing(pulling: Pulling, files: dict[str, bytes]) -> None:
    pulling.server.add(LIBRARY, files)
    pulling("pull", LIBRARY, *ALORA, "--base", pulling.base)
    before = pulling.store.get("answerability")
    for force in ([], ["--force"]):
        outcome = pulling("pull", LIBRARY, *ALORA, "--base", pulling.base, *force)
        assert outcome.status == 0
        assert outcome.out.splitlines()[0].endswith(" (it was there already)")
        assert pulling.store.get("answerability") == before
        assert pulling.left_over() == []


def test_another_under_the_same_name(pulling: Pulling, files: dict[str, bytes]) -> None:
    commit = pulling.server.add(LIBRARY, files)
    pulling("pull", LIBRARY, *ALORA, "--base", pulling.base)
    before = pulling.store.get("answerability")
    other = ("pull", LIBRARY, *ONE, "--technology", "lora", "--base", pulling.base)
    assert pulling.error(*other) == (
        f"'answerability' is in the store already with other files, from {LIBRARY}/answerability/"
        f"granite-4.1-3b/alora at {commit}; --force (replace=True) replaces it, --name gives this "
        "one another name"
    )
    assert pulling.store.get("answerability") == before
    assert pulling.left_over() == []
    assert pulling(*other, "--force").out.startswith("answerability: LoRA, ")
    assert pulling.store.get("answerability").about.technology == "lora"
    assert pulling.left_over() == []


def test_a_newer_revision_needs_force(pulling: Pulling, files: dict[str, bytes]) -> None:
    """The bytes of an adapter name the commit that it came from."""
    old = pulling.server.add(LIBRARY, files)
    pulling("pull", LIBRARY, *ALORA, "--base", pulling.base)
    new = pulling.server.add(LIBRARY, files | {"README.md": "---\nlicense: mit\n---\n"})
    assert f" at {old}; --force" in pulling.error("pull", LIBRARY, *ALORA, "--base", pulling.base)
    pulling("pull", LIBRARY, *ALORA, "--base", pulling.base, "--force")
    assert pulling.store.get("answerability").about.commit == new


def test_a_branch_that_moves_meanwhile(
    pulling: Pulling, files: dict[str, bytes], tmp_path: Path
) -> None:
    """All files are those of the commit that was listed, and that one is recorded."""
    path = "answerability/granite-4.1-3b/alora"
    old = pulling.server.add(LIBRARY, files)
    changed = files | {f"{path}/{k}": v for k, v in peft_files(tmp_path / "x", seed=9).items()}
    changed[f"{path}/io.yaml"] = f"{IO_YAML}instruction: another\n"
    moved: list[str] = []

    def move(handler: Handler) -> bool:
        if not moved and "/resolve/" in handler.path:
            moved.append(pulling.server.add(LIBRARY, changed))
        return False

    pulling.server.trouble = move
    assert pulling("pull", LIBRARY, *ALORA, "--base", pulling.base).status == 0
    assert moved
    entry = pulling.store.get("answerability")
    assert entry.about.commit == old
    header = read_header(pulling.store.path(entry))
    assert header.metadata["alora.source.revision"] == old
    assert header.metadata["alora.io_yaml"] == IO_YAML
    pulling("pull", LIBRARY, *ALORA, "--base", pulling.base, "--name", "newer")
    newer = read_header(pulling.store.resolve("newer"))
    assert newer.metadata["alora.source.revision"] == moved[0]
    weights = [h.metadata["alora.source.sha256"] for h in (header, newer)]
    assert weights[0] != weights[1]
