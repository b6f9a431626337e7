"""Requests and results equal mellea's, live, for all of the corpus and for random replies."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import demo
from alora_gguf.intrinsics import Contract, rewrite, transform
from alora_gguf.messages import Document, Message
from tests.support.mellea import Mellea

from .corpus_cases import CORPUS, Case, all_cases, tokens_of
from .peer import as_wire, assert_same, question, wire_tokens

CASES = all_cases()


def both(mellea: Mellea, case: Case) -> tuple[Any, Any]:
    """Our and their value for a case."""
    request = question(case.raw["messages"], case.raw["documents"])
    answer = mellea.ask(
        case.config,
        request,
        case.raw["arguments"],
        case.raw["content"],
        wire_tokens(case.raw["tokens"]),
    )
    contract = case.contract
    ours = rewrite(contract, case.messages, case.documents, case.raw["arguments"])
    return transform(contract, case.raw["content"], case.tokens, ours).value, answer["value"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_requests_are_equal(case: Case, mellea: Mellea) -> None:
    request = question(case.raw["messages"], case.raw["documents"])
    theirs = mellea.ask(case.config, request, case.raw["arguments"])["request"]
    ours = rewrite(case.contract, case.messages, case.documents, case.raw["arguments"])
    theirs.setdefault("extra_body", {}).setdefault("documents", None)
    theirs["extra_body"] = {k: v for k, v in theirs["extra_body"].items() if v is not None}
    if not theirs["extra_body"]:
        del theirs["extra_body"]
    assert as_wire(case.contract, ours) == theirs


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_results_are_equal(case: Case, mellea: Mellea) -> None:
    ours, theirs = both(mellea, case)
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", demo.INTRINSICS)
def test_mellea_takes_what_a_contract_says_to_us(name: str, mellea: Mellea) -> None:
    config = demo.io_yaml_path(name)
    messages = [{"role": "user", "content": "Who?"}]
    theirs = mellea.ask(config, question(messages, []), {})["request"]
    schema = theirs["extra_body"]["structured_outputs"]["json"]
    assert schema.pop("x-alora")["judges"] in ("question", "answer")
    contract = Contract.read(config)
    assert as_wire(contract, rewrite(contract, [Message("user", "Who?")])) == theirs


FOR_SERVERS = [
    "response_format: {enum: [fish, no fish], type: string}",
    "response_format: {type: json_schema, json_schema: {name: a, schema: {type: boolean}}}",
    "reasoning_effort: low",
]


@pytest.mark.parametrize("parameter", FOR_SERVERS)
def test_what_servers_take_among_the_parameters(
    parameter: str, mellea: Mellea, tmp_path: Path
) -> None:
    config = tmp_path / "io.yaml"
    config.write_text(
        "model: ~\nresponse_format: ~\ntransformations: ~\ndocs_as_message: roles\n"
        "instruction: 'Is {last_message} about fish?'\n"
        f"parameters: {{temperature: 0.75, {parameter}}}\n"
    )
    theirs = mellea.ask(config, question([{"role": "user", "content": "Hi"}], []), {})["request"]
    contract = Contract.read(config)
    ours = rewrite(contract, [Message("user", "Hi")])
    form = theirs.pop("response_format", None)  # ours is where all other schemas are
    schema = form["json_schema"]["schema"] if form and "json_schema" in form else form
    assert ours.response_format == schema
    assert as_wire(contract, replace(ours, response_format=None)) == theirs


WORDS = ["Yes.", "Is it?", "No!", "The cat (Mr. Gray) sleeps.", "été…", "1.5 m.", "<x>", "a\n\nb"]


def random_text(rng: random.Random) -> str:
    return rng.choice(["", " ", "\n"]).join(rng.choices(WORDS, k=rng.randint(1, 6))) + "End."


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("name", ["citations", "context_attribution", "hallucination_detection"])
def test_random_sentences(name: str, seed: int, mellea: Mellea) -> None:
    rng = random.Random(f"{name}{seed}")
    config = CORPUS / f"{name}.yaml"
    contract = Contract.read(config)
    messages = [
        {"role": role, "content": random_text(rng)}
        for role in ("system", "user", "assistant", "user", "assistant")[-rng.randint(2, 5) :]
    ]
    documents = [{"text": random_text(rng), "doc_id": f"d{i}"} for i in range(rng.randint(1, 3))]
    ours = rewrite(
        contract,
        [Message(m["role"], m["content"]) for m in messages],
        [Document(d["text"], doc_id=d["doc_id"]) for d in documents],
    )
    theirs = mellea.ask(config, question(messages, documents), {})["request"]
    assert as_wire(contract, ours) == theirs
    n_last = len(ours.sentences["last_message"])
    n_other = sum(len(s) for place, s in ours.sentences.items() if place != "last_message")
    if name == "hallucination_detection":
        reply: list[dict[str, Any]] = [{"r": i, "f": "partial", "e": "é"} for i in range(n_last)]
    else:
        reply = [
            {"r": rng.randrange(n_last), "c": rng.sample(range(n_other), rng.randint(0, n_other))}
            for _ in range(4)
        ]
    content = json.dumps(reply)
    rows = [{"token": c, "logprob": -0.5, "top": [[c, -0.5], ["f", -1.5]]} for c in content]
    answer = mellea.ask(config, question(messages, documents), {}, content, wire_tokens(rows))
    assert_same(transform(contract, content, tokens_of(rows), ours).value, answer["value"])


CATEGORIES = ['{"yes": 1.0, "maybe": 0.5, "no": 0.0}', "{7: 3.0, 81: -2.5, 99: 0.25}"]
LIKELIHOOD = """
model: ~
response_format: ~
transformations:
  - type: likelihood
    input_path: [score]
    categories_to_values: {CATEGORIES}
"""
PIECES = ["y", "ye", "yes", "may", "n", "no", "7", "81", "x", "yesss", "No", '"', "}", "8"]


@pytest.mark.parametrize("seed", range(60))
def test_random_likelihoods(seed: int, mellea: Mellea, tmp_path: Path) -> None:
    rng = random.Random(seed)
    config = tmp_path / "io.yaml"
    config.write_text(LIKELIHOOD.replace("{CATEGORIES}", CATEGORIES[seed % 2]))
    literal = rng.choice([['"yes"', '"no"', '"maybe"'], ["7", "81", "99"]][seed % 2])
    content = f'{{"score":{rng.choice(["", " "])}{literal}}}'
    start = content.index(literal) + literal.startswith('"')
    cut = start + rng.randint(1, len(literal.strip('"')))
    rows: list[dict[str, Any]] = []
    for text in (content[:start], content[start:cut], content[cut:]):
        others = rng.sample(PIECES, 9)
        top = {text: -rng.uniform(0, 5)} | {t: -rng.uniform(0, 12) for t in others if t != text}
        ordered = sorted(top.items(), key=lambda item: -item[1])
        rows.append({"token": text, "logprob": top[text], "top": [list(t) for t in ordered]})
    request = question([{"role": "user", "content": "?"}], [])
    theirs = mellea.ask(config, request, {}, content, wire_tokens(rows))["value"]
    contract = Contract.read(config)
    ours = transform(contract, content, tokens_of(rows), rewrite(contract, []))
    assert_same(ours.value, theirs)
    assert [token.text for token in ours.used] == [content[start:cut]]
