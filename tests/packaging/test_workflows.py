"""The workflows of .github: what they call exists, and they may do no more than they need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests import fast

ROOT: Final = Path(__file__).resolve().parents[2]
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CALLED: Final = ("ci", "release", "upstream")
OTHERS: Final = ("build", "cibuildwheel", "cyclonedx_py", "pip")  # modules that are not ours


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def read(path: Path) -> dict[Any, Any]:
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in read(path)["jobs"].items():
            yield f"{path.stem}: {name}", job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in jobs():
        for step in job["steps"]:
            yield name, step


def commands() -> str:
    """All that is run, a command a line."""
    return "\n".join(step.get("run", "") for _, step in steps()).replace("\\\n", " ")


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):(?!=)", text("Makefile"), re.MULTILINE))


def test_these_are_all() -> None:
    assert tuple(path.stem for path in WORKFLOWS) == CALLED


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_nothing_and_does_not_run_beside_itself(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]["group"].startswith(path.stem)
    assert "pull_request_target" not in path.read_text(encoding="utf-8")
    assert "secrets." not in path.read_text(encoding="utf-8")


def test_jobs_end_and_say_what_they_may() -> None:
    for name, job in jobs():
        assert 0 < job["timeout-minutes"] <= 150, name
        assert job["permissions"], name
        assert job["runs-on"] != "ubuntu-latest", f"{name}: changes without notice"
        written = {each for each, right in job["permissions"].items() if right == "write"}
        compiles = any("cibuildwheel" in s.get("run", "") for s in job["steps"])
        assert not (written and compiles), f"{name}: runs what others wrote, with rights to write"


def test_actions_are_pinned_to_one_commit_each() -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for path in WORKFLOWS:
        for line in re.findall(r"uses: *(.+)", path.read_text(encoding="utf-8")):
            pin = re.fullmatch(r"([\w./-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line)
            assert pin, f"{path.name}: {line}"
            found.setdefault(pin[1], set()).add((pin[2], pin[3]))
    assert {name: pins for name, pins in found.items() if len(pins) != 1} == {}


def test_checkouts_keep_no_credentials() -> None:
    for name, step in steps():
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, name


def test_only_the_publisher_may_publish() -> None:
    """And it runs nothing beside: no checkout, no command."""
    owners = [name for name, job in jobs() if "environment" in job]
    assert owners == ["release: publish"]
    used = [step["uses"].partition("@")[0] for name, step in steps() if name in owners]
    assert used == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]


def test_nothing_that_is_released_comes_out_of_a_cache() -> None:
    for name, step in steps():
        if name.startswith("release:"):
            assert "actions/cache" not in step.get("uses", ""), name
            assert "cache" not in step.get("with", {}), name


def test_targets_and_variables_of_make_exist() -> None:
    called = re.findall(r"^\s*make ([^\n|&;]+)", commands(), re.MULTILINE)
    assert called
    for word in " ".join(called).split():
        variable, sign, value = word.partition("=")
        if sign:
            assert re.search(rf"^{variable}\b", text("Makefile"), re.MULTILINE), word
            assert value.removeprefix(".venv/") in text("Makefile"), word
        else:
            assert word in targets(), word


def test_scripts_and_modules_exist() -> None:
    for script in re.findall(r"(?:python|bash) (native/\S+\.py|\.ci/\w+)", commands()):
        assert (ROOT / script).is_file(), script
    for module in set(re.findall(r"python -m ([\w.]+)", commands())).difference(OTHERS):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_the_fast_tests_exist() -> None:
    assert [folder for folder in fast.FOLDERS if not (ROOT / folder).is_dir()] == []


def test_ci_runs_what_is_run_on_a_desk() -> None:
    run = [step.get("run") for name, step in steps() if name == "ci: linux"]
    assert "bash .ci/run" in run


def test_extras_and_groups_exist() -> None:
    project = text("pyproject.toml")
    for group in re.findall(r"--group (\S+)", commands()):
        assert re.search(rf"^{group} = \[", project, re.MULTILINE), group
    for extra in re.findall(r"-e '\.\[(\w+)\]'", commands()):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_mypy_reads_the_types_that_training_uses() -> None:
    project = text("pyproject.toml")
    train = re.search(r"^train = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    types = re.search(r"^types = \[(.*?)\]", project, re.MULTILINE)
    assert train is not None
    assert types is not None
    pinned = set(re.findall(r'"([\w-]+==[^"]+)"', train[1]))
    assert set(re.findall(r'"([^"]+)"', types[1])) == pinned


def test_every_platform_is_built_tested_and_attested() -> None:
    release = read(ROOT / ".github/workflows/release.yml")["jobs"]
    built = [each["name"] for each in release["wheel"]["strategy"]["matrix"]["include"]]
    tested = release["test"]["strategy"]["matrix"]["platform"]
    assert [each["name"] for each in tested] == built
    assert release["attest"]["strategy"]["matrix"]["name"] == ["source", *built]


def test_dependabot_leaves_upstream_alone() -> None:
    updates = read(ROOT / ".github/dependabot.yml")["updates"]
    assert {each["package-ecosystem"] for each in updates} == {"github-actions", "pip"}
    (pip,) = [each for each in updates if each["package-ecosystem"] == "pip"]
    assert pip["ignore"] == [{"dependency-name": "llama-cpp-python"}]
