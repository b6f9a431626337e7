"""alora_gguf.demo: the shipped files, their names, and what the demo's script may speak of."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from alora_gguf import AdapterError, AdapterFile, InputError, ModelError, demo, smollm2
from alora_gguf.demo import script
from examples.demo_model import chat as trained_on
from examples.demo_model import entities

ROOT = Path(__file__).parents[2]


def test_the_package_and_the_training_mean_the_same_invocations() -> None:
    assert demo.INTRINSICS == trained_on.INTRINSICS
    for name in demo.INTRINSICS:
        assert demo.invocation_of(name) == trained_on.role_marker(name)


def test_all_files_are_there() -> None:
    assert demo.base_path().name == "base.gguf"
    assert list(demo.adapter_paths()) == list(demo.INTRINSICS)
    for name, path in demo.adapter_paths().items():
        assert path == demo.adapter_path(name)
        adapter = AdapterFile.read(path)
        assert adapter.invocation
        assert adapter.invocation_text == demo.invocation_of(name)
        contract = yaml.safe_load(demo.io_yaml_path(name).read_text(encoding="utf-8"))
        assert {"model", "response_format", "transformations"} <= set(contract)


@pytest.mark.parametrize("ask", [demo.adapter_path, demo.io_yaml_path, demo.invocation_of])
def test_an_unknown_name_is_told_the_known_ones(ask: object) -> None:
    with pytest.raises(InputError, match=r"no intrinsic 'certainty', only answerability, uncert"):
        ask("certainty")  # type: ignore[operator]


def test_a_damaged_installation_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_FOLDER", tmp_path)
    with pytest.raises(ModelError) as lost:
        demo.base_path()
    assert str(lost.value) == (
        f"{tmp_path / 'base.gguf'}: the demo's base is missing; it comes with alora-gguf: install "
        "the package again, or check out alora_gguf/demo again"
    )
    for look in (demo.adapter_paths, lambda: demo.io_yaml_path("answerability")):
        with pytest.raises(AdapterError, match="a file of the demo's 'answerability' is missing"):
            look()


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, alora_gguf.demo;"
        "print([m for m in ('numpy', 'llama_cpp', 'gguf', 'yaml') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert run.stdout.strip() == "[]"


# What the wheel holds -----------------------------------------------------------------------------


def wheel_files() -> dict[str, Path]:
    """What scikit-build-core takes from the tree, by its place in the wheel."""
    paths = pytest.importorskip("scikit_build_core.build._pathutil")
    reader = pytest.importorskip("scikit_build_core.settings.skbuild_read_settings")
    settings = reader.SettingsReader.from_file(str(ROOT / "pyproject.toml")).settings
    found = paths.iter_package_files(
        packages=settings.wheel.packages,
        include=settings.sdist.include,
        src_exclude=settings.sdist.exclude,
        target_exclude=settings.wheel.exclude,
        build_dir=settings.build_dir,
        mode=settings.sdist.inclusion_mode,
    )
    return {target.as_posix(): ROOT / source for source, target in found}


def test_the_wheel_carries_what_is_shipped_and_little_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    files = wheel_files()
    folder = "alora_gguf/demo"
    wanted = {f"{folder}/base.gguf", f"{folder}/script.py"}
    for name in demo.INTRINSICS:
        wanted |= {f"{folder}/{name}.gguf", f"{folder}/intrinsics/{name}/io.yaml"}
    assert wanted <= set(files)
    models = [path for path in files if path.endswith((".gguf", ".safetensors"))]
    sizes = {path: files[path].stat().st_size for path in models}
    assert {Path(path).parent.as_posix() for path in models} == {folder, "alora_gguf/smollm2"}
    assert {path for path in models if "smollm2" in path} == {
        path.relative_to(ROOT).as_posix() for path in smollm2.adapter_paths().values()
    }
    assert all(sizes[path] <= 3_000_000 for path in models if "smollm2" in path)
    assert sum(sizes.values()) <= 28_000_000  # of a wheel of at most 30 MB
    assert all(path.startswith("alora_gguf/") for path in files)
    assert not [path for path in files if "examples" in path or "demo_model" in path]


def test_the_wheel_carries_the_servers_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = "alora_gguf/serve/page"
    wanted = {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
    assert {f"{folder}/index.html", f"{folder}/style.css", f"{folder}/main.js"} <= wanted
    assert wanted <= set(wheel_files())


# The script ---------------------------------------------------------------------------------------


def test_the_script_asks_what_there_is() -> None:
    for turn in script.TURNS:
        assert {*turn.before, *turn.after} <= set(demo.INTRINSICS)
    assert {*script.OF_THE_QUESTION, *script.OF_THE_ANSWER} == set(demo.INTRINSICS)
    assert 0 < script.N_SHOWN <= len(script.DOCUMENTS)


def test_right_answers_are_told_from_wrong_ones() -> None:
    turn = script.Turn("", "Who?", right=("Ruth Sumley", "she does"), truth="")
    assert turn.is_right("It is RUTH SUMLEY.")
    assert turn.is_right("She does.")
    assert not turn.is_right("Ruth does.")


def named_in(text: str) -> set[str]:
    """The names of things and events ("the copper kettle"), and the invented ones."""
    modifiers = {*entities._MODIFIERS, *entities._EVENT_MODIFIERS}
    nouns = {*entities._NOUNS, *entities._EVENT_NOUNS}
    found = {
        f"the {modifier} {noun}"
        for modifier, noun in re.findall(r"\b[Tt]he (\w+) ([\w-]+)", text)
        if modifier in modifiers and noun in nouns
    }
    ends = {*entities._SURNAME_ENDS, *entities._PLACE_ENDS, *entities._TOWN_ENDS}
    return found | {
        word
        for word in re.findall(r"\w+", text)
        for stem in entities._STEMS
        if word.startswith(stem) and word.removeprefix(stem) in ends
    }


def test_nothing_in_the_script_was_trained_on() -> None:
    names = named_in(" ".join([*script.DOCUMENTS, *(turn.question for turn in script.TURNS)]))
    assert len(names) >= len(script.DOCUMENTS)
    assert {entities.split_of(name) for name in names} == {"eval"}
