"""PEFT directories in place of adapters: converted for the base at hand, for as long as they are
needed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from alora_gguf import AdapterFile, cli
from tests.support.chats import YES_NO
from tests.support.chatting import Chatting, Tiny
from tests.support.peft_files import Case
from tests.support.tiny_base import N_EMBD, N_KV, N_LAYER


@pytest.fixture
def peft(tiny: Tiny, tmp_path: Path) -> Path:
    """An aLoRA for the tiny base, with a contract."""
    case = Case(tmp_path, tiny.base)
    case.config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
        "alora_invocation_tokens": AdapterFile.read(tiny.alora).invocation,
    }  # fmt: skip
    for layer in range(N_LAYER):
        case.add(f"model.layers.{layer}.self_attn.v_proj", N_EMBD, N_KV)
    case.write()
    (case.source / "io.yml").write_text(YES_NO)
    return case.source


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def told(peft: Path, base: Path) -> str:
    return (
        f"{peft}: converted for this base and this run; to keep it: alora-gguf convert {peft} "
        f"--base {base}\n"
    )


def test_in_a_chat(chatting: Chatting, tiny: Tiny, peft: Path, temporary: Path) -> None:
    given = ("-m", tiny.base, "--temperature", 0, "--max-tokens", 2)
    found = chatting(*given, "-a", f"it={peft}", lines="hello\n/it\n/ctx 300\n/it\n/adapters\n")
    assert found.err.startswith(told(peft, tiny.base))
    assert found.status == 0
    assert found.out.splitlines()[-1].startswith("it       aLoRA  4     yes ")
    assert [*temporary.glob("alora-gguf-*/")] == []
    found = chatting(*given, lines=f"hello\n/load it={peft}\n/it\n")
    assert told(peft, tiny.base) in found.err
    assert "loaded 'it', aLoRA, rank 4; ask it with /it\n" in found.err
    assert found.status == 0
    assert [*temporary.glob("alora-gguf-*/")] == []


def test_in_run(
    home: Path, tiny: Tiny, peft: Path, temporary: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    talk = tmp_path / "talk.json"
    talk.write_text('[{"role": "user", "content": "hello"}]')
    asked = ("-m", str(tiny.base), "-a", f"it={peft}", "--intrinsic", "it", "--value")
    assert cli.run(["run", "--threads", "1", *asked, str(talk)]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(told(peft, tiny.base))
    assert captured.err.count("\nwarning: the invocation '<certainty>' = ") == 1  # as convert says
    assert 0 <= json.loads(captured.out) <= 1
    assert [*temporary.glob("alora-gguf-*/")] == []


def test_what_is_wrong_with_one_is_said_as_convert_does(
    chatting: Chatting, tiny: Tiny, peft: Path, temporary: Path, tmp_path: Path
) -> None:
    given = ("-m", tiny.base, "-a")
    (tmp_path / "empty").mkdir()
    assert chatting(*given, tmp_path / "empty").err.startswith(
        f"Error: {tmp_path / 'empty'}: holds no PEFT adapter: "
    )
    (peft / "io.yml").write_text("model: [")
    assert chatting(*given, peft).err.startswith(f"Error: {peft / 'io.yml'}:1: ")
    (peft / "adapter_model.safetensors").unlink()
    assert chatting(*given, peft).err.startswith(f"Error: {peft}/adapter_model.safetensors: ")
    assert [*temporary.iterdir()] == []
