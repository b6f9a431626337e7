"""native/wheel_dependencies.py, and what it is given: llama-cpp-python, or what that needs."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")
ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
(SETTINGS,) = PYPROJECT["tool"]["dynamic-metadata"]


@pytest.fixture
def provider() -> ModuleType:
    path = ROOT / SETTINGS["provider"]["path"] / f"{SETTINGS['provider']['module']}.py"
    spec = importlib.util.spec_from_file_location("wheel_dependencies", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "value", [None, "", "0", "false", "OFF", "no", "1", "true", "ON", "yes", "2"]
)
def test_a_wheel_carries_the_binding_where_cmake_is_told_so(
    provider: ModuleType, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """The backend reads the variable for CMake's options, the provider for the dependencies."""
    overrides = pytest.importorskip("scikit_build_core.settings.skbuild_overrides")
    if value is None:
        monkeypatch.delenv("ALORA_WHEEL", raising=False)
    else:
        monkeypatch.setenv("ALORA_WHEEL", value)
    kind = "vendored" if overrides.strtobool(value or "") else "built"
    assert provider.dynamic_metadata(SETTINGS, {}) == {"dependencies": SETTINGS[kind]}
    assert provider.dynamic_wheel(SETTINGS) == {"dependencies": True}


def test_the_release_is_the_pinned_one() -> None:
    (built,) = SETTINGS["built"]
    for name in ("native/upstream.txt", "requirements.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(built)}\s", text, re.MULTILINE)


def test_what_a_wheel_needs_instead_is_what_the_binding_requires() -> None:
    needed = {each for each in requires("llama-cpp-python") or () if "extra ==" not in each}
    names = {re.split(r"[^\w-]", each)[0] for each in needed}
    of_its_own = {re.split(r"[^\w-]", each)[0] for each in PYPROJECT["project"]["dependencies"]}
    vendored = {re.split(r"[^\w-]", each)[0] for each in SETTINGS["vendored"]}
    assert names - of_its_own == vendored
