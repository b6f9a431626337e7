"""The stock libllama that results are compared with: the pinned upstream without our patch.

It shares ggml with the installed alora-gguf, so only libllama can make results differ.
`python -m tests.stock` builds it ahead of the tests and prints where it is.
"""

from __future__ import annotations

import filecmp
import functools
import hashlib
import re
import shutil
from pathlib import Path

from alora_gguf.engine.library import library_dir
from alora_gguf.files import locked
from tests.support.building import cmake_build
from tests.support.upstream import upstream_tree

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "stock"


@functools.cache
def stock_library_dir() -> Path:
    """The folder with stock libllama and its ggml, for LLAMA_CPP_LIB_PATH of a subprocess.

    Builds it if it is missing or older than its sources; takes no time otherwise.
    """
    for patch in sorted((ROOT / "native" / "patches").glob("*.patch")):
        text = patch.read_text(encoding="utf-8")  # what is built of it may differ, but no source
        if re.search(r"^\+\+\+ (b/)?ggml/(?!.*CMakeLists\.txt$|src/ggml-rpc/)", text, re.MULTILINE):
            raise RuntimeError(
                f"{patch} changes ggml's sources, which the stock library shares with ours; "
                "tests/stock must build its own ggml then"
            )
    pristine = upstream_tree()
    BUILD.mkdir(parents=True, exist_ok=True)
    with locked(BUILD / "one-at-a-time.lock"):  # processes of a run come here at the same time
        return _built(pristine)


def _built(pristine: Path) -> Path:
    folder = BUILD / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for library in sorted(library_dir().iterdir()):
        if "ggml" in library.name and not _same(library, folder / library.name):
            shutil.copy2(library, folder / library.name)

    made_from = [pristine / ".alora-stamp.json", Path(__file__).with_name("CMakeLists.txt")]
    made_from += sorted(path for path in folder.iterdir() if "ggml" in path.name)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in made_from)).hexdigest()
    stamp = BUILD / "made-from.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return folder

    cmake_build(Path(__file__).parent, BUILD, "llama", PRISTINE=pristine)
    stamp.write_text(digest, encoding="utf-8")
    return folder


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
