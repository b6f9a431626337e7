"""The example that trains an adapter runs as documented, and its adapter does what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alora_gguf.cli import run

from alora_gguf import Model, demo

ROOT = Path(__file__).parents[2]
HERE = ROOT / "examples" / "train_alora"
BASE = ROOT / "examples" / "demo_model" / "base"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "smalltalk"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "train.py"), str(BASE), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        # of a model this small, threads that wait for each other are no help
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"written: {out}"
    right = int(lines[-2].split()[2])
    assert right >= 95, done.stdout
    return out


@pytest.fixture(scope="module")
def adapter(trained: Path) -> Path:
    out = trained.with_suffix(".gguf")
    assert run(["convert", str(trained), "--base", str(demo.base_path()), "-o", str(out)]) == 0
    return out


@pytest.mark.slow
def test_it_is_an_alora_with_its_contract(trained: Path) -> None:
    config = json.loads((trained / "adapter_config.json").read_text())
    assert len(config["alora_invocation_tokens"]) > 2
    assert (trained / "io.yaml").read_text() == (HERE / "io.yaml").read_text()


@pytest.mark.slow
def test_it_passes_beside_peft(
    trained: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(
        [
            *("verify", str(demo.base_path()), str(adapter), "--json", "--threads", "1"),
            *("--peft", str(trained), "--hf-base", str(BASE)),
        ]
    )
    assert status == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"]
    assert found["peft"] is not None


def test_it_tells_small_talk_from_questions(adapter: Path) -> None:
    with Model(demo.base_path(), adapters={"smalltalk": adapter}, n_threads=1) as model:
        chat = model.chat(documents=["The Bomel library opens at 9:30."])
        for text, is_small in (
            ("Hello!", True),
            ("When does the Bomel library open?", False),
            ("Great, thank you!", True),
        ):
            chat.add(text)
            result = chat.invoke("smalltalk")
            assert (result.value["smalltalk"] > 0.5) == is_small, text
            assert result.timings.reused == len(chat.tokens)
            chat.reply()
