"""Contracts that were made to do harm, or by mistake; each is refused, soon and in one sentence."""

from __future__ import annotations

import contextlib
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alora_gguf import Message
from alora_gguf.errors import ContractError, InputError, OutputError
from alora_gguf.intrinsics import Contract, rewrite, transform
from alora_gguf.intrinsics.fields import MAX_INSTRUCTION
from alora_gguf.intrinsics.reply import MAX_CHARACTERS, MAX_DEPTH, MAX_MADE
from alora_gguf.intrinsics.yaml_file import MAX_BYTES

from .corpus_cases import CORPUS

HEAD = "model: ~\nresponse_format: ~\ntransformations: ~\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "model: ~\ntransformations: ~\nresponse_format: "
HOSTILE: list[tuple[str, str | bytes, str]] = [
    ("aliases", BOMB, ":1: expected a plain value, found &a; write it out where it is used"),
    ("anchor", HEAD + "name: &n x\n", ":4: expected a plain value, found &n"),
    ("alias", HEAD + "name: *n\n", ":4: expected a plain value, found *n"),
    ("merge", HEAD + "parameters:\n  <<: {seed: 1}\n", ":5: expected a key, found <<; quote it"),
    ("megabyte", HEAD + "#" * (1 << 20), ":1: expected at most 65536 bytes, found 1048"),
    ("tab", HEAD + "parameters:\n\tseed: 1\n", ":5: expected YAML, found a problem: found char"),
    ("nul", HEAD + "name: a\0b\n", ":4: expected printable text, found the character 0x00"),
    ("bytes", HEAD.encode() + b"name: \xff\n", ":4: expected UTF-8, found the byte 0xff; save the"),
    ("utf16", HEAD.encode("utf-16"), ":1: expected UTF-8, found the byte 0xff"),
    ("surrogate", HEAD.encode() + b"name: \xed\xa0\x80\n", ":4: expected UTF-8, found the byte"),
    ("half", HEAD + 'name: "\\ud800"\n', ":4: expected a text, found half of a surrogate pair in"),
    ("half_json", f"{DEEP}'{{\"const\": \"\\ud800\"}}'", "it['const'] has half of a surrogate"),
    ("twice", HEAD + "name: a\nmodel: b\n", ":5: field model: expected each key once, found it"),
    ("twice_deep", HEAD + "parameters: {seed: 1, 'seed': 2}\n", "field parameters.seed: expect"),
    ("python", HEAD + "name: !!python/object/apply:os.system [id]\n", "a value without a tag"),
    ("python_text", HEAD + "name: !!python/name:os.system\n", "found the tag !!python/name:os.sy"),
    ("tag", HEAD + "name: !secret x\n", "expected a value without a tag, found the tag !secret"),
    ("binary", HEAD + "name: !!binary aGk=\n", "found the tag !!binary; remove the tag"),
    ("set", HEAD + "parameters: !!set {seed}\n", "found the tag !!set"),
    ("pairs", HEAD + "parameters: !!omap [seed: 1]\n", "found the tag !!omap"),
    ("wrong_int", HEAD + "name: !!int x\n", ":4: expected what its tag says, int, found 'x'"),
    ("empty_int", HEAD + "name: !!int ''\n", ":4: expected what its tag says, int, found ''"),
    ("wrong_bool", HEAD + "name: !!bool x\n", ":4: expected what its tag says, bool, found 'x'"),
    ("date", HEAD + "name: 2024-01-02\n", ":4: expected a text, found the date 2024-01-02; put it"),
    ("long_number", HEAD + f"name: {'9' * 6000}\n", "expected a number of common size, found 99"),
    ("sexagesimal", HEAD + f"name: 1{':1' * 9000}\n", ":4: expected a number of common size"),
    ("deep_list", DEEP + "[" * 20000, ":3: expected at most 10000 values, 40 deep, found more"),
    ("deep_map", DEEP + "{a: " * 5000, ":3: expected at most 10000 values, 40 deep"),
    ("deep_block", DEEP + "\n" + "\n".join("  " * i + "-" for i in range(1, 150)), "40 deep"),
    ("many", DEEP + "[" + "1," * 20000 + "]", "expected at most 10000 values, 40 deep, found more"),
    ("deep_json", f"{DEEP}'{'[' * 20000}{']' * 20000}'", "more than 100 arrays and objects"),
    ("complex_key", HEAD + "? [a]\n: b\n", ":4: expected a plain key, found a list or a mapping"),
    ("two", HEAD + "---\n" + HEAD, ":4: expected YAML, found a problem: but found another"),
    ("unclosed", HEAD + "name: [a\n", ":5: expected YAML, found a problem: expected ',' or ']'"),
    ("empty", "", ":1: expected the fields of a contract, found an empty file; see docs"),
    ("comment", "# nothing\n", ":1: expected the fields of a contract, found an empty file"),
    ("scalar", "model\n", ":1: expected a mapping with model, response_format, transformations"),
    ("directive", "%YAML 9.9\n---\n" + HEAD, ":1: expected YAML"),
    ("control", HEAD + "name: \"a\\x1b[31m\"\nx: 1\n", ":5: field x: expected one of model"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [h[1:] for h in HOSTILE], ids=[h[0] for h in HOSTILE])
def test_hostile_files(text: str | bytes, message: str) -> None:
    started = time.process_time()
    with pytest.raises(ContractError) as caught:
        Contract.parse(text, "io.yaml")
    assert time.process_time() - started < 2
    assert message in str(caught.value)
    assert str(caught.value).startswith("io.yaml:")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_the_largest_contract_is_read() -> None:
    filler = "#" * (MAX_BYTES - len(HEAD))
    assert Contract.parse(HEAD + filler).name is None


def test_a_byte_order_mark_and_windows_lines() -> None:
    assert Contract.parse("\ufeff" + HEAD.replace("\n", "\r\n") + "name: ä\r\n").name == "ä"


def test_any_cut_of_a_contract_is_refused_or_read() -> None:
    text = HEAD + "parameters: {stop: ['a', \"b\"]}\ninstruction: |\n  {last_message}\n"
    for end in range(len(text)):
        with contextlib.suppress(ContractError):
            Contract.parse(text[:end])


@settings(deadline=None)
@given(st.data())
def test_a_damaged_contract_is_refused_or_read(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([p.read_text("utf-8") for p in sorted(CORPUS.glob("*.yaml"))]))
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 9)))
    other = data.draw(st.text(alphabet="{}[]:,-|>&*!%@`'\"~#? \n\tab01.é\x00", max_size=5))
    with contextlib.suppress(ContractError):
        Contract.parse(text[:begin] + other + text[end:])


def transformed(rules: list[str], text: str, more: str = "") -> object:
    listed = "".join(f"  - {rule}\n" for rule in rules)
    contract = Contract.parse(f"model: ~\nresponse_format: ~\ntransformations:\n{listed}{more}")
    messages = [Message("user", f"{'One. ' * 5}{'x' * 9000}")]
    return transform(contract, text, None, rewrite(contract, messages)).value


@pytest.mark.parametrize("text", [r'"\ud800"', r'{"a": ["b\udc00"]}', r'{"\ud83d": 1}'])
def test_half_a_surrogate_pair_in_a_reply(text: str) -> None:
    with pytest.raises(OutputError, match="half of a surrogate pair"):
        transformed([], text)
    assert transformed([], r'"\ud83d\ude0a"') == "😊"


LIST = json.dumps(list(range(20)))
NAMES = ", ".join(f"f{i}" for i in range(900))
WIDE = json.dumps({f"f{i}": 1 for i in range(1000)})
EXPLODE = "{type: explode, input_path: [], target_field: %s}"
GROWING: list[tuple[str, list[str], str, str, str]] = [
    ("explode", [EXPLODE % name for name in "abcdef"],
     "[{{{}}}]".format(",".join(f'"{name}": {LIST}' for name in "abcdef")), "",
     f"rule explode: makes more than {MAX_MADE} fields and items"),
    ("explode_shared", [EXPLODE % "a"], f'[{{"a": {json.dumps([1] * 900)}, "b": {WIDE}}}]', "",
     f"rule explode: makes more than {MAX_MADE} fields and items"),
    ("explode_text", [EXPLODE % "a"],
     json.dumps([{"a": [1] * 900, "b": "x" * 9000}]), "",
     f"rule explode: makes more than {MAX_CHARACTERS} characters"),
    ("explode_names", [EXPLODE % "a"],
     json.dumps([{"a": [1] * 900, "x" * 9000: 1}]), "",
     f"rule explode: makes more than {MAX_CHARACTERS} characters"),
    ("project", [f"{{type: project, input_path: [~], retained_fields: [{NAMES}]}}"],
     json.dumps([{}] * 900), "",
     f"rule project: makes more than {MAX_MADE} fields and items"),
    ("project_list", [f"{{type: project, input_path: [], retained_fields: [{NAMES}]}}"],
     json.dumps([{}] * 900), "",
     f"rule project: makes more than {MAX_MADE} fields and items"),
    ("nest", ["{type: nest, input_path: [], field_name: n}"] * 100, "[1]", "",
     f"rule nest: makes more than {MAX_DEPTH} arrays and objects in a row"),
    ("decode", ["{type: decode_sentences, input_path: [~, a], source: last_message, "
                "output_names: {text: t}}"], json.dumps([{"a": 5}] * 900),
     "sentence_boundaries: {last_message: r}\n",
     f"rule decode_sentences: makes more than {MAX_CHARACTERS} characters"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "text", "more", "message"), [g[1:] for g in GROWING], ids=[g[0] for g in GROWING]
)
def test_rules_that_multiply(rules: list[str], text: str, more: str, message: str) -> None:
    started = time.process_time()
    with pytest.raises(OutputError, match=re.escape(message)):
        transformed(rules, text, more)
    assert time.process_time() - started < 3


def test_rules_within_the_limits() -> None:
    nest = "{type: nest, input_path: [], field_name: n}"
    deep = transformed([nest] * (MAX_DEPTH - 1), "[1]")
    assert json.dumps(deep).count("{") == MAX_DEPTH - 1
    found = transformed(
        [EXPLODE % name for name in "abc"], f'[{{"a":{LIST},"b":{LIST},"c":{LIST}}}]'
    )
    assert isinstance(found, list)
    assert len(found) == 8000


def test_more_rules_than_a_contract_has() -> None:
    with pytest.raises(ContractError, match=r":4: .*expected at most 100 rules, found 101"):
        transformed(["{type: nest, input_path: [], field_name: n}"] * 101, "1")


def test_an_instruction_that_explodes() -> None:
    contract = Contract.parse(f"{HEAD}instruction: '{'{last_message}' * 4000}'\n", "a/io.yaml")
    few = rewrite(contract, [Message("user", "x" * 100)]).messages[-1]
    assert len(few.content) == 400_000
    with pytest.raises(
        InputError, match=r"^a/io.yaml: the instruction has 4056000 characters once"
    ):
        rewrite(contract, [Message("user", "x" * 1000)])
    assert MAX_INSTRUCTION < 4_000_000


def test_a_prefix_that_explodes() -> None:
    with pytest.raises(ContractError, match="expected at most 32 characters, found 33"):
        Contract.parse(f"{HEAD}sentence_boundaries: {{documents: {'c' * 33}}}\n")
