"""The form of replies under a schema: what it leaves no choice about is not sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.context import Engine
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.errors import InputError, SchemaError
from alora_gguf.generate.constraint import Constraint, check_schema
from alora_gguf.generate.plan import draft_reply, fixed
from alora_gguf.generate.schema import FORMS, written
from tests.support import inside
from tests.support.files import Files

Schema = dict[str, Any]
SEPARATORS = {"compact": (",", ":"), "json.dumps": (", ", ": ")}


@pytest.fixture(scope="module")
def model(files: Files) -> Iterator[ag.Model]:
    with files.model() as opened:
        yield opened


@pytest.fixture(scope="module")
def vocab(model: ag.Model) -> Vocabulary:
    return inside.vocab(model)


def closed(form: str, **properties: Any) -> Schema:
    """An object of exactly these properties, in a form."""
    return {
        "type": "object",
        "x-alora": {"form": form},
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def words(*texts: str) -> Schema:
    return {"enum": list(texts), "x-alora": {"form": "text"}}


def admitted(schema: Schema, text: str, vocab: Vocabulary) -> bool:
    matcher = Constraint.compile(schema, vocab).start()
    for token in vocab.tokenize(text, add_special=False, parse_special=False):
        if not matcher.allows(token):
            return False
        matcher.accept(token)
    return matcher.can_end


YES_NO: Schema = {"type": "string", "enum": ["yes", "no"]}
LIST: Schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}
VALUE = {"a": "yes", "b": [1, 22]}
SPACED = [json.dumps(VALUE, separators=each) for each in ((",", ":"), (", ", ": "), (",", ": "))]
SPACED += [json.dumps(VALUE, indent=n) for n in (1, 4)] + ['{"a" :"yes","b":[1,22]}']


@pytest.mark.parametrize("text", SPACED)
@pytest.mark.parametrize("form", ["free", "compact", "json.dumps"])
def test_a_form_is_one_spacing(form: str, text: str, vocab: Vocabulary) -> None:
    pinned = form != "free"
    wanted = json.dumps(VALUE, separators=SEPARATORS.get(form))
    schema = closed(form, a=YES_NO, b=LIST)
    assert admitted(schema, text, vocab) == (not pinned or text == wanted)


@pytest.mark.parametrize("form", ["compact", "json.dumps", "text"])
def test_forms_are_written_as_they_are_read(form: Any, vocab: Vocabulary) -> None:
    schema = words("yes", "nö", 'a "b"\n') if form == "text" else closed(form, a=YES_NO, b={
        "enum": ["é", 1, None]
    })  # fmt: skip
    answers = fixed(schema).answers
    assert answers is not None
    for answer in answers:
        assert admitted(schema, answer, vocab)
        value = answer if form == "text" else json.loads(answer)
        assert written(value, form) == answer


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"x-alora": {"form": "dense"}}, "'dense' (x-alora), expected one of free, compact, "),
        ({"x-alora": {"form": "text"}}, "asks for bare text, so it must be a list of texts"),
        ({**words("a", "b"), "type": "object"}, "asks for bare text"),
        ({**words("a"), "enum": ["a", 1]}, "asks for bare text"),
        ({**words("a"), "enum": [""]}, "asks for bare text"),
    ],
)
def test_forms_that_there_are_not(schema: Schema, message: str, vocab: Vocabulary) -> None:
    for check in (check_schema, lambda schema: Constraint.compile(schema, vocab)):
        with pytest.raises(SchemaError) as caught:
            check(schema)
        assert message in str(caught.value)
    assert set(FORMS) == {"free", "compact", "json.dumps", "text"}


def asked(
    model: ag.Model, monkeypatch: pytest.MonkeyPatch, schema: Schema, **more: Any
) -> tuple[ag.Verdict, int]:
    """The verdict, and how many batches it took."""
    calls, real = [], Engine.decode

    def spy(self: Engine, runs: Any, **options: Any) -> Any:
        calls.append(runs)
        return real(self, runs, **options)

    with model.session() as session, monkeypatch.context() as patch:
        session.append("Is it so?")
        patch.setattr(Engine, "decode", spy)
        verdict = session.invoke(ag.Invocation("sure", schema=schema, logprobs=5, **more))
    assert verdict.logprobs is not None
    assert "".join(each.text for each in verdict.logprobs) == verdict.text
    return verdict, len(calls)


@pytest.mark.parametrize("form", ["compact", "json.dumps"])
def test_of_a_verdict_one_token_is_sampled(
    form: str, model: ag.Model, monkeypatch: pytest.MonkeyPatch, vocab: Vocabulary
) -> None:
    """All of them differ in their first letter, which the tiny vocabulary has a token for."""
    schema = closed(form, verdict={"enum": ["yes", "no", "in doubt"]})
    verdict, n_batches = asked(model, monkeypatch, schema, max_tokens=1)
    said = json.loads(verdict.text)["verdict"]
    text = json.dumps({"verdict": said}, separators=SEPARATORS[form])
    assert (verdict.text, verdict.timings.generated, n_batches) == (text, 1, 1)
    assert verdict.finish_reason == "stop"
    forced = draft_reply(schema, vocab, True).forced
    assert verdict.tokens[: len(forced)] == forced
    assert b"".join(map(vocab.piece, forced)).decode() == text[: text.index(said)]
    assert [bool(each.top) for each in verdict.logprobs or ()].count(True) == 1


def test_of_bare_words_too(model: ag.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, n_batches = asked(model, monkeypatch, words("yes", "no", "in doubt"))
    assert verdict.text in ("yes", "no", "in doubt")
    assert (verdict.timings.generated, n_batches) == (1, 1)


def test_where_there_is_no_choice_nothing_is_sampled(
    model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict, n_batches = asked(model, monkeypatch, closed("compact", a={"const": [1, "x"]}))
    assert (verdict.text, verdict.timings.generated, n_batches) == ('{"a":[1,"x"]}', 0, 1)
    assert verdict.timings.first_token == verdict.timings.total


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("stop", [(), "[/INST]"])
def test_what_is_fixed_in_between_is_read_at_once(
    temperature: float, stop: Any, model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = {"type": "array", "items": {"enum": [1, 22]}, "minItems": 2, "maxItems": 2}
    names = {"a_long_name_for_a_field": {"type": "boolean"}, "and_another_one": pair}
    sampling = ag.Sampling(temperature=temperature, seed=3)
    found = {}
    for form in ("free", "json.dumps"):
        schema = closed(form, text={"type": "string", "maxLength": 5}, **names)
        found[form], _ = asked(
            model, monkeypatch, schema, max_tokens=200, sampling=sampling, stop=stop
        )
    verdict = found["json.dumps"]
    assert verdict.finish_reason == "stop"
    assert verdict.text == json.dumps(json.loads(verdict.text), ensure_ascii=False)
    # no part of the names is sampled, except the end of one, which could go on in the same token
    assert verdict.timings.generated < 40 < 60 < len(verdict.tokens)
    assert verdict.timings.generated < found["free"].timings.generated - 40


def test_the_limit_counts_what_is_fixed_in_between(
    model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = closed("compact", a=YES_NO, b={"const": "x" * 300}, c={"type": "integer"})
    verdict, _ = asked(model, monkeypatch, schema, max_tokens=40)
    assert verdict.finish_reason == "length"
    assert model.session().invoke("sure", "a", schema=schema, max_tokens=1000).text.endswith("}")


def test_only_so_much_is_read_unasked(vocab: Vocabulary) -> None:
    """As long a constant as one likes is no reason to read all of it."""
    for n in (100, 1000):
        draft = draft_reply(closed("compact", a={"const": "x" * n}), vocab, True)
        assert len(draft.forced) == min(n + 8, 256)
        assert all(path[: len(draft.forced)] == draft.forced for path in draft.paths)


def test_a_form_that_cannot_go_on_so_is_refused(model: ag.Model, vocab: Vocabulary) -> None:
    begun = vocab.tokenize('{"a": ', add_special=False, parse_special=False)
    session = model.session()
    session.append("?")
    more = session.invoke("sure", schema=closed("json.dumps", a=YES_NO), begun=begun)
    assert json.loads(more.text)["a"] in ("yes", "no")
    assert more.tokens[: len(begun)] == tuple(begun)
    with pytest.raises(ag.AloraError, match="is not allowed here by the schema"):
        session.invoke("sure", schema=closed("compact", a=YES_NO), begun=begun)
    with pytest.raises(InputError, match="begun"):
        session.invoke("sure", begun=[10**6])


def test_replies_are_read_so_too(model: ag.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session's own reply, and a chat's, which are the same code."""
    schema = closed("json.dumps", the_first_field=YES_NO, the_second_field=YES_NO)
    sizes, real = [], Engine.decode

    def spy(self: Engine, runs: Any, **options: Any) -> Any:
        sizes.extend(len(run.tokens) for run in runs)
        return real(self, runs, **options)

    with model.session() as session:
        session.append("Is it so?")
        before = len(session.tokens)
        monkeypatch.setattr(Engine, "decode", spy)
        reply = session.generate(schema=schema, logprobs=2, temperature=0, max_tokens=100)
        text = reply.read()
        assert text == json.dumps(json.loads(text))
        assert reply.finish_reason == "stop"
        assert session.tokens[before:] == reply.tokens
        assert "".join(each.text for each in reply.logprobs or ()) == text
        # what the fields are called, and the end of a value that can no longer be another one
        assert reply.timings.generated < 8
        assert sum(sizes) == len(reply.tokens)
        assert len(sizes) < 12
        assert max(sizes) > 10
        whole = list(session.tokens)
        sampled = inside.last_logits(session).copy()
        session.sync(whole[:-1])
        session.sync(whole)
        assert np.allclose(inside.last_logits(session), sampled, atol=1e-3)
        for limit in (1, 3, 25):
            session.sync(whole[:before])
            cut = session.generate(schema=schema, temperature=0, max_tokens=limit)
            assert text.startswith(cut.read())
            assert cut.finish_reason in ("length", "stop")
            assert session.tokens == whole[: len(session.tokens)]
