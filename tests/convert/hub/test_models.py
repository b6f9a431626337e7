"""Which model of a repository a pattern means, and its files, fetched whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from alora_gguf.convert.hub.client import _bar_called
from alora_gguf.convert.hub.fetch import choose_model

from alora_gguf.errors import ConvertError, FileFormatError, HubError, InputError
from tests.support.hub_repos import Hub, fetch_model, remote_model
from tests.support.hub_server import HubServer

NAMES = [
    "README.md",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "q8/m-Q8_0.GGUF",
    "big-00001-of-00002.gguf",
    "big-00002-of-00002.gguf",
    "lost-00002-of-00002.gguf",
    "a[1].gguf",
    "a1.gguf",
]
BIG = ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("m-Q4_K_M.gguf", ["m-Q4_K_M.gguf"]),
        ("*q4_k_m*", ["m-Q4_K_M.gguf"]),
        ("*Q4_K_[S]*", ["m-Q4_K_S.gguf"]),
        ("*q8_0.gguf", ["q8/m-Q8_0.GGUF"]),
        ("a[1].gguf", ["a[1].gguf"]),
        ("big*", BIG),
        (BIG[1], BIG),
        ("*-00001-of-00002.gguf", None),
        ("*Q4*", None),
        ("*Q5*", None),
        ("*.md", None),
        ("lost*", None),
    ],
)
def test_what_a_pattern_means(pattern: str, found: list[str] | None) -> None:
    if found is not None:
        assert choose_model(NAMES, pattern, "o/r") == found
        return
    with pytest.raises(InputError, match=r"^o/r: ") as caught:
        choose_model(NAMES, pattern, "o/r")
    assert "m-Q4_K_M.gguf" in str(caught.value) or "lost-00001-of-00002.gguf" in str(caught.value)


def test_fetched_whole(server: HubServer, hub: Hub) -> None:
    files = {name: name.encode() for name in BIG}
    commit = server.add("o/r", {**files, "small.gguf": b"x", "text.md": "x"})
    model = remote_model("hf://o/r", "big*", hub=hub)
    assert server.files_asked == []
    assert model.commit == commit
    assert model.names == BIG
    assert [model.sha256(name) for name in BIG] == [
        hashlib.sha256(name.encode()).hexdigest() for name in BIG
    ]
    paths = fetch_model(model, hub=hub)
    assert [path.read_bytes() for path in paths] == list(files.values())
    assert server.files_asked == BIG
    away = Hub(endpoint=server.url, cache=hub.cache, offline=True)
    again = remote_model("hf://o/r", "big*", hub=away)
    assert (again.commit, again.names, fetch_model(again, hub=away)) == (commit, BIG, paths)
    assert again.sha256(BIG[0]) is None
    with pytest.raises(InputError, match=r"'small\*'; there are big-00001-of-00002.gguf \(2 part"):
        remote_model("hf://o/r", "small*", hub=away)
    paths[1].unlink()
    with pytest.raises(InputError, match=r"there is no big-00002-of-00002\.gguf"):
        remote_model("hf://o/r", "big*", hub=away)
    with pytest.raises(FileFormatError, match=r"00002\.gguf: there is no such file any more; try"):
        fetch_model(again, hub=away)
    with pytest.raises(HubError, match="hf://o/s: is not in the cache"):
        remote_model("hf://o/s", "big*", hub=away)


def test_a_directory_to_look_in(server: HubServer, hub: Hub) -> None:
    server.add("o/r", {"a/m.gguf": b"x", "b/m.gguf": b"y", "c/x.txt": "x"})
    assert remote_model("hf://o/r/b", "*", hub=hub).names == ["b/m.gguf"]
    for path, there in (("c", "c/x.txt"), ("d", "nothing")):
        with pytest.raises(InputError) as caught:
            remote_model(f"hf://o/r/{path}", "*", hub=hub)
        assert str(caught.value) == (
            f"hf://o/r/{path}: holds no GGUF files, expected '*'; it holds {there}"
        )


def test_a_link_that_was_planted_in_the_cache(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    server.add("o/r", {"m.gguf": b"x"})
    model = remote_model("hf://o/r/m.gguf", "m.gguf", hub=hub)
    (path,) = fetch_model(model, hub=hub)
    (tmp_path / "secret").write_bytes(b"secret")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ConvertError, match=r"is a link to .*/secret, outside of"):
        fetch_model(model, hub=hub)


def test_a_bar_has_the_files_name() -> None:
    bar = _bar_called("q/m.gguf")(total=3, desc="signature", disable=True)
    assert bar.total == 3
    with _bar_called("q/m.gguf")(total=3, desc="signature") as bar:
        assert bar.desc.startswith("m.gguf")
