"""`alora-gguf pull --file`: bases, split bases and ready-made adapters, as they are."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import convert_adapter

from alora_gguf import Model
from alora_gguf.gguf.base import vocabulary_sha256
from alora_gguf.gguf.header import read_header
from tests.support import tiny_base, vectors
from tests.support.gguf_bytes import gguf_bytes
from tests.support.hub_server import Handler
from tests.support.pulling import Pulling
from tests.support.pulls import peft_files, split_gguf

REPO = "ibm-granite/granite-4.1-3b-GGUF"


def test_a_base_by_a_pattern(pulling: Pulling) -> None:
    data = pulling.base.read_bytes()
    files = {"q/granite-Q4_K_M.gguf": data, "q/granite-Q8_0.gguf": b"GGUF", "README.md": "x"}
    commit = pulling.server.add(REPO, files)
    outcome = pulling("pull", REPO, "--file", "*q4_k_m*")
    assert (outcome.status, outcome.err) == (0, "")
    entry = pulling.store.get("granite-Q4_K_M", "base")
    path = pulling.store.path(entry)
    assert path.read_bytes() == data
    assert outcome.out.splitlines() == [
        f"granite-Q4_K_M: base, {len(data) / 1000:.1f} kB",
        f"  from    {REPO}/q/granite-Q4_K_M.gguf",
        f"  commit  {commit}",
        f"  file    {path}",
    ]
    about = entry.about
    assert (about.kind, about.technology, about.architecture) == ("base", None, "llama")
    assert (about.commit, about.sources) == (commit, ("q/granite-Q4_K_M.gguf",))
    assert about.vocabulary_sha256 == vocabulary_sha256(read_header(pulling.base))
    assert pulling.server.files_asked == ["q/granite-Q4_K_M.gguf"]
    assert pulling.left_over() == []


def test_a_base_takes_no_room_twice(pulling: Pulling) -> None:
    pulling.server.add(REPO, {"granite.gguf": pulling.base.read_bytes()})
    pulling("pull", REPO, "--file", "granite.gguf")
    path = pulling.store.resolve("granite")
    (cached,) = pulling.cache.rglob("granite.gguf")
    assert path.samefile(cached)
    cached.resolve().unlink()
    assert path.read_bytes() == pulling.base.read_bytes()


def test_where_the_store_is_on_another_disk(
    pulling: Pulling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, os.strerror(18))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    pulling.server.add(REPO, {"granite.gguf": pulling.base.read_bytes()})
    assert pulling("pull", REPO, "--file", "granite.gguf").status == 0
    path = pulling.store.resolve("granite")
    assert path.read_bytes() == pulling.base.read_bytes()
    assert path.stat().st_nlink == 1


@pytest.mark.parametrize("source", [f"{REPO}/q/a[1].gguf", f"hf://{REPO}@main/q/a[1].gguf"])
def test_a_file_by_its_path(pulling: Pulling, source: str) -> None:
    pulling.server.add(REPO, {"q/a[1].gguf": pulling.base.read_bytes(), "q/a1.gguf": b"GGUF"})
    assert pulling("pull", source).out.startswith("a-1: base, ")
    assert pulling.server.files_asked == ["q/a[1].gguf"]


def test_a_directory_to_look_in(pulling: Pulling) -> None:
    files = {"a/m.gguf": pulling.base.read_bytes(), "b/m.gguf": b"GGUF", "c/x.txt": "x"}
    pulling.server.add(REPO, files)
    assert pulling("pull", f"{REPO}/a", "--file", "*m.gguf").status == 0
    assert pulling.server.files_asked == ["a/m.gguf"]
    assert pulling.error("pull", f"{REPO}/c", "--file", "*m.gguf") == (
        f"hf://{REPO}/c: holds no GGUF files, expected '*m.gguf'; it holds c/x.txt"
    )


FILES = {"m-Q4_K_M.gguf": b"", "m-Q4_K_S.gguf": b"", "m-Q8_0.gguf": b"", "README.md": "x"}


def test_no_match(pulling: Pulling) -> None:
    pulling.server.add(REPO, FILES)
    assert pulling.error("pull", REPO, "--file", "*Q5*") == (
        f"hf://{REPO}: none of its GGUF files is '*Q5*'; there are m-Q4_K_M.gguf, m-Q4_K_S.gguf, "
        "m-Q8_0.gguf"
    )
    assert pulling.server.files_asked == []


def test_two_matches(pulling: Pulling) -> None:
    pulling.server.add(REPO, FILES)
    assert pulling.error("pull", REPO, "--file", "*Q4*") == (
        f"hf://{REPO}: '*Q4*' means 2 of its GGUF files, expected one; choose with a longer "
        "--file: m-Q4_K_M.gguf, m-Q4_K_S.gguf"
    )
    assert pulling.server.files_asked == []


def test_no_ggufs(pulling: Pulling) -> None:
    pulling.server.add(REPO, {"model.safetensors": b"", "config.json": {}})
    assert pulling.error("pull", REPO, "--file", "*") == (
        f"hf://{REPO}: holds no GGUF files, expected '*'; it holds config.json, model.safetensors"
    )


# Split models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["*big*", "*-00002-of-*", "q/big-00001-of-00003.gguf"])
def test_a_split_base_has_all_its_parts(pulling: Pulling, tmp_path: Path, pattern: str) -> None:
    parts = split_gguf(pulling.base, "q/big", 3)
    pulling.server.add(REPO, {**parts, "q/small.gguf": b"GGUF"})
    outcome = pulling("pull", REPO, "--file", pattern)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[1] == f"  from    {REPO}/{next(iter(parts))} and 2 more"
    entry = pulling.store.get("big", "base")
    assert entry.about.sources == tuple(parts)
    assert [file.name for file in entry.files] == [f"big-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    first = pulling.store.path(entry)
    assert [p.read_bytes() for p in sorted(first.parent.iterdir())] == list(parts.values())
    with Model(first, n_ctx=64, n_threads=1) as model:
        assert model.tokenize("a")
    # and an adapter can be converted for it
    pulling.server.add("me/sure", peft_files(tmp_path / "peft"))
    assert pulling("pull", "me/sure", "--base", "big").status == 0
    for_whole = convert_adapter(tmp_path / "peft" / "adapter", pulling.base, tmp_path / "o.gguf")
    about = pulling.store.get("sure").about
    assert for_whole.architecture == about.architecture
    assert about.vocabulary_sha256 == vocabulary_sha256(read_header(pulling.base))


def test_two_split_bases(pulling: Pulling) -> None:
    parts = split_gguf(pulling.base, "a", 2) | split_gguf(pulling.base, "b", 3)
    pulling.server.add(REPO, parts)
    assert pulling.error("pull", REPO, "--file", "*") == (
        f"hf://{REPO}: '*' means 2 of its GGUF files, expected one; choose with a longer --file: "
        "a-00001-of-00002.gguf (2 parts), b-00001-of-00003.gguf (3 parts)"
    )


def test_a_part_that_is_missing(pulling: Pulling) -> None:
    parts = split_gguf(pulling.base, "a", 3)
    del parts["a-00002-of-00003.gguf"]
    pulling.server.add(REPO, parts)
    assert pulling.error("pull", REPO, "--file", "a*") == (
        f"hf://{REPO}: of the 3 parts of the model there is no a-00002-of-00003.gguf; choose "
        "another one with --file"
    )


# What the file is --------------------------------------------------------------------------------


def test_an_adapter_that_is_a_gguf_already(pulling: Pulling, tmp_path: Path) -> None:
    peft_files(tmp_path / "peft")
    out = tmp_path / "sure.gguf"
    convert_adapter(tmp_path / "peft" / "adapter", pulling.base, out)
    pulling.server.add("me/adapters-GGUF", {"sure.gguf": out.read_bytes()})
    assert pulling("pull", "me/adapters-GGUF", "--file", "sure*").out.startswith("sure: aLoRA, ")
    about = pulling.store.get("sure", "adapter").about
    assert about.technology == "alora"
    assert about.base_model == "ibm-granite/granite-4.1-3b"
    assert about.vocabulary_sha256 == vocabulary_sha256(read_header(pulling.base))
    plain = tiny_base.write_adapter(tmp_path / "plain.gguf", invocation=None)
    pulling.server.add("me/plain-GGUF", {"plain.gguf": plain.read_bytes()})
    assert pulling("pull", "me/plain-GGUF/plain.gguf").out.startswith("plain: LoRA, ")


REFUSED: dict[str, tuple[bytes, str]] = {
    "no GGUF": (b"PK\x03\x04" + bytes(99), "is not a GGUF file: a zip archive"),
    "cut short": (gguf_bytes({"general.architecture": "llama"}, {"a": ("F32", (64,))})[:-1],
                  "truncated"),
    "a projector": (
        gguf_bytes({"general.architecture": "clip", "general.type": "mmproj"}, {}),
        f"hf://{REPO}: 'm.gguf': is a GGUF of the kind 'mmproj', expected a base model, an adapter "
        "or a steering vector; choose another --file",
    ),
    "a vocabulary": (
        gguf_bytes({"general.architecture": "llama", "tokenizer.ggml.tokens": ["a"]}, {}),
        "is a GGUF of the kind 'vocabulary', expected a base model, an adapter or a steering",
    ),
    "half an adapter": (
        gguf_bytes(
            {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"},
            {"blk.0.attn_q.weight.lora_a": ("F32", (64, 4))},
        ),
        f"hf://{REPO}: 'm.gguf': is a malformed adapter: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_are_neither(pulling: Pulling, case: str) -> None:
    content, message = REFUSED[case]
    pulling.server.add(REPO, {"m.gguf": content})
    assert message in pulling.error("pull", REPO, "--file", "m.gguf")
    assert pulling.store.contents().entries == ()


# The same again, something else under the same name ----------------------------------------------


def test_the_same_again_is_not_even_fetched(pulling: Pulling) -> None:
    pulling.server.add(REPO, {"m.gguf": pulling.base.read_bytes()})
    pulling("pull", REPO, "--file", "m.gguf")
    before = pulling.store.get("m")
    asked = len(pulling.server.asked)
    commit = pulling.server.add(REPO, {"m.gguf": pulling.base.read_bytes(), "new.txt": "x"})
    outcome = pulling("pull", REPO, "--file", "m.gguf", "--json")
    assert outcome.json["changed"] is False
    assert outcome.json["commit"] == before.about.commit != commit
    assert len(pulling.server.asked) == asked + 1
    assert pulling.store.get("m") == before


def test_another_under_the_same_name_is_not_fetched_either(pulling: Pulling) -> None:
    commit = pulling.server.add(REPO, {"m.gguf": pulling.base.read_bytes()})
    pulling("pull", REPO, "--file", "m.gguf")
    other = tiny_base.write_base(pulling.home / "other.gguf", seed=8).read_bytes()
    (pulling.home / "other.gguf").unlink()
    pulling.server.add("me/other", {"M.gguf": other})
    asked = len(pulling.server.asked)
    assert pulling.error("pull", "me/other", "--file", "M.gguf") == (
        f"'m' is in the store already with other files, from {REPO}/m.gguf at {commit}; --force "
        "(replace=True) replaces it, --name gives this one another name"
    )
    assert len(pulling.server.asked) == asked + 1
    assert pulling("pull", "me/other", "--file", "M.gguf", "--force").out.startswith("M: base, ")
    assert pulling.store.resolve("m").read_bytes() == other
    assert pulling.left_over() == []


def test_one_that_lost_its_file_is_fetched_again(pulling: Pulling) -> None:
    pulling.server.add(REPO, {"m.gguf": pulling.base.read_bytes()})
    pulling("pull", REPO, "--file", "m.gguf")
    pulling.store.resolve("m").unlink()
    outcome = pulling("pull", REPO, "--file", "m.gguf", "--json")
    assert outcome.json["changed"] is True
    assert pulling.store.resolve("m").read_bytes() == pulling.base.read_bytes()
    assert pulling.left_over() == []


def test_what_arrives_is_what_the_hub_has(pulling: Pulling) -> None:
    """Of the right size, and yet another file: found by its hash, and not stored."""
    data = pulling.base.read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1])
    pulling.server.add(REPO, {"m.gguf": data})

    def swap(handler: Handler) -> bool:
        if not handler.server.storage:
            return False
        handler.send_part(changed)
        return True

    pulling.server.trouble = swap
    error = pulling.error("pull", REPO, "--file", "m.gguf")
    assert error.startswith(f"hf://{REPO}: 'm.gguf' arrived with the SHA-256 ")
    assert f"but the hub says {hashlib.sha256(data).hexdigest()}; remove {pulling.cache}" in error
    assert error.endswith(" and pull again")
    assert pulling.store.contents().entries == ()
    assert pulling.left_over() == []


@pytest.mark.parametrize(
    "option", [("--base", "x"), ("--intrinsic", "x"), ("--technology", "lora")]
)
def test_options_that_need_a_conversion(pulling: Pulling, option: tuple[str, str]) -> None:
    outcome = pulling("pull", REPO, "--file", "*", *option)
    assert outcome.status == 2
    assert (
        f"Error: {option[0]} is for an adapter that has to be converted, and --file takes a GGUF "
        "as it is; leave one of them out\n" in outcome.err
    )
    assert pulling.server.asked == []


def test_an_adapter_whose_contract_cannot_be_read_is_stored_and_told(
    pulling: Pulling, tmp_path: Path
) -> None:
    keys = {"alora.io_yaml": "model: ["}
    adapter = tiny_base.write_adapter(tmp_path / "a.gguf", invocation=(7, 8), keys=keys)
    pulling.server.add(REPO, {"a.gguf": adapter.read_bytes()})
    outcome = pulling("pull", REPO, "--file", "a.gguf")
    assert (outcome.status, pulling.store.get("a").about.technology) == (0, "alora")
    assert outcome.err.startswith("warning: the adapter cannot be asked as an intrinsic: ")
    assert "a.gguf(io.yaml):" in outcome.err


def test_a_steering_vector(pulling: Pulling, tmp_path: Path) -> None:
    data = vectors.glp(tmp_path / "v.gguf").read_bytes()
    pulling.server.add("me/steering", {"formal.gguf": data})
    outcome = pulling("pull", "me/steering", "--file", "formal.gguf")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("formal: vector, ")
    about = pulling.store.get("formal", "adapter").about
    assert (about.kind, about.technology, about.architecture) == ("adapter", "vector", "llama")
    with Model(pulling.base, adapters={"formal": pulling.store.resolve("formal")}) as model:
        assert model.adapters["formal"].begins == "reply"
    assert pulling("list").out.splitlines()[1].split()[:2] == ["formal", "vector"]


def test_a_malformed_vector_is_not_stored(pulling: Pulling, tmp_path: Path) -> None:
    data = vectors.BAD["glp.mode unknown"][0](tmp_path / "v.gguf").read_bytes()
    pulling.server.add("me/steering", {"v.gguf": data})
    outcome = pulling("pull", "me/steering", "--file", "v.gguf")
    assert outcome.status == 1
    assert "is a malformed steering vector: glp.mode is 'replace', expected one of" in outcome.err
    assert pulling.left_over() == []
