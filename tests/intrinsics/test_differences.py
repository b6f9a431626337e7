"""Where we differ from mellea on purpose, as docs/intrinsics.md lists it; both are run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from alora_gguf.errors import InputError, OutputError
from alora_gguf.intrinsics import Contract, rewrite, transform
from alora_gguf.messages import Document, Message
from tests.support.mellea import Mellea, MelleaError

from .corpus_cases import CORPUS, tokens_of
from .peer import assert_same, question, wire_tokens


def ask_both(
    mellea: Mellea, tmp_path: Path, yaml: str, content: str, rows: list[dict[str, Any]] | None
) -> tuple[Any, Any]:
    """What both make of a reply; an exception stands for itself."""
    config = tmp_path / "io.yaml"
    config.write_text(yaml)
    message = {"role": "user", "content": "One. Two. Three."}
    theirs: Any
    try:
        theirs = mellea.ask(config, question([message], []), {}, content, wire_tokens(rows))
        theirs = theirs["value"]
    except MelleaError as error:
        theirs = error.kind
    contract = Contract.read(config)
    request = rewrite(contract, [Message("user", message["content"])])
    tokens = None if rows is None else tokens_of(rows)
    ours: Any
    try:
        ours = transform(contract, content, tokens, request).value
    except (OutputError, InputError) as error:
        ours = type(error)
    return ours, theirs


def head(rules: str, boundaries: str = "~") -> str:
    fields = f"model: ~\nresponse_format: ~\nsentence_boundaries: {boundaries}\n"
    return f"{fields}transformations:\n{rules}"


def row(text: str, logprob: float, **top: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "top": [[text, logprob], *map(list, top.items())]}


YES_NO = head("  - {type: likelihood, input_path: [a], categories_to_values: {'yes': 1, 'no': 0}}")


@pytest.mark.parametrize("key", ["a,1", "b true", "7", "null", "}"])
def test_first_string_with_signs_in_it(key: str, mellea: Mellea, tmp_path: Path) -> None:
    yaml = head("  - {type: nest, input_path: [], field_name: n}")
    ours, theirs = ask_both(mellea, tmp_path, yaml, f'{{"{key}": 2}}', None)
    assert (ours, theirs) == ({"n": {key: 2}}, "ValueError")


def test_null(mellea: Mellea, tmp_path: Path) -> None:
    ours, theirs = ask_both(mellea, tmp_path, head("  []"), '{"a": null}', None)
    assert (ours, theirs) == ({"a": None}, "ValidationError")


def test_true_and_false_as_categories(mellea: Mellea, tmp_path: Path) -> None:
    rule = "{type: likelihood, input_path: [a], categories_to_values: {true: 1, false: 0}}"
    rows = [row('{"a": ', 0.0), row("true", math.log(0.75), false=math.log(0.25)), row("}", 0.0)]
    ours, theirs = ask_both(mellea, tmp_path, head(f"  - {rule}"), '{"a": true}', rows)
    assert (ours, theirs) == ({"a": pytest.approx(0.75)}, {"a": 1.0})


def test_alternatives_without_text(mellea: Mellea, tmp_path: Path) -> None:
    rows = [row('{"a": "', 0.0), row("no", math.log(0.5)), row('"}', 0.0)]
    rows[1]["top"].append(["", math.log(0.5)])
    ours, theirs = ask_both(mellea, tmp_path, YES_NO, '{"a": "no"}', rows)
    assert (ours, theirs) == ({"a": 0.0}, {"a": pytest.approx(0.5)})


def test_a_value_that_begins_within_a_token(mellea: Mellea, tmp_path: Path) -> None:
    half = math.log(0.5)
    rows = [row('{"a": ', 0.0), row('"y', half), row('es"}', 0.0)]
    rows[1]["top"] += [['"n', half], ['"', -1.0], ["n", -1.0]]
    ours, theirs = ask_both(mellea, tmp_path, YES_NO, '{"a": "yes"}', rows)
    assert (ours, theirs) == ({"a": pytest.approx(0.5)}, "ValueError")


WORDS = head(
    "  - {type: likelihood, input_path: [a], "
    "categories_to_values: {unclear: 2, unanswerable: 1, none: 0}}"
)


def test_categories_that_begin_alike(mellea: Mellea, tmp_path: Path) -> None:
    half, tenth = math.log(0.5), math.log(0.1)
    rows = [row('{"a": "', 0.0), row("un", half, none=half), row("clear", 2 * half), row('"}', 0.0)]
    rows[2]["top"].append(["answer", tenth])
    ours, theirs = ask_both(mellea, tmp_path, WORDS, '{"a": "unclear"}', rows)
    expected = (0.5 * 0.25 * 2 + 0.5 * 0.1 * 1) / (0.5 * 0.25 + 0.5 * 0.1 + 0.5)
    assert (ours, theirs) == ({"a": pytest.approx(expected)}, {"a": pytest.approx(1.0)})


def test_a_token_with_the_whole_value(mellea: Mellea, tmp_path: Path) -> None:
    half = math.log(0.5)
    rows = [row('{"a": ', 0.0), row('"no"', half), row("}", 0.0)]
    rows[1]["top"].append(['"yes"', half])
    ours, theirs = ask_both(mellea, tmp_path, YES_NO, '{"a": "no"}', rows)
    assert (ours, theirs) == ({"a": pytest.approx(0.5)}, {"a": 0.0})


def test_no_category_at_all(mellea: Mellea, tmp_path: Path) -> None:
    rows = [row('{"a": "', 0.0), row("maybe", -0.1, perhaps=-2.0), row('"}', 0.0)]
    ours, theirs = ask_both(mellea, tmp_path, YES_NO, '{"a": "maybe"}', rows)
    assert (ours, theirs) == (OutputError, {"a": 0.0})


def test_tokens_of_another_text(mellea: Mellea, tmp_path: Path) -> None:
    rows = [row('{"a": "', 0.0), row("no", -0.1), row('"}<|end|>', 0.0)]
    ours, theirs = ask_both(mellea, tmp_path, YES_NO, '{"a": "no"}', rows)
    assert (ours, theirs) == (InputError, {"a": 0.0})


@pytest.mark.parametrize("behind", [["<|end_of_text|>"], ["", "<|end|>", "\n"]])
def test_an_end_token_behind_the_reply_is_passed_over(
    behind: list[str], mellea: Mellea, tmp_path: Path
) -> None:
    """No difference: tokens behind the text are nobody's."""
    half = math.log(0.5)
    rows = [row('{"a": "', 0.0), row("no", half, yes=half), row('"}', 0.0)]
    rows += [row(text, -0.1) for text in behind]
    ours, theirs = ask_both(mellea, tmp_path, YES_NO, '{"a": "no"}', rows)
    assert ours == theirs == {"a": pytest.approx(0.5)}


DECODE = head(
    "  - {type: decode_sentences, input_path: [s], source: last_message, output_names: {text: t}}",
    "{last_message: c}",
)


@pytest.mark.parametrize(
    ("number", "theirs"), [("-1", "Three."), ("true", "Two. "), ("3", "IndexError")]
)
def test_numbers_of_no_sentence(number: str, theirs: str, mellea: Mellea, tmp_path: Path) -> None:
    ours, found = ask_both(mellea, tmp_path, DECODE, f'{{"s": {number}}}', None)
    assert ours is OutputError
    assert (found["t"] if isinstance(found, dict) else found) == theirs


def test_text_that_holds_a_tag(mellea: Mellea, tmp_path: Path) -> None:
    config = tmp_path / "io.yaml"
    config.write_text(DECODE)
    text = "Tags such as <c1> are meant. Two."
    request = question([{"role": "user", "content": text}], [])
    theirs = mellea.ask(config, request, {}, '{"s": 1}')["value"]
    contract = Contract.read(config)
    ours = transform(contract, '{"s": 1}', None, rewrite(contract, [Message("user", text)]))
    assert ours.value == {"s": 1, "t": "Two."}
    assert theirs["t"] == "are meant. <c1> Two."


def test_duplicates_of_lists(mellea: Mellea, tmp_path: Path) -> None:
    yaml = head("  - {type: drop_duplicates, input_path: [], target_fields: [a]}")
    content = '[{"a": [1]}, {"a": [1]}, {"a": [true]}]'
    ours, theirs = ask_both(mellea, tmp_path, yaml, content, None)
    assert (ours, theirs) == ([{"a": [1]}, {"a": [True]}], "TypeError")


@pytest.mark.parametrize("how", ["string", "roles"])
def test_documents_without_an_id(how: str, mellea: Mellea, tmp_path: Path) -> None:
    config = tmp_path / "io.yaml"
    config.write_text(f"model: ~\nresponse_format: ~\ntransformations: ~\ndocs_as_message: {how}\n")
    request = question([{"role": "user", "content": "?"}], [{"text": "a"}])
    theirs = mellea.ask(config, request, {})["request"]["messages"][0]
    ours = rewrite(Contract.read(config), [Message("user", "?")], [Document("a")]).messages[0]
    shown = ours.role if how == "roles" else ours.content
    assert "ocument 0" in shown
    assert (
        shown.replace("ocument 0", "ocument None")
        == theirs["role" if how == "roles" else "content"]
    )


def test_arguments_that_nobody_asked_for(mellea: Mellea) -> None:
    config = CORPUS / "uncertainty.yaml"
    request = question([{"role": "user", "content": "?"}], [])
    assert mellea.ask(config, request, {"other": "x"})["request"]["messages"]
    with pytest.raises(InputError, match="unknown argument other; the instruction takes none"):
        rewrite(Contract.read(config), [Message("user", "?")], [], {"other": "x"})


def test_probabilities_that_are_too_small(mellea: Mellea, tmp_path: Path) -> None:
    rows = [row('{"a": "', 0.0), row("no", -1000.0, yes=-1000.0), row('"}', 0.0)]
    ours, theirs = ask_both(mellea, tmp_path, YES_NO, '{"a": "no"}', rows)
    assert (ours, theirs) == ({"a": 0.5}, "ZeroDivisionError")


def test_groups_of_null_and_of_text(mellea: Mellea, tmp_path: Path) -> None:
    yaml = head(
        "  - {type: merge_spans, input_path: [], group_fields: [g], begin_field: b, end_field: e}"
    )
    content = '[{"g": "x", "b": 0, "e": 1}, {"b": 0, "e": 1}]'
    ours, theirs = ask_both(mellea, tmp_path, yaml, content, None)
    assert ours == [{"b": 0, "e": 1}, {"g": "x", "b": 0, "e": 1}]
    assert theirs == "TypeError"


HISTORY = head(
    "  - {type: decode_sentences, input_path: [s], source: all_but_last_message, "
    "output_names: {text: t, message_index: m}}",
    "{documents: c, all_but_last_message: c}",
)


@pytest.mark.parametrize(
    ("yaml", "number"),
    [
        (HISTORY, 1),
        (f"docs_as_message: string\n{HISTORY.replace('documents: c, ', '')}", 0),
        (f"docs_as_message: json\n{HISTORY.replace('documents: c, ', '')}", 0),
    ],
)
def test_history_behind_documents(yaml: str, number: int, mellea: Mellea, tmp_path: Path) -> None:
    config = tmp_path / "io.yaml"
    config.write_text(yaml)
    talk = [{"role": "user", "content": "Hi."}, {"role": "user", "content": "Bye."}]
    content = f'{{"s": {number}}}'
    with pytest.raises(MelleaError, match="ValueError"):
        mellea.ask(config, question(talk, [{"text": "Doc."}]), {}, content)
    contract = Contract.read(config)
    messages = [Message(m["role"], m["content"]) for m in talk]
    request = rewrite(contract, messages, [Document("Doc.")])
    ours = transform(contract, content, None, request).value
    assert ours == {"s": number, "t": "Hi.", "m": 0}


def test_a_message_without_sentences(mellea: Mellea, tmp_path: Path) -> None:
    config = tmp_path / "io.yaml"
    config.write_text(HISTORY)
    talk = [{"role": "assistant", "content": ""}, *[{"role": "user", "content": "Hi."}] * 2]
    with pytest.raises(MelleaError, match="ValueError: First sentence delimiter"):
        mellea.ask(config, question(talk, []), {}, '{"s": 0}')
    contract = Contract.read(config)
    request = rewrite(contract, [Message(m["role"], m["content"]) for m in talk])
    assert transform(contract, '{"s": 0}', None, request).value == {"s": 0, "t": "Hi.", "m": 1}


@pytest.mark.parametrize("how", ["string", "json"])
def test_an_empty_list_of_documents(how: str, mellea: Mellea, tmp_path: Path) -> None:
    config = tmp_path / "io.yaml"
    config.write_text(f"model: ~\nresponse_format: ~\ntransformations: ~\ndocs_as_message: {how}\n")
    request = {"messages": [{"role": "user", "content": "?"}], "extra_body": {"documents": []}}
    assert len(mellea.ask(config, request, {})["request"]["messages"]) == 2
    assert len(rewrite(Contract.read(config), [Message("user", "?")], []).messages) == 1


def test_a_value_that_is_no_category_does_not_count(mellea: Mellea, tmp_path: Path) -> None:
    rows = [row('{"a": "', 0.0), row("maybe", -0.1, y=-2.0, n=-2.5), row('"}', 0.0)]
    ours, theirs = ask_both(mellea, tmp_path, YES_NO, '{"a": "maybe"}', rows)
    assert_same(ours, theirs)
