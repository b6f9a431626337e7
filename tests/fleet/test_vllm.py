"""Plain LoRAs on vLLM, from our GGUFs: the same directories, prompts and answers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import export_adapter

from alora_gguf import IntrinsicCall, Message, Model, smollm2
from examples.fleet import hf_base
from examples.smollm2.turns import ASKED, NOTICE

PYTHON = os.environ.get("ALORA_TEST_VLLM", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="no vLLM is named: make test-fleet")
LORAS = Path(__file__).resolve().parents[2] / "examples/smollm2/lora"
TASKS = ("answerability", "jailbreak")
N_TOKENS = 16

PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    base, asked, out = sys.argv[1:]
    engine = LLM(base, enable_lora=True, max_lora_rank=16, max_loras=2, max_model_len=1024,
                 dtype="float32", enforce_eager=True)
    answers = {}
    for number, (name, (folder, prompts)) in enumerate(json.load(open(asked)).items(), 1):
        made = engine.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            SamplingParams(temperature=0, max_tokens=int(N_TOKENS)),
            lora_request=LoRARequest(name, number, folder),
        )
        answers[name] = [each.outputs[0].text for each in made]
    json.dump(answers, open(out, "w"))
""".replace("N_TOKENS", str(N_TOKENS))


def ask_vllm(folder: Path, asked: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Asks each adapter its prompts, with the base in `folder`, where answers go as well."""
    (folder / "ask.py").write_text(PROGRAM)
    (folder / "asked.json").write_text(json.dumps(asked))
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    paths = [folder / name for name in ("ask.py", "base", "asked.json", "out.json")]
    return subprocess.run(
        [PYTHON, *paths], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    adapters = {name: LORAS / f"{name}.gguf" for name in TASKS}
    with Model(smollm2.base_path(), adapters=adapters, n_ctx=2048) as model:
        yield model


@pytest.fixture(scope="module")
def answers(
    model: Model, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[tuple[Any, str]]]:
    """By intrinsic, for each question our value and what vLLM wrote."""
    folder = tmp_path_factory.mktemp("fleet")
    hf_base.write(smollm2.base_path(), folder / "base")
    asked, values = dict[str, Any](), dict[str, list[Any]]()
    for name in TASKS:
        export_adapter(LORAS / f"{name}.gguf", smollm2.base_path(), folder / name)
        prompts = []
        values[name] = []
        for said, _ in ASKED[name]:
            messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]
            with model.chat(documents=[NOTICE], messages=messages) as chat:
                result = chat.invoke(name)
                values[name].append(result.value)
                written = json.loads(result.text)
                prompts.append(chat.supervise(IntrinsicCall(name), written).prompt)
        asked[name] = (str(folder / name), prompts)
    run = ask_vllm(folder, asked)
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = json.loads((folder / "out.json").read_text())
    return {name: list(zip(values[name], theirs[name], strict=True)) for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_the_same_verdicts(name: str, answers: dict[str, list[tuple[Any, str]]]) -> None:
    """Its base has the weights that ours dequantises to, and activations that are not quantised, so
    that one that is on the edge may fall on the other side.
    """
    same = 0
    for ours, theirs in answers[name]:
        (written,) = json.loads(theirs).values()
        (value,) = ours.values()
        if isinstance(value, float):
            # the contract's categories are "yes" and "no", the first of which is counted
            same += (value > 0.5) == (written in ("yes", "answerable"))
        else:
            same += value == written
    assert same >= len(answers[name]) - 1, answers[name]


def test_an_activated_one_is_refused(tmp_path: Path) -> None:
    """In their words, as the page says."""
    hf_base.write(smollm2.base_path(), tmp_path / "base")
    export_adapter(smollm2.adapter_paths()["jailbreak"], smollm2.base_path(), tmp_path / "alora")
    run = ask_vllm(tmp_path, {"jailbreak": (str(tmp_path / "alora"), [[1, 2, 3]])})
    assert run.returncode != 0
    assert "vLLM does not support Activated LoRA (aLoRA)" in run.stdout + run.stderr
