"""Trees that adapters are looked for in: links, the hub's cache, large and closed directories."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from alora_gguf.convert import Pick
from alora_gguf.convert.find import find_source

from alora_gguf.errors import AloraError, ConvertError, FileFormatError, InputError
from tests.support.libraries import (
    COMMIT,
    LFS,
    README,
    adapter_files,
    write_adapter,
    write_cache,
)

# Links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "io.yaml", "README.md"]
)
def test_links_out_of_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    directory = write_adapter(tmp_path / "a", readme=README)
    (directory / name).rename(tmp_path / "secret")
    (directory / name).symlink_to(tmp_path / "secret")
    with pytest.raises(
        ConvertError, match=rf"a/{name}: is a link to .*/secret, outside of .*/a; a link could"
    ):
        find_source(directory)
    (directory / name).unlink()
    (directory / name).symlink_to("inside")
    (tmp_path / "secret").rename(directory / "inside")
    find_source(directory)


def test_links_into_nothing_and_in_circles(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "a")
    contract = directory / "io.yaml"
    contract.unlink()
    contract.symlink_to("nothing")
    with pytest.raises(FileFormatError, match=r"io\.yaml: cannot be read: No such file"):
        find_source(directory)
    contract.unlink()
    contract.symlink_to("io.yaml")
    with pytest.raises(FileFormatError, match=r"io\.yaml: cannot be read: "):
        find_source(directory)
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(AloraError, match="round: "):
        find_source(tmp_path / "round")


def test_links_to_directories_are_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "lib", write_adapter(tmp_path / "elsewhere")
    root.mkdir()
    (root / "out").symlink_to(elsewhere)
    (root / "self").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"\(not looked into: out, self\); give the directory"):
        find_source(root)
    real = write_adapter(root / "v3")
    (root / "latest").symlink_to("v3")
    assert find_source(root).directory == real  # once, by its own name


# The hub's cache -----------------------------------------------------------------------------


def test_a_snapshot_in_the_hubs_cache(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--ibm-granite--granitelib-rag-r1.0"
    files = adapter_files("answerability/granite/alora") | adapter_files(
        "answerability/granite/lora"
    )
    snapshot = write_cache(folder, files | {"README.md": README.encode()})
    found = find_source(snapshot, Pick(technology="alora"))
    path = "answerability/granite/alora"
    assert found.directory == snapshot / path
    assert found.repo == "ibm-granite/granitelib-rag-r1.0"
    assert found.revision == COMMIT
    assert found.path == path
    assert found.licence == "apache-2.0"
    assert found.stem == "answerability-granite-alora"
    # a directory inside it knows where it came from, too
    assert find_source(snapshot / path) == found
    assert find_source(snapshot / "answerability", Pick(technology="ALORA")) == found
    (tmp_path / "mine").symlink_to(snapshot)
    assert find_source(tmp_path / "mine", Pick(technology="alora")) == found
    with pytest.raises(InputError, match="none of its 2 adapters is for --intrinsic other"):
        find_source(snapshot, Pick(intrinsic="other"))


def test_an_adapter_at_the_root_of_a_cached_repository(tmp_path: Path) -> None:
    folder = tmp_path / "models--me--my_adapter"
    found = find_source(write_cache(folder, adapter_files()))
    assert (found.name, found.stem) == ("my_adapter", "my_adapter")
    assert (found.repo, found.revision, found.path) == ("me/my_adapter", COMMIT, None)
    assert find_source(folder) == found  # the only snapshot
    write_cache(folder, adapter_files(), commit=COMMIT[::-1])
    with pytest.raises(
        InputError,
        match=rf"several snapshots .* of one: snapshots/{COMMIT}, snapshots/{COMMIT[::-1]}",
    ):
        find_source(folder)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT[::-1])
    assert find_source(folder).revision == COMMIT[::-1]


def test_links_of_a_cache_stay_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "models--o--r"
    secret = tmp_path / "secret"
    secret.write_text("model: ~\n")
    snapshot = write_cache(folder, adapter_files() | {"io.yaml": secret})
    with pytest.raises(ConvertError, match=r"io\.yaml: is a link to .*/secret, outside of"):
        find_source(snapshot)
    (snapshot / "io.yaml").unlink()
    other = write_cache(tmp_path / "models--o--other", {"io.yaml": b"model: ~\n"})
    (snapshot / "io.yaml").symlink_to(other / "io.yaml")
    with pytest.raises(ConvertError, match=r"models--o--other/blobs/.*, outside of"):
        find_source(snapshot)


def test_blobs_that_several_models_share(tmp_path: Path) -> None:
    shared = tmp_path / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    shared.write_bytes(b"weights")
    files = adapter_files() | {"adapter_model.safetensors": shared}
    snapshot = write_cache(tmp_path / "models--o--r", files)
    assert find_source(snapshot).weights.read_bytes() == b"weights"
    odd = shared.with_name("notes.txt")
    shared.rename(odd)
    files["adapter_model.safetensors"] = odd
    with pytest.raises(ConvertError, match=r"notes\.txt, outside of"):
        find_source(write_cache(tmp_path / "models--o--s", files))


# Large, deep and closed trees ------------------------------------------------------------------


def test_thousands_of_files(tmp_path: Path) -> None:
    directory = write_adapter(tmp_path / "many" / "the" / "one")
    for i in range(20):
        part = tmp_path / "many" / f"d{i}"
        part.mkdir()
        for j in range(100):
            (part / f"f{j}").touch()
    assert find_source(tmp_path).directory == directory


def test_more_than_any_library_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_gguf.convert.snapshot._MAX_ENTRIES", 10)
    for i in range(11):
        (tmp_path / f"f{i}").touch()
    with pytest.raises(InputError, match=r"more than 10 files and directories; give the adapter's"):
        find_source(tmp_path)


def test_adapters_too_deep_are_not_looked_for(tmp_path: Path) -> None:
    write_adapter(tmp_path.joinpath(*"abcdef"))
    assert find_source(tmp_path).name == "f"
    deep = write_adapter(tmp_path.joinpath("lib", *"pqrstuv"))
    with pytest.raises(InputError, match="holds no PEFT adapter"):
        find_source(tmp_path / "lib")
    assert find_source(tmp_path / "lib" / "p").directory == deep


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory, and no rights beyond those of its owner, whom root can become for a while."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path, _, _ in os.walk(folder):
            Path(path).chmod(0o700)
        shutil.rmtree(folder)


def test_directories_that_cannot_be_read(as_nobody: Path) -> None:
    good = write_adapter(as_nobody / "good")
    closed = write_adapter(as_nobody / "closed")
    closed.chmod(0)
    assert find_source(as_nobody).directory == good
    with pytest.raises(FileFormatError, match="closed: cannot be read: Permission denied"):
        find_source(closed)
    shutil.rmtree(good)
    with pytest.raises(InputError, match=r"holds no PEFT .*\(not looked into: closed\)"):
        find_source(as_nobody)
    closed.chmod(0o700)
    (closed / "adapter_config.json").chmod(0)
    with pytest.raises(FileFormatError, match=r"adapter_config\.json: cannot be read: Permission"):
        find_source(closed)


def test_whatever_a_directory_looks_like(tmp_path: Path) -> None:
    """Random trees of the right and wrong names, as files, links, pipes: an adapter whose files lie
    in the tree, or one of our errors.
    """
    names = ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "io.yaml"]
    names += ["README.md", "config.json", "lora", "alora", "granite", "snapshots", "refs", "main"]
    names += ["models--o--r", COMMIT, "blobs", "x" * 200, "a\nb"]
    contents = [b"", b"{}", b"[]", LFS, b"<html>", b"---\nlicense: mit\n---", b"\xff" * 99]
    outside = write_adapter(tmp_path / "outside", readme=README)
    found, messages = 0, []
    for seed in range(150):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        root.mkdir()
        directories = [root]
        for _ in range(rng.randrange(3, 40)):
            path = rng.choice(directories) / rng.choice(names)
            kind = rng.random()
            if os.path.lexists(path):
                continue
            if kind < 0.4:
                path.mkdir()
                directories.append(path)
            elif kind < 0.8:
                path.write_bytes(rng.choice(contents))
            elif kind < 0.95:
                target = rng.choice([*directories, outside, path, outside / rng.choice(names)])
                path.symlink_to(rng.choice([target, os.path.relpath(target, path.parent)]))
            else:
                os.mkfifo(path)
        for _ in range(rng.randrange(3)):
            directory = rng.choice(directories)
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                if not os.path.lexists(directory / name):
                    (directory / name).write_bytes(b"{}")
        options = {
            "intrinsic": rng.choice([*[None] * 6, "granite"]),
            "technology": rng.choice([*[None] * 4, "alora", "lora"]),
        }
        try:
            source = find_source(rng.choice(directories), Pick(**options))
        except AloraError as error:
            messages.append(str(error))
            continue
        found += 1
        for file in (source.config, source.weights, source.io_yaml):
            assert file is None or file.resolve().is_relative_to(root)
    assert found > 10
    assert all(message.startswith(str(tmp_path)) for message in messages)
