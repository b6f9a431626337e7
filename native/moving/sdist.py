"""The source distribution of another release: fetched, compared with the index, unpacked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fetch_upstream
from fetch_upstream import Pin

from . import changes
from .report import Report, UpgradeError

PROJECT = "llama-cpp-python"


def index_sha256(requirement: str, folder: Path, *, patient: bool) -> tuple[str | None, str]:
    """The hash that the package index has for an sdist, and what pip said if it has none."""
    report = folder / "pip.json"
    report.unlink(missing_ok=True)
    command = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
    command += [] if patient else ["--retries", "0", "--timeout", "15"]
    code, output = fetch_upstream.run_pip([*command, *fetch_upstream.SDIST_ALONE, requirement])
    if code != 0:
        return None, output
    found = json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]
    sha256 = found.get("archive_info", {}).get("hashes", {}).get("sha256")
    return (sha256, output) if isinstance(sha256, str) else (None, "the index gives no sha256")


def fetch(version: str, given: Path | None, work: Path, report: Report) -> tuple[Pin, Path, Path]:
    """The pin, the sdist and the tree of a release, checked."""
    with report.step("fetch") as step:
        requirement = f"{PROJECT}=={version}"
        folder = work / "sdist"
        folder.mkdir(parents=True, exist_ok=True)
        known, said = index_sha256(requirement, work, patient=given is None)
        if given is not None:
            sha256 = _given_sha256(given, requirement, known)
        elif known is None:
            raise UpgradeError(
                f"pip found no source distribution of {requirement}:\n{said}\nName a release that "
                f"`pip index versions {PROJECT}` lists, or give its file with --sdist FILE."
            )
        else:
            sha256 = known
        file = work / "upstream.txt"
        file.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
        pin = fetch_upstream.read_pin(file)
        sdist = given or next(folder.glob("*.tar.gz"), None)
        if sdist is None:
            sdist = fetch_upstream.download(pin, folder)
        fetch_upstream.verify(pin, sdist)
        upstream = work / "upstream"
        upstream.mkdir(exist_ok=True)
        tree = fetch_upstream.make_pristine(upstream, pin, sdist)
        _check_release(sdist, version, tree)
        report.sha256 = sha256
        index = (
            "not compared with the index, which does not have it"
            if known is None
            else "as in the index"
        )
        step.said = f"{sdist.name}, sha256 {sha256[:8]}…, {index}"
    return pin, sdist, tree


def _given_sha256(sdist: Path, requirement: str, known: str | None) -> str:
    try:
        sha256 = fetch_upstream.sha256_of(sdist)
    except OSError as error:
        raise UpgradeError(
            f"--sdist {sdist}: cannot be read ({error.strerror}); it should be the .tar.gz source "
            f"distribution of {requirement}"
        ) from error
    if known is not None and sha256 != known:
        raise UpgradeError(
            f"--sdist {sdist}: its sha256 is {sha256}, but the index has {known} for "
            f"{requirement}. The file is damaged or another version: fetch it again, or leave out "
            "--sdist."
        )
    return sha256


def _check_release(sdist: Path, version: str, tree: Path) -> None:
    source = changes.text(tree / fetch_upstream.BINDING_FOLDER / "llama_cpp" / "__init__.py")
    found = re.search(r"^__version__ = \"(.*)\"", source, re.MULTILINE)
    if found is None or found[1] != version:
        raise UpgradeError(
            f"{sdist}: holds llama_cpp {found[1] if found else 'of no version'}, expected "
            f"{version}: name the release that the file is of"
        )
