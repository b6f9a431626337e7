"""The probabilities of a contract's categories are those of all their spellings, held against a sum
over every one of them, token by token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.chat import asking
from alora_gguf.chat.asking import Question
from alora_gguf.generate.constraint import Constraint, Matcher
from alora_gguf.generate.plan import draft_reply
from alora_gguf.generate.schema import written
from alora_gguf.intrinsics import Contract, spellings
from tests.support import inside
from tests.support.chats import PLAIN
from tests.support.files import Files


@pytest.fixture(scope="module")
def model(files: Files) -> Iterator[ag.Model]:
    with files.model() as opened:
        yield opened


class Direct:
    """A contract's categories, weighed without any of what is tested: the model reads the tokens of
    every spelling, one after the other, until a category is told from the others.
    """

    def __init__(self, model: ag.Model, contract: Contract, prompt: Sequence[int]) -> None:
        self.session, self.vocab, self.prompt = model.session(), inside.vocab(model), prompt
        schema = contract.response_format
        assert schema is not None
        self.forced = draft_reply(schema, self.vocab, True).forced
        self.matcher = Constraint.compile(schema, self.vocab).start()
        for token in self.forced:
            self.matcher.accept(token)

    def weights(self, texts: Sequence[str]) -> list[float]:
        """Of replies that are one of `texts`."""
        return self._below(self.matcher, self.forced, [text.encode() for text in texts])

    def _below(self, matcher: Matcher, path: Sequence[int], texts: list[bytes]) -> list[float]:
        said = b"".join(map(self.vocab.piece, path))
        open_ = [text.startswith(said) for text in texts]
        if sum(open_) <= 1:
            return [float(each) for each in open_]
        self.session.sync([*self.prompt, *path], adapter="sure")
        row = matcher.mask(inside.last_logits(self.session)).astype(np.float64)
        shares = np.exp(row - row.max())
        shares /= shares.sum()
        total = [0.0] * len(texts)
        ends = sum(float(shares[t]) for t in np.flatnonzero(shares) if self.vocab.is_end(int(t)))
        for i, text in enumerate(texts):
            total[i] += ends * (text == said)
        for token in map(int, np.flatnonzero(shares)):
            if not self.vocab.is_end(token):
                after = matcher.copy()
                after.accept(token)
                below = self._below(after, [*path, token], texts)
                total = [a + float(shares[token]) * b for a, b in zip(total, below, strict=True)]
        return total


def contract_of(words: Sequence[Any], form: str) -> Contract:
    """One whose categories are the words, with NUMBERS."""
    categories = ", ".join(
        f"{json.dumps(word)}: {number}" for word, number in zip(words, NUMBERS, strict=False)
    )
    if form == "text":
        shape, path = f"choices: {json.dumps(list(words))}\nresponse_format: ~", "[]"
    else:
        about = {"x-alora": {"form": form}, "additionalProperties": False, "required": ["v"]}
        schema = {"type": "object", "properties": {"v": {"enum": list(words)}}, **about}
        shape, path = f"response_format: '{json.dumps(schema)}'", "[v]"
    return Contract.parse(
        f"model: ~\n{shape}\ntransformations:\n"
        f"  - {{type: likelihood, input_path: {path}, categories_to_values: {{{categories}}}}}\n"
    )


NUMBERS = (0.0, 1.0, 2.5, -3.0)
WORDS: list[list[Any]] = [
    ["yes", "no"],
    ["the answer", "the ain", "then", "no"],
    ["ain", "a", "in", "er"],
    ["the", "there", "the the", "no"],
    [1, 10, 100, 2],
    ["yes", None, True],
]


@pytest.mark.parametrize("form", ["json.dumps", "compact", "text"])
@pytest.mark.parametrize("words", WORDS, ids=lambda words: str(words[0]))
def test_all_spellings_are_summed(
    words: list[Any], form: Any, model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "text" and not all(isinstance(word, str) for word in words):
        return
    monkeypatch.setattr(asking, "MAX_READ", 1000)
    contract = contract_of(words, form)
    got, result, weights = asked(model, contract, words, form)
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)
    assert all(weight > 0 for weight in weights)
    wanted = sum(w * n for w, n in zip(weights, NUMBERS, strict=False))
    assert got == pytest.approx(wanted, abs=2e-4)
    assert result.timings.generated <= 8


def asked(
    model: ag.Model, contract: Contract, words: Sequence[Any], form: Any
) -> tuple[float, ag.IntrinsicResult, list[float]]:
    """The likelihood, what it is from, and the weights of the words by a direct sum."""
    model.set_contract("sure", contract)
    with model.chat(template=PLAIN) as chat:
        chat.add("Is it so?")
        result = chat.invoke("sure")
        prompt = Question.about(
            chat._contracts, chat._dialogue(), ag.IntrinsicCall("sure")
        ).invocation.prompt
    assert prompt is not None
    texts = [written(word if form == "text" else {"v": word}, form) for word in words]
    value = result.value if form == "text" else result.value["v"]
    return value, result, Direct(model, contract, prompt).weights(texts)


def test_only_so_many_beginnings_are_read(model: ag.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answer is near even so. Here nothing is known of what was drafted."""
    monkeypatch.setattr("alora_gguf.generate.invoke._further", lambda *_: {})
    words = WORDS[1]
    contract = contract_of(words, "json.dumps")
    read = []
    real = ag.Session.invoke_many

    def spy(self: ag.Session, invocations: Any, **options: Any) -> Any:
        read.extend(each for each in invocations if each.begun)
        return real(self, invocations, **options)

    monkeypatch.setattr(ag.Session, "invoke_many", spy)
    found = []
    for limit in (0, 2, 1000):
        read.clear()
        monkeypatch.setattr(asking, "MAX_READ", limit)
        found.append(asked(model, contract, words, "json.dumps")[0])
        assert len(read) <= limit
        assert all(each.max_tokens == 1 for each in read)
    assert 2 < len(read) == len({each.begun for each in read})
    assert len(set(found)) == 3


def test_what_is_unlikely_is_not_read(model: ag.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = contract_of(WORDS[1], "json.dumps")
    monkeypatch.setattr(asking, "MAX_READ", 1000)
    exact = asked(model, contract, WORDS[1], "json.dumps")[0]
    monkeypatch.setattr(spellings, "NEGLIGIBLE", 1e300)
    hasty = asked(model, contract, WORDS[1], "json.dumps")[0]
    monkeypatch.setattr(asking, "MAX_READ", 0)
    assert hasty == asked(model, contract, WORDS[1], "json.dumps")[0] != exact


def test_so_many_alternatives_are_asked_for(model: ag.Model) -> None:
    words = [f"{a}{b} of many" for a in "abcdef" for b in "uvwxyz"]
    numbers = dict.fromkeys(words, 1.0)
    contract = Contract.parse(
        f"model: ~\nresponse_format: ~\nchoices: {json.dumps(words)}\ntransformations:\n"
        f"  - {{type: likelihood, input_path: [], categories_to_values: {json.dumps(numbers)}}}\n"
    )
    model.set_contract("sure", contract)
    with model.chat(template=PLAIN, messages=["?"]) as chat:
        result = chat.invoke("sure")
        assert result.value == pytest.approx(1.0)
        dialogue, call = chat._dialogue(), ag.IntrinsicCall("sure")
        found = Question.about(chat._contracts, dialogue, call).invocation
        assert found.logprobs == asking.MAX_SPELLINGS


def test_intrinsics_beside_a_reply_are_weighed_in_the_same_way(model: ag.Model) -> None:
    contract = contract_of(WORDS[1], "json.dumps")
    value, _, _ = asked(model, contract, WORDS[1], "json.dumps")
    with model.chat(template=PLAIN) as chat:
        reply = chat.say("Is it so?", intrinsics=["sure"], max_tokens=3, temperature=0)
        reply.read()
        assert reply.intrinsics[0].result().value["v"] == pytest.approx(value, abs=1e-4)
