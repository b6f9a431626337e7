"""train() from end to end on a tiny base: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from alora_gguf.cli import run as run_command

import alora_gguf as ag
from alora_gguf.files import abandoned
from alora_gguf.train import Task, TrainReport, TrainSettings, Watcher, fitting, run, train
from tests.support.tiny_base import write_hybrid

from .conftest import WriteLines, example

pytestmark = pytest.mark.parity

SETTINGS = TrainSettings(epochs=4, batch=8, rate=2e-2, threads=1, looks=2, patience=0)
CONTRACT = """
model: ~
response_format: |
  {"type": "object", "properties": {"x": {"type": "string", "enum": ["yes", "no"]}},
   "required": ["x"], "additionalProperties": false}
transformations: ~
instruction: say x
"""
EXAMPLES = [example(i, split="held_out" if i % 5 == 4 else "train") for i in range(60)]


class Stopping(Watcher):
    """Stops, or fails, after so many steps."""

    def __init__(self, at: int, *, dies: bool = False) -> None:
        self.at, self.dies, self.steps = at, dies, 0

    def moved(self, done: int, total: int, note: str = "") -> None:
        if note:
            self.steps = done
            if self.dies and done == self.at:
                raise MemoryError("killed")

    def stopped(self) -> bool:
        return self.steps >= self.at and not self.dies


def trained(base: Path, data: Path, out: Path, **more: Any) -> TrainReport:
    return train(base, [Task(data=data, out=out)], **{"settings": SETTINGS, **more})[0]


def test_an_adapter_comes_of_a_base_and_lines(
    base: Path, lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[object] = []  # on the network
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: sought.append(where) or [])
    out, peft = tmp_path / "x.gguf", tmp_path / "peft"
    task = Task(data=lines(EXAMPLES), out=out, peft_out=peft)
    (report,) = train(base, [task], settings=SETTINGS)
    assert not sought
    assert (report.n_train, report.n_held_out) == (48, 12)
    assert report.steps == 4 * 6
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert report.looks[-1]["loss"] < report.looks[0]["loss"]
    assert not out.with_name("x.gguf.train").exists()

    assert report.scores is not None
    adapter, blind = report.scores.rows["adapter"], report.scores.rows["never looking"]
    assert adapter.figures["accuracy"].value > blind.figures["accuracy"].value
    json.dumps(report.to_dict())
    # the runtime's answers are those that training saw
    assert adapter.figures["accuracy"].value == report.looks[-1]["right"]

    config = json.loads((peft / "adapter_config.json").read_text())
    assert tuple(config["alora_invocation_tokens"]) == report.invocation
    contract = (tmp_path / "x.io.yaml").read_text()
    assert contract == (peft / "io.yaml").read_text() == report.contract
    with ag.Model(base, adapters={"x": out}) as model:
        with model.chat(documents=["the rain"], messages=["a xb ?"]) as chat:
            yes = chat.invoke("x")
            chat.replace(messages=["a ob ?"])
            no = chat.invoke("x")
        assert yes.value["x"] > no.value["x"]
        assert model.adapter("x").invocation == report.invocation


def test_the_last_message_is_repeated_behind_the_invocation(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    task = Task(data=lines(EXAMPLES), out=out, repeat=True)
    (report,) = train(base, [task], settings=SETTINGS)
    assert report.invocation_text == "<x>"
    contract = ag.Contract.parse(report.contract)
    assert contract.instruction == "<x> {last_message}"
    assert report.scores is not None
    adapter = report.scores.rows["adapter"]
    assert adapter.figures["accuracy"].value == report.looks[-1]["right"]
    with (
        ag.Model(base, adapters={"x": out}) as model,
        model.chat(documents=["the rain"], messages=["a xb ?"]) as chat,
    ):
        prompt = chat.supervise("x", {"x": "yes"}).prompt
        n = len(report.invocation)
        at = next(i for i in range(len(prompt)) if prompt[i : i + n] == report.invocation)
        assert model.detokenize(prompt[at + n :]).startswith(" a xb ?")
        assert chat.invoke("x").value["x"] > 0.5


def test_what_repeats_in_vain(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    task = Task(data=lines(EXAMPLES), out=tmp_path / "x.gguf", repeat=True)
    (tmp_path / "io.yaml").write_text(CONTRACT)
    with pytest.raises(ag.InputError, match=r"a contract is given, .*'\{last_message\}'"):
        train(base, [replace(task, contract=tmp_path / "io.yaml")], settings=SETTINGS)
    control = "<|user|>x"
    with pytest.raises(ag.InputError, match="begins with a control token and stands behind"):
        train(base, [replace(task, invocation=control)], settings=SETTINGS)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x.gguf")]


def test_an_instruction_begins_with_the_invocation(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    """Also one that does not say it: what an adapter is told, it reads itself."""
    (tmp_path / "io.yaml").write_text(CONTRACT)
    task = Task(data=lines(EXAMPLES), out=tmp_path / "x.gguf", contract=tmp_path / "io.yaml")
    (report,) = train(base, [task], settings=replace(SETTINGS, epochs=1))
    assert report.invocation_text == "<x>"


def test_an_adapter_is_trained_further(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    data, peft, out = lines(EXAMPLES), tmp_path / "peft", tmp_path / "x.gguf"
    (first,) = train(base, [Task(data=data, out=out, peft_out=peft)], settings=SETTINGS)
    further = Task(
        data=data,
        out=tmp_path / "y.gguf",
        name="x",
        start=peft,
        contract=peft,
        invocation=first.invocation_text,
    )
    (second,) = train(base, [further], settings=replace(SETTINGS, epochs=1))
    # it begins where the first one's best ended
    best = next(look for look in first.looks if look["step"] == first.best_step)
    assert second.looks[0] == {**best, "step": 0}
    with pytest.raises(ag.InputError, match=r"expected \(4, .*--rank") as caught:
        train(base, [replace(further, out=tmp_path / "z.gguf")], settings=replace(SETTINGS, rank=4))
    assert str(peft) in str(caught.value)
    with pytest.raises(ag.InputError, match="lora_alpha is 16"):
        train(base, [further], settings=replace(SETTINGS, alpha=3.0), overwrite=True)
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    empty.mkdir()
    shutil.copytree(peft, wrong)
    (wrong / "adapter_config.json").write_text("[]")
    for start, problem in (
        (tmp_path / "none", "has no adapter_config.json, expected a directory in PEFT's format"),
        (empty, "has no adapter_config.json"),
        (wrong, "is list, expected an object"),
    ):  # before the base is loaded
        with pytest.raises(ag.InputError, match=problem):
            train(base, [replace(further, start=start)], settings=SETTINGS, overwrite=True)
    shutil.copy(peft / "adapter_config.json", wrong)
    (wrong / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(ag.InputError, match=r"safetensors: cannot be read"):
        train(base, [replace(further, start=wrong)], settings=SETTINGS, overwrite=True)


def test_two_tasks_read_what_they_share_once(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    """Each comes out as it does alone."""
    one, other = EXAMPLES, [{**each, "answer": str(i % 3)} for i, each in enumerate(EXAMPLES)]
    estimates = []

    class Noting(Watcher):
        def estimated(self, found: Any) -> None:
            estimates.append(found)

    files = lines(one, "one.jsonl"), lines(other, "other.jsonl")
    settings = replace(SETTINGS, epochs=1)
    tasks = [Task(data=file, out=tmp_path / f"{file.stem}.gguf") for file in files]
    train(base, tasks, settings=settings, watcher=Noting())
    trained(base, files[1], tmp_path / "alone" / "other.gguf", settings=settings, watcher=Noting())
    both, alone = estimates
    assert both.n_tokens == alone.n_tokens
    assert both.n_given == 2 * alone.n_given
    same = [(folder / "other.gguf").read_bytes() for folder in (tmp_path, tmp_path / "alone")]
    assert same[0] == same[1]


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for name in ("alone", "whole", "again"):
        (tmp_path / name).mkdir()


def test_what_died_goes_on_bit_for_bit(
    base: Path, lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lines(EXAMPLES)
    whole = trained(base, data, tmp_path / "whole" / "x.gguf")
    again = tmp_path / "again" / "x.gguf"
    monkeypatch.setattr(fitting, "_EVERY", 0.0)
    for at in (2, 9):  # before the first look, and after some
        with pytest.raises(MemoryError):
            trained(base, data, again, watcher=Stopping(at, dies=True), resume=at > 2)
        assert not again.exists()
    torch.rand(3)  # another state of the generator
    resumed = trained(base, data, again, resume=True)
    assert resumed.losses == whole.losses
    assert resumed.looks == whole.looks
    assert again.read_bytes() == whole.out.read_bytes()


def test_a_checkpoint_of_other_lines_is_not_taken_up(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    trained(base, lines(EXAMPLES), out, watcher=Stopping(12))
    other = [{**each, "answer": "no" if i % 2 else "yes"} for i, each in enumerate(EXAMPLES)]
    settings = replace(SETTINGS, epochs=1)
    kept = (tmp_path / "x.gguf.train" / "x.safetensors").read_bytes()
    for data, chosen in ((other, SETTINGS), (EXAMPLES, settings)):
        with pytest.raises(ag.InputError, match="of a training with other lines, settings"):
            trained(base, lines(data), out, resume=True, settings=chosen)
    assert (tmp_path / "x.gguf.train" / "x.safetensors").read_bytes() == kept
    resumed = trained(base, lines(other), out, resume=True, overwrite=True, settings=settings)
    assert resumed.steps == 6


def test_a_loss_that_is_no_number_ends_it(
    base: Path, lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was best before is written, if anything was better than the base."""
    gradient = fitting.Fitting.gradient
    for last, out in ((7, tmp_path / "x.gguf"), (0, tmp_path / "alone" / "x.gguf")):

        def broken(self: Any, rows: Any, last: int = last) -> float:
            loss = gradient(self, rows)
            return float("nan") if self.state.step == last and self.state.looks else loss

        monkeypatch.setattr(fitting.Fitting, "gradient", broken)
        if last:
            report = trained(base, lines(EXAMPLES[:20]), out)
            assert (report.over, report.steps) == ("diverged", 7)
            assert 0 < report.best_step <= 7
            assert ag.verify(base, out).passed
            continue
        with pytest.raises(ag.AdapterError, match=r"no number any more at step 1; .* lower rate"):
            trained(base, lines(EXAMPLES[:20]), out)
        assert not out.exists()
        monkeypatch.setattr(fitting.Fitting, "gradient", gradient)
        lower = replace(SETTINGS, rate=1e-2, epochs=1)  # as the message says
        assert trained(base, lines(EXAMPLES[:20]), out, settings=lower, resume=True).steps == 2


def test_what_is_read_is_not_replaced(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    data = lines(EXAMPLES)
    copy, contract = tmp_path / "copy.gguf", tmp_path / "x.io.yaml"
    copy.write_bytes(base.read_bytes())
    contract.write_text("model: ~\nresponse_format: ~\ntransformations: ~\n")
    (tmp_path / "link.gguf").symlink_to(copy)
    for out in (data, copy, tmp_path / "link.gguf", contract):
        before = out.read_bytes()
        task = Task(data=data, out=out, name="x", contract=contract)
        with pytest.raises(ag.InputError, match="is a file that training reads"):
            train(copy, [task], overwrite=True)
        assert out.read_bytes() == before


def test_what_ends_before_training_leaves_no_folder(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    with pytest.raises(ag.AloraError, match="at most 4096"):
        trained(base, lines(EXAMPLES), tmp_path / "x.gguf", settings=replace(SETTINGS, rank=9999))
    assert not (tmp_path / "x.gguf.train").exists()
    with pytest.raises(ag.InputError, match=r"/proc/x\.gguf\.train: cannot be made"):
        trained(base, lines(EXAMPLES), Path("/proc/x.gguf"))


def test_two_at_once_in_one_folder(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    out, data = tmp_path / "x.gguf", lines(EXAMPLES)
    with pytest.raises(ag.CancelledError):
        trained(base, data, out, watcher=Stopping(1))
    folder = tmp_path / "x.gguf.train"
    kept = sorted(folder.iterdir())
    with abandoned(folder / "lock") as free:
        assert free
        for chosen in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(ag.InputError, match="another training is at work there"):
                trained(base, data, out, **chosen)
    assert sorted(folder.iterdir()) == kept
    out.touch()  # the best so far is there, too: whoever goes on need not replace it
    with pytest.raises(ag.InputError, match=r"did not end; go on with --resume .* --force"):
        trained(base, data, out)


def test_stopping_while_it_is_asked_keeps_the_adapter(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    class Asking(Watcher):
        asking = False

        def stage(self, text: str) -> None:
            self.asking = text.startswith("Asking")

        def stopped(self) -> bool:
            return self.asking

    out, settings = tmp_path / "x.gguf", replace(SETTINGS, epochs=1)
    report = trained(base, lines(EXAMPLES[:20]), out, watcher=Asking(), settings=settings)
    assert (report.over, report.steps, report.scores) == ("stopped", 2, None)
    again = trained(base, lines(EXAMPLES[:20]), out, settings=settings, resume=True)
    assert (again.over, again.steps) == ("epochs", 2)
    assert again.scores is not None


@pytest.mark.parametrize(
    "wrong",
    [{"tasks": "x.jsonl"}, {"tasks": ["x.jsonl"]}, {"tasks": [{}]}, {"settings": {}}],
)
def test_arguments_of_the_wrong_kind(base: Path, wrong: Any) -> None:
    with pytest.raises(ag.InputError, match=next(iter(wrong))):
        train(base, **{"tasks": [Task(data="x.jsonl", out="x.gguf")], **wrong})
    with pytest.raises(ag.InputError, match="base"):
        train(None, [])  # type: ignore[arg-type]
    with pytest.raises(ag.InputError, match="data"):
        Task(data=5, out="x.gguf")  # type: ignore[arg-type]


def test_stopping_keeps_the_best_so_far(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    out, data = tmp_path / "x.gguf", lines(EXAMPLES)
    report = trained(base, data, out, watcher=Stopping(12))
    assert (report.over, report.steps, report.scores) == ("stopped", 12, None)
    assert 0 < report.best_step <= 12
    assert ag.AdapterFile.read(out).invocation == report.invocation
    out.unlink()
    (tmp_path / "x.io.yaml").unlink()
    with pytest.raises(ag.InputError, match="is there of a training that did not end"):
        trained(base, data, out)
    trained(base, data, out, watcher=Stopping(12), resume=True)
    whole = trained(base, data, tmp_path / "whole" / "x.gguf")
    resumed = trained(base, data, out, resume=True)  # over what stopping wrote
    assert resumed.losses == whole.losses
    assert out.read_bytes() == whole.out.read_bytes()


def test_stopping_before_anything_is_better_writes_nothing(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    out, data = tmp_path / "x.gguf", lines(EXAMPLES)
    with pytest.raises(ag.CancelledError, match=r"^stopped before training began$"):
        trained(base, data, out, watcher=Stopping(0))
    assert not out.with_name("x.gguf.train").exists()  # nothing was read that could be gone on with
    for at in (1, 0):  # the second goes on with what the first has read
        with pytest.raises(ag.CancelledError, match=r"; --resume .* goes on"):
            trained(base, data, out, watcher=Stopping(at), resume=True)
        assert not out.exists()
        assert out.with_name("x.gguf.train").exists()


def test_a_plain_twin_is_trained_beside_it(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=2)
    task = Task(data=lines(EXAMPLES), out=tmp_path / "x.gguf")
    reports = train(base, [task], settings=settings, also_lora=True)
    assert [each.kind for each in reports] == ["alora", "lora"]
    assert reports[1].out == tmp_path / "x.lora.gguf"
    assert reports[1].invocation == ()
    assert not ag.AdapterFile.read(reports[1].out).invocation
    assert reports[1].losses[-1] < reports[1].losses[0]


def test_a_plain_lora_is_trained_alone(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    data, out = lines(EXAMPLES), tmp_path / "x.gguf"
    settings = replace(SETTINGS, epochs=2)
    both = Task(data=data, out=tmp_path / "both.gguf", name="x")
    _, twin = train(base, [both], settings=settings, also_lora=True)
    task = Task(data=data, out=out, peft_out=tmp_path / "peft", kind="lora")
    (alone,) = train(base, [task], settings=settings)
    assert (alone.kind, alone.name, alone.out) == ("lora", "x", out)
    assert alone.losses == twin.losses
    assert not ag.AdapterFile.read(out).invocation
    assert alone.contract_file == tmp_path / "x.io.yaml"
    assert alone.contract_file.is_file()

    further = Task(data=data, out=tmp_path / "y.gguf", start=tmp_path / "peft", kind="lora")
    (more,) = train(base, [further], settings=settings, also_lora=True)
    assert more.losses[0] < alone.losses[0]


def test_a_plain_lora_has_no_invocation(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    task = Task(data=lines(EXAMPLES), out=tmp_path / "x.gguf", kind="lora", invocation="<x>")
    with pytest.raises(ag.InputError, match=r"^x is a plain LoRA, which has no invocation"):
        train(base, [task])


def test_texts_are_learned_without_a_schema(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    said = [{**each, "answer": f"the {i}"} for i, each in enumerate(EXAMPLES)]
    report = trained(base, lines(said), tmp_path / "x.gguf", settings=replace(SETTINGS, epochs=1))
    assert "response_format: null" in report.contract
    assert report.scores is not None
    assert report.scores.kind == "text"


def test_bfloat16_learns_alike(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    data, short = lines(EXAMPLES), replace(SETTINGS, epochs=2)
    exact, rough = (
        trained(base, data, tmp_path / folder / "x.gguf", settings=replace(short, dtype=dtype))
        for folder, dtype in (("whole", "float32"), ("again", "bfloat16"))
    )
    assert rough.looks[-1]["loss"] == pytest.approx(exact.looks[-1]["loss"], rel=0.1)


# Refusals -----------------------------------------------------------------------------------------


def test_the_invocation_must_not_occur_in_the_data(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    task = Task(data=lines(EXAMPLES), out=tmp_path / "x.gguf", invocation="the rain")
    with pytest.raises(ag.InputError, match=r"line \d+: the invocation 'the rain' occurs in"):
        train(base, [task], settings=SETTINGS)


def test_a_line_longer_than_the_context_is_named(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    long = [{**each, "answer": f"{i} " + "a " * 9000 * (i == 3)} for i, each in enumerate(EXAMPLES)]
    with pytest.raises(ag.InputError, match=r"line 4: .* tokens, at most .* can be trained"):
        trained(base, lines(long), tmp_path / "x.gguf")


def test_an_answer_that_the_contract_excludes_is_named(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    contract = tmp_path / "io.yaml"
    contract.write_text(
        "model: ~\ntransformations: ~\nresponse_format: |\n"
        '  {"type": "object", "properties": {"x": {"type": "string", "enum": ["yes", "so"]}},\n'
        '   "required": ["x"], "additionalProperties": false}\n'
    )
    task = Task(data=lines(EXAMPLES), out=tmp_path / "x.gguf", contract=contract)
    said = r'x.jsonl: line 2: the answer {"x": "no"} does not .*/io.yaml;'
    with pytest.raises(ag.InputError, match=said):
        train(base, [task], settings=SETTINGS)


def test_nothing_starts_where_files_are_in_the_way(
    base: Path, lines: WriteLines, tmp_path: Path
) -> None:
    data, out = lines(EXAMPLES), tmp_path / "x.gguf"
    for name in ("x.gguf", "x.io.yaml"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ag.InputError, match="exists"):
            trained(base, data, out)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "peft").mkdir()
    with pytest.raises(ag.InputError, match="peft: exists already"):
        train(base, [Task(data=data, out=out, peft_out=tmp_path / "peft")], settings=SETTINGS)
    assert not out.with_name("x.gguf.train").exists()
    with pytest.raises(ag.InputError, match="two tasks have the name 'x'"):
        train(base, [Task(data=data, out=out), Task(data=data, out=tmp_path / "y" / "x.gguf")])
    with pytest.raises(ag.InputError, match="cannot be an adapter's name"):
        trained(base, data, tmp_path / "-x.gguf")
    with pytest.raises(ag.InputError, match="no tasks"):
        train(base, [])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"targets": "ffn_nothing"}, "the base has no 'ffn_nothing'; it has attn_k, "),
        ({"targets": ["attn_q", "lm_head"]}, "the base has no 'lm_head'"),
    ],
)
def test_targets_that_the_base_has_not(
    base: Path, lines: WriteLines, tmp_path: Path, changes: Any, problem: str
) -> None:
    with pytest.raises(ag.InputError, match=problem):
        trained(base, lines(EXAMPLES), tmp_path / "x.gguf", settings=replace(SETTINGS, **changes))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"epochs": 0},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"alpha": -1},
        {"dtype": 1},
        {"targets": 5},
        {"targets": []},
        {"threads": 0},
    ],
)
def test_settings_out_of_range(wrong: Any) -> None:
    with pytest.raises(ag.InputError, match=next(iter(wrong))):
        TrainSettings(**wrong)


def test_a_family_that_cannot_be_trained(lines: WriteLines, tmp_path: Path) -> None:
    jamba = write_hybrid(tmp_path / "jamba.gguf", text=True)
    with pytest.raises(ag.AloraError, match="jamba"):
        trained(jamba, lines(EXAMPLES), tmp_path / "x.gguf")


def test_too_little_memory_is_said_before_loading(
    base: Path, lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "machine_memory", lambda: 1 << 20)
    with pytest.raises(ag.ModelError, match="GB of memory"):
        trained(base, lines(EXAMPLES), tmp_path / "x.gguf")


def test_what_is_not_installed_is_named(
    base: Path, lines: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else found(name)
    )
    with pytest.raises(
        ag.InputError, match=r"peft is not installed: pip install 'alora-gguf\[train"
    ):
        trained(base, lines(EXAMPLES), tmp_path / "x.gguf")


# The command --------------------------------------------------------------------------------------


def command(base: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "alora_gguf", "train", str(base), *map(str, arguments)]
    return subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not file.is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_command_killed_and_resumed(base: Path, lines: WriteLines, tmp_path: Path) -> None:
    """Killed in earnest, and ended by Ctrl-C: in the end the file is what it would have been."""
    data, out = lines(EXAMPLES), tmp_path / "x.gguf"
    options = ["-o", out, "-t", "1", "--epochs", "200", "--rate", "0.02", "--patience", "0"]
    checkpoint = tmp_path / "x.gguf.train" / "x.safetensors"
    process = command(base, data, *options)
    wait_for(checkpoint, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    time_of = checkpoint.stat().st_mtime_ns

    process = command(base, data, *options, "--resume")
    while checkpoint.stat().st_mtime_ns == time_of:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted" in said
    assert out.exists()


def test_the_command_from_end_to_end(
    base: Path, lines: WriteLines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = lines(EXAMPLES), lines(EXAMPLES, "other.jsonl")
    options = ["-t", "1", "--epochs", "1", "--rate", "0.02", "--targets", "attn_q,attn_v"]
    more = ["--task", str(files[1]), "--invocation", "x=<x>\\n", "--peft-out", str(tmp_path / "p")]
    line = ["train", str(base), str(files[0]), "-o", str(tmp_path), *options, *more]
    assert run_command([*line, "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in reports] == ["x", "other"]
    assert [each["invocation_text"] for each in reports] == ["<x>\n", "<other>"]
    for each in reports:
        accuracy = each["scores"]["rows"]["adapter"]["figures"]["accuracy"]
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        config = json.loads((Path(each["peft_out"]) / "adapter_config.json").read_text())
        assert len(config["target_modules"]) == 2
    assert run_command(line) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Missing argument 'DATA'"),
        (["x.jsonl", "--task", "y.jsonl", "-o", "z.gguf"], "-o is a directory"),
        (["x.jsonl", "--task", "y/x.jsonl"], "two of the files have one name"),
        (["x.jsonl", "--task", "y.jsonl", "--contract", "z.yaml"], "expected NAME=..., where"),
        (["x.jsonl", "--rate", "0"], "--rate"),
    ],
)
def test_the_command_s_arguments(
    base: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["train", str(base), *arguments]) == 2
    assert problem in capsys.readouterr().err
