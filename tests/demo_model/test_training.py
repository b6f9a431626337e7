"""Training the demo model, in miniature: what is learned from, and that caching changes nothing."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer

from alora_gguf.errors import FileFormatError
from examples.demo_model import (
    adapters,
    base_model,
    certainty,
    chat,
    conversations,
    prefix,
    pretrain,
    tasks,
    tokenizer,
    wordings,
)

TASK = "jailbreak"
_HERE = Path(adapters.__file__).parent


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained base with the real tokenizer's settings."""
    directory = tmp_path_factory.mktemp("base")
    pretrain.train_tokenizer(directory, seed=0)
    torch.manual_seed(0)
    end = tokenizer.load(directory).token_to_id(chat.END_TEXT)
    base_model.save(base_model.new_model(end), directory)
    return directory


# The base ----------------------------------------------------------------------------------------


def test_a_row_of_training_is_the_rendered_talk(base: Path) -> None:
    tokens = tokenizer.load(base)
    for i in range(20):
        talk = conversations.talk(random.Random(i), "train", n_turns=4)
        ids, weights = pretrain.encode(talk, tokens)
        rendered = chat.render(talk.documents, talk.messages)
        assert ids == tokens.encode(rendered).ids
        assert len(weights) == len(ids)


def test_what_the_assistant_should_not_say_is_not_learned(base: Path) -> None:
    tokens = tokenizer.load(base)
    talk = conversations.start(random.Random(1), "train", n_documents=2)
    conversations.ask(talk, answerable=True)
    conversations.answer_wrongly(talk)
    wrong = talk.messages[-1].content
    ids, weights = pretrain.encode(talk, tokens)
    unlearned = [i for i, w in zip(ids, weights, strict=True) if w == 0]
    assert tokens.decode(unlearned) == wrong


def test_an_answers_value_counts_most(base: Path) -> None:
    tokens = tokenizer.load(base)
    for i in range(20):
        talk = conversations.start(random.Random(i), "train", n_documents=2)
        question = conversations.ask(talk, answerable=i % 4 > 0)
        conversations.answer(talk)
        ids, weights = pretrain.encode(talk, tokens)
        of_value = [i for i, w in zip(ids, weights, strict=True) if w == pretrain.WEIGHT_OF_VALUES]
        value = question.fact.value if question.fact else wordings.UNKNOWN
        assert tokens.decode(of_value).strip() == value


def test_of_a_survey_only_the_values_are_learned(base: Path) -> None:
    tokens = tokenizer.load(base)
    for i in range(20):
        talk = conversations.start(random.Random(i), "train", n_documents=3)
        conversations.survey(talk)
        ids, weights = pretrain.encode(talk, tokens, 0.0)
        assert ids == tokens.encode(chat.render(talk.documents, talk.messages)).ids
        learned = tokens.decode([i for i, w in zip(ids, weights, strict=True) if w])
        assert set(weights) == {0.0, pretrain.WEIGHT_OF_VALUES}
        told = learned.replace(wordings.UNKNOWN, "").split()
        assert sorted(told) == sorted(" ".join(fact.value for fact in talk.facts).split())


def test_the_rate_falls_to_nothing_at_the_end_of_every_course() -> None:
    rates = [pretrain.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] < 0.05
    assert rates[300] == max(rates) == 1
    for end, height in ((550, 1.0), (800, 0.3), (1000, 0.3)):
        assert rates[end - 1] < 0.01
        assert height / 2 < max(rates[end - 190 : end - 80]) <= height


def test_training_lowers_the_loss_and_saves_the_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 512)
    monkeypatch.setattr(pretrain, "right_values", lambda *_: 0.0)
    (tmp_path / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    pretrain.train(tmp_path, steps=60, seed=0, lr=3e-3, compiled=False)

    tokens = tokenizer.load(base)
    batch = next(pretrain.batches(tokens, 12, seed=1))
    with torch.no_grad():
        untrained = pretrain.loss_of(base_model.load(base), batch).item()
        trained = pretrain.loss_of(base_model.load(tmp_path), batch).item()
    assert trained < untrained - 0.2


def test_nothing_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU has no bfloat16, neither a forward pass nor Muon computes with it."""
    weight = torch.nn.Parameter(torch.eye(4))
    seen = []
    for fast in (True, False):
        monkeypatch.setattr(base_model, "_FAST_BFLOAT16", fast)
        with base_model.half_products():
            seen.append((weight @ weight).dtype)
        gradient = torch.ones(4, 4)
        with base_model.full_products():
            copy = gradient.bfloat16()
        seen.append(copy.dtype)
        assert copy is not gradient  # Muon changes it in place
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


def test_an_interrupted_training_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights as without the interruption, but for the order of rounding."""
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 256)
    monkeypatch.setattr(pretrain, "_SAVE_EVERY", 3)
    monkeypatch.setattr(pretrain, "right_values", lambda *_: 0.0)

    class PowerCutError(Exception):
        pass

    def interrupt(step: int, steps: int) -> float:
        if step == 4 and interrupting:
            raise PowerCutError
        return rate(step, steps)

    rate = pretrain.learning_rate
    monkeypatch.setattr(pretrain, "learning_rate", interrupt)
    trained = {}
    for name in ("at once", "interrupted"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
        settings: dict[str, Any] = {"steps": 6, "seed": 0, "lr": 3e-3, "compiled": False}
        interrupting = name == "interrupted"
        if interrupting:
            with pytest.raises(PowerCutError):
                pretrain.train(directory, **settings)
            interrupting = False
            settings["resume"] = True
        pretrain.train(directory, **settings)
        trained[name] = load_file(directory / "model.safetensors")
    untrained = load_file(base / "model.safetensors")
    for key, tensor in trained["at once"].items():
        moved = (tensor.float() - untrained[key].float()).abs().max()
        apart = (tensor.float() - trained["interrupted"][key].float()).abs().max()
        assert apart <= 0.05 * moved, key


# What is wrong is said ----------------------------------------------------------------------------


def test_a_stage_says_what_it_needs_before_it_changes_anything(tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in _HERE.rglob("*") if path.is_file()}
    for stage, writer in (("certainty", "base"), ("adapters", "base"), ("files", "base")):
        done = _run("examples.demo_model", stage, "--work", str(tmp_path))
        assert done.returncode == 1
        assert done.stderr == (
            f"error: {tmp_path / 'base' / 'config.json'}: missing, {stage} reads it; "
            f"run `python -m examples.demo_model {writer}` first\n"
        )
    after = {path: path.stat().st_mtime_ns for path in before if path.exists()}
    assert after == before


def test_training_does_not_go_on_from_nothing(tmp_path: Path, base: Path) -> None:
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    done = _run("examples.demo_model.pretrain", str(directory), "--resume", "--eager")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {directory}.training.pt: missing")


def test_a_base_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"config\.json: missing, expected a trained base"):
        base_model.load(tmp_path)


def test_other_files_are_no_lessons(tmp_path: Path) -> None:
    path = tmp_path / "lessons.jsonl"
    with pytest.raises(FileFormatError, match=r"lessons\.jsonl: expected lessons.*No such file"):
        tasks.read_lessons(path)
    for text in ('{"a": 1}', "[]", "{"):
        path.write_text(text + "\n")
        with pytest.raises(FileFormatError, match=r"lessons\.jsonl: expected lessons"):
            tasks.read_lessons(path)


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=_HERE.parents[1], check=False
    )


def test_only_the_last_course_compares(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokenizer.load(base)
    reviewed: list[float] = []
    for progress in (0.1, 0.5, 0.79, 0.81):
        monkeypatch.setattr(
            conversations, "review", lambda _, progress=progress: reviewed.append(progress)
        )
        for i in range(60):
            pretrain._one(random.Random(i), progress, tokens)
    assert set(reviewed) == {0.81}


# The adapters ------------------------------------------------------------------------------------


def test_a_cached_prompt_continues_as_if_read_whole(base: Path) -> None:
    model = base_model.load(base)
    prompts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    forks = [(0, 5), (0, 2), (1, 3)]  # the row, and how much of it
    suffixes = [[20, 21], [22, 23, 24], [25]]
    with torch.no_grad():
        rows, lengths = zip(*forks, strict=True)
        read = prefix.fork(prefix.read(model, prompts), rows, lengths)
        ids, mask = prefix.pad(suffixes)
        cached = prefix.go_on(model, read, ids, mask)
        for i, ((row, length), suffix) in enumerate(zip(forks, suffixes, strict=True)):
            prompt = prompts[row][:length]
            whole = model(input_ids=torch.tensor([prompt + suffix])).logits[0, len(prompt) :]
            torch.testing.assert_close(cached[i, : len(suffix)], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["alora", "lora"])
def test_the_loss_is_pefts_own_on_each_whole_conversation(base: Path, kind: str) -> None:
    tokens = tokenizer.load(base)
    marker = tokens.encode(chat.role_marker(TASK)).ids
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=list(adapters.MODULES),
        alora_invocation_tokens=marker if kind == "alora" else None,
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    model = get_peft_model(base_model.load(base), config).eval()
    batch = tasks.lessons(TASK, 3)
    with torch.no_grad():
        ours = adapters.loss_of(model, tokens, kind, batch).item()  # type: ignore[arg-type]
        losses, weights = [], []
        for lesson in batch:
            for n_messages, target in lesson.asked:
                prompt = tokens.encode(lesson.prompt_of(n_messages)).ids + marker
                answer, counted = adapters.answer_tokens(tokens, target)
                ids = torch.tensor([prompt + answer])
                logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
                losses.append(
                    torch.nn.functional.cross_entropy(
                        logits, ids[0, len(prompt) :], reduction="none"
                    )
                )
                weights.append(torch.tensor(counted))
        theirs = ((torch.cat(losses) * torch.cat(weights)).sum() / torch.cat(weights).sum()).item()
        with model.disable_adapter():
            plain = adapters.loss_of(model, tokens, kind, batch).item()  # type: ignore[arg-type]
    assert len(losses) > len(batch)
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert abs(plain - theirs) > 0.01


def test_the_verdict_counts_most(base: Path) -> None:
    """And with it, where an answer is judged, the words that decide it."""
    tokens = tokenizer.load(base)
    for task in ("answerability", "hallucination", "query_rewrite"):
        for lesson in tasks.lessons(task, 5):
            for _, target in lesson.asked:
                ids, weights = adapters.answer_tokens(tokens, target)
                assert len(ids) == len(weights)
                most = [i for i, w in zip(ids, weights, strict=True) if w > 1]
                wanted = target[target.rindex('": "') + 4 :]
                for was_right in (wordings.CONFIRM, wordings.RETRACT):
                    if was_right in target:
                        wanted = " " + target[target.index(was_right) :]
                assert tokens.decode(most) == wanted


def test_an_aloras_conversations_need_no_gradients(base: Path) -> None:
    """Its weights learn from the suffix alone; a LoRA's from all that is read."""
    tokens = tokenizer.load(base)
    batch = tasks.lessons(TASK, 2)
    marker = tokens.encode(chat.role_marker(TASK)).ids
    found = {}
    for kind, invocation in (("alora", marker), ("lora", None)):
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules=list(adapters.MODULES),
            alora_invocation_tokens=invocation,
            init_lora_weights=False,
        )
        torch.manual_seed(0)
        model = get_peft_model(base_model.load(base), config)
        adapters.loss_of(model, tokens, kind, batch).backward()  # type: ignore[arg-type]
        found[kind] = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert found["alora"].keys() == found["lora"].keys()
    for kind, gradients in found.items():
        assert all(grad is not None and grad.any() for grad in gradients.values()), kind


@pytest.mark.parametrize("kind", ["alora", "lora"])
def test_a_trained_adapter_is_a_peft_directory(base: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / kind / TASK
    adapters.train(base, kind, TASK, tasks.lessons(TASK, 4), out, lr=1e-3)  # type: ignore[arg-type]
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "io.yaml",
    }
    config = json.loads((out / "adapter_config.json").read_text())
    invocation = tokenizer.load(base).encode(chat.role_marker(TASK)).ids
    assert config["alora_invocation_tokens"] == (invocation if kind == "alora" else None)
    weights = load_file(out / "adapter_model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    changed = [k for k, w in weights.items() if "lora_B" in k and w.any()]
    assert len(changed) == 4 * base_model.load(base).config.num_hidden_layers
    assert PeftModel.from_pretrained(base_model.load(base), out)


# Certainty ---------------------------------------------------------------------------------------


def test_the_curve_finds_how_right_the_probabilities_are() -> None:
    """Answers of probability p that are right with the logistic of 0.5 + 0.7 logit(p)."""
    rng = random.Random(0)
    talk = conversations.start(rng, "train", n_documents=1)
    samples = []
    for _ in range(20_000):
        p = rng.uniform(0.01, 0.99)
        truth = 1 / (1 + math.exp(-(0.5 + 0.7 * math.log(p / (1 - p)))))
        samples.append(certainty.Sample(talk, "", rng.random() < truth, math.log(p)))
    curve = certainty.fit(samples)
    assert curve.a == pytest.approx(0.5, abs=0.06)
    assert curve.b == pytest.approx(0.7, abs=0.05)
    assert curve(math.log(0.5)) == pytest.approx(1 / (1 + math.exp(-0.5)), abs=0.02)


def test_an_answer_in_a_conversation_is_scored_as_if_it_came_last(base: Path) -> None:
    """Each answer that is judged gets the digit of its own probability, given what was before."""
    model, tokens = base_model.load(base), tokenizer.load(base)
    curve = certainty.Curve(9.0, 0.1)  # an untrained model finds everything improbable
    given = tasks.lessons("hallucination", 3)
    scored = list(certainty.scored(model, tokens, curve, given))
    digits = set()
    for lesson, before in zip(scored, given, strict=True):
        assert (lesson.task, lesson.messages) == ("uncertainty", before.messages)
        for (n_messages, target), (_, judged) in zip(lesson.asked, before.asked, strict=True):
            said = lesson.messages[n_messages - 1].content
            prompt = chat.render(
                lesson.documents, lesson.messages[: n_messages - 1], generation_prompt=True
            )
            read = tokens.encode(prompt).ids
            answer = tokens.encode(said + chat.END_TEXT).ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([read + answer])).logits[0].float()
            chosen = torch.log_softmax(logits[len(read) - 1 : -1], -1)
            score = chosen.gather(1, torch.tensor(answer)[:, None]).sum().item()
            fields = json.loads(target)
            assert fields["answer"] == json.loads(judged)["answer"]
            assert fields["certainty"] == str(min(9, int(10 * curve(score))))
            digits.add(fields["certainty"])
    assert digits


def test_half_of_what_is_learned_about_samples_is_doubtful(tmp_path: Path) -> None:
    talks = [conversations.start(random.Random(i), "train", n_documents=1) for i in range(100)]
    for talk in talks:
        conversations.ask(talk, answerable=True)
    curve = certainty.Curve(0.0, 1.0)
    samples = [
        certainty.Sample(talk, "So.", correct=i % 10 > 0, log_probability=math.log(0.99))
        for i, talk in enumerate(talks)
    ]
    scored = tasks.lessons("hallucination", 2)
    lessons = certainty.lessons(certainty.examples(samples, curve), scored)
    assert len(lessons) == 10 + 10 + 2
    sampled = [target for one in lessons if len(one.asked) == 1 for _, target in one.asked]
    assert sum(wordings.RETRACT in target for target in sampled) == 10
    tasks.write_lessons(tmp_path / "lessons.jsonl", lessons)
    assert tasks.read_lessons(tmp_path / "lessons.jsonl") == lessons


class Listening:
    """A tokenizer that remembers the ids it turned into text: babble, which does not turn back."""

    def __init__(self, tokens: Tokenizer) -> None:
        self._tokens = tokens
        self.said: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokens, name)

    def decode(self, ids: list[int]) -> str:
        self.said = ids
        return str(self._tokens.decode(ids))


def test_a_sampled_answers_probability_is_the_models(base: Path) -> None:
    model, tokens = base_model.load(base), Listening(tokenizer.load(base))
    sample = next(certainty.sampled(model, tokens, "train", 1, temperature=1.0, seed=0))  # type: ignore[arg-type]
    talk, said = sample.talk, tokens.said
    prompt = tokens.encode(chat.render(talk.documents, talk.messages, generation_prompt=True)).ids
    assert len(said) == 40  # an untrained model does not end
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
    taken = torch.log_softmax(logits, -1).gather(-1, torch.tensor(said)[:, None]).sum().item()
    assert sample.log_probability == pytest.approx(taken, rel=1e-3)
    assert not sample.correct
