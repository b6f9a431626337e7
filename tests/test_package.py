"""What `import alora_gguf` gives, and what it costs."""

from __future__ import annotations

import copy
import errno
import inspect
import os
import pickle
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import alora_gguf
from alora_gguf import errors
from alora_gguf.engine import library
from alora_gguf.engine.library import LLAMA_CPP_PYTHON, library_dir

ROOT = Path(__file__).parent.parent


def python(code: str, **env: str) -> str:
    """What a program prints that begins in a fresh process; on stderr it prints nothing."""
    kept = {name: value for name, value in os.environ.items() if "LLAMA" not in name}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**kept, **env}
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout.strip()


def test_all_public_names_exist_and_are_listed() -> None:
    listed = {*alora_gguf.__all__, *alora_gguf._LOAD_THE_LIBRARY}
    for name in listed:
        assert getattr(alora_gguf, name) is not None
    public = {
        name
        for name, value in vars(alora_gguf).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    } - {"annotations", "import_module", "TYPE_CHECKING"}
    assert public | {"__version__", "aio"} == listed


def test_the_docstring_groups_all_public_names() -> None:
    said = set(re.findall(r"\w+", alora_gguf.__doc__ or ""))
    errors = {name for name, home in alora_gguf._HOME.items() if home == "errors"}
    assert said >= {*alora_gguf._HOME} - errors | {"aio"}


ELSEWHERE = {
    "None", "Future", "Mapping", "Sequence", "Iterator", "AsyncIterator", "Any", "Path", "Literal",
    "JsonValue", "Kind",
    "Begins",  # one of three words
    "Spans",  # pairs of a position and a Provenance
}  # fmt: skip


def test_what_public_calls_return_is_public() -> None:
    """By the names in their annotations."""
    for name in alora_gguf.__all__:
        value = getattr(alora_gguf, name)
        members = vars(value).values() if isinstance(value, type) else [value]
        for member in members:
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if not inspect.isfunction(function) or function.__name__.startswith("_"):
                continue
            returned = str(inspect.get_annotations(function).get("return", ""))
            unknown = set(re.findall(r"[A-Z]\w+", returned)) - ELSEWHERE - {*alora_gguf.__all__}
            assert not unknown, f"{name}.{function.__name__} -> {returned}"


NO_LIBRARY = {"ALORA_LIB_DIR": "/nowhere/lib"}


@pytest.mark.parametrize("env", [{}, NO_LIBRARY], ids=["library", "no library"])
def test_looking_at_the_package_loads_no_library(env: dict[str, str]) -> None:
    code = (
        "import sys, inspect, pydoc, alora_gguf\n"
        "text = pydoc.render_doc(alora_gguf, renderer=pydoc.plaintext)\n"
        "assert 'class Model' in text and 'say(self' in text\n"
        "names = dict(inspect.getmembers(alora_gguf))\n"
        "assert 'Chat' in names and 'verify' in names and 'aio' in names and 'demo' in names\n"
        "assert not {'TYPE_CHECKING', 'annotations', 'import_module', 'engine'} & {*names}\n"
        "scope = {}\n"
        "exec('from alora_gguf import *', scope)\n"
        "assert set(alora_gguf.__all__) <= set(scope)\n"
        "assert hasattr(alora_gguf, 'Model') and not hasattr(alora_gguf, 'Nonsense')\n"
        "assert 'llama_cpp' not in sys.modules\n"
        "print(sys.platform == 'linux' and 'libllama' in open('/proc/self/maps').read())"
    )
    assert python(code, **env) == "False"


def test_without_the_library_the_drop_in_can_be_looked_at_and_says_why_it_cannot_be_used() -> None:
    code = (
        "import alora_gguf\n"
        "assert hasattr(alora_gguf, 'Llama') and hasattr(alora_gguf, 'LlamaState')\n"
        "from alora_gguf import Llama\n"
        "try: Llama('base.gguf')\n"
        "except alora_gguf.LibraryError as error: print(error)"
    )
    assert "/nowhere/lib: the native library cannot be loaded" in python(code, **NO_LIBRARY)


@pytest.mark.parametrize(
    "code",
    [
        "import alora_gguf, llama_cpp",
        "import alora_gguf; from llama_cpp import LlamaGrammar",
        "from alora_gguf import Model; import llama_cpp",
        "from alora_gguf import Llama; import llama_cpp",
        "from alora_gguf import *; import llama_cpp; from alora_gguf import Llama",
    ],
)
def test_llama_cpp_can_be_imported_after_us(code: str) -> None:
    assert python(code + "; import llama_cpp; print(llama_cpp.__version__)") == LLAMA_CPP_PYTHON


def library_name() -> str:
    return next(path.name for path in library_dir().iterdir() if "llama." in path.name)


@pytest.mark.parametrize(
    "code",
    [
        "import llama_cpp",
        "import llama_cpp.llama_cpp",
        "from llama_cpp import Llama, LlamaGrammar",
        "import llama_cpp, alora_gguf; alora_gguf.Llama; alora_gguf.Model",
    ],
)
def test_llama_cpp_can_be_imported_first_or_alone(code: str) -> None:
    """As libraries do that know nothing of us; the library is ours, once and for both."""
    code += (
        "\nimport llama_cpp, alora_gguf"
        "\nfrom alora_gguf.engine import native"
        "\nprint(native.load().path == __import__('pathlib').Path(llama_cpp.llama_cpp._lib._name))"
    )
    assert python(code) == "True"


def test_a_wheels_own_binding_comes_behind_whatever_else_is_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "_vendor"
    (folder / "llama_cpp").mkdir(parents=True)
    monkeypatch.setattr(alora_gguf, "__path__", [*alora_gguf.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = [*sys.path]
    library.announce()
    library.announce()
    assert sys.path == [*before, str(folder)]
    monkeypatch.setattr(sys, "path", [str(folder)])  # with no other installed it is our release
    assert library._is_our_release()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other"), str(folder)])
    (tmp_path / "other" / "llama_cpp").mkdir(parents=True)
    assert not library._is_our_release()


def test_a_python_that_imports_neither_loads_nothing_of_us() -> None:
    code = (
        "import sys; print([n for n in sys.modules if 'alora' in n and 'editable' not in n], "
        "[f for f in sys.meta_path if getattr(f, '__name__', '') == 'Announcer'] != [])"
    )
    assert python(code) == "['_alora_gguf_llama_cpp'] True"


def test_a_library_of_llama_cpps_own_is_left_to_it(tmp_path: Path) -> None:
    """Unless alora_gguf is imported first."""
    import llama_cpp

    theirs = Path(llama_cpp.__file__).parent
    folder = shutil.copytree(theirs, tmp_path / "llama_cpp")
    shutil.copytree(library_dir(), folder / "lib")
    about = f"llama_cpp_python-{LLAMA_CPP_PYTHON}.dist-info"  # by which ours knows its release
    shutil.copytree(theirs.parent / about, tmp_path / about)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{{}}import llama_cpp\n"
    code += "print(llama_cpp.llama_cpp._lib._name, 'alora_gguf' in sys.modules)"
    assert python(code.format("")) == f"{folder / 'lib' / library_name()} False"
    assert python(code.format("import alora_gguf; ")) == f"{library_dir() / library_name()} True"


def test_a_llama_cpp_that_came_first_with_a_library_of_its_own_is_told(tmp_path: Path) -> None:
    """Here ours under another path stands for its own."""
    folder = shutil.copytree(library_dir(), tmp_path / "lib")
    code = (
        "import llama_cpp, alora_gguf\n"
        "assert hasattr(alora_gguf, 'Model') and hasattr(alora_gguf, 'Llama')\n"
        "from alora_gguf.engine import native\n"
        "try: native.load()\n"
        "except alora_gguf.LibraryError as error: print(error)\n"
    )
    said = python(code, LLAMA_CPP_LIB_PATH=str(folder))
    assert "import alora_gguf before anything imports llama_cpp" in said


def test_what_somebody_else_has_set_stays() -> None:
    code = "import os, alora_gguf; print(os.environ['LLAMA_CPP_LIB_PATH'])"
    assert python(code, LLAMA_CPP_LIB_PATH="/theirs") == "/theirs"
    assert python(code) == str(library_dir())


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
    assert not {"numpy", "llama_cpp", "gguf", "ctypes", "typing"} & set(loaded)
    assert len([name for name in loaded if name.startswith("alora_gguf")]) <= 4
    assert len(loaded) <= 60
