"""Training the demo model, in miniature: what is learned from, and that caching changes nothing."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer

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


def test_the_schedule_ends_at_nothing() -> None:
    rates = [pretrain.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] < 0.05
    assert rates[500] == 1
    assert rates[-1] < 0.01
    assert max(rates) == 1


def test_training_lowers_the_loss_and_saves_the_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 512)
    monkeypatch.setattr(pretrain, "right_values", lambda *_: 0.0)
    (tmp_path / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    pretrain.train(tmp_path, steps=12, seed=0, lr=3e-3, compiled=False)

    tokens = tokenizer.load(base)
    batch = next(pretrain.batches(tokens, 12, seed=1))
    with torch.no_grad():
        untrained = pretrain.loss_of(base_model.load(base), batch).item()
        trained = pretrain.loss_of(base_model.load(tmp_path), batch).item()
    assert trained < untrained - 0.2


# The adapters ------------------------------------------------------------------------------------


def test_a_cached_prompt_continues_as_if_read_whole(base: Path) -> None:
    model = base_model.load(base)
    prompts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    suffixes = [[20, 21], [22, 23, 24]]
    with torch.no_grad():
        read = prefix.read(model, prompts)
        ids, mask = prefix.pad(suffixes)
        cached = prefix.go_on(model, read, ids, mask)
        for row, (prompt, suffix) in enumerate(zip(prompts, suffixes, strict=True)):
            whole = model(input_ids=torch.tensor([prompt + suffix])).logits[0, len(prompt) :]
            torch.testing.assert_close(cached[row, : len(suffix)], whole, atol=1e-4, rtol=1e-4)


def test_an_aloras_loss_is_pefts_own_on_the_whole_conversation(base: Path) -> None:
    tokens = tokenizer.load(base)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=list(adapters.MODULES),
        alora_invocation_tokens=tokens.encode(chat.role_marker(TASK)).ids,
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    model = get_peft_model(base_model.load(base), config).eval()
    batch = tasks.examples(TASK, "train", 3)
    with torch.no_grad():
        ours = adapters._alora_loss(model, tokens, TASK, batch).item()
        losses = []
        for example in batch:
            prompt = tokens.encode(example.prompt + chat.role_marker(TASK)).ids
            ids = torch.tensor([prompt + tokens.encode(example.target + chat.END_TEXT).ids])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            losses.append(
                torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none")
            )
        theirs = torch.cat(losses).mean().item()
        with model.disable_adapter():
            plain = adapters._alora_loss(model, tokens, TASK, batch).item()
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert abs(plain - theirs) > 0.01


@pytest.mark.parametrize("kind", ["alora", "lora"])
def test_a_trained_adapter_is_a_peft_directory(base: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / kind / TASK
    examples = tasks.examples(TASK, "train", 4)
    adapters.train(base, kind, TASK, examples, out, lr=1e-3)  # type: ignore[arg-type]
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
