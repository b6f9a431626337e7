"""native/fetch_upstream.py: what it refuses and says, and that it touches no more than it must.

No network: a small source distribution with its own pin stands in for upstream.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "native" / "fetch_upstream.py"

LINES = "".join(f"line {n}\n" for n in range(1, 21))
UPSTREAM = {
    "vendor/llama.cpp/CMakeLists.txt": "project(upstream)\n",
    "vendor/llama.cpp/src/a.cpp": LINES,
    "vendor/llama.cpp/src/b.cpp": LINES,
    "vendor/llama.cpp/models/vocab.gguf": "not needed",
    "llama_cpp/__init__.py": "__version__ = '1.0'\n",
    "llama_cpp/server/app.py": "",
    "LICENSE.md": "MIT\n",
    "README.md": "not needed",
    "tests/test_llama.py": "not needed",
}
PATCH = """\
--- a/src/{file}
+++ b/src/{file}
@@ -3,5 +3,6 @@
 line 3
 line 4
-line 5
+line five
+line five and a half
 line 6
 line 7
"""


@dataclass
class Project:
    """A pin, patches and a source distribution in a folder of their own."""

    folder: Path

    @property
    def pristine(self) -> Path:
        return self.folder / "dest" / "pristine"

    @property
    def patched(self) -> Path:
        return self.folder / "dest" / "patched"

    def pin(self, sha256: str | None = None) -> None:
        if sha256 is None:
            sha256 = hashlib.sha256((self.folder / "sdist.tar.gz").read_bytes()).hexdigest()
        (self.folder / "upstream.txt").write_text(f"# the pin\nthing==1.0 --hash=sha256:{sha256}\n")

    def patch(self, text: str, name: str = "hooks.patch") -> None:
        (self.folder / "patches" / name).write_text(text)

    def fetch(self, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        env.setdefault("ALORA_UPSTREAM_SDIST", str(self.folder / "sdist.tar.gz"))
        command = [sys.executable, str(SCRIPT), "--dest", str(self.folder / "dest")]
        command += ["--pin", str(self.folder / "upstream.txt")]
        command += ["--patches", str(self.folder / "patches"), *options]
        return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)

    def fetched(self, *options: str) -> Path:
        done = self.fetch(*options)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def refused(self, *options: str, **env: str) -> str:
        done = self.fetch(*options, **env)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr


def write_sdist(path: Path, files: dict[str, str], extra: tarfile.TarInfo | None = None) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"thing-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
        if extra is not None:
            archive.addfile(extra)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "patches").mkdir()
    write_sdist(tmp_path / "sdist.tar.gz", UPSTREAM)
    made = Project(tmp_path)
    made.pin()
    return made


def times(tree: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in tree.rglob("*") if p.suffix in (".cpp", ".txt")}


def make_old(tree: Path) -> None:
    for path in tree.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))


# ---- what it makes -------------------------------------------------------------------------------


def test_without_a_patch_both_trees_are_upstream(project: Project) -> None:
    assert project.fetched() == project.patched
    for tree in (project.pristine, project.patched):
        assert (tree / "src/a.cpp").read_text() == LINES
        assert not (tree / "models").exists()


def test_the_bindings_python_files_and_their_licence_lie_beside_it(project: Project) -> None:
    project.fetched()
    for tree in (project.pristine, project.patched):
        folder = tree / "binding"
        found = {
            each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()
        }
        assert found == {"LICENSE.md", "llama_cpp/__init__.py", "llama_cpp/server/app.py"}


def test_no_patch_stops_at_the_pristine_tree(project: Project) -> None:
    project.patch("nonsense")
    assert project.fetched("--no-patch") == project.pristine
    assert not project.patched.exists()


def test_the_patch_changes_only_the_patched_tree(project: Project) -> None:
    project.patch(PATCH.format(file="a.cpp"))
    project.fetched()
    assert "line five and a half\nline 6\n" in (project.patched / "src/a.cpp").read_text()
    assert (project.pristine / "src/a.cpp").read_text() == LINES
    assert (project.patched / "src/b.cpp").read_text() == LINES


def test_a_second_run_writes_nothing(project: Project) -> None:
    project.patch(PATCH.format(file="a.cpp"))
    make_old(project.fetched())
    before = times(project.patched)
    project.fetched()
    assert times(project.patched) == before


def test_a_second_run_needs_no_source_distribution(project: Project) -> None:
    project.fetched()
    (project.folder / "sdist.tar.gz").unlink()
    project.fetched()


def test_a_changed_patch_writes_only_the_files_it_changes(project: Project) -> None:
    project.patch(PATCH.format(file="a.cpp"), "1.patch")
    make_old(project.fetched())
    before = times(project.patched)
    project.patch(PATCH.format(file="b.cpp"), "2.patch")
    project.fetched()
    after = times(project.patched)
    assert {name for name in after if after[name] != before[name]} == {"b.cpp"}


def test_a_removed_patch_brings_upstreams_file_back(project: Project) -> None:
    project.patch(PATCH.format(file="a.cpp"))
    project.fetched()
    (project.folder / "patches/hooks.patch").unlink()
    project.fetched()
    assert (project.patched / "src/a.cpp").read_text() == LINES


def test_two_patches_of_one_file_build_on_each_other(project: Project) -> None:
    project.patch(PATCH.format(file="a.cpp"), "1.patch")
    second = PATCH.format(file="a.cpp").replace("-line 5\n", "-line five\n").splitlines(True)
    project.patch(
        "".join(line for line in second if not line.startswith("+line five\n"))
        .replace("@@ -3,5 +3,6 @@", "@@ -3,5 +3,5 @@")
        .replace(" line 6\n line 7\n", " line five and a half\n line 6\n"),
        "2.patch",
    )
    project.fetched()
    text = (project.patched / "src/a.cpp").read_text()
    assert "line 4\nline five and a half\nline five and a half\nline 6\n" in text


def test_another_pin_replaces_both_trees(project: Project) -> None:
    project.fetched()
    write_sdist(
        project.folder / "sdist.tar.gz", {**UPSTREAM, "vendor/llama.cpp/src/a.cpp": "newer\n"}
    )
    project.pin()
    project.fetched()
    assert (project.pristine / "src/a.cpp").read_text() == "newer\n"
    assert (project.patched / "src/a.cpp").read_text() == "newer\n"


# ---- what it refuses -----------------------------------------------------------------------------


def test_a_wrong_hash_is_refused(project: Project) -> None:
    project.pin("0" * 64)
    message = project.refused()
    assert "sdist.tar.gz: its sha256 is " in message
    assert f"upstream.txt pins {'0' * 64} for thing==1.0" in message
    assert "delete it and fetch it again" in message
    assert not project.pristine.exists()


def test_a_missing_file_names_the_variable(project: Project) -> None:
    message = project.refused(ALORA_UPSTREAM_SDIST="/nowhere/sdist.tar.gz")
    assert "/nowhere/sdist.tar.gz: cannot be read (No such file or directory)" in message
    assert "ALORA_UPSTREAM_SDIST" in message


def test_a_failed_download_shows_pips_words_and_the_ways_out(project: Project) -> None:
    (project.folder / "empty").mkdir()
    message = project.refused(
        ALORA_UPSTREAM_SDIST="",
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(project.folder / "empty"),
    )
    assert "pip could not download the source distribution of thing==1.0" in message
    assert "No matching distribution found" in message
    assert "PIP_INDEX_URL" in message
    assert "ALORA_UPSTREAM_SDIST" in message


def test_an_index_with_another_file_is_refused(project: Project) -> None:
    links = project.folder / "links"
    links.mkdir()
    (links / "thing-1.0.tar.gz").write_bytes((project.folder / "sdist.tar.gz").read_bytes())
    project.pin("0" * 64)
    message = project.refused(
        ALORA_UPSTREAM_SDIST="",
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(links),
    )
    assert "the package index gave another file than the pinned thing==1.0" in message
    assert "Do not use that file" in message


def edit_hunk(text: str) -> str:
    return text.replace(" line 6\n", " line sechs\n")


def move_hunk(text: str) -> str:
    return text.replace("@@ -3,5 +3,6 @@", "@@ -4,5 +4,6 @@")


@pytest.mark.parametrize("spoil", [edit_hunk, move_hunk])
def test_a_hunk_that_does_not_match_is_named(project: Project, spoil: Callable[[str], str]) -> None:
    project.patch(spoil(PATCH.format(file="a.cpp")))
    message = project.refused()
    assert "hooks.patch does not apply to thing==1.0" in message
    assert "src/a.cpp" in message
    assert "hunk no.1 doesn't match source file at line" in message
    assert "'Moving to a newer upstream' in native/README.md" in message
    assert not project.patched.exists()


def test_a_patch_that_fails_leaves_the_tree_as_it_was(project: Project) -> None:
    project.patch(PATCH.format(file="a.cpp"))
    project.fetched()
    project.patch(edit_hunk(PATCH.format(file="b.cpp")), "later.patch")
    project.refused()
    assert "line five" in (project.patched / "src/a.cpp").read_text()
    assert (project.patched / "src/b.cpp").read_text() == LINES


def test_a_patch_of_a_file_that_upstream_lacks_is_refused(project: Project) -> None:
    project.patch(PATCH.format(file="new.cpp"))
    message = project.refused()
    assert "src/new.cpp" in message
    assert "new files belong in native/src" in message


def test_an_empty_patch_is_refused(project: Project) -> None:
    project.patch("nothing to see here\n")
    assert "hooks.patch does not apply" in project.refused()


def test_a_link_in_the_source_distribution_is_refused(project: Project) -> None:
    link = tarfile.TarInfo("thing-1.0/vendor/llama.cpp/src/evil.cpp")
    link.type = tarfile.SYMTYPE
    link.linkname = "/etc/passwd"
    write_sdist(project.folder / "sdist.tar.gz", UPSTREAM, link)
    project.pin()
    assert "refused to unpack 'thing-1.0/vendor/llama.cpp/src/evil.cpp'" in project.refused()


@pytest.mark.parametrize("folder", ["vendor/llama.cpp/src", "llama_cpp"])
def test_a_path_out_of_the_tree_is_refused(project: Project, folder: str) -> None:
    path = f"{folder}/../../../../evil"
    write_sdist(project.folder / "sdist.tar.gz", {**UPSTREAM, path: "x"})
    project.pin()
    assert "refused to unpack" in project.refused()
    assert not (project.folder / "evil").exists()


def test_a_source_distribution_without_upstream_is_refused(project: Project) -> None:
    write_sdist(project.folder / "sdist.tar.gz", {"vendor/llama.cpp/src/a.cpp": LINES})
    project.pin()
    assert "has no vendor/llama.cpp/CMakeLists.txt" in project.refused()


def test_a_truncated_source_distribution_is_refused(project: Project) -> None:
    sdist = project.folder / "sdist.tar.gz"
    sdist.write_bytes(sdist.read_bytes()[:-40])
    project.pin()
    assert "sdist.tar.gz: not a sound .tar.gz file" in project.refused()
    assert not project.pristine.exists()


@pytest.mark.parametrize("text", ["", "thing>=1.0\n", "thing==1.0\n", "thing==1.0 --hash=md5:00\n"])
def test_a_pin_without_version_and_hash_is_refused(project: Project, text: str) -> None:
    (project.folder / "upstream.txt").write_text(text)
    assert "expected one line 'name==version --hash=sha256:" in project.refused()
