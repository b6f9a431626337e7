"""The store: what is added is found by its name, and by no other."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.store.entry import is_file_name, key_of, name_from, read_entry
from alora_gguf.store.store import Store
from tests.support.stored import about, add, files_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a" / "store")


# Adding, finding, removing -----------------------------------------------------------------------


def test_added_found_and_removed(store: Store) -> None:
    assert store.contents().entries == ()
    assert not store.home.exists()
    entry = add(store, "Sure-1.0")
    assert entry.files[0].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert entry.nbytes == 7
    assert entry.added.endswith("Z")
    assert store.contents().entries == (entry,)
    for name in ("Sure-1.0", "sure-1.0", "SURE-1.0"):
        assert store.find(name) == store.get(name, "adapter") == entry
        assert store.resolve(name).read_bytes() == b"weights"
    assert files_of(store) == [
        "entries/sure-1.0.json", f"files/{entry.folder}/Sure-1.0.gguf"
    ]  # fmt: skip
    assert store.remove("sUre-1.0") == entry
    assert store.find("sure-1.0") is None
    assert files_of(store) == []


def test_without_a_commit_nothing_is_left(store: Store) -> None:
    with store.adding("sure") as addition:
        (addition.folder / "sure.gguf").write_bytes(b"half")
    with pytest.raises(ZeroDivisionError), store.adding("sure") as addition:
        raise ZeroDivisionError((addition.folder / "sure.gguf").write_bytes(b"half"))
    assert list((store.home / "files").iterdir()) == []
    assert store.contents().entries == ()


def test_the_same_files_again(store: Store) -> None:
    before = add(store, "sure")
    with store.adding("sure") as addition:
        (addition.folder / "sure.gguf").write_bytes(b"weights")
        assert addition.commit(about(commit="1" * 40)) == before
        assert not addition.changed
    assert store.contents().entries == (before,)
    assert len(files_of(store)) == 2


def test_other_files_under_the_same_name(store: Store) -> None:
    before = add(store, "sure")
    with pytest.raises(InputError) as caught:
        add(store, "SURE", b"other")
    assert str(caught.value) == (
        f"'sure' is in the store already with other files, from o/r/sure/alora at {'0' * 40}; "
        "--force (replace=True) replaces it, --name gives this one another name"
    )
    assert store.contents().entries == (before,)
    after = add(store, "SURE", b"other", replace=True)
    assert store.contents().entries == (after,)
    assert store.resolve("sure").read_bytes() == b"other"
    assert len(files_of(store)) == 2


def test_several_files(store: Store) -> None:
    with store.adding("big") as addition:
        for i in (2, 1):
            (addition.folder / f"big-0000{i}-of-00002.gguf").write_bytes(bytes(i))
        seen: list[tuple[int, int]] = []
        assert [file.nbytes for file in addition.files(lambda *a: seen.append(a))] == [1, 2]
        assert seen == [(1, 3), (3, 3)]
        entry = addition.commit(about("base"))
    assert store.resolve("big", "base").name == "big-00001-of-00002.gguf"
    (store.home / "files" / entry.folder / "big-00002-of-00002.gguf").unlink()
    with pytest.raises(FileFormatError, match=r"00002\.gguf: cannot be read: No such file"):
        store.resolve("big")


def test_what_resolves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store, "sure")
    add(store, "granite", b"base", kind="base")
    for text in ("a/b", "./sure", "sure.gguf", "SURE.GGUF", "/x/y"):
        assert Store.is_path(text)
        assert store.resolve(text, "adapter") == Path(text)
    assert store.resolve(Path("sure")) == Path("sure")
    assert not Store.is_path("sure")
    with pytest.raises(InputError) as caught:
        store.resolve("granite", "adapter")
    assert str(caught.value) == "'granite' is a base, expected an adapter; its adapters are sure"
    with pytest.raises(InputError) as caught:
        store.resolve("sure", "base")
    assert str(caught.value) == "'sure' is an adapter, expected a base; its bases are granite"
    with pytest.raises(InputError) as caught:
        store.resolve("citations", "adapter")
    assert str(caught.value) == (
        f"nothing named 'citations' is an adapter in the store {store.home}; its adapters are "
        "sure; or give the path of a GGUF"
    )
    monkeypatch.chdir(store.home)
    Path("citations").mkdir()
    with pytest.raises(InputError) as caught:
        store.resolve("citations")
    assert str(caught.value) == (
        f"nothing named 'citations' is in the store {store.home} (a path has a separator: "
        f".{os.sep}citations); it holds granite, sure"
    )


def test_long_lists_in_messages_end(store: Store) -> None:
    for i in range(15):
        add(store, f"n{i:02}")
    with pytest.raises(InputError, match=r"; it holds n00, n01, .*, n11 and 3 more$"):
        store.get("x")


def test_a_file_that_was_changed(store: Store) -> None:
    path = store.path(add(store, "sure"))
    path.write_bytes(b"longer than before")
    with pytest.raises(FileFormatError) as caught:
        store.resolve("sure")
    assert str(caught.value) == (
        f"{path}: has 18 bytes, expected 7; it belongs to 'sure' and was changed: pull it again, "
        "or remove it with `alora-gguf rm sure`"
    )
    add(store, "sure", b"new weights")  # needs no replace: what was there is lost
    assert store.resolve("sure").read_bytes() == b"new weights"
    assert len(files_of(store)) == 2


# Names -------------------------------------------------------------------------------------------

NAMES = ["a", "A.b-c_d", "granite-4.1-3b-Q4_K_M", "0", "x" * 100, "a..b", "console", "com10x"]
NO_NAMES = ["", ".", "..", ".a", "-a", "_a", "a/b", "a\\b", "a b", "a\n", "a\0", "ä", "a.", "a:b",
            "x" * 101, "a.gguf", "a.GGUF", "con", "CON", "nul.txt", "com1", "LPT9.x"]  # fmt: skip


def test_an_entry_larger_than_any_that_was_written(store: Store) -> None:
    entry = add(store, "sure")
    path = store.home / "entries" / "sure.json"
    path.write_text(path.read_text() + " " * (1 << 20))
    with pytest.raises(FileFormatError, match="is not what the store wrote there, expected an ent"):
        store.find("sure")
    path.write_text(json.dumps(entry.to_dict()) + " " * 1000)
    assert store.find("sure") == entry


def test_a_file_that_was_changed_to_one_of_the_same_size(store: Store, tmp_path: Path) -> None:
    """As who can write to the cache can: the store's file is a second name of the cache's."""
    cached = tmp_path / "cached.gguf"
    cached.write_bytes(b"weights")
    with store.adding("sure") as addition:
        path = addition.put(cached, "sure.gguf")
        (addition.folder / "more.gguf").write_bytes(b"more")
        entry = addition.commit(about())
    store.check(entry)
    cached.write_bytes(b"changed")
    assert store.path(entry).parent == path.parent  # its size is the same
    with pytest.raises(FileFormatError) as caught:
        store.check(entry)
    digests = [hashlib.sha256(data).hexdigest() for data in (b"changed", b"weights")]
    assert str(caught.value) == (
        f"{path}: has the SHA-256 {digests[0]}, expected {digests[1]}; it belongs to 'sure' and "
        "was changed: pull it again, or remove it with `alora-gguf rm sure`"
    )
    path.unlink()
    with pytest.raises(FileFormatError, match="cannot be read"):
        store.check(entry)


@pytest.mark.parametrize("name", NAMES)
def test_names(store: Store, name: str) -> None:
    entry = add(store, name)
    assert read_entry(store.home / "entries" / f"{key_of(name)}.json") == entry
    assert name_from(name) == name


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name(store: Store, name: str) -> None:
    for use in (store.find, store.get, store.remove, lambda name: add(store, name)):
        with pytest.raises(InputError, match=r"is not a name for the store: expected up to 100"):
            use(name)  # type: ignore[operator]
    assert not store.home.exists()
    key_of(name_from(name))  # and there is one near it


def test_names_from_others() -> None:
    made = [name_from(t) for t in ("query rewrite", "../../x", "ä", "a.gguf.GGUF", "con", "-.x-.")]
    assert made == ["query-rewrite", "x", "unnamed", "a", "x-con", "x"]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "...", ".a", "a\nb", "a:b", "NUL", "a*"])
def test_files_that_cannot_be_stored(name: str) -> None:
    assert not is_file_name(name)


def test_a_file_that_is_hidden_is_refused(store: Store) -> None:
    with store.adding("sure") as addition:
        (addition.folder / ".hidden").write_bytes(b"x")
        with pytest.raises(InputError, match=r"^\.hidden: is not a name for a file of the store$"):
            addition.commit(about())
