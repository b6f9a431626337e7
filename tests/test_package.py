"""What `import alora_gguf` gives, and what it costs."""

from __future__ import annotations

import copy
import errno
import pickle
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


KINDS = {n: v for n, v in vars(errors).items() if isinstance(v, type)}
DRAWN = re.findall(r"^([│├└─ ]*)(\w+Error) +([a-z_]+)  ", errors.__doc__ or "", re.MULTILINE)


def test_every_error_is_public_and_has_one_root() -> None:
    assert KINDS.keys() <= set(alora_gguf.__all__)
    for kind in KINDS.values():
        assert issubclass(kind, errors.AloraError)


def test_every_error_has_a_code_of_its_own_in_the_drawn_tree() -> None:
    drawn = [(name, code) for _, name, code in DRAWN]
    assert dict(drawn) == {name: vars(kind)["code"] for name, kind in KINDS.items()}
    assert len({code for _, code in drawn}) == len(drawn) == len(KINDS)


def test_the_drawn_tree_is_the_classes_own() -> None:
    """Each hangs below its first base."""
    above: list[tuple[int, str]] = []
    for depth, name, _ in DRAWN:
        while above and above[-1][0] >= len(depth):
            above.pop()
        assert KINDS[name].__bases__[0] is (KINDS[above[-1][1]] if above else Exception), name
        above.append((len(depth), name))


def test_a_missing_file_is_pythons_own_too() -> None:
    error = errors.MissingFileError("a.gguf: there is no such file; check the path", Path("a.gguf"))
    for each in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert isinstance(each, FileNotFoundError)
        assert (each.errno, each.filename) == (errno.ENOENT, "a.gguf")
        assert str(each) == "a.gguf: there is no such file; check the path"


def test_the_version_is_that_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    match = re.search(r'^version = "(.*)"', text, re.MULTILINE)
    assert match is not None
    assert match[1] == alora_gguf.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(alora_gguf, "Nonsense")


def test_import_loads_next_to_nothing() -> None:
    """Modules are counted, not seconds; about 15 of Python's own are there."""
    code = (
        "import sys; before = set(sys.modules); import alora_gguf;"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = run.stdout.split()
    assert not {"numpy", "llama_cpp", "gguf", "ctypes"} & set(loaded)
    assert len([name for name in loaded if name.startswith("alora_gguf")]) <= 4
    assert len(loaded) <= 60
