"""What a wheel has in it, and that it works where it is installed: without a compiler, in whatever
order things are imported, and on older processors, which are emulated.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any, Final

import pytest

from alora_gguf.engine.library import LLAMA_CPP_PYTHON

from . import interpreter, is_foreign, processor, without_compilers

WHEEL: Final = os.environ.get("ALORA_TEST_WHEEL", "")
pytestmark = pytest.mark.skipif(not WHEEL, reason="no wheel is named: make test-wheel")
MOST: Final = 40  # MB

EMULATOR: Final = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
emulated = pytest.mark.skipif(
    not EMULATOR or sys.platform != "linux" or processor(WHEEL) != "x86_64" or is_foreign(WHEEL),
    reason="x86-64 alone, with qemu-x86_64 (Debian, Ubuntu: apt install qemu-user)",
)
# what the emulator calls processors, and which of ggml's libraries each should get
PROCESSORS: Final = {
    "Nehalem": "libggml-cpu-sse42",
    "SandyBridge": "libggml-cpu-sandybridge",
    "Haswell": "libggml-cpu-haswell",
}


def python(*arguments: str, on: str = "") -> str:
    """What the environment's Python prints, `on` an emulated processor; it has no complaints."""
    command = [*interpreter(WHEEL), *arguments]
    if on:
        command = [str(EMULATOR), "-cpu", on, *command]
    run = subprocess.run(
        command, capture_output=True, text=True, env=without_compilers(), cwd="/", check=False
    )
    assert run.returncode == 0, run.stderr
    assert [line for line in run.stderr.splitlines() if not line.startswith("qemu-")] == []
    return run.stdout.strip()


@pytest.fixture(scope="module")
def archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(WHEEL)


def test_it_is_small_enough_and_names_its_platform(archive: zipfile.ZipFile) -> None:
    name = Path(WHEEL).name
    assert re.fullmatch(r"alora_gguf-[\d.]+-py3-none-(?!any)\w+\.whl", name)
    assert sum(each.compress_size for each in archive.infolist()) < MOST * 1e6


def test_it_depends_on_what_the_binding_needs_and_not_on_the_binding(
    archive: zipfile.ZipFile,
) -> None:
    (path,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
    needed = message_from_string(archive.read(path).decode()).get_all("Requires-Dist") or []
    names = {re.split(r"[^\w.-]", each)[0].lower() for each in needed if "extra ==" not in each}
    assert {"numpy", "gguf", "jinja2", "diskcache", "typing-extensions"} <= names
    assert not {"llama-cpp-python", "llama_cpp_python"} & names


def test_layers_on_another_machine() -> None:
    """Here itself: its library for that is beside the others, and found there."""
    code = (
        "import threading, alora_gguf as ag; from alora_gguf import demo; found = []\n"
        "there = threading.Event(); ready = lambda at: (found.append(at), there.set())\n"
        "threading.Thread(target=ag.serve_rpc, kwargs={'port': 0, 'ready': ready}, daemon=True)"
        ".start(); there.wait(60)\n"
        "model = ag.Model(demo.base_path(), rpc=found)\n"
        "print(bool(model.chat().say('Hello', max_tokens=2).text), flush=True)\n"
        "import os; os._exit(0)"
    )
    assert python("-c", code).endswith("True")


def test_licences_of_what_it_carries_are_in_it(archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    assert "alora_gguf/_vendor/LICENSE.md" in names
    assert any(each.endswith("licenses/THIRD_PARTY.md") for each in names)
    assert any(each.endswith("licenses/LICENSE") for each in names)


def test_the_package_and_its_programs_say_their_version() -> None:
    version = Path(WHEEL).name.split("-")[1]
    assert python("-c", "import alora_gguf; print(alora_gguf.__version__)") == version
    assert version in python("-m", "alora_gguf", "--version")


USE: Final = "llama_cpp.llama_backend_init(); print(llama_cpp.__version__)"


@pytest.mark.parametrize(
    "code",
    [
        "import alora_gguf, llama_cpp",
        "import llama_cpp, alora_gguf",
        "import llama_cpp",
        "from llama_cpp import Llama; import llama_cpp",
        "from alora_gguf import Llama; import llama_cpp",
        "import llama_cpp.llama_chat_format, llama_cpp",
    ],
)
def test_llama_cpp_is_there_in_whatever_order(code: str) -> None:
    assert python("-c", f"{code}; {USE}") == LLAMA_CPP_PYTHON


def test_another_llama_cpp_that_is_installed_wins(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("__version__ = 'another'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    told = python("-c", code + "import alora_gguf, llama_cpp; print(llama_cpp.__version__)")
    assert told == "another"
    (tmp_path / "llama_cpp_python-0.2.90.dist-info").mkdir()
    code += (
        "from alora_gguf.engine.native import load\ntry: load()\nexcept Exception as e: print(e)"
    )
    assert "is 0.2.90, expected" in (said := python("-c", code))
    assert "pip uninstall llama-cpp-python" in said


def test_the_demo_is_right() -> None:
    told = python("-m", "alora_gguf", "demo")
    for said in ("not answerable 100%", "jailbreak attempt 100%", "faithful 100%"):
        assert said in told
    assert 'rewritten question "Who is the manager of the Bomel library?"' in told
    assert "cells are byte for byte what they were" in told


JUDGE: Final = """
import json
from alora_gguf import Model, demo
from alora_gguf.demo import script
with Model(demo.base_path(), adapters=demo.adapter_paths(), n_ctx=1024, n_threads=1) as model:
    chat = model.chat(documents=script.DOCUMENTS[:3])
    said = [chat.say("When does the Bomel library open?").text, chat.say("Who runs it?").text]
    found = chat.invoke_many(list(demo.INTRINSICS))
    print(json.dumps([said, {each.name: each.value for each in found}], default=str))
"""


@pytest.fixture(scope="module")
def judged_here() -> Any:
    return json.loads(python("-c", JUDGE))


LOADED: Final = """
import re
from alora_gguf.engine.native import load
load()
maps = open("/proc/self/maps").read()
print(*{*re.findall(r"[^/]+(?=\\.so)", " ".join(re.findall(r"\\S*ggml-cpu\\S*", maps)))})
"""


@emulated
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_gets_its_own_code(name: str) -> None:
    assert python("-c", LOADED, on=name) == PROCESSORS[name]


@emulated
@pytest.mark.parametrize("name", PROCESSORS)
def test_older_processors_judge_alike(name: str, judged_here: Any) -> None:
    said, values = json.loads(python("-c", JUDGE, on=name))
    assert said == judged_here[0]
    assert values == approximately(judged_here[1])


@pytest.mark.skipif(not is_foreign(WHEEL), reason="only where the whole wheel is emulated")
def test_another_processor_judges_as_this_one_does(judged_here: Any) -> None:
    """This one with the library of this project's own environment."""
    ours = subprocess.run(
        [sys.executable, "-c", JUDGE], capture_output=True, text=True, check=True
    ).stdout
    said, values = json.loads(ours)
    assert judged_here[0] == said
    assert judged_here[1] == approximately(values)


def approximately(value: Any) -> Any:
    """The same, with numbers that may differ as products of different instructions do."""
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    return pytest.approx(value, abs=0.01) if isinstance(value, float) else value
