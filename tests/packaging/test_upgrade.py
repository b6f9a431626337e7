"""native/upgrade.py: a whole move in a small checkout, what it says of failures, what it writes.

No network: two small source distributions stand for two releases, and CMake has nothing to compile.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONTEXT = """\
int before;

int decode(int batch) {
    int n = batch;

    return n;
}

int encode(int batch) {
    check(batch);
    return batch;
}
"""
PATCH = """\
diff --git a/src/llama-context.cpp b/src/llama-context.cpp
--- a/src/llama-context.cpp
+++ b/src/llama-context.cpp
@@ -5,3 +5,3 @@ int decode(int batch) {

-    return n;
+    return guarded(n);
 }
@@ -10,3 +10,3 @@ int encode(int batch) {
     check(batch);
-    return batch;
+    return guarded(batch);
 }
""".replace("\n\n", "\n \n")
README = """\
## The patches, hunk by hunk

| file | hunk | why |
|---|---|---|
| `llama-context.cpp` | `decode` | nothing is thrown through C |
| | `encode` | refuses batches that are too large |

## Easy to get wrong
"""
NAMED = {
    "requirements.txt": 'llama-cpp-python=={} --config-settings="x"\n',
    "pyproject.toml": '["llama-cpp-python=={0}"]\n["llama-cpp-python[server]=={0}"]\n',
    "alora_gguf/engine/library.py": 'LLAMA_CPP_PYTHON: Final = "{}"\n',
    "docs/llama.md": "`llama_cpp.Llama` {}: chat formats\n",
    "THIRD_PARTY.md": "as carried by the source distribution of llama-cpp-python {} | when\n",
    "CHANGELOG.md": "- the llama.cpp of llama-cpp-python {} through the index\n",
}
CMAKE = """\
cmake_minimum_required(VERSION 3.21)
project(small LANGUAGES NONE)
enable_testing()
add_test(NAME test_upstream_ggml COMMAND "${CMAKE_COMMAND}" -E true)
"""
# What pip needs of a source distribution in a folder that stands for an index.
BACKEND = {
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n',
    "b.py": """\
import pathlib


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    made = pathlib.Path(folder, "llama_cpp_python-2.0.dist-info")
    made.mkdir()
    about = "Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: 2.0\\n"
    (made / "METADATA").write_text(about)
    return made.name
""",
}


def write_sdist(path: Path, version: str, context: str = CONTEXT, **files: str) -> None:
    sources = {
        "vendor/llama.cpp/CMakeLists.txt": "project(upstream)\n",
        "vendor/llama.cpp/src/llama-context.cpp": context,
        "vendor/llama.cpp/src/llama-graph.h": "struct llm_graph_params {\n};\n",
        "llama_cpp/__init__.py": f'__version__ = "{version}"\n',
        "llama_cpp/llama_cpp.py": "",
        **BACKEND,
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in sources.items():
            info = tarfile.TarInfo(f"llama_cpp_python-{version}/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Checkout:
    """A small checkout that is pinned to 1.0, and the source distribution of 2.0."""

    folder: Path

    @property
    def sdist(self) -> Path:
        return self.folder / "llama_cpp_python-2.0.tar.gz"

    @property
    def work(self) -> Path:
        return self.folder / "build/upgrade/2.0"

    def upgrade(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs the command with the file of 2.0 unless other arguments are given."""
        given = arguments or ("2.0", "--sdist", str(self.sdist))
        command = [sys.executable, str(self.folder / "native/upgrade.py"), *given]
        command += ["--json", str(self.folder / "report.json")]
        defaults = {
            "ALORA_UPSTREAM_SDIST": str(self.folder / "llama_cpp_python-1.0.tar.gz"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "",
        }
        environment = {**os.environ, **defaults, **env}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def passed(self, *options: str, **env: str) -> str:
        done = self.upgrade("2.0", "--sdist", str(self.sdist), *options, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert self.report["ok"] is True
        return done.stdout

    def failed(self, *options: str, **env: str) -> str:
        done = self.upgrade("2.0", "--sdist", str(self.sdist), *options, **env)
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stderr
        assert self.report["ok"] is False
        assert self.report["error"] in done.stderr
        return done.stderr

    @property
    def report(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return loaded

    def files(self) -> dict[str, str]:
        paths = [p for p in self.folder.rglob("*") if p.is_file() and p.suffix in SUFFIXES]
        return {
            p.relative_to(self.folder).as_posix(): p.read_text()
            for p in paths
            if "build" not in p.relative_to(self.folder).parts and p.name != "report.json"
        }


SUFFIXES = (".txt", ".toml", ".py", ".md", ".patch", ".partial")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    native = tmp_path / "native"
    shutil.copytree(
        ROOT / "native/moving", native / "moving", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("fetch_upstream.py", "upgrade.py"):
        shutil.copyfile(ROOT / "native" / name, native / name)
    write_sdist(tmp_path / "llama_cpp_python-1.0.tar.gz", "1.0")
    write_sdist(tmp_path / "llama_cpp_python-2.0.tar.gz", "2.0", "// new\n" + CONTEXT)
    pin = sha256(tmp_path / "llama_cpp_python-1.0.tar.gz")
    (native / "upstream.txt").write_text(f"# pin\nllama-cpp-python==1.0 --hash=sha256:{pin}\n")
    (native / "README.md").write_text(README)
    (native / "patches").mkdir()
    (native / "patches/hooks.patch").write_text(PATCH)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    for path, text in NAMED.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text.format("1.0"))
    return Checkout(tmp_path)


def change(checkout: Checkout, old: str, new: str) -> None:
    """Makes 2.0 another one."""
    assert old in CONTEXT
    write_sdist(checkout.sdist, "2.0", CONTEXT.replace(old, new))


# ---- a move that passes --------------------------------------------------------------------------


def test_a_move_writes_nothing_unless_asked_to(checkout: Checkout) -> None:
    before = checkout.files()
    said = checkout.passed()
    assert checkout.files() == before
    assert "2 hunks: 2 moved" in said
    assert "not compared with the index, which does not have it" in said
    assert "1 of 1 programs passed" in said
    assert "the same command with --write writes it" in said
    report = checkout.report
    assert (report["from"], report["to"]) == ("1.0", "2.0")
    assert report["sha256"] == sha256(checkout.sdist)
    assert [step["name"] for step in report["steps"]] == [
        "pinned", "fetch", "patch", "compare", "build", "native",
    ]  # fmt: skip
    (hunk, _) = report["hunks"]
    assert (hunk["line"], hunk["new_line"], hunk["outcome"], hunk["moved"]) == (6, 7, "moved", 1)
    assert hunk["purpose"] == "nothing is thrown through C"


def test_write_names_the_release_everywhere_and_the_patch_is_exact(checkout: Checkout) -> None:
    checkout.passed("--write", "--tests", "none")
    files = checkout.files()
    for path, text in NAMED.items():
        assert files[path] == text.format("2.0")
    pin = f"llama-cpp-python==2.0 --hash=sha256:{sha256(checkout.sdist)}"
    assert files["native/upstream.txt"] == f"# pin\n{pin}\n"
    assert "@@ -6,3 +6,3 @@ int decode(int batch) {" in files["native/patches/hooks.patch"]
    assert checkout.report["written"] == sorted([*NAMED, "native/upstream.txt", HOOKS])
    # and on from there, where nothing moves and nothing is left to write
    before = checkout.files()
    said = checkout.passed("--write", "--tests", "none", ALORA_UPSTREAM_SDIST=str(checkout.sdist))
    assert "2 hunks: 2 exact" in said
    assert checkout.report["written"] == []
    assert checkout.files() == before


HOOKS = "native/patches/hooks.patch"
OTHER = """\
diff --git a/src/llama-graph.h b/src/llama-graph.h
--- a/src/llama-graph.h
+++ b/src/llama-graph.h
@@ -1,2 +1,3 @@
 struct llm_graph_params {
+    int ours;
 };
"""


# ---- hunks that have no place --------------------------------------------------------------------


def test_a_failed_hunk_is_explained_and_the_move_goes_on_by_hand(checkout: Checkout) -> None:
    change(checkout, "    return batch;", "    return batch + 1;")
    (checkout.folder / "native/patches/other.patch").write_text(OTHER)
    before = checkout.files()
    said = checkout.failed("--write")
    assert checkout.files() == before
    assert f"{HOOKS}: hunk 2 of src/llama-context.cpp (line 11, int encode(int batch) {{)" in said
    assert "for: refuses batches that are too large" in said
    assert "looked for: return batch;" in said
    assert "    11:     return batch + 1;" in said
    file = checkout.work / "upstream/patched/src/llama-context.cpp"
    assert f"look at: {file}:11" in said
    assert "--resume" in said
    assert [hunk["outcome"] for hunk in checkout.report["hunks"]] == ["exact", "failed", "exact"]
    assert checkout.report["changes"] is not None

    assert "is as the last try left it" in checkout.failed("--resume")
    assert "return guarded(n);" in file.read_text()  # the other hunk is there already
    file.write_text(file.read_text().replace("return batch + 1;", "return guarded(batch + 1);"))
    assert "was changed by hand after the last try" in checkout.failed()
    checkout.passed("--resume", "--write", "--tests", "none")
    assert [hunk["outcome"] for hunk in checkout.report["hunks"]] == ["exact", "by hand", "exact"]
    patch = checkout.files()[HOOKS]
    assert patch == PATCH.replace("return batch;", "return batch + 1;").replace(
        "guarded(batch)", "guarded(batch + 1)"
    )
    assert checkout.files()["native/patches/other.patch"] == OTHER


def test_a_hunk_that_is_left_out_is_said(checkout: Checkout) -> None:
    write_sdist(checkout.sdist, "2.0", CONTEXT.replace(" n;", " n + 1;").replace("h;", "h + 1;"))
    checkout.failed()
    file = checkout.work / "upstream/patched/src/llama-context.cpp"
    file.write_text(file.read_text().replace("return n + 1;", "return guarded(n + 1);"))
    said = checkout.passed("--resume", "--tests", "none")
    assert "hunk 2 was left out; it was for: refuses batches that are too large" in said


def test_a_line_that_went_to_another_file_is_found(checkout: Checkout) -> None:
    tree = checkout.folder / "tree"
    shutil.copytree(checkout.folder / "native", tree / "src")  # some files
    (tree / "src/llama-graph.h").write_text("int decode(int batch) {\n    return batch;\n}\n")
    done = checkout.upgrade("--tree", str(tree))
    assert done.returncode == 1
    assert "upstream: the file is gone" in done.stderr
    assert "the same line is at: src/llama-graph.h:2" in done.stderr


def test_a_tree_alone_is_only_tried(checkout: Checkout) -> None:
    tree = checkout.folder / "tree"
    (tree / "src").mkdir(parents=True)
    (tree / "src/llama-graph.h").write_text("")
    (tree / "src/llama-context.cpp").write_text(CONTEXT.replace("    int n = batch;\n\n", ""))
    before = checkout.files()
    done = checkout.upgrade("--tree", str(tree))
    assert done.returncode == 0, done.stderr
    assert "src/llama-context.cpp: fuzz 1 (-2), -2" in done.stdout
    assert "src/llama-context.cpp: read hunk 1 in its new place" in done.stdout
    assert [step["name"] for step in checkout.report["steps"]] == ["pinned", "patch", "compare"]
    assert checkout.files() == before


# ---- what it refuses -----------------------------------------------------------------------------


def test_another_file_than_the_index_has_is_refused(checkout: Checkout) -> None:
    index = checkout.folder / "index"
    index.mkdir()
    shutil.copyfile(checkout.sdist, index / checkout.sdist.name)
    known = sha256(checkout.sdist)
    change(checkout, "int before;", "int other;")
    said = checkout.failed(PIP_FIND_LINKS=str(index))
    assert f"its sha256 is {sha256(checkout.sdist)}, but the index has {known}" in said
    assert "llama-cpp-python==2.0" in said
    assert not (checkout.work / "upstream").exists()


def test_a_release_that_the_index_does_not_have(checkout: Checkout) -> None:
    done = checkout.upgrade("2.0")
    assert done.returncode == 1
    assert "pip found no source distribution of llama-cpp-python==2.0" in done.stderr
    assert "--sdist FILE" in done.stderr


def test_a_file_of_another_release(checkout: Checkout) -> None:
    write_sdist(checkout.sdist, "3.0")
    assert "holds llama_cpp 3.0, expected 2.0" in checkout.failed()


def test_a_native_test_that_fails_stops_the_move(checkout: Checkout) -> None:
    (checkout.folder / "CMakeLists.txt").write_text(CMAKE.replace("-E true", "-E false"))
    before = checkout.files()
    said = checkout.failed("--write")
    assert "native tests failed: test_upstream_ggml" in said
    assert "native.log has their output" in said
    assert "say what we rely on" in said
    assert checkout.files() == before


def test_a_build_that_fails_says_why(checkout: Checkout) -> None:
    (checkout.folder / "CMakeLists.txt").write_text(CMAKE + 'message(FATAL_ERROR "no compiler")\n')
    said = checkout.failed()
    assert "CMake's configure failed; all of it is in " in said
    assert "CMake Error at CMakeLists.txt" in said


def test_a_place_that_names_the_release_differently(checkout: Checkout) -> None:
    (checkout.folder / "docs/llama.md").write_text("of some release\n")
    said = checkout.failed("--write")
    assert "docs/llama.md: expected '`llama_cpp.Llama` 1.0:' once, found it 0 times" in said
    assert "PLACES" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected either a VERSION such as 0.3.37 or --tree DIR"),
        (["newest"], "VERSION is 'newest'; expected a release such as 0.3.37"),
        (["--tree", "."], "--tree .: has no src/llama-graph.h; expected llama.cpp's root"),
        (["2.0", "--json", "nowhere/x.json"], "--json nowhere/x.json: its folder does not exist"),
        (["2.0", "--jobs", "0"], "--jobs is '0'; expected a number from 1 on"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "native/upgrade.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr


# ---- writing -------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_every_file_as_it_was(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "native")
    from moving.checkout import write_all

    before = checkout.files()
    rename, renamed = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        renamed.append(target)
        if len(renamed) == 3:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_all(checkout.folder, dict.fromkeys(NAMED, "half\n"))
    assert len(renamed) > 3  # those before it were put back
    assert checkout.files() == before


def test_the_table_of_places_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "native")
    from moving.checkout import PIN, PLACES

    version = re.search(r"==([\d.]+)", (ROOT / PIN).read_text())
    assert version is not None
    folders = ("alora_gguf", "benchmarks", "cli", "convert", "docs", "examples", "native", "tests")
    files = [*ROOT.glob("*"), *(ROOT / ".ci").rglob("*")]
    files += [file for folder in folders for file in (ROOT / folder).rglob("*")]
    named = {
        file.relative_to(ROOT).as_posix()
        for file in files
        if file.suffix in (".py", ".md", ".toml", ".txt", ".yml", "")
        and file.is_file()
        and re.search(
            rf"(?<![\d.]){re.escape(version[1])}(?![\d.]*\d)", file.read_text("utf-8", "replace")
        )
    }
    log_of_moves = {"native/README.md"}
    assert named - log_of_moves == {PIN, *PLACES}
