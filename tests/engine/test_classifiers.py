"""Classifiers' heads: asked like intrinsics, by what the base computes; and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import convert_adapter, export_adapter

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.analyse import merge, truncate
from alora_gguf.engine.llama_context import Head, Run
from tests.support import inside, tiny_base
from tests.support.batches import threads_of_batches
from tests.support.chats import PLAIN
from tests.support.classifiers import LABELS, convert_head, write_head
from tests.support.files import EXACT, Files
from tests.support.make_gguf import rewritten

TALK = [
    ag.Message("user", "When does the ferry to Harwich leave?"),
    ag.Message("assistant", "It leaves at nine."),
    ag.Message("user", "And on Sundays?"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    write_head(folder / "head")
    convert_head(folder / "head", folder / "safety.gguf")
    write_head(folder / "two", n_labels=2, seed=2, io_yaml="name: tone\nmodel: ~\n")
    convert_head(folder / "two", folder / "tone.gguf", labels=["good", "bad"])
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[ag.Model]:
    adapters = {
        **demo.adapter_paths(),
        "safety": folder / "safety.gguf",
        "tone": folder / "tone.gguf",
    }
    with ag.Model(
        demo.base_path(), adapters=adapters, n_ctx=2048, n_threads=1, options=EXACT
    ) as opened:
        yield opened


@pytest.fixture
def chat(model: ag.Model) -> Iterator[ag.Chat]:
    with model.chat(messages=TALK) as opened:
        yield opened


def probabilities(model: ag.Model, name: str, tokens: list[int]) -> dict[str, float]:
    """What a head makes of a text, by the rows of the engine alone."""
    file = model.adapters[name]
    assert isinstance(file, ag.ClassifierFile)
    engine = inside.engine(model)
    places = tuple(range(len(file.labels)))
    seq = engine.allocate()
    try:
        (row,) = engine.decode(
            [Run(seq, tokens, head=Head(file.classifier.weight, file.classifier.bias, places))]
        )
    finally:
        engine.drop(seq)
    assert row is not None
    scores = np.exp(row[list(places)].astype(np.float64) - row.max())
    return dict(zip(file.labels, scores / scores.sum(), strict=True))


def prompt(model: ag.Model) -> list[int]:
    """The conversation as Granite Switch has it: no generation prompt, the marker at the end."""
    text = "".join(
        f"<|start_of_role|>{m.role}<|end_of_role|>{m.content}<|end_of_text|>\n" for m in TALK
    )
    return list(model.tokenize(f"{text}<|start_of_role|>", parse_special=True))


def test_probabilities_are_the_heads(model: ag.Model, chat: ag.Chat) -> None:
    asked = {name: ag.IntrinsicCall(name) for name in ("safety", "tone")}
    answers = chat.decide(asked).answers
    for name in asked:
        expected = probabilities(model, name, prompt(model))
        answer = answers[name]
        assert isinstance(answer, ag.ChoiceAnswer)
        assert answer.probabilities == pytest.approx(expected, abs=1e-4)
        assert answer.choice == max(expected, key=expected.__getitem__)
        assert chat.invoke(name).value == answer.choice


def test_it_costs_one_token_and_moves_nothing(model: ag.Model, chat: ag.Chat) -> None:
    chat.read()
    before = chat.tokens
    result = chat.invoke("safety")
    assert (result.timings.reused, result.timings.evaluated) == (len(before), 1)
    assert (result.finish_reason, result.timings.generated) == ("stop", 1)
    assert chat.tokens == before
    assert model.stats().n_adapters == len(demo.INTRINSICS)  # it takes no slot


def test_other_tokens_are_not_put_out(
    chat: ag.Chat, model: ag.Model, caplog: pytest.LogCaptureFixture
) -> None:
    """Where llama.cpp shows states it puts out every token of a batch: a long conversation would
    have as many rows of logits.
    """
    with threads_of_batches() as batches:
        results = chat.invoke_many(["safety", "tone"])  # which reads the conversation first
    assert {result.timings.evaluated for result in results} <= {1, len(prompt(model))}
    assert len(batches) == 2
    assert "not marked as outputs" not in caplog.text


def test_beside_others_in_one_call(model: ag.Model, chat: ag.Chat) -> None:
    names = ["answerability", "safety", "jailbreak", "tone"]
    alone = [chat.invoke(name).value for name in names]
    together = chat.invoke_many(names)
    for name, one, other in zip(names, alone, together, strict=True):
        if isinstance(one, dict):
            assert other.value == pytest.approx(one, abs=1e-4), name
        else:
            assert other.value == one
    # states are not asked for any longer
    assert [chat.invoke(name).value for name in ("answerability",)] == alone[:1]


def test_a_session_is_asked_without_a_contract(model: ag.Model) -> None:
    with model.session() as session:
        session.append(prompt(model)[:-1])
        verdict = session.invoke("safety")
        assert verdict.text in LABELS
        with_marker = session.invoke("safety", [*model.adapters["safety"].invocation])
        assert with_marker.text == verdict.text
        more = session.invoke(ag.Invocation("safety", logprobs=3))
        expected = probabilities(model, "safety", prompt(model))
        assert more.logprobs is not None
        assert np.exp(more.logprobs[0].logprob) == pytest.approx(expected[more.text], abs=1e-4)
        with pytest.raises(ag.InputError, match="the prompt has to end with that"):
            session.invoke(ag.Invocation("safety", append_invocation=False))
        with pytest.raises(ag.InputError, match=r"has no scale: found 0\.5, expected 1"):
            session.invoke(ag.Invocation("safety", scale=0.5))
        marker = [*model.adapters["safety"].invocation]
        with pytest.raises(ag.InputError, match="the prompt has to end with that"):
            session.invoke("safety", [*marker, 300])
        with pytest.raises(ag.InputError, match="whose answer cannot be begun"):
            session.invoke(ag.Invocation("safety", begun=[5]))


def test_a_conversation_that_ends_with_its_marker(model: ag.Model) -> None:
    """Its logits are known, but they are no state."""
    tokens = prompt(model)
    with model.session() as session:
        session.append(tokens)
        verdict = session.invoke(
            ag.Invocation("safety", prompt=tokens, append_invocation=False, logprobs=3)
        )
        expected = probabilities(model, "safety", tokens)
        assert verdict.logprobs is not None
        assert np.exp(verdict.logprobs[0].logprob) == pytest.approx(
            expected[verdict.text], abs=1e-4
        )


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda chat: chat.say("x", adapter="safety"), "neither reads a conversation nor replies"),
        (lambda chat: chat.model.embed(["x"], adapter="safety"), "neither reads"),
        (
            lambda chat: chat.model.combine("x", {"safety": 1.0, "jailbreak": 1.0}),
            "ask it by itself",
        ),
        (lambda chat: chat.model.session().append("x", adapter="safety"), "neither reads"),
    ],
)
def test_what_it_is_not_for(chat: ag.Chat, do: Any, said: str) -> None:
    with pytest.raises(ag.InputError, match=said):
        do(chat)
    assert chat.invoke("safety").value in LABELS


def test_loading(model: ag.Model, folder: Path, tmp_path: Path) -> None:
    model.load_adapter("again", folder / "safety.gguf", from_start=True)
    with model.chat(messages=TALK) as chat:
        assert chat.invoke("again").value == chat.invoke("safety").value
    model.unload_adapter("again")
    assert "again" not in model.adapters

    write_head(tmp_path / "narrow", n_embd=tiny_base.N_EMBD)
    base = tiny_base.write_base(tmp_path / "tiny.gguf")
    convert_head(tmp_path / "narrow", tmp_path / "n.gguf", base=base, invocation=[5])
    with pytest.raises(ag.AdapterMismatchError, match="for the architecture 'llama'"):
        model.load_adapter("narrow", tmp_path / "n.gguf")
    with pytest.raises(ag.AdapterMismatchError, match="for the architecture 'granite'"):
        ag.Model(base, adapters={"safety": folder / "safety.gguf"})
    with pytest.raises(ag.AdapterFormatError, match="is a classifier's head, expected an adapter"):
        ag.AdapterFile.read(folder / "safety.gguf")
    with pytest.raises(ag.InputError, match="changes nothing that could be measured"):
        ag.verify(demo.base_path(), folder / "safety.gguf")


# A LoRA with a head -------------------------------------------------------------------------------


@pytest.fixture
def tone(files: Files, tmp_path: Path) -> Path:
    """The tiny base's LoRA with a random head."""
    rng = np.random.default_rng(4)
    return rewritten(
        files.lora,
        tmp_path / "tone.gguf",
        {
            "llama.classifier.output_labels": ["good", "bad"],
            "alora.io_yaml": "name: tone\nmodel: ~\nchoices: [good, bad]\nresponse_format: ~\n"
            "transformations: ~\nparameters: {extra_body: {add_generation_prompt: false}}\n",
        },
        {
            "cls.output.weight": rng.normal(size=(2, tiny_base.N_EMBD)).astype(np.float32),
            "cls.output.bias": np.zeros(2, np.float32),
        },
    )


def test_a_lora_with_a_head(files: Files, tone: Path) -> None:
    with files.model(adapters={"tone": tone, "lora": files.lora, "sure": files.alora}) as model:
        file = model.adapters["tone"]
        assert isinstance(file, ag.AdapterFile)
        assert file.labels == ("good", "bad")
        assert file.identity != model.adapters["lora"].identity
        with model.chat(messages=TALK, template=PLAIN) as chat:
            answer = chat.decide({"tone": ag.IntrinsicCall("tone")}).answers["tone"]
            assert isinstance(answer, ag.ChoiceAnswer)
            tokens = list(chat.tokens)
            together = chat.invoke_many(["tone", "tone"])
            assert [each.value for each in together] == [answer.choice] * 2
            with pytest.raises(ag.InputError, match="is a classifier, which writes no replies"):
                chat.say("x", adapter="tone")
            with pytest.raises(ag.InputError, match="ask it by itself"):
                model.combine("x", {"tone": 1, "sure": 1})
        engine = inside.engine(model)
        assert file.classifier is not None
        head = Head(file.classifier.weight, file.classifier.bias, (0, 1))
        rows = []
        for name in ("tone", "lora", None):
            with inside.runtime(model).bank.using(name, 1.0) as use:
                seq = engine.allocate()
                if name is not None:
                    engine.activate(seq, 0, use.slot, use.scale)
                rows += engine.decode([Run(seq, tokens, head=head)])
                engine.drop(seq)
        tone_row, lora_row, base_row = (row[:2] for row in rows if row is not None)
        # it computes as the LoRA does that it was made of, and not as the base
        np.testing.assert_allclose(tone_row, lora_row, rtol=1e-5)
        assert np.abs(tone_row - base_row).max() > 1e-3
        scores = np.exp(tone_row.astype(np.float64))
        expected = dict(zip(file.labels, scores / scores.sum(), strict=True))
        assert answer.probabilities == pytest.approx(expected, abs=1e-4)


def test_what_becomes_of_its_file(files: Files, tone: Path, tmp_path: Path) -> None:
    with pytest.raises(ag.UnsupportedAdapterError, match="whose head would be lost"):
        merge(files.base, tone, tmp_path / "merged.gguf")
    cut = truncate(tone, tmp_path / "cut.gguf", rank=2).path
    file, whole = ag.AdapterFile.read(cut), ag.AdapterFile.read(tone)
    assert file.classifier is not None
    assert whole.classifier is not None
    np.testing.assert_array_equal(file.classifier.weight, whole.classifier.weight)
    report = export_adapter(tone, files.base, tmp_path / "peft")
    assert any("(good, bad); give them again" in each for each in report.warnings)
    assert not any("output_labels" in each for each in report.warnings)
    labels = ["good", "bad"]
    again = convert_adapter(
        tmp_path / "peft", files.base, tmp_path / "again.gguf", labels=labels, outtype="f32"
    )
    made = ag.AdapterFile.read(again.out)
    assert made.identity == whole.identity
    assert made.io_yaml == whole.io_yaml
    with pytest.raises(ag.InputError, match=r"\(task_type SEQ_CLS\); say what the rows"):
        convert_adapter(tmp_path / "peft", files.base, tmp_path / "x.gguf")
    export_adapter(files.lora, files.base, tmp_path / "plain")
    with pytest.raises(ag.InputError, match="is of no classifier"):
        convert_adapter(tmp_path / "plain", files.base, tmp_path / "x.gguf", labels=labels)
    with pytest.raises(ag.InputError, match="a plain LoRA; leave the invocation out"):
        convert_adapter(
            tmp_path / "peft", files.base, tmp_path / "x.gguf", labels=labels, invocation=[5]
        )
    with pytest.raises(ag.InputError, match="labels must be a list or None"):
        convert_adapter(tmp_path / "peft", files.base, tmp_path / "x.gguf", labels="good,bad")
    (tmp_path / "peft" / "io.yaml").unlink()
    bare = convert_adapter(tmp_path / "peft", files.base, tmp_path / "bare.gguf", labels=labels)
    assert ag.load_contract(bare.out).choices == ("good", "bad")
    summary = ag.inspect_gguf(bare.out)
    assert isinstance(summary, ag.AdapterSummary)
    assert (summary.kind, summary.labels, summary.problems) == ("lora", ("good", "bad"), ())
