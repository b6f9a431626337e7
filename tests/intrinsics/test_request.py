"""What a contract makes of a conversation."""

from __future__ import annotations

import pytest

from alora_gguf.errors import InputError
from alora_gguf.intrinsics import Contract, rewrite
from alora_gguf.messages import Document, Message

HEAD = "model: ~\nresponse_format: ~\ntransformations: ~\n"
TALK = [Message("user", "Hi. You?"), Message("assistant", "Fine."), Message("user", "Bye. Now.")]
DOCS = [Document("One. Two.", "T", "7"), Document("Three.")]


def contract(more: str = "") -> Contract:
    return Contract.parse(HEAD + more, "io.yaml")


def said(contract: Contract, **arguments: str) -> list[tuple[str, str]]:
    messages = rewrite(contract, TALK, DOCS, arguments).messages
    return [(message.role, message.content) for message in messages]


def test_nothing_to_change() -> None:
    request = rewrite(contract(), TALK, DOCS)
    assert request.messages == tuple(TALK)
    assert request.documents == tuple(DOCS)
    assert (request.parameters, request.response_format) == ({}, None)
    assert (request.top_logprobs, request.want_logprobs, request.sentences) == (0, False, {})


def test_a_contract_with_a_likelihood_wants_ten_alternatives() -> None:
    text = HEAD.replace(
        "transformations: ~",
        "transformations: [{type: likelihood, input_path: [], categories_to_values: {a: 1}}]",
    )
    request = rewrite(Contract.parse(text), TALK)
    assert (request.top_logprobs, request.want_logprobs) == (10, True)


def test_the_order_of_the_steps() -> None:
    rewritten = said(
        contract(
            "instruction: 'Judge {what}: {last_message} {{x}}'\ndocs_as_message: string\n"
            "sentence_boundaries: {documents: c, last_message: r, all_but_last_message: h}\n"
        ),
        what="{this}",
    )
    assert rewritten == [
        (
            "user",
            "You have access to the following documents:\n\n"
            "[Document 7]\n<c0> One. <c1> Two.\n\n[Document 1]\n<c2> Three.",
        ),
        ("user", "<h3> Hi. <h4> You?"),
        ("assistant", "<h5> Fine."),
        ("user", "<r0> Bye. <r1> Now."),
        ("user", "Judge {this}: <r0> Bye. <r1> Now. {x}"),
    ]


def test_documents_as_messages() -> None:
    assert said(contract("docs_as_message: json\n"))[0] == (
        "user",
        '[{"text": "One. Two.", "title": "T", "doc_id": "7"}, {"text": "Three."}]',
    )
    assert said(contract("docs_as_message: roles\n"))[:2] == [
        ("document 7", "One. Two."),
        ("document 1", "Three."),
    ]
    for how in ("string", "json", "roles"):
        request = rewrite(contract(f"docs_as_message: {how}\n"), TALK)
        assert request.messages == tuple(TALK)
        assert rewrite(contract(f"docs_as_message: {how}\n"), TALK, DOCS).documents == ()


def test_the_conversation_is_left_alone() -> None:
    before = (list(TALK), list(DOCS))
    rewrite(contract("sentence_boundaries: {documents: c, last_message: r}\n"), TALK, DOCS)
    assert before == (TALK, DOCS)


def test_arguments_are_text_not_templates() -> None:
    template = contract("instruction: '{a}{b}{a}'\n")
    assert said(template, a="{b.__class__}", b="%s{")[-1][1] == "{b.__class__}%s{{b.__class__}"


def test_braces_of_a_contract_that_was_not_read_stay() -> None:
    made = Contract(source="x", instruction="{0} {{a}} {a} {")
    assert said(made, a="b")[-1][1] == "{0} {a} b {"


@pytest.mark.parametrize(
    ("instruction", "arguments", "message"),
    [
        ("{a} {b}", {"b": "x"}, "io.yaml: the instruction needs the argument a; given: b"),
        ("{a} {b}", {}, "the instruction needs the argument a, b; given: none"),
        ("{a}", {"a": "x", "c": "y"}, "unknown argument c; the instruction takes a"),
        ("a", {"last_message": "x"}, "unknown argument last_message; the instruction takes none"),
        ("{a}", {"a": 1}, "the argument a is int, expected a string"),
    ],
)
def test_arguments_that_do_not_fit(
    instruction: str, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        rewrite(contract(f"instruction: '{instruction}'\n"), TALK, [], arguments)


def test_a_message_is_needed() -> None:
    quoting = contract("instruction: '{last_message}'\n")
    with pytest.raises(
        InputError, match="the instruction quotes the last message, but there is no"
    ):
        rewrite(quoting, [])
    numbering = contract("sentence_boundaries: {last_message: r}\n")
    with pytest.raises(InputError, match="numbers the sentences of the last message, but there is"):
        rewrite(numbering, [])
    assert rewrite(contract("instruction: a\n"), []).messages == (Message("user", "a"),)
    others = contract("sentence_boundaries: {documents: c, all_but_last_message: c}\n")
    assert rewrite(others, []).sentences == {"documents": (), "all_but_last_message": ()}
