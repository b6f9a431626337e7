"""What the workflows run beside a build: versions and notes, checks of wheels, SBOMs."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import pytest

import alora_gguf
from release import ReleaseError, sbom, upstream, version, wheel

VERSION: Final = alora_gguf.__version__
LINUX: Final = f"alora_gguf-{VERSION}-py3-none-manylinux_2_28_x86_64.whl"
MACOS: Final = f"alora_gguf-{VERSION}-py3-none-macosx_14_0_arm64.whl"
WINDOWS: Final = f"alora_gguf-{VERSION}-py3-none-win_amd64.whl"

LIBRARIES: Final = {
    LINUX: (
        *("libllama.so", "libggml.so", "libggml-base.so"),
        *("libggml-cpu-x64.so", "libggml-cpu-haswell.so", "libggml-rpc.so"),
    ),
    MACOS: (
        *("libllama.dylib", "libggml.dylib", "libggml-base.dylib"),
        *("libggml-cpu-apple_m1.so", "libggml-cpu-apple_m4.so", "libggml-metal.so"),
        "libggml-rpc.so",
    ),
    WINDOWS: (
        *("llama.dll", "ggml.dll", "ggml-base.dll", "ggml-cpu-x64.dll", "ggml-cpu-haswell.dll"),
        *("ggml-rpc.dll", "msvcp140.dll", "vcruntime140.dll", "vcruntime140_1.dll"),
    ),
}


def write(path: Path, names: Collection[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def inside(name: str) -> list[str]:
    return [f"alora_gguf/lib/{each}" for each in LIBRARIES[name]]


# ---- versions and notes --------------------------------------------------------------------------


def test_the_version_is_the_packages() -> None:
    assert version.source_version() == VERSION


def test_a_tag_of_another_version_says_both() -> None:
    version.check_tag(f"v{VERSION}", VERSION)
    with pytest.raises(
        ReleaseError, match=r"the tag is 'v9.9', but the source is version 1.0: tag"
    ):
        version.check_tag("v9.9", "1.0")


def test_two_versions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.0"\n')
    (tmp_path / "alora_gguf").mkdir()
    (tmp_path / "alora_gguf/__init__.py").write_text('__version__ = "1.1"\n')
    with pytest.raises(
        ReleaseError, match=r"pyproject.toml has 1.0, alora_gguf/__init__.py has 1.1"
    ):
        version.source_version(tmp_path)


CHANGES: Final = """# Changelog

## [Unreleased]

## [1.10.0] - 2026-12-01

### Added
- A thing ([how](docs/thing.md#how), [why](https://example.org)).

## [1.1] - 2026-11-01
- Older.
"""


def test_notes_are_one_section_with_links_that_lead_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_REPOSITORY", "somebody/alora-gguf")
    (tmp_path / "CHANGELOG.md").write_text(CHANGES)
    told = version.notes("1.10.0", tmp_path)
    assert told == (
        "### Added\n- A thing "
        "([how](https://github.com/somebody/alora-gguf/blob/v1.10.0/docs/thing.md#how), "
        "[why](https://example.org)).\n"
    )
    assert version.notes("1.1", tmp_path) == "- Older.\n"
    with pytest.raises(ReleaseError, match=r"has no section '## \[1.1.0\] - YYYY-MM-DD'"):
        version.notes("1.1.0", tmp_path)


def test_the_command_prints_the_version(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert version.main([]) == 0
    assert capsys.readouterr().out == f"{VERSION}\n"
    assert version.main(["v0"]) == 1
    assert capsys.readouterr().err.startswith("release.version: the tag is 'v0', but")


# ---- wheels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_wheel_with_its_libraries_in_place(tmp_path: Path, name: str) -> None:
    assert wheel.check(write(tmp_path / name, inside(name))) == sorted(inside(name))


def test_what_auditwheel_adds_stands_beside(tmp_path: Path) -> None:
    added = "alora_gguf.libs/libgomp-a34b3233.so.1.0.0"
    assert added in wheel.check(write(tmp_path / LINUX, [*inside(LINUX), added]))


@pytest.mark.parametrize(
    ("name", "added"),
    [
        (MACOS, "alora_gguf/.dylibs/libomp.dylib"),
        (WINDOWS, "alora_gguf.libs/vcomp140-0123456789abcdef.dll"),
        (LINUX, "alora_gguf/libomp.so"),
    ],
)
def test_a_library_where_none_is_looked_for(tmp_path: Path, name: str, added: str) -> None:
    with pytest.raises(ReleaseError, match=rf"{re.escape(added)} is not in alora_gguf/lib"):
        wheel.check(write(tmp_path / name, [*inside(name), added]))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (LINUX, "libggml-base.so", "libggml-base-0a1b2c3d.so", "has no libggml-base.so; renamed"),
        (LINUX, "cpu-x64.so", "cpu-x64-0a1b2c3d.so", "libggml-cpu-x64-0a1b2c3d.so was renamed"),
        (WINDOWS, "msvcp140.dll", "other.dll", "alora_gguf/lib has no msvcp140.dll"),
        (LINUX, "cpu-x64", "other", r"has 1 of libggml-cpu-\*.so, .* without ALORA_WHEEL=1"),
        (MACOS, "cpu-apple_m4", "other", r"has 1 of libggml-cpu-\*.so"),
    ],
)
def test_what_a_wheel_lacks(tmp_path: Path, name: str, old: str, new: str, said: str) -> None:
    names = [each.replace(old, new) for each in inside(name)]
    with pytest.raises(ReleaseError, match=said):
        wheel.check(write(tmp_path / name, names))


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / LINUX, inside(LINUX))
    link = zipfile.ZipInfo("alora_gguf/lib/libllama.so.0")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "libllama.so")
    with pytest.raises(ReleaseError, match=r"libllama.so.0 is a symbolic link"):
        wheel.check(path)


@pytest.mark.parametrize(
    "name",
    [
        f"alora_gguf-{VERSION}-py3-none-linux_x86_64.whl",
        f"alora_gguf-{VERSION}-py3-none-any.whl",
        f"alora_gguf-{VERSION}-cp312-cp312-win_amd64.whl",
        f"alora_gguf-{VERSION}-py3-none-macosx_13_3_arm64.whl",
    ],
)
def test_a_wheel_for_this_machine_alone_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReleaseError, match=r"expected alora_gguf-VERSION-py3-none-PLATFORM.whl"):
        wheel.check(tmp_path / name)


def test_what_is_no_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / LINUX).write_text("no zip")
    assert wheel.main([str(tmp_path / LINUX)]) == 1
    assert "cannot be read as a wheel" in capsys.readouterr().err


# ---- SBOMs ---------------------------------------------------------------------------------------

ENVIRONMENT: Final[dict[str, Any]] = {
    "components": [
        {"bom-ref": name, "type": "library", "name": name, "version": "1"}
        for name in ("alora-gguf", "numpy", "huggingface-hub", "httpx", "pip")
    ],
    "dependencies": [
        {"ref": "alora-gguf", "dependsOn": ["numpy", "huggingface-hub"]},
        {"ref": "huggingface-hub", "dependsOn": ["httpx"]},
        {"ref": "httpx"},
        {"ref": "numpy"},
        {"ref": "pip"},
    ],
}
RECORDED: Final = {  # as auditwheel does
    "metadata": {"component": {"bom-ref": "itself"}},
    "components": [
        {"type": "library", "bom-ref": "itself", "name": "alora_gguf"},
        {"type": "library", "bom-ref": "libgomp", "name": "libgomp", "version": "8.5"},
    ],
}


@pytest.fixture
def linux(tmp_path: Path) -> Path:
    path = write(tmp_path / LINUX, [*inside(LINUX), "alora_gguf/demo/base.gguf"])
    with zipfile.ZipFile(path, "a") as archive:
        name = f"alora_gguf-{VERSION}.dist-info/sboms/auditwheel.cdx.json"
        archive.writestr(name, json.dumps(RECORDED))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/ggml").mkdir(parents=True)
    lines = ("MAJOR 0", "MINOR 25", "PATCH 3")
    (tmp_path / "tree/ggml/CMakeLists.txt").write_text(
        "".join(f"set(GGML_VERSION_{line})\n" for line in lines)
    )
    return tmp_path / "tree"


def named(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in described["components"]}


def test_what_is_compiled_is_in_it(linux: Path, tree: Path) -> None:
    pin = re.search(
        r"^llama-cpp-python==(\S+) --hash=sha256:(\w+)$",
        (sbom.ROOT / "native/upstream.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert pin is not None
    found = named(sbom.describe(linux, tree=tree))
    carrier = found["llama-cpp-python"]
    assert carrier["version"] == pin[1]
    assert carrier["externalReferences"][0]["hashes"] == [{"alg": "SHA-256", "content": pin[2]}]
    assert found["llama.cpp"]["version"] == f"llama-cpp-python-{pin[1]}"
    assert found["ggml"]["version"] == "0.25.3"
    for name in ("llama.cpp", "ggml"):
        patches = [each["diff"]["url"] for each in found[name]["pedigree"]["patches"]]
        assert "native/patches/adapter-bank.patch" in patches
        assert all((sbom.ROOT / patch).is_file() for patch in patches)


def test_what_is_in_a_wheel_is_in_it(linux: Path) -> None:
    described = sbom.describe(linux)
    found = named(described)
    assert found["alora_gguf/lib/libllama.so"]["hashes"] == sbom.sha256(
        b"alora_gguf/lib/libllama.so"
    )
    assert found["alora_gguf/demo/base.gguf"]["type"] == "machine-learning-model"
    assert found["libgomp"]["version"] == "8.5"
    assert "alora_gguf" not in found
    itself = described["metadata"]["component"]
    assert itself["hashes"] == sbom.sha256(linux.read_bytes())
    assert itself["purl"] == f"pkg:pypi/alora-gguf@{VERSION}?file_name={LINUX}"


def test_what_was_installed_with_it_is_in_it(linux: Path) -> None:
    described = sbom.describe(linux, ENVIRONMENT)
    assert {"numpy", "huggingface-hub", "httpx"} <= set(named(described))
    assert not {"pip", "alora-gguf"} & set(named(described))
    needs = {each["ref"]: each["dependsOn"] for each in described["dependencies"]}
    itself = described["metadata"]["component"]["bom-ref"]
    assert {"numpy", "huggingface-hub", "libgomp", "upstream:ggml"} <= set(needs[itself])
    assert needs["huggingface-hub"] == ["httpx"]
    assert needs["upstream:ggml"] == ["upstream:llama-cpp-python"]


def test_every_reference_leads_somewhere_and_is_unique(linux: Path) -> None:
    described = sbom.describe(linux, ENVIRONMENT)
    refs = [each["bom-ref"] for each in described["components"]]
    assert len(refs) == len(set(refs))
    known = {described["metadata"]["component"]["bom-ref"], *refs}
    for each in described["dependencies"]:
        assert {each["ref"], *each["dependsOn"]} <= known


def test_a_file_is_always_described_alike(linux: Path) -> None:
    assert sbom.describe(linux, ENVIRONMENT) == sbom.describe(linux, ENVIRONMENT)


def test_a_source_distribution_has_no_files_of_ours(tmp_path: Path) -> None:
    path = tmp_path / f"alora_gguf-{VERSION}.tar.gz"
    path.write_bytes(b"")
    assert set(named(sbom.describe(path))) == {"llama-cpp-python", "llama.cpp", "ggml"}


def test_it_is_cyclonedx(linux: Path, tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx.validation", reason="pip install --group release")
    (tmp_path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    options = ["--environment", str(tmp_path / "environment.json"), "--tree", str(tree)]
    assert sbom.main([str(linux), *options, "--output", str(tmp_path / "sbom")]) == 0
    assert (tmp_path / "sbom" / f"{LINUX}.cdx.json").is_file()


def test_what_cannot_be_described(tmp_path: Path, linux: Path) -> None:
    with pytest.raises(ReleaseError, match="expected a wheel or a source distribution of alora-gg"):
        sbom.describe(tmp_path / "other-1.0.tar.gz")
    with pytest.raises(ReleaseError, match=r"has no ggml/CMakeLists.txt"):
        sbom.describe(linux, tree=tmp_path)
    with pytest.raises(ReleaseError, match="the environment has no alora-gguf"):
        sbom.describe(linux, {"components": [], "dependencies": []})
    linux.write_bytes(b"no zip")
    with pytest.raises(ReleaseError, match="cannot be read"):
        sbom.describe(linux)


# ---- a newer upstream ----------------------------------------------------------------------------


def test_the_newest_final_release_is_found_by_number() -> None:
    assert upstream.newer(["0.3.9", "0.3.12", "0.3.100", "0.4.0rc1"], "0.3.12") == "0.3.100"
    assert upstream.newer(["0.3.9", "0.3.12"], "0.3.12") == ""
    assert upstream.newer([], "0.3.12") == ""


def test_what_is_pinned_is_read() -> None:
    assert upstream.newer([upstream.pinned()], upstream.pinned()) == ""
