"""What `import alora_gguf` gives, and what it costs."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import alora_gguf
from alora_gguf import errors

ROOT = Path(__file__).parent.parent


def test_all_public_names_exist_and_are_listed() -> None:
    for name in alora_gguf.__all__:
        assert getattr(alora_gguf, name) is not None
    public = {
        name
        for name, value in vars(alora_gguf).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    } - {"annotations", "import_module", "TYPE_CHECKING"}
    assert public | {"__version__"} == set(alora_gguf.__all__)


def test_every_error_is_public_and_has_one_root() -> None:
    kinds = {n for n, v in vars(errors).items() if isinstance(v, type)}
    assert kinds <= set(alora_gguf.__all__)
    for name in kinds:
        assert issubclass(getattr(errors, name), errors.AloraError)
        assert name in (errors.__doc__ or ""), f"{name} is not in the drawn tree"


def test_the_version_is_that_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    match = re.search(r'^version = "(.*)"', text, re.MULTILINE)
    assert match is not None
    assert match[1] == alora_gguf.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(alora_gguf, "Nonsense")


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import alora_gguf;"
        "print(time.perf_counter() - t, [m for m in ('numpy', 'llama_cpp', 'gguf') "
        "if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    seconds, loaded = run.stdout.split(" ", 1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 0.3
