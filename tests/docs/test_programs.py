"""The programs in the documentation run, on the demo model in place of a large one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alora_gguf.convert import convert_adapter

from alora_gguf import Store, demo
from tests.support import pages, stored
from tests.support.steers import write_steer

PAGES = (
    "README.md",
    "docs/conversations.md",
    "docs/models.md",
    "docs/steering.md",
    "docs/howto/desktop-program.md",
    "docs/howto/granite-intrinsic.md",
)
# those that are whole; examples/ have tests of their own
PROGRAMS = [
    pytest.param(block.text, id=str(block))
    for page in PAGES
    for block in pages.blocks(pages.ROOT / page)
    if block.language == "python"
    and "alora_gguf import" in block.text
    and not (page.startswith("docs/howto/") and block.text.startswith('"""'))
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the demo model under the names of a large one."""
    store = Store(tmp_path_factory.mktemp("store"))
    stored.add(store, "granite-4.1-3b-Q4_K_M", demo.base_path().read_bytes(), kind="base")
    stored.add(store, "answerability", demo.adapter_path("answerability").read_bytes())
    # adapters of the demo model with the contracts of others
    corpus = pages.ROOT / "tests" / "intrinsics" / "corpus"
    peft = pages.ROOT / "examples" / "demo_model" / "peft" / "alora" / "jailbreak"
    folder = tmp_path_factory.mktemp("others")
    for name, file in (("requirement-check", "requirement_check"), ("guardian-core", "guardian")):
        contract, out = folder / f"{file}.yaml", folder / f"{file}.gguf"
        text = (corpus / contract.name).read_text(encoding="utf-8")
        contract.write_text(text.replace("{target_role}", "user"), encoding="utf-8")
        convert_adapter(peft, demo.base_path(), out, contract=contract)
        stored.add(store, name, out.read_bytes())
    return store.home


def test_there_are_some() -> None:
    assert len(PROGRAMS) >= 7


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.slow
def test_it_runs(program: str, home: Path, tmp_path: Path) -> None:
    for name in demo.INTRINSICS:
        program = program.replace(f'"{name}.gguf"', repr(str(demo.adapter_path(name))))
    program = program.replace('"granite.gguf"', repr(str(demo.base_path())))
    for seed, name in enumerate(("formal", "terse")):
        vector = write_steer(tmp_path / f"{name}.gguf", demo.base_path(), seed=seed)
        program = program.replace(f'"{name}.gguf"', repr(str(vector)))
    program = program.replace('"mine.gguf"', repr(str(tmp_path / "mine.gguf")))
    assert not re.search(r"\"\w+\.gguf\"", program)
    prelude = 'page = "The Bomel library opens at 9:30."\n'
    run = subprocess.run(
        [sys.executable, "-c", prelude + program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "ALORA_GGUF_HOME": str(home)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
