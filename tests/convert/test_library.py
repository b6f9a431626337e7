"""Which adapter of a library is meant, and what is said where that is not clear."""

from __future__ import annotations

from pathlib import Path

import pytest
from alora_gguf.convert import Pick
from alora_gguf.convert.find import find_source

from alora_gguf.errors import InputError
from tests.support.libraries import MODELS, write_adapter, write_library
from tests.support.peft_files import sound_case


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return write_library(tmp_path / "lib")


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (("answerability", MODELS[0], "alora"), f"answerability/{MODELS[0]}/alora"),
        (("ANSWERABILITY", MODELS[1].upper(), "LORA"), f"answerability/{MODELS[1]}/lora"),
        (("uncertainty", MODELS[0], "alora"), f"uncertainty/alora/{MODELS[0]}"),
        (
            ("query_rewrite", "ibm-granite/granite-3_3-8b.instruct", "lora"),
            f"query_rewrite/{MODELS[1]}/lora",
        ),
    ],
)
def test_one_of_a_library(library: Path, options: tuple[str, str, str], path: str) -> None:
    intrinsic, model, technology = options
    found = find_source(library, Pick(intrinsic=intrinsic, model=model, technology=technology))
    assert found.directory == library / path
    assert found.io_yaml == library / path / "io.yaml"
    assert found.licence == "apache-2.0"  # the library's
    assert found.name == intrinsic.lower()
    wanted_model = MODELS["8b" in model.lower()]
    assert found.stem == f"{intrinsic.lower()}-{wanted_model}-{technology.lower()}"
    assert found.path is None


def test_a_part_of_a_library_needs_fewer_options(library: Path) -> None:
    part = library / "uncertainty" / "lora"
    found = find_source(part, Pick(model=MODELS[0]))
    assert found.directory == part / MODELS[0]
    assert found.name == "uncertainty"  # io.yaml says that this is a library
    assert found.stem == f"uncertainty-{MODELS[0]}-lora"
    assert find_source(found.directory).stem == found.stem


def test_names_in_another_spelling(tmp_path: Path) -> None:
    """mellea writes requirement_check, the library requirement-check."""
    model = MODELS[0]
    for intrinsic in ("requirement-check", "hallucination_detection", "a-b", "a_b"):
        write_adapter(tmp_path / intrinsic / model / "alora")
    for wanted, there in (
        ("requirement_check", "requirement-check"),
        ("Hallucination-Detection", "hallucination_detection"),
        ("a_b", "a_b"),
        ("a-b", "a-b"),
    ):
        found = find_source(tmp_path, Pick(intrinsic=wanted))
        assert found.directory == tmp_path / there / model / "alora"
        assert found.name == there
    with pytest.raises(InputError, match=r"holds 2 adapters for --intrinsic a\.b, expected one"):
        find_source(tmp_path, Pick(intrinsic="a.b"))


def test_several_adapters_without_an_answer(library: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_source(library)
    assert str(caught.value) == (
        f"{library}: holds 12 adapters, expected one; choose with --intrinsic (answerability, "
        f"query_rewrite, uncertainty), --model ({MODELS[0]}, {MODELS[1]}), --technology (alora, "
        "lora): "
        + ", ".join(
            sorted(
                [
                    f"{intrinsic}/{model}/{technology}"
                    for intrinsic in ("answerability", "query_rewrite")
                    for model in MODELS
                    for technology in ("alora", "lora")
                ]
                + [f"uncertainty/{t}/{model}" for t in ("alora", "lora") for model in MODELS]
            )
        )
    )
    with pytest.raises(InputError) as caught:
        find_source(library, Pick(intrinsic="answerability", technology="alora"))
    assert str(caught.value) == (
        f"{library}: holds 2 adapters for --intrinsic answerability --technology alora, expected "
        f"one; choose with --model ({MODELS[0]}, {MODELS[1]}): answerability/{MODELS[0]}/alora, "
        f"answerability/{MODELS[1]}/alora"
    )


def test_no_adapter_that_is_asked_for(library: Path) -> None:
    with pytest.raises(
        InputError, match="none of its 12 adapters is for --intrinsic citations; there are answer"
    ):
        find_source(library, Pick(intrinsic="citations"))
    with pytest.raises(InputError, match="is for --intrinsic answerability --model llama; there"):
        find_source(library, Pick(intrinsic="answerability", model="llama"))


def test_adapters_that_no_option_tells_apart(tmp_path: Path) -> None:
    for i in range(15):
        write_adapter(tmp_path / f"v{i:02}")
    with pytest.raises(
        InputError,
        match=r"holds 15 adapters, expected one; give the directory of one: v00.*, v11 and 3 more$",
    ):
        find_source(tmp_path)
    # paths tell nothing, and configurations are not opened
    with pytest.raises(InputError, match="none of its 15 adapters is for --technology alora"):
        find_source(tmp_path, Pick(technology="alora"))
    assert find_source(tmp_path, Pick(intrinsic="V03")).directory == tmp_path / "v03"


def test_a_model_as_it_is_written_beats_a_similar_one(tmp_path: Path) -> None:
    for model in ("granite-4.0-micro", "granite-4-0-micro"):
        write_adapter(tmp_path / "a" / model / "alora")
    found = find_source(tmp_path, Pick(model="granite-4.0-micro"))
    assert found.directory.parent.name == "granite-4.0-micro"
    with pytest.raises(InputError, match="holds 2 adapters for --model granite_4_0_micro"):
        find_source(tmp_path, Pick(model="granite_4_0_micro"))


def test_options_for_what_is_an_adapter_already(tmp_path: Path) -> None:
    plain = write_adapter(tmp_path / "sure", alora=False)
    find_source(plain, Pick(technology="lora", model="Granite-3.3-2b-instruct", intrinsic="sure"))
    with pytest.raises(
        InputError,
        match=r"sure: is not what --technology alora asks for: it is an adapter of the technology "
        "lora; leave the option out, or give another directory",
    ):
        find_source(plain, Pick(technology="alora"))
    with pytest.raises(
        InputError, match=r"--model llama .*its base is called 'ibm-granite/granite-3.3-2b"
    ):
        find_source(plain, Pick(model="llama"))
    with pytest.raises(InputError, match="--intrinsic citations asks for: nothing in its path"):
        find_source(plain, Pick(intrinsic="citations"))
    deep = write_adapter(tmp_path / "citations" / "m" / "alora", alora=False)
    assert find_source(deep, Pick(technology="alora")).directory == deep  # its path says so
    with pytest.raises(InputError, match="--technology lora asks for: its path says otherwise"):
        find_source(deep, Pick(technology="lora"))
    (plain / "adapter_config.json").write_text('{"invocation_string": "<certainty>"}')
    assert find_source(plain, Pick(technology="alora")).directory == plain  # IBM's older ones
    # the only one below a directory is checked in the same way
    with pytest.raises(InputError, match="--technology lora asks for"):
        find_source(plain.parent / "citations", Pick(technology="lora"))


def test_options_that_are_none(library: Path) -> None:
    with pytest.raises(InputError, match="--technology is 'dora', expected alora or lora"):
        find_source(library, Pick(technology="dora"))
    with pytest.raises(InputError, match="--model is empty; leave it out if any will do"):
        find_source(library, Pick(model=" "))


def test_an_intrinsic_that_is_a_plain_lora_is_told(tmp_path: Path) -> None:
    """Some are published as such alone; whoever asks for one by name knows it."""
    case = sound_case(tmp_path)
    del case.config["alora_invocation_tokens"]
    assert case.convert().warnings == ()
    (case.source / "io.yaml").write_text("name: sure\n")
    (warning,) = case.convert(overwrite=True).warnings
    assert warning.startswith(
        "sure is a plain LoRA: asked about a conversation it reads all of it again"
    )
    assert case.convert(overwrite=True, pick=Pick(technology="lora")).warnings == ()
