"""PEFT and our runtime side by side, on an untrained Granite and random aLoRAs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.errors import InputError
from examples.demo_model import parity, runtime
from examples.demo_model.chat import role_marker
from examples.demo_model.parity import Difference, Peft
from examples.demo_model.runtime import Files
from tests.demo_model.stand_in import Data

pytestmark = pytest.mark.parity

TASKS = ("answerability", "jailbreak")
N = 6


def write_peft(directory: Path, base: Path, invocation: list[int] | None, seed: int) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        alora_invocation_tokens=invocation,
        init_lora_weights=False,
    )
    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():  # large enough to change every answer
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    model.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.demo_model.tiny_granite import write_granite

    return write_granite(tmp_path_factory.mktemp("granite"))


@pytest.fixture(scope="module")
def directories(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from examples.demo_model.tokenizer import load

    folder, tokenizer = tmp_path_factory.mktemp("peft"), load(base)
    return {
        task: write_peft(folder / task, base, tokenizer.encode(role_marker(task)).ids, seed)
        for seed, task in enumerate(TASKS)
    }


@pytest.fixture(scope="module")
def files(
    base: Path, directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Files:
    from alora_gguf.convert import convert_adapter

    from examples.demo_model.base_gguf import write_base_gguf

    folder = tmp_path_factory.mktemp("gguf")
    write_base_gguf(base, folder / "base.gguf", "f16")
    for task, directory in directories.items():
        convert_adapter(directory, folder / "base.gguf", folder / f"{task}.gguf", outtype="f32")
    adapters = {task: folder / f"{task}.gguf" for task in TASKS}
    return Files({parity.BASE: folder / "base.gguf"}, adapters, {})


@pytest.fixture(scope="module")
def peft(base: Path, directories: dict[str, Path]) -> Peft:
    return Peft(base, directories, 1)


@pytest.fixture
def model(files: Files) -> Iterator[ag.Model]:
    with runtime.open_model(files.bases[parity.BASE], files.alora, 1) as opened:
        yield opened


def prompts(task: str) -> list[str]:
    return [example.prompt for example in Data().examples(task, "eval", N)]


def test_the_two_agree(peft: Peft, files: Files) -> None:
    result = parity.run(Data(), peft, files, n=N, threads=1, tasks=TASKS)
    assert result["conversations"] == dict.fromkeys(TASKS, N)
    assert (result["total"], result["floor"]) == (N * len(TASKS), 0.995)
    # random weights have close calls, where F16 keys and values may tip the scale
    for row in result["differences"]:  # type: ignore[attr-defined]
        assert abs(row["margin"]) < 0.05, row
    assert result["share"] >= 0.75  # type: ignore[operator]
    assert len(result["files"]) == 1 + len(TASKS)  # type: ignore[arg-type]


def test_each_adapter_answers_in_its_own_way(peft: Peft) -> None:
    ids = peft.encode(prompts("jailbreak")[0])
    answers = [peft.answer(task, [*ids, *peft.encode(role_marker(task))], 8)[0] for task in TASKS]
    without = peft.answer(TASKS[0], ids, 8)[0]  # no invocation: the base's own answer
    assert answers[0] != answers[1]
    assert without not in answers


def test_another_adapter_is_found_out(peft: Peft, files: Files) -> None:
    first, second = TASKS
    swapped = replace(files, alora={first: files.alora[second], second: files.alora[first]})
    with runtime.open_model(swapped.bases[parity.BASE], swapped.alora, 1) as model:
        found = list(parity.compare(peft, model, first, prompts(first)))
    assert len(found) == N
    assert parity.tell({**parity.summary({first: N}, found, files)}) == 1


def test_a_difference_says_where_and_by_how_much(peft: Peft, model: ag.Model) -> None:
    class Tipped(Peft):
        """As PEFT, but the third token is the second choice."""

        def __init__(self) -> None:
            self.__dict__.update(peft.__dict__)

        def answer(self, name, prompt, max_tokens):  # type: ignore[no-untyped-def]
            tokens, logits = peft.answer(name, prompt, max_tokens)
            order = np.argsort(logits[2].numpy())
            self.gap = float(logits[2, order[-2]] - logits[2, order[-1]])
            return [*tokens[:2], int(order[-2])], logits[:3]

    tipped = Tipped()
    (found,) = parity.compare(tipped, model, TASKS[0], prompts(TASKS[0])[:1])
    assert (found.intrinsic, found.token) == (TASKS[0], 2)
    assert found.margin == pytest.approx(tipped.gap, abs=1e-5)
    assert found.margin < 0
    assert found.peft != found.ours


def test_another_tokenization_is_a_difference(peft: Peft, model: ag.Model) -> None:
    class Other(Peft):
        def __init__(self) -> None:
            self.__dict__.update(peft.__dict__)

        def encode(self, text: str) -> list[int]:
            return [*peft.encode("Hello"), *peft.encode(text)]

    (found,) = parity.compare(Other(), model, TASKS[0], prompts(TASKS[0])[:1])
    assert (found.token, found.margin) == (-1, 0.0)


def test_a_plain_lora_is_refused(base: Path, tmp_path: Path) -> None:
    lora = write_peft(tmp_path / "lora", base, None, 3)
    with pytest.raises(InputError, match="is a plain LoRA, expected an aLoRA"):
        Peft(base, {"answerability": lora}, 1)


@pytest.mark.parametrize(("same", "status"), [(1000, 0), (995, 0), (994, 1)])
def test_the_floor(same: int, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Difference("jailbreak", "...", "yes", "no", 3, 0.0123)] * (1000 - same)
    result = parity.summary({"jailbreak": 1000}, rows, Files({}, {}, {}))
    assert parity.tell(result) == status
    out = capsys.readouterr().out
    assert f"{same} of 1000 answers are the same ({same / 10:.2f}%; floor 99.5%)" in out
    assert out.count("PEFT 'yes', ours 'no' (token 3, margin 0.0123 logits)") == 1000 - same
    assert json.loads(json.dumps(result)) == result


def test_missing_files_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ROOT", "EXAMPLE"):
        monkeypatch.setattr(runtime, name, tmp_path)
    assert parity.main(["--n", "1", "--json", str(tmp_path / "parity.json")]) == 2
    assert "missing; `make demo-model`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
