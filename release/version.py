"""Whether a tag is the version of this source, and what the changelog says of it."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from . import ROOT, ReleaseError


def source_version(root: Path = ROOT) -> str:
    """The version, which pyproject.toml and the package must agree about."""
    found: dict[str, str] = {}
    for name, pattern in (
        ("pyproject.toml", r'^version = "([^"]+)"$'),
        ("alora_gguf/__init__.py", r'^__version__ = "([^"]+)"$'),
    ):
        versions: list[str] = re.findall(
            pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE
        )
        if len(versions) != 1:
            raise ReleaseError(f"{name}: expected one version, found {len(versions)}")
        found[name] = versions[0]
    if len(set(found.values())) != 1:
        told = ", ".join(f"{name} has {version}" for name, version in found.items())
        raise ReleaseError(f"two versions: {told}")
    return found["pyproject.toml"]


def check_tag(tag: str, version: str) -> None:
    if tag != f"v{version}":
        raise ReleaseError(
            f"the tag is {tag!r}, but the source is version {version}: tag it v{version}, or "
            "change pyproject.toml and alora_gguf/__init__.py first"
        )


def notes(version: str, root: Path = ROOT) -> str:
    """What CHANGELOG.md says of `version`, without its heading."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (?=\[)", text, flags=re.MULTILINE)[1:]
    for section in sections:
        heading, _, body = section.partition("\n")
        if re.match(rf"\[{re.escape(version)}\]", heading):
            if not body.strip():
                raise ReleaseError(f"CHANGELOG.md: nothing stands below [{version}]")
            return absolute(body.strip(), f"v{version}") + "\n"
    raise ReleaseError(
        f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD': give the entries of "
        "[Unreleased] that heading"
    )


def absolute(text: str, tag: str) -> str:
    """Links to files of the repository, as they lead there from a page that is not in it; GitHub's
    workflows know the repository's name.
    """
    home = os.environ.get("GITHUB_REPOSITORY", "")
    start = f"https://github.com/{home}" if home else "../.."
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({start}/blob/{tag}/\1)", text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m release.version", description=__doc__)
    parser.add_argument("tag", nargs="?", help="such as v0.1.0; without one the version is printed")
    parser.add_argument("--notes", type=Path, help="write the changelog's section to this file")
    options = parser.parse_args(arguments)
    try:
        version = source_version()
        if options.tag is not None:
            check_tag(options.tag, version)
        if options.notes is not None:
            options.notes.write_text(notes(version), encoding="utf-8")
    except (ReleaseError, OSError) as error:
        print(f"release.version: {error}", file=sys.stderr)
        return 1
    print(version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
