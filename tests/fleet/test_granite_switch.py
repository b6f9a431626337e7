"""Granite Switch, from our GGUFs: its composer takes the library that export_index() writes, and
its checkpoint answers as our runtime does.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import export_index

from alora_gguf import IntrinsicCall, Message, Model, demo

PYTHON = os.environ.get("ALORA_TEST_GRANITE_SWITCH", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="no Python with Granite Switch is named: make test-fleet"
)
BASE = Path(__file__).resolve().parents[2] / "examples/demo_model/base"
MODEL = "alora-gguf-demo"

PROGRAM = """
import json, sys, torch
from granite_switch.hf import GraniteSwitchForCausalLM

folder, asked, out = sys.argv[1:]
tokens = {each["adapter_name"]: each["control_token"]["id"]
          for each in json.load(open(folder + "/adapter_index.json"))["adapters"]}
model = GraniteSwitchForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def likeliest(ids, n):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -n - 1 :]
    return logits.argmax(-1).tolist()[:n]


answers = []
for name, prompt, first, reply in json.load(open(asked)):
    plain = [*prompt, *reply]
    # a control token stands in place of the invocation's first, whose embedding it has
    switched = [*plain[:first], tokens[name], *plain[first + 1 :]]
    answers.append([likeliest(ids, len(reply)) for ids in (switched, plain)])
json.dump(answers, open(out, "w"))
"""


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(demo.base_path(), adapters=demo.adapter_paths(), n_ctx=2048) as model:
        yield model


def asked(model: Model) -> Iterator[tuple[str, tuple[int, ...], int, tuple[int, ...]]]:
    """Each intrinsic about the demo's conversation, turn by turn: the prompt, where its invocation
    begins, and the reply's tokens.
    """
    said: list[Message] = []
    for turn in demo.TURNS:
        said.append(Message("user", turn.question))
        for names, answer in ((turn.before, None), (turn.after, turn.right[0])):
            if answer is not None:
                said.append(Message("assistant", answer))
            for name in names:
                with model.chat(documents=demo.DOCUMENTS, messages=said) as chat:
                    reply = json.loads(chat.invoke(name).text)
                    found = chat.supervise(IntrinsicCall(name), reply)
                invocation = model.adapter(name).invocation
                yield name, found.prompt, _last(found.prompt, invocation), found.reply
        if said[-1].role == "user":
            said.append(Message("assistant", turn.right[0]))


def _last(tokens: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    n = len(wanted)
    return next(i for i in reversed(range(len(tokens))) if tokens[i : i + n] == wanted)


def test_the_same_replies(model: Model, tmp_path: Path) -> None:
    """Token for token, with the base's own weights there and those of the demo's GGUF here."""
    export_index([*demo.adapter_paths().values()], demo.base_path(), tmp_path / "library")
    compose = [PYTHON, "-m", "granite_switch.composer.compose_granite_switch"]
    compose += ["--base-model", BASE, "--target-model", MODEL]
    compose += ["--adapters", tmp_path / "library", "--output", tmp_path / "switch"]
    run = subprocess.run(compose, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    questions = [*asked(model)]
    assert {name for name, *_ in questions} == {*demo.INTRINSICS}
    (tmp_path / "asked.json").write_text(json.dumps(questions))
    program: list[Any] = [PYTHON, "-c", PROGRAM]
    program += [tmp_path / name for name in ("switch", "asked.json", "out.json")]
    run = subprocess.run(program, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = json.loads((tmp_path / "out.json").read_text())
    replies = [list(reply) for *_, reply in questions]
    assert [switched for switched, _ in theirs] == replies
    # what the base says without them
    assert sum(plain == reply for (_, plain), reply in zip(theirs, replies, strict=True)) < 3
