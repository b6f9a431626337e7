"""The messages that docs/troubleshooting.md explains are those of the code, and are raised."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from alora_gguf.cli import run
from alora_gguf.convert import convert_adapter

import alora_gguf
from alora_gguf import (
    AdapterInUseError,
    AdapterMismatchError,
    AloraError,
    CacheFullError,
    ContractError,
    Document,
    InputError,
    Invocation,
    InvocationNotFoundError,
    LibraryError,
    Message,
    Model,
    ModelError,
    NotFiniteError,
    SavedSessionError,
    UnknownAdapterError,
    UnsupportedAdapterError,
    demo,
)
from alora_gguf.engine.library import library_dir
from alora_gguf.intrinsics import load_contract, rewrite, sentences
from tests.support import tiny_base
from tests.support.files import EXACT, Files

ROOT = Path(__file__).parents[2]
PEFT = ROOT / "examples" / "demo_model" / "peft" / "alora" / "jailbreak"
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def joined(files: list[Path]) -> str:
    """Their texts, literals that are split over lines put together."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return re.sub(r'"\s*\n\s*r?f?"', "", text)


def said() -> str:
    files = [p for name in ("alora_gguf", "cli", "convert") for p in (ROOT / name).rglob("*.py")]
    return joined([*files, *(ROOT / "native/src").glob("*.cpp"), ROOT / "CMakeLists.txt"])


def expected() -> str:
    """What other tests expect to be raised."""
    here = Path(__file__).resolve()
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if path.resolve() != here]
    return joined(files).replace("\\", "")


def test_there_are_some() -> None:
    assert len(MESSAGES) > 25
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_it_is_said(message: str) -> None:
    assert message in said()


@pytest.mark.parametrize("message", MESSAGES)
def test_it_is_raised_by_a_test(message: str) -> None:
    assert message in RAISED or message in expected()


# Here ---------------------------------------------------------------------------------------------


def no_library(files: Files, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alora_gguf, "__path__", [str(folder)])
        library_dir()


def no_gguf(files: Files, folder: Path) -> None:
    (folder / "page.gguf").write_text("<html>not found</html>")
    Model(folder / "page.gguf")


def a_pointer(files: Files, folder: Path) -> None:
    (folder / "base.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    Model(folder / "base.gguf")


def cut_short(files: Files, folder: Path) -> None:
    data = files.base.read_bytes()
    (folder / "base.gguf").write_bytes(data[: len(data) // 2])
    Model(folder / "base.gguf")


def no_such_cache(files: Files, folder: Path) -> None:
    from llama_cpp import llama_cpp

    with pytest.MonkeyPatch.context() as patch:  # as where memory ends
        patch.setattr(llama_cpp, "llama_init_from_model", lambda *_: None)
        files.model()


def dora(files: Files, folder: Path) -> None:
    shutil.copytree(PEFT, folder / "peft")
    path = folder / "peft" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))
    convert_adapter(folder / "peft", demo.base_path(), folder / "out.gguf")


def another_architecture(files: Files, folder: Path) -> None:
    def counted(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    data, key = files.alora.read_bytes(), counted(b"general.architecture") + struct.pack("<I", 8)
    assert data.count(key + counted(b"llama")) == 1
    (folder / "other.gguf").write_bytes(
        data.replace(key + counted(b"llama"), key + counted(b"gemma"))
    )
    with files.model(adapters={}) as model:
        model.load_adapter("other", folder / "other.gguf")


def unknown(files: Files, folder: Path) -> None:
    with files.model() as model:
        model.adapter("nobody")


def loaded_twice(files: Files, folder: Path) -> None:
    with files.model() as model:
        model.load_adapter("sure", files.alora)


def no_contract(files: Files, folder: Path) -> None:
    with files.model() as model:
        model.contract("sure")


def no_invocation(files: Files, folder: Path) -> None:
    with files.model() as model, model.session() as session:
        session.append([1, 2, 3])
        session.invoke(Invocation("sure", prompt=[4, 5, 6], append_invocation=False))


def misspelt(_: Files, folder: Path) -> None:
    path = folder / "io.yaml"
    path.write_text('model: ~\nresponse_format: ~\ntransformations: ~\ninstruction: "{criteria}"\n')
    rewrite(load_contract(path), [], [], {"criterai": "x"})


def no_sentences(files: Files, folder: Path) -> None:
    (folder / "io.yaml").write_text(
        "model: ~\nresponse_format: ~\ntransformations: ~\nsentence_boundaries: {documents: c}\n"
    )
    sentences._splitter.cache_clear()  # a test before this one may have loaded it
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "nltk.tokenize.punkt", None)
        rewrite(load_contract(folder / "io.yaml"), [Message("user", "So.")], [Document("A. B.")])


def not_finite(files: Files, folder: Path) -> None:
    huge = tiny_base.write_adapter(folder / "huge.gguf", invocation=None, strength=1e37)
    with files.model(adapters={"huge": huge}) as model, model.session() as session:
        session.append([1, 2, 3])
        session.generate(adapter="huge", max_tokens=2).read()


def no_template(files: Files, folder: Path) -> None:
    with files.model() as model:
        model.chat()


def no_cells(files: Files, folder: Path) -> None:
    with files.model(n_ctx=256) as model, model.session() as session:
        session.append([1] * 300)


def no_sequences(files: Files, folder: Path) -> None:
    with files.model(options=replace(EXACT, n_seq_max=1)) as model, model.session():
        model.session()


def of_another_base(files: Files, folder: Path) -> None:
    with files.model() as model, model.session() as session:
        session.append([1, 2, 3])
        session.save(folder / "talk.alora")
    other = tiny_base.write_base(folder / "other.gguf", seed=9)
    with Model(other, n_ctx=256, n_threads=1, options=EXACT) as model:
        model.restore_session(folder / "talk.alora")


def of_an_adapter(files: Files, folder: Path) -> None:
    with files.model() as model, model.session() as session:
        session.sync([1, 2, 3], adapter="lora")
        session.save(folder / "talk.alora")
    with files.model(adapters={}) as model:
        model.restore_session(folder / "talk.alora")


Raise = Callable[[Files, Path], None]
RAISED: dict[str, tuple[type[AloraError], Raise]] = {
    "was not found. Looked in:": (LibraryError, no_library),
    "is not a GGUF file": (ModelError, no_gguf),
    "a Git LFS pointer, not the file itself": (ModelError, a_pointer),
    "truncated: ": (ModelError, cut_short),
    "a smaller n_ctx or other cache types may help": (ModelError, no_such_cache),
    "train without it, or merge it into the base": (UnsupportedAdapterError, dora),
    "was made for the architecture": (AdapterMismatchError, another_architecture),
    "no adapter named": (UnknownAdapterError, unknown),
    "is loaded already": (AdapterInUseError, loaded_twice),
    "holds no contract": (ContractError, no_contract),
    "does not occur in these": (InvocationNotFoundError, no_invocation),
    "unknown argument": (InputError, misspelt),
    "numbers sentences, which nltk splits": (InputError, no_sentences),
    "that are not finite": (NotFiniteError, not_finite),
    "has no chat template": (ModelError, no_template),
    "the KV cache is full": (CacheFullError, no_cells),
    "sequences are in use": (CacheFullError, no_sequences),
    "was saved with the base": (SavedSessionError, of_another_base),
    "its cells were computed by": (SavedSessionError, of_an_adapter),
}


@pytest.mark.parametrize("message", RAISED)
def test_it_is_raised(message: str, files: Files, tmp_path: Path) -> None:
    kind, provoke = RAISED[message]
    assert message in MESSAGES
    with pytest.raises(kind, match=re.escape(message)) as raised:
        provoke(files, tmp_path)
    assert "\n" not in str(raised.value) or kind is LibraryError


def test_the_command_says_the_same(
    tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    assert run(["verify", str(tmp_path / "page.gguf"), str(files.alora)]) == 1
    assert "is not a GGUF file" in capsys.readouterr().err
