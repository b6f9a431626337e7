"""A software bill of materials for a file that is released: CycloneDX, as JSON.

What is compiled into a wheel, llama.cpp and ggml with our patches, no tool finds there; it is
written here, by native/upstream.txt. So are the compiler's libraries, which auditwheel has recorded
inside a wheel, and what pip installed beside it, as cyclonedx-py says of an environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import ROOT, ReleaseError
from .version import source_version
from .wheel import LIBRARY

Component = dict[str, Any]

SPEC = "1.6"
NAMESPACE = uuid.UUID("6d6f5c0e-7f0b-5a0c-9a55-3a2f0d1c7f6e")  # of serial numbers
CARRIER = "upstream:llama-cpp-python"
WEIGHTS = re.compile(r"\.gguf$")  # the demo model, and adapters that come with the package


def sha256(data: bytes) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}]


def licensed(*names: str) -> list[dict[str, dict[str, str]]]:
    return [{"license": {"id": name}} for name in names]


# ---- what is compiled ----------------------------------------------------------------------------


def upstream(tree: Path | None, root: Path = ROOT) -> list[Component]:
    """llama-cpp-python's source distribution; llama.cpp and ggml, which it carries and we patch.

    `tree` is where native/fetch_upstream.py has unpacked it: what says ggml's version.
    """
    pin = (root / "native/upstream.txt").read_text(encoding="utf-8")
    found = re.search(
        r"^(llama-cpp-python)==(\S+) --hash=sha256:([0-9a-f]{64})$", pin, re.MULTILINE
    )
    if found is None:
        raise ReleaseError("native/upstream.txt: expected NAME==VERSION --hash=sha256:DIGEST")
    name, version, digest = found.groups()
    carrier = {
        "type": "library",
        "bom-ref": CARRIER,
        "name": name,
        "version": version,
        "description": "Its Python files, and the copy of llama.cpp in its source distribution",
        "licenses": licensed("MIT"),
        "purl": f"pkg:pypi/{name}@{version}",
        "externalReferences": [
            {
                "type": "source-distribution",
                "url": f"https://pypi.org/project/{name}/{version}/#files",
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
        ],
    }
    patches = [
        {
            "type": "unofficial",
            "diff": {"url": patch.relative_to(root).as_posix()},
        }
        for patch in sorted((root / "native/patches").glob("*.patch"))
    ]
    compiled = []
    for part, its_version in (("llama.cpp", f"{name}-{version}"), ("ggml", ggml_version(tree))):
        component: Component = {
            "type": "library",
            "bom-ref": f"upstream:{part}",
            "supplier": {"name": "The ggml authors"},
            "name": part,
            **({"version": its_version} if its_version else {}),
            "licenses": licensed("MIT"),
            "pedigree": {
                "ancestors": [{"type": "library", "name": part, "purl": carrier["purl"]}],
                "patches": patches,
                "notes": f"Compiled from the copy in the source distribution of {name} {version}",
            },
        }
        compiled.append(component)
    return [carrier, *compiled]


def ggml_version(tree: Path | None) -> str:
    if tree is None:
        return ""
    file = tree / "ggml" / "CMakeLists.txt"
    if not file.is_file():
        raise ReleaseError(
            f"{tree}: has no ggml/CMakeLists.txt; expected a tree that native/fetch_upstream.py "
            "has unpacked"
        )
    text = file.read_text(encoding="utf-8")
    parts = [
        re.search(rf"set\(GGML_VERSION_{part} (\d+)\)", text)
        for part in ("MAJOR", "MINOR", "PATCH")
    ]
    return ".".join(part[1] for part in parts if part)


# ---- what is in a wheel --------------------------------------------------------------------------


def contents(wheel: Path) -> Iterator[Component]:
    """Its compiled libraries and weights as files, and the packages that others recorded in it."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if LIBRARY.search(name) or WEIGHTS.search(name):
                yield {
                    "type": "machine-learning-model" if WEIGHTS.search(name) else "file",
                    "bom-ref": f"file:{name}",
                    "name": name,
                    "hashes": sha256(archive.read(name)),
                }
            elif re.search(r"\.dist-info/sboms/[^/]+\.cdx\.json$", name):
                recorded = json.loads(archive.read(name))
                itself = recorded.get("metadata", {}).get("component", {}).get("bom-ref")
                for each in recorded.get("components", []):
                    if each.get("bom-ref") != itself:
                        yield each


# ---- what is installed with it -------------------------------------------------------------------


def installed(environment: Mapping[str, Any]) -> tuple[list[Component], list[str], list[Any]]:
    """Of an environment's SBOM: all that alora-gguf needs, which of it directly, who needs what."""
    components = {each["bom-ref"]: each for each in environment["components"]}
    itself = [ref for ref, each in components.items() if each["name"].lower() == "alora-gguf"]
    if not itself:
        raise ReleaseError("the environment has no alora-gguf: install the wheel there first")
    needs = {each["ref"]: each.get("dependsOn", []) for each in environment["dependencies"]}
    reached = list(itself)
    for ref in reached:
        reached += [each for each in needs.get(ref, []) if each not in reached]
    reached.remove(itself[0])
    tree = [{"ref": ref, "dependsOn": needs.get(ref, [])} for ref in reached]
    return [components[ref] for ref in reached], needs.get(itself[0], []), tree


# ---- the whole -----------------------------------------------------------------------------------


def describe(
    file: Path, environment: Mapping[str, Any] | None = None, tree: Path | None = None
) -> dict[str, Any]:
    """The SBOM of a wheel or a source distribution: of the same file always the same."""
    version = source_version()
    if not file.name.startswith(f"alora_gguf-{version}") or not file.name.endswith(
        (".whl", ".tar.gz")
    ):
        raise ReleaseError(
            f"{file.name}: expected a wheel or a source distribution of alora-gguf {version}"
        )
    try:
        data = file.read_bytes()
        inside = list(contents(file)) if file.suffix == ".whl" else []
    except (OSError, zipfile.BadZipFile) as error:
        raise ReleaseError(f"{file}: cannot be read ({error})") from error
    compiled = upstream(tree)
    packages, needed, dependencies = installed(environment) if environment else ([], [], [])
    purl = f"pkg:pypi/alora-gguf@{version}"
    digests = sha256(data)
    inner = [each["bom-ref"] for each in (*compiled, *inside) if "bom-ref" in each]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, digests[0]['content'])}",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {
                "components": [
                    {"type": "application", "name": "alora-gguf release.sbom", "version": version}
                ]
            },
            "component": {
                "type": "library",
                "bom-ref": purl,
                "name": "alora-gguf",
                "version": version,
                "licenses": licensed("MIT"),
                "purl": f"{purl}?file_name={file.name}",
                "hashes": digests,
            },
        },
        "components": [*compiled, *inside, *packages],
        "dependencies": [
            {"ref": purl, "dependsOn": [*inner, *needed]},
            *({"ref": each["bom-ref"], "dependsOn": [CARRIER]} for each in compiled[1:]),
            *dependencies,
        ],
    }


def validate(text: str) -> None:
    """By CycloneDX's own schema."""
    try:
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except ImportError as missing:  # MissingOptionalDependencyException is none
        raise ReleaseError(f"{missing.name} is needed: pip install --group release") from missing
    if error:
        raise ReleaseError(f"what was written is not CycloneDX {SPEC}: {error}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release.sbom", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("file", type=Path, help="a wheel or a source distribution")
    parser.add_argument("--environment", type=Path, help="what `cyclonedx-py environment` wrote")
    parser.add_argument("--tree", type=Path, help="the tree that native/fetch_upstream.py printed")
    parser.add_argument("--output", type=Path, required=True, help="the folder of FILE.cdx.json")
    options = parser.parse_args(arguments)
    try:
        environment = None
        if options.environment is not None:
            environment = json.loads(options.environment.read_text(encoding="utf-8"))
        text = json.dumps(describe(options.file, environment, options.tree), indent=1) + "\n"
        validate(text)
        options.output.mkdir(parents=True, exist_ok=True)
        written = options.output / f"{options.file.name}.cdx.json"
        written.write_text(text, encoding="utf-8")
    except (ReleaseError, OSError, ValueError) as error:
        print(f"release.sbom: {error}", file=sys.stderr)
        return 1
    print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
