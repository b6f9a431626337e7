"""Options as values: they pickle, copy, compare and hash, and refuse what is of the wrong kind."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, get_type_hints

import pytest

import alora_gguf as ag
from alora_gguf import options

SAMPLING = ag.Sampling(temperature=0.5, logit_bias={3: 1.5, 4: float("-inf")}, seed=7)
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", 1]}}}
RECORDS: list[Any] = [
    SAMPLING,
    ag.ContextOptions(n_ctx=512, type_k="q8_0"),
    ag.GenerateOptions(sampling=SAMPLING, stop=["a", "b"], schema=SCHEMA, adapter="x", logprobs=2),
    ag.Invocation("x", [1, 2], schema=SCHEMA, sampling=SAMPLING),
    ag.GenerateOptions(adapter={"a": 1, "b": 0.5}, scale=2),
    ag.Invocation({"a": 1.0}, [1, 2]),
    ag.IntrinsicCall("x", {"criterion": "harm"}, sampling=SAMPLING, upto=3),
    ag.Contract.parse(
        "model: ~\nresponse_format: {type: object, properties: {a: {enum: [x, 1]}}}\n"
        "transformations: ~\nparameters: {stop: [a], extra_body: {top_k: 3}}\n"
    ),
    ag.Message("user", "hello"),
    ag.Document("text", title="t"),
    ag.Timings(reused=3),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_pickle_copy_compare_and_hash(record: Any) -> None:
    copies = [pickle.loads(pickle.dumps(record)), copy.copy(record), copy.deepcopy(record)]
    copies.append(dataclasses.replace(record))
    for each in copies:
        assert each == record
        assert hash(each) == hash(record)
        assert "\n" not in repr(each)
    plain = dataclasses.asdict(record)
    assert plain.keys() == {each.name for each in dataclasses.fields(record)}
    assert pickle.loads(pickle.dumps(plain)) == plain
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)


def test_what_a_frozen_record_holds_does_not_change() -> None:
    given = {3: 1.0}
    sampling = ag.Sampling(logit_bias=given)
    given[4] = 2.0
    assert sampling.logit_bias == {3: 1.0}
    with pytest.raises(TypeError, match=r"dataclasses\.replace\(\)"):
        sampling.logit_bias[4] = 2.0  # type: ignore[index]
    tokens = [1, 2]
    invocation = ag.Invocation("x", prompt=tokens)
    tokens.append(3)
    assert invocation.prompt == (1, 2)


def test_adapters_by_name_or_by_names_and_scales() -> None:
    for kind in (lambda a: ag.GenerateOptions(adapter=a), ag.Invocation):
        assert kind("x").adapter == "x"
        assert kind(None).adapter is None
        given = {"a": 1, "b": -0.5}
        made = kind(given)
        given["c"] = 2
        assert made.adapter == {"a": 1.0, "b": -0.5}
        assert {made: 1}[kind({"b": -0.5, "a": 1.0})] == 1
        assert made != kind({"a": 1.0})
        with pytest.raises(TypeError, match="cannot be changed"):
            made.adapter["c"] = 2  # type: ignore[index]
        for wrong, problem in (
            ({}, "adapter is an empty mapping: name adapters with their scales, or None"),
            ({3: 1}, "adapter maps 3 to a scale, expected an adapter's name"),
            ({"a": "1"}, r"adapter\['a'\], a scale, must be a finite number in .* got '1'"),
            ({"a": None}, "must be a finite number"),
            ({"a": True}, "must be a finite number"),
            ({"a": float("inf")}, "must be a finite number"),
            ({"a": -1001}, r"in \[-1000.0, 1000.0\], got -1001"),
            (3, "adapter must be a string, a mapping or None, got 3"),
            (["a"], "adapter must be a string, a mapping or None"),
        ):
            with pytest.raises(ag.InputError, match=problem):
                kind(wrong)  # type: ignore[arg-type]


def test_defaults_are_those_of_the_table() -> None:
    reply, invocation, call = ag.GenerateOptions(), ag.Invocation("x"), ag.IntrinsicCall("x")
    assert (reply.max_tokens, reply.sampling, reply.stop) == (1024, ag.Sampling(), ())
    assert (invocation.max_tokens, invocation.sampling.temperature, invocation.stop) == (16, 0, ())
    assert (call.max_tokens, call.sampling, call.stop) == (None, None, None)
    for number in ("1024", "16", "512"):
        assert number in (ag.GenerateOptions.__doc__ or "")


def test_one_stop_string_is_as_good_as_a_list_of_one() -> None:
    for kind in (ag.GenerateOptions, lambda **given: ag.Invocation("x", **given)):
        assert kind(stop="end") == kind(stop=["end"]) == kind(stop=("end",))
        with pytest.raises(ag.InputError, match="must not be empty"):
            kind(stop=["a", ""])
    assert ag.IntrinsicCall("x", stop="end").stop == ("end",)


def test_keywords_that_type_checkers_know_are_the_records_fields() -> None:
    def names(*records: type) -> set[str]:
        return {each.name for record in records for each in dataclasses.fields(record)}

    assert get_type_hints(options.ContextFields).keys() == names(ag.ContextOptions)
    assert get_type_hints(options.SamplingFields).keys() == names(ag.Sampling)
    generate = get_type_hints(options.GenerateFields).keys()
    assert generate == names(ag.GenerateOptions, ag.Sampling)
    call = get_type_hints(options.CallFields).keys()
    assert call == names(ag.IntrinsicCall, ag.Sampling) - {"name", "arguments", "_"}


def test_keywords_win_and_wrong_ones_are_told_with_what_there_is() -> None:
    given = ag.GenerateOptions(max_tokens=9, sampling=ag.Sampling(top_k=3))
    made = options.reply_options(given, {"temperature": 0, "stop": "x"}, "say()")
    wanted = ag.GenerateOptions(
        max_tokens=9, sampling=ag.Sampling(top_k=3, temperature=0), stop=["x"]
    )
    assert made == wanted
    assert options.reply_options(None, {}, "say()") == ag.GenerateOptions()
    with pytest.raises(
        ag.InputError,
        match=r"^say\(\) has no argument 'temperatur'; did you mean "
        r"'temperature', of Sampling\?$",
    ):
        options.reply_options(None, {"temperatur": 0}, "say()")
    with pytest.raises(
        ag.InputError,
        match=r"those of GenerateOptions: max_tokens, .*; those of Sampling: temperature, ",
    ):
        options.reply_options(None, {"xyzzy": 0}, "say()")
    with pytest.raises(ag.InputError, match="an Invocation is for"):
        options.reply_options(ag.Invocation("x"), {}, "say()")
    with pytest.raises(ag.InputError, match="has no argument 'adapter'"):
        options.changed(ag.Invocation("x"), {"adapter": "y"}, "invoke()")


WRONG: list[Any] = [None, 3, 2.5, True, "text", b"bytes", [1, "a"], {"a": 1}, object(), int]


@pytest.mark.parametrize(
    "record", [type(each) for each in RECORDS if not isinstance(each, (ag.Timings, ag.Contract))]
)
def test_fields_of_the_wrong_kind_are_refused_by_name(record: Any) -> None:
    needed = {"adapter": "x", "name": "x", "role": "user", "content": "c", "text": "t"}
    own = {each.name for each in dataclasses.fields(record)}
    for name in own:
        for value in WRONG:
            given = {key: needed[key] for key in needed if key in own} | {name: value}
            try:
                hash(record(**given))
            except ag.InputError as error:
                said = str(error)
            else:
                continue
            assert name.split("_")[0] in said
