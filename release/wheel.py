"""Whether a wheel has the libraries that it should, where they find each other.

libllama and ggml's libraries find each other by $ORIGIN or @loader_path, and backends are loaded
from the same folder by their names. So what makes a wheel fit for other systems (auditwheel,
delocate, delvewheel) may add libraries beside that folder, and must not move or rename any in it.
"""

from __future__ import annotations

import argparse
import re
import sys
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from . import ReleaseError

FOLDER = "alora_gguf/lib"
LIBRARY = re.compile(r"\.(dll|dylib|so(\.\d+)*)$")
NEEDED = ("llama", "ggml", "ggml-base")
BACKENDS = ("ggml-rpc",)  # that are loaded by their names
VARIANTS = 2  # of the CPU's backend at least, or it is none for others' processors


@dataclass(frozen=True)
class Platform:
    """How libraries are named there, and where else a wheel may have some."""

    name: str
    tag: str  # a pattern of the wheel's platform tag
    linked: str  # libraries that others link
    loaded: str  # backends, which are loaded
    beside: str = ""  # the folder of what a repair adds
    runtime: tuple[str, ...] = ()  # of the compiler, which must be in FOLDER


PLATFORMS = (
    Platform(
        "Linux",
        r"manylinux_\d+_\d+_(x86_64|aarch64)(\.manylinux\w+)*",
        "lib{}.so",
        "lib{}.so",
        beside="alora_gguf.libs",  # GCC's libgomp, under a name of its own
    ),
    Platform("macOS", r"macosx_\d+_0_(x86_64|arm64)", "lib{}.dylib", "lib{}.so"),
    Platform(
        "Windows",
        r"win_amd64",
        "{}.dll",
        "{}.dll",
        runtime=("msvcp140.dll", "vcruntime140.dll", "vcruntime140_1.dll"),
    ),
)


def platform_of(wheel: Path) -> Platform:
    found = re.fullmatch(r"alora_gguf-[\w.]+-py3-none-(?P<tag>.+)\.whl", wheel.name)
    for platform in PLATFORMS if found else ():
        if found and re.fullmatch(platform.tag, found["tag"]):
            return platform
    raise ReleaseError(
        f"{wheel.name}: expected alora_gguf-VERSION-py3-none-PLATFORM.whl with a PLATFORM of "
        "manylinux, macosx or win_amd64"
    )


def check(wheel: Path) -> list[str]:
    """The names of the libraries in `wheel`, all of which are where they should be."""
    platform = platform_of(wheel)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ReleaseError(f"{wheel}: cannot be read as a wheel ({error})") from error
    links = [each.filename for each in members if each.external_attr >> 28 == 0o12]
    if links:
        raise ReleaseError(f"{wheel.name}: {links[0]} is a symbolic link, which pip cannot install")
    libraries = sorted(each.filename for each in members if LIBRARY.search(each.filename))
    check_folders(wheel.name, platform, libraries)
    inside = {each.removeprefix(f"{FOLDER}/") for each in libraries if each.startswith(FOLDER)}
    check_names(wheel.name, platform, inside)
    return libraries


def check_folders(wheel: str, platform: Platform, libraries: Collection[str]) -> None:
    for library in libraries:
        folder = str(PurePosixPath(library).parent)
        if folder not in (FOLDER, platform.beside):
            raise ReleaseError(
                f"{wheel}: {library} is not in {FOLDER}, where it would be found: what it belongs "
                f"to should not be needed on {platform.name}"
            )


def check_names(wheel: str, platform: Platform, names: Collection[str]) -> None:
    wanted = [*map(platform.linked.format, NEEDED), *map(platform.loaded.format, BACKENDS)]
    wanted += platform.runtime
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ReleaseError(f"{wheel}: {FOLDER} has no {', '.join(missing)}; renamed by a repair?")
    variant = platform.loaded.format("ggml-cpu-*")
    variants = [name for name in names if fnmatch(name, variant)]
    renamed = [name for name in names if re.search(r"-[0-9a-f]{8,}\.", name)]
    if renamed:
        raise ReleaseError(f"{wheel}: {renamed[0]} was renamed, and is loaded by its old name")
    if len(variants) < VARIANTS:
        raise ReleaseError(
            f"{wheel}: {FOLDER} has {len(variants)} of {variant}, expected one for each generation "
            "of processors: it was built without ALORA_WHEEL=1"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release.wheel", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("wheel", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    try:
        for wheel in options.wheel:
            libraries = check(wheel)
            print(f"{wheel.name}: {len(libraries)} libraries, where they find each other")
    except ReleaseError as error:
        print(f"release.wheel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
