"""What a contract says, and each way to get it."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from alora_gguf.errors import ContractError, FileFormatError, MissingFileError, OutputError
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.parser import ValueType
from alora_gguf.intrinsics import Contract, load_contract, rewrite, transform
from alora_gguf.intrinsics.rules import Likelihood, Nest
from alora_gguf.messages import Message
from alora_gguf.options import TokenLogprob, TopLogprob
from tests.support.gguf_bytes import gguf_bytes

from .corpus_cases import CORPUS

HEAD = "model: ~\nresponse_format: ~\ntransformations: ~\n"


def refused(text: str | bytes) -> str:
    """The message with which a contract is refused."""
    with pytest.raises(ContractError) as caught:
        Contract.parse(text, "x/io.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_fields() -> None:
    contract = Contract.read(CORPUS / "guardian.yaml")
    assert contract.source == str(CORPUS / "guardian.yaml")
    assert contract.name == "guardian-core"
    assert contract.model is None
    assert contract.response_format is not None
    assert contract.response_format["required"] == ["score"]
    assert contract.transformations == (
        Likelihood(("score",), (("yes", 1.0), ("no", 0.0))),
        Nest((), "guardian"),
    )
    assert contract.instruction is not None
    assert contract.instruction.endswith("return 'no'.")
    assert contract.instruction_fields == ("criteria", "target_role")
    assert contract.needs_logprobs
    assert not contract.tags_history
    assert not contract.moves_documents
    assert contract.temperature == 0.0
    assert contract.max_tokens == 15
    assert contract.parameter("top_k") == 1
    assert contract.chat_template_kwargs == {"think": False}
    assert contract.stop == ()
    assert Contract.read(CORPUS / "certainty_integer.yaml").max_tokens == 8
    assert Contract.read(CORPUS / "context_relevance.yaml").stop == ("\n\n",)
    assert Contract.read(CORPUS / "citations.yaml").tags_history
    assert Contract.read(CORPUS / "citations_json.yaml").moves_documents


def test_what_is_not_there() -> None:
    contract = Contract.parse(HEAD)
    assert contract == Contract(source="io.yaml")
    assert (contract.max_tokens, contract.temperature, contract.stop) == (None, None, ())
    assert contract.chat_template_kwargs == {}


def test_a_contract_cannot_be_changed() -> None:
    contract = Contract.read(CORPUS / "guardian.yaml")
    with pytest.raises(AttributeError):
        contract.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        contract.parameters["temperature"] = 1  # type: ignore[index]


def test_a_contract_is_copied_pickled_and_compared() -> None:
    contract = Contract.read(CORPUS / "guardian.yaml")
    for same in (pickle.loads(pickle.dumps(contract)), copy.deepcopy(contract)):
        assert same == contract
        assert hash(same) == hash(contract)
        with pytest.raises(TypeError, match="cannot be changed"):
            same.parameters["temperature"] = 1
    assert asdict(contract)["parameters"] == contract.parameters


ABOUT = "model: ~\ntransformations: ~\nresponse_format: |\n  {{\n  {}\n  }}\n"


def test_what_it_judges_and_which_end_is_good() -> None:
    note = '"type": "object", "x-alora": {"judges": "answer", "good": "low"}'
    for text in (ABOUT.format(note), ABOUT.format(note).replace("|", "")):
        contract = Contract.parse(text)
        assert (contract.judges, contract.good) == ("answer", "low")
        assert contract.response_format == {"type": "object"}  # it is not for the model's server
    contract = Contract.parse(ABOUT.format('"x-alora": {"judges": "question"}'))
    assert (contract.judges, contract.good) == ("question", None)
    assert Contract.parse(HEAD).judges is None


@pytest.mark.parametrize(
    ("note", "wrong"),
    [
        (
            '"x-alora": {"judges": "both"}',
            ".x-alora.judges: expected one of question, answer, found 'both'",
        ),
        ('"x-alora": {"good": 1}', ".x-alora.good: expected one of high, low, found 1"),
        (
            '"x-alora": {"bad": "low"}',
            ".x-alora.bad: expected one of judges, good, form, found 'bad'",
        ),
        (
            '"x-alora": "low"',
            '.x-alora: expected an object such as {"judges": "answer"}, found \'low\'',
        ),
        (
            '"not": {"x-alora": {}}',
            ".not.x-alora: expected it at the top of the schema, found it within",
        ),
    ],
)
def test_a_wrong_note_about_it_is_refused(note: str, wrong: str) -> None:
    message = refused(ABOUT.format(note))
    assert message.startswith(f"x/io.yaml:5: field response_format{wrong}; ")


def test_the_form_of_replies() -> None:
    for form in ("free", "compact", "json.dumps"):
        note = f'"type": "object", "x-alora": {{"judges": "answer", "form": "{form}"}}'
        contract = Contract.parse(ABOUT.format(note))
        assert contract.judges == "answer"
        assert contract.response_format == {"type": "object", "x-alora": {"form": form}}
    message = refused(ABOUT.format('"x-alora": {"form": "text"}'))
    assert ".x-alora.form: expected one of free, compact, json.dumps, found 'text'" in message


CHOICES = "model: ~\nresponse_format: ~\nchoices: {}\ntransformations:\n  - {}\n"
WEIGHED = "{type: likelihood, input_path: [], categories_to_values: {yes: 1, no: 0, '3': 7}}"


def test_choices_are_words_as_they_are_written() -> None:
    contract = Contract.parse(CHOICES.format("[yes, no, 3, 'a b']", WEIGHED))
    assert contract.choices == ("yes", "no", "3", "a b")
    assert contract.response_format is not None
    assert contract.response_format["enum"] == ["yes", "no", "3", "a b"]
    request = rewrite(contract, [Message("user", "?")])
    half = math.log(0.5)
    tokens = [TokenLogprob(5, "yes", half, (TopLogprob(5, "yes", half), TopLogprob(6, "n", half)))]
    assert transform(contract, "yes", tokens, request).value == pytest.approx(0.5)
    tokens = [TokenLogprob(5, "3", 0.0, ())]
    assert transform(contract, "3", tokens, request).value == 7.0
    with pytest.raises(OutputError, match=r"is 'maybe', expected one of 'yes', 'no', '3', 'a b'; "):
        transform(contract, "maybe", tokens, request)
    assert Contract.parse(HEAD).choices == ()
    about = "{x-alora: {judges: question, good: low}}"
    told = Contract.parse(
        CHOICES.format("[no, yes, 3]", WEIGHED).replace("format: ~", f"format: {about}")
    )
    assert (told.choices, told.judges, told.good) == (("no", "yes", "3"), "question", "low")


def test_categories_of_bare_words_are_words_as_they_are_written() -> None:
    """Numbers, and true, in YAML: they did not count as what was chosen."""
    for one, other in (("1", "2"), ("1.0", "2.50"), ("true", "false"), ("yes", "~x")):
        rule = f"type: likelihood, input_path: [], categories_to_values: {{{one}: 10, {other}: 20}}"
        contract = Contract.parse(CHOICES.format(f"[{one}, {other}]", f"{{{rule}}}"))
        half = math.log(0.5)
        top = (TopLogprob(5, one, half), TopLogprob(6, other, half))
        request = rewrite(contract, [Message("user", "?")])
        found = transform(contract, one, [TokenLogprob(5, one, half, top)], request)
        assert found.value == pytest.approx(15.0)


@pytest.mark.parametrize(
    ("choices", "wrong"),
    [
        ("yes", "field choices: expected a list of the texts that replies can be, found "),
        ("[]", "field choices: expected a list of the texts"),
        ("[a, ~]", "field choices[1]: expected a text, found "),
        ("[a, [b]]", "field choices[1]: expected a text, found "),
        ("[a, '']", "field choices[1]: expected a text, found "),
        ("[a, b, a]", "field choices[2]: expected each text once, found 'a' twice"),
    ],
)
def test_choices_that_cannot_be(choices: str, wrong: str) -> None:
    assert wrong in refused(CHOICES.format(choices, WEIGHED))
    text = CHOICES.format("[a, b]", WEIGHED).replace("format: ~", "format: {type: string}")
    assert "field choices: expected choices or a schema in response_format, found both" in refused(
        text
    )


def weighing(path: str, categories: str, schema: str) -> str:
    rule = f"{{type: likelihood, input_path: {path}, categories_to_values: {categories}}}"
    return f"model: ~\nresponse_format: '{schema}'\ntransformations:\n  - {rule}\n"


OF_V = '{{"type": "object", "properties": {{"v": {}}}, "additionalProperties": false}}'
VALUES = [
    (
        OF_V.format('{"enum": ["Yes", "no"]}'),
        "[v]",
        "'Yes', 'no', found 'yes'; did you mean 'Yes'?",
    ),
    (OF_V.format('{"enum": ["No", null]}'), "[v]", "'No', null, found 'yes'; correct it, or the "),
    (OF_V.format('{"const": "yess"}'), "[v]", "'yess', found 'yes'; did you mean 'yess'?"),
    (OF_V.format('{"type": "boolean"}'), "[v]", "true, false, found 'yes'; correct it"),
    (OF_V.format('{"enum": [true, false]}'), "[v]", "true, false, found 'yes'; correct it"),
    (OF_V.format('{"anyOf": [{"enum": ["no"]}, {"const": "YES"}]}'), "[v]", "did you mean 'YES'?"),
    (OF_V.format('{"type": "array", "items": {"enum": ["no"]}}'), "[v, ~]", "'no', found 'yes'"),
    (OF_V.format('{"type": "array", "items": {"enum": ["no"]}}'), "[~, 0]", "'no', found 'yes'"),
    ('{"$ref": "#/$defs/a", "$defs": {"a": {"enum": ["no"]}}}', "[]", "'no', found 'yes'"),
]


@pytest.mark.parametrize(("schema", "path", "wrong"), VALUES)
def test_categories_that_no_reply_is(schema: str, path: str, wrong: str) -> None:
    message = refused(weighing(path, "{yes: 1, no: 0}", schema))
    start = "x/io.yaml:4: field transformations[0].categories_to_values."
    assert message.startswith(start)
    assert "expected what replies can be at its input_path, " in message
    assert wrong in message


def test_categories_that_no_choice_is() -> None:
    rule = "{type: likelihood, input_path: [], categories_to_values: {yes: 1, no: 0}}"
    assert refused(CHOICES.format("[Yes, no]", rule)).endswith(
        ":5: field transformations[0].categories_to_values.yes: expected what replies can be at "
        "its input_path, 'Yes', 'no', found 'yes'; did you mean 'Yes'?"
    )
    assert "'a', 'b', found 'yes'; correct it" in refused(CHOICES.format("[a, b]", rule))


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (OF_V.format('{"enum": ["no", "perhaps", "yes"]}'), "[v]"),  # the others count for nothing
        (OF_V.format('{"type": "string"}'), "[v]"),
        (OF_V.format('{"anyOf": [{"enum": ["no"]}, {"type": "string"}]}'), "[v]"),
        (OF_V.format('{"allOf": [{"enum": ["no", "yes"]}]}'), "[v]"),
        (OF_V.format('{"$ref": "#/$defs/a"}'), "[v]"),  # which is none
        ('{"$ref": "#"}', "[v]"),
        ('{"type": "object", "properties": {"v": {"enum": ["a"]}}}', "[w]"),
        ('{"type": "array", "items": {"type": "object", "properties": {}}}', "[~, v]"),
        ('{"type": ["object", "string"], "properties": {"v": true}}', "[v]"),
    ],
)
def test_categories_and_paths_that_the_schema_leaves_open(schema: str, path: str) -> None:
    Contract.parse(weighing(path, "{yes: 1, no: 0}", schema))


@pytest.mark.parametrize(
    ("schema", "path", "wrong"),
    [
        (OF_V.format("true"), "[V]", "[0]: expected what replies can have at the root, 'v', found "
         "'V'; did you mean 'v'?"),
        (OF_V.format("true"), "[w]", "'v', found 'w'; correct the path, or the schema"),
        (OF_V.format("true"), "[0]", "'v', found 0; correct"),
        (OF_V.format('{"type": "string"}'), "[v, w]", "[1]: expected what replies can have at v, "
         "nothing more, found 'w'"),
        ('{"enum": ["yes", "no"]}', "[v]", "[0]: expected what replies can have at the root, no"),
        (f'{{"type": "array", "items": {OF_V.format("true")}}}', "[~, vv]",
         "[1]: expected what replies can have at this place, 'v', found 'vv'; did you mean 'v'?"),
        (f'{{"type": "array", "items": {OF_V.format("true")}}}', "[v]", "[0]: expected what"),
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere(schema: str, path: str, wrong: str) -> None:
    for rule in ("nest, field_name: n", "likelihood, categories_to_values: {yes: 1, no: 0}"):
        text = weighing(path, "~", schema).replace("likelihood", rule)
        message = refused(text.replace(", categories_to_values: ~", ""))
        assert message.startswith("x/io.yaml:4: field transformations[0].input_path")
        assert wrong in message


def test_a_path_into_what_a_rule_has_made_is_left_to_the_reply() -> None:
    text = weighing("[v]", "{yes: 1}", OF_V.format('{"enum": ["yes"]}'))
    text += "  - {type: project, input_path: [], retained_fields: {v: w}}\n"
    Contract.parse(text + "  - {type: nest, input_path: [w], field_name: n}\n")


def test_a_schema_that_multiplies_is_left_open() -> None:
    many = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 9} for i in range(30)}
    schema = json.dumps({"$ref": "#/$defs/a0", "$defs": many})
    Contract.parse(weighing("[]", "{yes: 1}", schema))


def test_parameters_that_are_null_are_left_out() -> None:
    assert Contract.parse(HEAD + "parameters: {seed: ~, n: 1}").parameters == {"n": 1}


TEXTS = {"enum": ["fish", "no fish"], "type": "string"}
FORMS = [
    "{enum: [fish, no fish], type: string}",
    "{type: json_schema, json_schema: {name: a, schema: {enum: [fish, no fish], type: string}}}",
    "{type: json_object, schema: {enum: [fish, no fish], type: string}}",
    """'{"enum": ["fish", "no fish"], "type": "string"}'""",
]


@pytest.mark.parametrize("form", FORMS)
def test_a_schema_among_the_parameters_is_the_contracts(form: str) -> None:
    contract = Contract.parse(f"{HEAD}parameters: {{temperature: 0.5, response_format: {form}}}\n")
    assert contract.response_format == TEXTS
    assert contract.parameters == {"temperature": 0.5}
    same = f"model: ~\nresponse_format: {FORMS[0]}\ntransformations: ~\n"
    twice = Contract.parse(f"{same}parameters: {{response_format: {form}}}\n")
    assert twice.response_format == TEXTS


def test_forms_without_a_schema() -> None:
    formed = f"{HEAD}parameters: {{response_format: {{}}}}\n"
    any_object = Contract.parse(formed.replace("{}", "{type: json_object}"))
    assert any_object.response_format == {"type": "object"}
    assert Contract.parse(formed.replace("{}", "{type: text}")).response_format is None
    assert Contract.parse(formed.replace("{}", "~")).response_format is None


def test_reasoning_effort_is_a_variable_of_the_template() -> None:
    said = Contract.parse(HEAD + "parameters: {reasoning_effort: low}\n")
    assert said.chat_template_kwargs == {"reasoning_effort": "low"}
    extra = "parameters: {extra_body: {reasoning_effort: low, chat_template_kwargs: {a: 1}}}\n"
    assert Contract.parse(HEAD + extra).chat_template_kwargs == {"reasoning_effort": "low", "a": 1}


@pytest.mark.parametrize("text", ["name: x\n", "name: x\nmodel: ~\n", "model: m\nname: x\n"])
def test_a_name_alone_is_free_text(text: str) -> None:
    """As Granite Switch's own adapters may have it: "at minimum, io.yaml declares the name"."""
    contract = Contract.parse(text)
    assert (contract.name, contract.free_text, contract.arguments) == ("x", True, ())
    request = rewrite(contract, [Message("user", "hello")])
    assert (request.messages, request.response_format) == ((Message("user", "hello"),), None)
    assert transform(contract, "anything", None, request).value == "anything"
    assert not Contract.parse(HEAD).free_text


MISTAKES = [
    ("name: x\nmodel: {}\n", "x/io.yaml:2: field model: expected a text, found an empty map"),
    ("name: ~\n", "x/io.yaml:1: expected a contract to have 'model', found none"),
    ("name: x\nmodle: m\n", "x/io.yaml:2: field modle: expected one of model, response_format"),
    (HEAD + "parameters: {reasoning_effort: 1}\n", ":4: field parameters.reasoning_effort: exp"),
    (HEAD + "parameters:\n  response_format: {type: json_schema}\n",
     ":5: field parameters.response_format: expected {type: json_schema, json_schema: {schema: "),
    (HEAD + "parameters:\n  response_format:\n    type: json_schema\n    json_schema:\n"
     "      schema: {type: strin}\n",
     ":8: field parameters.response_format.json_schema.schema.type: expected one of array, "),
    (HEAD + "parameters: {response_format: {}}\n", "expected a JSON Schema, which is an object"),
    ("model: ~\nresponse_format: {type: string}\ntransformations: ~\n"
     "parameters: {response_format: {type: object}}\n",
     ":4: field parameters: expected the response_format of the contract, or none, found another"),
    ("model: ~\n", "x/io.yaml:1: expected a contract to have 'response_format', found none; add"),
    ("- a\n", "x/io.yaml:1: expected a mapping with model, response_format, "),
    (HEAD + "\nsystem_prompt: x\n", "x/io.yaml:5: field system_prompt: expected one of model, "),
    (HEAD + "1: x\n", "x/io.yaml:4: field 1: expected one of model"),
    (HEAD + "name: [a]\n", "x/io.yaml:4: field name: expected a text, found a list; put it in"),
    (HEAD + "name: ''\n", "field name: expected a text, found ''"),
    (HEAD + "docs_as_message: xml\n", ":4: field docs_as_message: expected one of string, json, "),
    (HEAD + "logprobs_workaround: 1\n", "logprobs_workaround: expected true or false, found"),
    (HEAD + "sentence_boundaries: c\n", ":4: field sentence_boundaries: expected a mapping from"),
    (HEAD + "sentence_boundaries:\n  first: c\n", ":5: field sentence_boundaries.first: expected"),
    (HEAD + "sentence_boundaries:\n  documents: ''\n", "give the letters before the number"),
    (HEAD + "parameters: [1]\n", "expected a mapping from parameters to values, or null, found"),
    (HEAD + "parameters:\n  temperatur: 0\n", ":5: field parameters.temperatur: expected one of"),
    (HEAD + "parameters:\n  temperature: '0'\n", ":5: field parameters.temperature: expected a f"),
    (HEAD + "parameters: {temperature: -1}\n", "expected a finite number of at least 0, found -1"),
    (HEAD + "parameters: {temperature: .nan}\n", "a finite number of at least 0, found nan"),
    (HEAD + "parameters: {top_p: 0}\n", "expected a number above 0, at most 1, found 0"),
    (HEAD + "parameters: {min_p: 2}\n", "expected a finite number in [0, 1], found 2"),
    (HEAD + "parameters: {max_tokens: 0}\n", "expected an integer of at least 1, found 0"),
    (HEAD + "parameters: {max_tokens: true}\n", "expected an integer of at least 1, found true"),
    (HEAD + "parameters: {seed: 4294967296}\n", "expected an integer in [0, 4294967295], found"),
    (HEAD + "parameters: {n: 2}\n", "field parameters.n: expected 1, found 2; an intrinsic has"),
    (HEAD + "parameters: {stream: 0}\n", "field parameters.stream: expected false, found 0"),
    (HEAD + "parameters: {stop: ['']}\n", "field parameters.stop[0]: expected a text, found ''"),
    (HEAD + "parameters: {stop: 1}\n", "field parameters.stop: expected a text, or a list of"),
    (HEAD + "parameters: {logprobs: 1}\n", "expected true or false, found 1"),
    (HEAD + "parameters: {max_tokens: 1, max_completion_tokens: 2}\n", "which mean the same"),
    (HEAD + "parameters:\n  extra_body:\n    guided_json: {}\n", "parameters.extra_body.guided"),
    (HEAD + "parameters: {extra_body: {chat_template_kwargs: 1}}\n", "expected a mapping, found 1"),
    (HEAD + "parameters: {extra_body: {chat_template_kwargs: {1: 2}}}\n", "a text, found 1"),
    (HEAD + "parameters: {extra_body: {chat_template_kwargs: {a: .inf}}}\n", "a finite number"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_mistakes_in_fields(text: str, message: str) -> None:
    assert message in refused(text)


def rules(text: str, boundaries: str = "~") -> str:
    return (
        f"model: ~\nresponse_format: ~\nsentence_boundaries: {boundaries}\n"
        f"transformations:\n  - {text}\n"
    )


DECODE = "{type: decode_sentences, input_path: [a], output_names: {text: t}, source: "
RULE_MISTAKES = [
    ("nest", ":5: field transformations[0]: expected a rule, found 'nest'"),
    ("{input_path: []}", "transformations[0]: expected a rule to have a type, found none; add"),
    ("{type: nets}", "[0].type: expected one of decode_sentences, drop_duplicates, "),
    ("{type: 1}", "transformations[0].type: expected one of"),
    ("{type: nest, input_path: []}", "the rule nest to have 'field_name', found none"),
    ("{type: nest, input_path: [], field_name: a, b: c}", "transformations[0].b: expected one of"),
    ("{type: nest, input_path: [], field_name: 1}", "field_name: expected a text, found 1; name"),
    ("{type: nest, input_path: a, field_name: b}", "input_path: expected a list of fields' names"),
    ("{type: nest, input_path: [-1], field_name: b}", "input_path[0]: expected a list of fields'"),
    ("{type: nest, input_path: [true], field_name: b}", "found true"),
    ("{type: explode, input_path: [], target_field: ~}", "target_field: expected a text, found"),
    ("{type: drop_duplicates, input_path: [], target_fields: []}", "found an empty list"),
    ("{type: drop_duplicates, input_path: [], target_fields: [a, a]}", "found 'a' twice"),
    ("{type: project, input_path: [], retained_fields: a}", "expected a list of fields' names"),
    ("{type: project, input_path: [], retained_fields: {a: c, b: c}}", "found 'c' twice; rename"),
    ("{type: likelihood, input_path: [a], categories_to_values: ~}", "a mapping from categories"),
    ("{type: likelihood, input_path: [a], categories_to_values: {a: x}}", "a number, found 'x'"),
    ("{type: likelihood, input_path: [a], categories_to_values: {a: .inf}}", "a finite number"),
    ("{type: likelihood, input_path: [a], categories_to_values: {'': 1}}", "expected a text, a "),
    ("{type: merge_spans, input_path: [], group_fields: [a], begin_field: a, end_field: e}",
     "group_fields: expected each field in one part, found 'a' in two"),
    (DECODE + "text}", "expected one of last_message, documents, all_but_last_message, or a list"),
    (DECODE + "[documents, documents]}", "source[1]: expected each name once, found 'docume"),
    (DECODE + "[documents, last_message]}", "use two rules"),
    (DECODE + "[]}", "source: expected one of last_message"),
    (DECODE + "documents}", "expected places that sentence_boundaries has, last_message, found"),
    ("{type: decode_sentences, input_path: [a], source: last_message, output_names: {}}",
     "expected a mapping from begin, end, text, document_id, message_index"),
    ("{type: decode_sentences, input_path: [a], source: last_message, output_names: {to: a}}",
     "output_names.to: expected one of begin, end, text"),
    ("{type: decode_sentences, input_path: [a], source: last_message, "
     "output_names: {document_id: a}}", "expected documents among the sources"),
    ("{type: decode_sentences, input_path: [a], source: last_message, "
     "output_names: {text: a, end: a}}", "expected each name once, found 'a' twice"),
    ("{type: decode_sentences, input_path: [], source: last_message, output_names: {text: a}}",
     "input_path: expected a path to a field of an object, found an empty list"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), RULE_MISTAKES)
def test_mistakes_in_rules(text: str, message: str) -> None:
    found = refused(rules(text, "{last_message: c}"))
    assert message in found
    assert found.startswith("x/io.yaml:5: field transformations[0]")


def test_rules_that_are_no_list() -> None:
    assert "expected a list of rules, or null, found a mapping" in refused(
        "model: ~\nresponse_format: ~\ntransformations: {type: nest}\n"
    )


SCHEMAS = [
    # a JSON text in a literal block, which begins in line 3
    ("{", 3, "Expecting property name enclosed in double quotes, found the text ends there"),
    ('{"type": "object",\n "a" 1}', 4, "a JSON Schema: Expecting ':' delimiter, found no JSON"),
    ("{'type': 1}", 3, "write it in JSON: double quotes"),
    ('{"a": 1}\n\n}', 5, "Extra data"),
    ("true", 3, "expected a JSON Schema, which is an object"),
    ("[]", 3, "found an empty list"),
    ("{}", 3, "found an empty mapping"),
    ('{\n"type":\n"objekt"}', 5, ".type: expected one of array, boolean, integer, null"),
    ('{"type": []}', 3, ".type: expected at least one type, found an empty list"),
    ('{"type": ["string",\n5]}', 4, ".type[1]: expected one of array"),
    ('{"properties":\n {"a":\n  {"enum": "b"}}}', 5, ".properties.a.enum: expected an array of at"),
    ('{"properties": []}', 3, ".properties: expected an object of schemas, found an empty list"),
    ('{"properties": {"a": "string"}}', 3, ".properties.a: expected a schema (an object, true or"),
    ('{"items": [{}, {"type": 3}]}', 3, ".items[1].type: expected one of"),
    ('{"items": 3}', 3, ".items: expected a schema"),
    ('{"anyOf": []}', 3, ".anyOf: expected an array of schemas, at least one, found an empty list"),
    ('{"required": ["a", "a"]}', 3, ".required: expected an array of texts, each once"),
    ('{"required": true}', 3, ".required: expected an array of texts, each once, found true"),
    ('{"minItems": 1.5}', 3, ".minItems: expected an integer of at least 0, found 1.5"),
    ('{"minItems": 3, "maxItems": 2}', 3, ".maxItems: expected at least minItems, 3"),
    ('{"minimum": "0"}', 3, ".minimum: expected a number, found '0'"),
    ('{"multipleOf": 0}', 3, ".multipleOf: expected a number above 0, found 0"),
    ('{"pattern": 1}', 3, ".pattern: expected a text, found 1"),
    ('{"uniqueItems": 1}', 3, ".uniqueItems: expected true or false, found 1"),
    ('{"additionalProperties": "no"}', 3, ".additionalProperties: expected a schema"),
    ('{"$defs": {"a": {"not": 1}}}', 3, ".$defs.a.not: expected a schema"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "line", "message"), SCHEMAS)
def test_mistakes_in_schemas(schema: str, line: int, message: str) -> None:
    block = "".join(f"  {part}\n" for part in schema.split("\n"))
    found = refused(f"model: ~\nresponse_format: |\n{block}transformations: ~\n")
    assert found.startswith(f"x/io.yaml:{line}: field response_format")
    assert message in found


def test_a_mistake_in_a_schema_that_is_yaml() -> None:
    text = "model: ~\nresponse_format:\n  type: object\n  required: a\ntransformations: ~\n"
    assert refused(text).startswith(
        "x/io.yaml:4: field response_format.required: expected an array of t"
    )


def test_an_empty_schema_is_none() -> None:
    assert "expected a JSON Schema" in refused(
        "model: ~\nresponse_format: ''\ntransformations: ~\n"
    )


INSTRUCTIONS = [
    ("{last_message.__class__}", "found {last_message.__class__}"),
    ("{a\n  b}", r"found {a\nb}"),
    ("{last_message[0]}", "found {last_message[0]}"),
    ("{0}", "found {0}"),
    ("{}", "found {}"),
    ("{x!r}", "found {x!r}"),
    ("{x:>9999999999}", "found {x:>9999999999}"),
    ("{x:{y.__class__}}", "found {x:{y.__class__}}"),
    ("{ x}", "found { x}"),
    ('{"score": 1}', "write {{ and }} for braces"),
    ("{", "found a brace without another"),
    ("a } b", "found a brace without another"),
]


@pytest.mark.parametrize(("template", "message"), INSTRUCTIONS)
def test_instructions_that_are_more_than_names(template: str, message: str) -> None:
    found = refused(f"{HEAD}instruction: |\n  {{{{first}}}} {{line}}\n  {template}\n")
    assert message in found
    if "without" not in message:
        assert found.startswith("x/io.yaml:6: field instruction: expected fields that are plain")


def test_a_directory_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "io.yaml").write_text(HEAD)
    expected = Contract(source=str(tmp_path / "io.yaml"))
    assert Contract.read(tmp_path) == Contract.read(tmp_path / "io.yaml") == expected
    assert load_contract(tmp_path) == load_contract(str(tmp_path / "io.yaml")) == expected


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "io.yaml").mkdir()
    for path, message in [
        (tmp_path / "none", "there is no such file, expected a contract's file; check the path"),
        (tmp_path, "is a directory, expected a contract's file"),
        (tmp_path / "io.yaml", "has no io.yaml; give an adapter's own directory"),
        (tmp_path / "a\0b", "cannot be read: "),
    ]:
        with pytest.raises((ContractError, MissingFileError), match=message):
            Contract.read(path)
    pointer = tmp_path / "pointer.yaml"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ContractError, match="is a Git LFS pointer"):
        Contract.read(pointer)


def write_gguf(path: Path, **metadata: object) -> Path:
    known = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 1.0,
    }
    pair = {
        "blk.0.attn_q.weight.lora_a": ("F32", (4, 2)),
        "blk.0.attn_q.weight.lora_b": ("F32", (2, 4)),
    }
    path.write_bytes(gguf_bytes(known | metadata, pair))
    return path


def test_an_adapters_own_contract(tmp_path: Path) -> None:
    text = (CORPUS / "guardian.yaml").read_text()
    path = write_gguf(tmp_path / "a.gguf", **{"alora.io_yaml": text})
    adapter = AdapterFile.read(path)
    contract = Contract.of_adapter(adapter)
    assert contract.source == f"{path}(io.yaml)"
    assert contract.name == "guardian-core"
    assert Contract.of_adapter(adapter.without_data()) == contract
    assert load_contract(path) == load_contract(adapter) == contract


def test_adapters_without_a_contract(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    with pytest.raises(ContractError, match=r"holds no contract .* convert the adapter again with"):
        Contract.of_adapter(AdapterFile.read(path))
    path = write_gguf(tmp_path / "b.gguf", **{"alora.io_yaml": (ValueType.UINT32, 3)})
    with pytest.raises(FileFormatError, match="must be of type string, but it is uint32"):
        load_contract(path)
    path = write_gguf(tmp_path / "c.gguf", **{"alora.io_yaml": "a: [\n"})
    with pytest.raises(ContractError, match=r"c\.gguf\(io\.yaml\):2: expected YAML"):
        load_contract(path)
    with pytest.raises(MissingFileError, match="there is no such file"):
        load_contract(tmp_path / "none.gguf")


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, alora_gguf.intrinsics\n"
        "print({'numpy', 'llama_cpp', 'nltk', 'gguf', 'llguidance'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
