"""Obtains the pinned upstream llama.cpp, checks its hash and applies our patch.

It owns DEST, which holds two trees: `pristine/`, as upstream published it, and `patched/`, the same
with native/patches applied. A second run changes nothing, and after a change of a patch only the
files that this patch touches, or no longer touches, are written, so a rebuild stays small.

CMake runs it; by hand: python native/fetch_upstream.py --dest build/upstream
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

NATIVE = Path(__file__).resolve().parent
SDIST_VARIABLE = "ALORA_UPSTREAM_SDIST"
STAMP = ".alora-stamp.json"
SDIST_ALONE = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation")  # pip's options for it

# What of vendor/llama.cpp is kept: the libraries' sources, and the converters that tests run.
KEPT = (
    "CMakeLists.txt",
    "LICENSE",
    "cmake",
    "conversion",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "ggml",
    "gguf-py",
    "include",
    "licenses",
    "src",
    "vendor",
)
# Of llama-cpp-python itself: its Python files, which wheels carry, and their licence.
BINDING = ("llama_cpp", "LICENSE.md")
BINDING_FOLDER = "binding"  # where in a tree they are


class FetchError(Exception):
    """Upstream cannot be obtained, verified or patched; the text says what to do."""


@dataclass(frozen=True)
class Pin:
    """The source distribution that native/upstream.txt names."""

    file: Path
    requirement: str  # name==version
    sha256: str


def read_pin(file: Path) -> Pin:
    """The one requirement line of `file`, such as `name==1.0 --hash=sha256:...`."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    match = re.fullmatch(r"([\w.-]+==[\w.]+)\s+--hash=sha256:([0-9a-f]{64})", "\n".join(lines))
    if match is None:
        raise FetchError(f"{file}: expected one line 'name==version --hash=sha256:<64 hex digits>'")
    return Pin(file, match[1], match[2])


# ---- the source distribution ---------------------------------------------------------------------


def run_pip(arguments: list[str]) -> tuple[int, str]:
    """The exit status of pip, and all that it said."""
    # A constraints file without hashes would contradict --require-hashes.
    kept_out = ("PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT")
    env = {name: value for name, value in os.environ.items() if name not in kept_out}
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def download(pin: Pin, folder: Path) -> Path:
    """The pinned sdist, through whichever package index the user's pip is configured for."""
    command = ["download", "--require-hashes", *SDIST_ALONE]
    command += ["--dest", str(folder), "-r", str(pin.file)]
    code, output = run_pip(command)
    if code != 0 and "THESE PACKAGES DO NOT MATCH THE HASHES" in output:
        raise FetchError(
            f"the package index gave another file than the pinned {pin.requirement}:\n{output}\n"
            f"Do not use that file. {pin.file} holds the hash that upstream published; ask whoever "
            "runs the index."
        )
    sdists = sorted(folder.glob("*.tar.gz"))
    if code != 0 or len(sdists) != 1:
        raise FetchError(
            f"pip could not download the source distribution of {pin.requirement}:\n{output}\n"
            "Check that `pip download` reaches your package index (pip.conf, PIP_INDEX_URL, a "
            f"proxy), or fetch that file elsewhere and set {SDIST_VARIABLE} to its path."
        )
    return sdists[0]


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(pin: Pin, sdist: Path) -> None:
    try:
        found = sha256_of(sdist)
    except OSError as error:
        raise FetchError(
            f"{sdist}: cannot be read ({error.strerror}). {SDIST_VARIABLE} must be the path of the "
            f".tar.gz source distribution of {pin.requirement}, or unset to let pip download it."
        ) from error
    if found != pin.sha256:
        raise FetchError(
            f"{sdist}: its sha256 is {found}, but {pin.file} pins {pin.sha256} for "
            f"{pin.requirement}. The file is damaged or another version: delete it and fetch it "
            "again."
        )


def unpack(sdist: Path, tree: Path) -> None:
    """Writes the sdist's KEPT below `tree`, and its BINDING; regular files only."""
    try:
        unpack_members(sdist, tree)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise FetchError(f"{sdist}: not a sound .tar.gz file ({error}); fetch it again") from error
    if not (tree / "CMakeLists.txt").is_file():
        raise FetchError(
            f"{sdist}: has no vendor/llama.cpp/CMakeLists.txt; see 'Moving to a newer upstream' in "
            "native/README.md if the pin changed"
        )


def unpack_members(sdist: Path, tree: Path) -> None:
    with tarfile.open(sdist, "r:gz") as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            kept = where(parts)
            if not kept or member.isdir():
                continue
            source = archive.extractfile(member) if member.isreg() else None
            if source is None or ".." in parts or any("\\" in p or ":" in p for p in parts):
                raise FetchError(f"{sdist}: refused to unpack {member.name!r}: not a plain file")
            target = tree.joinpath(*kept)
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)


def where(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Where in the tree a member of the sdist belongs, by the parts of its name; () for nowhere."""
    if parts[1:3] == ("vendor", "llama.cpp") and parts[3:4] and parts[3] in KEPT:
        return parts[3:]
    if parts[1:2] and parts[1] in BINDING:
        return (BINDING_FOLDER, *parts[1:])
    return ()


# ---- trees with a stamp --------------------------------------------------------------------------


def read_stamp(tree: Path) -> dict[str, object]:
    """What `tree` was made from; empty when it is absent or incomplete."""
    try:
        stamp = json.loads((tree / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(tree: Path, stamp: dict[str, object]) -> None:
    partial = tree / f"{STAMP}.partial"
    partial.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    partial.replace(tree / STAMP)


def put_in_place(new: Path, tree: Path) -> None:
    """Renames `new` to `tree`, which it replaces."""
    if tree.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{tree.name}-", dir=tree.parent))
        tree.rename(old / tree.name)
        new.rename(tree)
        shutil.rmtree(old)
    else:
        new.rename(tree)


def make_pristine(dest: Path, pin: Pin, sdist: Path | None) -> Path:
    """DEST/pristine: upstream as published."""
    tree = dest / "pristine"
    stamp: dict[str, object] = {"sha256": pin.sha256, "kept": [*KEPT, *BINDING]}
    if read_stamp(tree) == stamp:
        return tree
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=dest) as folder:
        if sdist is None:
            sdist = download(pin, Path(folder))
        verify(pin, sdist)
        new = Path(folder) / "pristine"
        unpack(sdist, new)
        write_stamp(new, stamp)
        put_in_place(new, tree)
    return tree


# ---- the patch -----------------------------------------------------------------------------------


def apply_patch(patch: Path, pristine: Path, staging: Path, pin: Pin) -> set[str]:
    """Applies one patch in `staging`, copying what it changes from `pristine` on first use.

    Returns the changed paths. Every hunk must apply at its own line, without fuzz.
    """
    try:
        import patch_ng
    except ImportError as error:
        raise FetchError(
            "patch-ng is needed to patch upstream; it is a build requirement of this project: "
            "python -m pip install -r requirements-build.txt"
        ) from error

    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("patch_ng")
    logger.addHandler(handler)
    try:
        patches = patch_ng.fromfile(str(patch))
        names: set[str] = set()
        before: dict[str, bytes] = {}
        applied = bool(patches)
        if patches:
            for item in patches.items:
                # Diffs made by git have their a/ and b/ taken off by patch-ng already.
                plain = item.source.startswith(b"a/") and item.target.startswith(b"b/")
                item.source = item.source[2:] if plain else item.source
                item.target = item.target[2:] if plain else item.target
                name = item.source.decode()
                names.add(name)
                if item.source != item.target or not (pristine / name).is_file():
                    raise FetchError(
                        f"{patch}: {name} -> {item.target.decode()}: a patch may only change files "
                        f"that {pin.requirement} has; new files belong in native/src"
                    )
                if not (staging / name).exists():
                    (staging / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(pristine / name, staging / name)
                before[name] = (staging / name).read_bytes()
            applied = patches.apply(root=str(staging), fuzz=False)
            # patch-ng passes over a file that looks patched already.
            applied = applied and all((staging / n).read_bytes() != before[n] for n in names)
    finally:
        logger.removeHandler(handler)
    if not applied:
        told = "\n".join(f"  {m}" for m in messages) or "  it holds no hunk that changes a file"
        raise FetchError(
            f"{patch} does not apply to {pin.requirement}:\n{told}\n"
            "Its hunks must match upstream line by line. After a change of the pin, follow 'Moving "
            "to a newer upstream' in native/README.md."
        )
    return names


def make_patched(dest: Path, pristine: Path, pin: Pin, patches: list[Path]) -> Path:
    """DEST/patched: `pristine` with all patches applied, in the order of their names."""
    tree = dest / "patched"
    digest = hashlib.sha256()
    for patch in patches:
        digest.update(patch.name.encode() + b"\0" + patch.read_bytes() + b"\0")
    stamp: dict[str, object] = {"pristine": read_stamp(pristine), "patches": digest.hexdigest()}
    last = read_stamp(tree)
    changed = last.pop("changed", [])
    if last == stamp:
        return tree

    with tempfile.TemporaryDirectory(prefix=".patch-", dir=dest) as folder:
        staging = Path(folder) / "staging"
        staging.mkdir()
        names: set[str] = set()
        for patch in patches:
            names |= apply_patch(patch, pristine, staging, pin)

        if last.get("pristine") != stamp["pristine"] or not isinstance(changed, list):
            new = Path(folder) / "patched"
            shutil.copytree(pristine, new)
            (new / STAMP).unlink()
            put_in_place(new, tree)
            changed = []
        for name in sorted(names.union(changed)):
            wanted = staging / name if name in names else pristine / name
            if wanted.read_bytes() != (tree / name).read_bytes():
                shutil.copyfile(wanted, tree / name)
    write_stamp(tree, {**stamp, "changed": sorted(names)})
    return tree


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--dest", type=Path, required=True, help="folder for the trees")
    parser.add_argument("--no-patch", action="store_true", help="stop at the pristine tree")
    parser.add_argument(
        "--sdist",
        type=Path,
        default=os.environ.get(SDIST_VARIABLE) or None,
        help=f"use this source distribution, without network (default: ${SDIST_VARIABLE})",
    )
    parser.add_argument(
        "--pin", type=Path, default=NATIVE / "upstream.txt", help="requirement file"
    )
    parser.add_argument(
        "--patches", type=Path, default=NATIVE / "patches", help="folder of *.patch"
    )
    options = parser.parse_args(arguments)

    try:
        pin = read_pin(options.pin)
        options.dest.mkdir(parents=True, exist_ok=True)
        dest = options.dest.resolve()
        tree = make_pristine(dest, pin, options.sdist)
        if not options.no_patch:
            tree = make_patched(dest, tree, pin, sorted(options.patches.glob("*.patch")))
    except (FetchError, OSError) as error:
        print(f"fetch_upstream.py: {error}", file=sys.stderr)
        return 1
    print(tree)
    return 0


if __name__ == "__main__":
    sys.exit(main())
