"""Where in a prompt an adapter's invocation stands, and the seams at which tokens are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alora_gguf as ag
from alora_gguf.chat.prompt import ChatTemplate, Dialogue, Transcript
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.intrinsics import Contract, rewrite
from alora_gguf.messages import Document, Message
from tests.support import inside, tiny_base
from tests.support.chats import PLAIN, STRICT, TRIMS, rendered, says

BOS, END, USER, ASSISTANT = tiny_base.BOS, tiny_base.END, tiny_base.USER, tiny_base.ASSISTANT
TALK = (Message("user", "hello"), Message("assistant", "the train"), Message("user", "when"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ag.Model]:
    base = tiny_base.write_base(tmp_path_factory.mktemp("prompt") / "base.gguf")
    with ag.Model(base, n_ctx=64, n_threads=1) as opened:
        yield opened


class Asker:
    """Prompts by a template; they are compared with texts."""

    def __init__(self, model: ag.Model, template: str = PLAIN, *, trusting: bool = False) -> None:
        self.vocab = inside.vocab(model)
        self.template = ChatTemplate(
            template, self.vocab, "template", special_tokens_in_text=trusting
        )

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.vocab.tokenize(text, add_special=False, parse_special=True))

    def dialogue(self, messages: Sequence[Message] = TALK, **more: Any) -> Dialogue:
        return Dialogue(self.template, self.vocab, tuple(messages), **more)

    def question(
        self,
        instruction: str | None,
        invocation: str | Sequence[int],
        messages: Sequence[Message] = TALK,
        *,
        documents: Sequence[Document] = (),
        contract: str = "",
        kwargs: dict[str, object] | None = None,
        **more: Any,
    ) -> tuple[int, ...]:
        asked = "~" if instruction is None else repr(instruction)
        text = f"model: ~\nresponse_format: ~\ntransformations: ~\ninstruction: {asked}\n{contract}"
        parsed = Contract.parse(text)
        dialogue = self.dialogue(messages, documents=tuple(documents), **more)
        return dialogue.question(
            rewrite(parsed, dialogue.messages, dialogue.documents),
            parsed.chat_template_kwargs if kwargs is None else kwargs,
            invocation=self.ids(invocation) if isinstance(invocation, str) else tuple(invocation),
            instructed=parsed.instruction is not None,
            opened=parsed.parameter("add_generation_prompt") is not False,
        )

    def show(self, tokens: Sequence[int]) -> str:
        return self.vocab.detokenize(tokens, special=True)


@pytest.fixture
def asker(model: ag.Model) -> Asker:
    return Asker(model)


TOLD = "<|user|>hello<|end|><|assistant|>the train<|end|><|user|>when<|end|>"


# Questions --------------------------------------------------------------------------------------


def test_an_instruction_that_holds_the_invocation(asker: Asker) -> None:
    prompt = asker.question("<certainty>", "<certainty>")
    assert prompt == asker.ids(TOLD + "<|user|><certainty><|end|><|assistant|>")
    prompt = asker.question("Well, <certainty> or not?", "<certainty>")
    assert prompt == asker.ids(TOLD + "<|user|>Well, <certainty> or not?<|end|><|assistant|>")


def test_an_instruction_that_lacks_it(asker: Asker) -> None:
    prompt = asker.question("How sure?", "<certainty>")
    assert prompt == asker.ids(TOLD + "<|user|><certainty> How sure?<|end|><|assistant|>")


def test_an_instruction_that_has_it_in_other_tokens(asker: Asker) -> None:
    """'c' + 'ain' is another tokenization than 'c', 'a', 'i', 'n', and ' the' than 'the'."""
    apart = (*b"c", *b"a", *b"i", *b"n")
    assert asker.ids("cain") != apart
    prompt = asker.question("so cain it is", apart)
    expected = (
        *asker.ids(TOLD + "<|user|>so "), *apart, *asker.ids(" it is<|end|><|assistant|>"),
    )  # fmt: skip
    assert prompt == expected
    # neighbours that would merge with it, before and behind
    invocation = asker.ids("in")
    assert asker.ids("train") == (*b"tr", *asker.ids("ain"))
    prompt = asker.question("(train)", invocation)
    assert prompt == (
        *asker.ids(TOLD + "<|user|>(tra"), *invocation, *asker.ids(")<|end|><|assistant|>"),
    )  # fmt: skip
    assert asker.show(prompt) == TOLD + "<|user|>(train)<|end|><|assistant|>"


def test_it_is_spliced_into_the_last_place_and_not_an_earlier_one(asker: Asker) -> None:
    talk = (Message("user", "cain"), Message("assistant", "cain"), Message("user", "cain"))
    apart = tuple(b"cain")
    prompt = asker.question("cain and cain", apart, talk)
    at = len(prompt) - len(asker.ids("<|end|><|assistant|>")) - 4
    assert prompt[at : at + 4] == apart
    assert asker.show(prompt).endswith("<|user|>cain and cain<|end|><|assistant|>")
    assert prompt[:at] == asker.ids(asker.show(prompt[:at]))


def test_no_instruction_and_a_role_of_its_own(asker: Asker) -> None:
    role = (BOS, *b"judge")
    assert asker.question(None, role) == (*asker.ids(TOLD), *role)
    # the same with an instruction that has not got it
    prompt = asker.question("How sure?", role)
    assert prompt == (*asker.ids(TOLD + "<|user|>How sure?<|end|>"), *role)


def test_no_instruction_and_a_word(asker: Asker) -> None:
    prompt = asker.question(None, "<certainty>")
    assert prompt == asker.ids(TOLD + "<|user|><certainty><|end|><|assistant|>")


def test_the_assistants_marker(asker: Asker) -> None:
    assert asker.question(None, (ASSISTANT,)) == asker.ids(TOLD + "<|assistant|>")
    prompt = asker.question("How sure?", (ASSISTANT,))
    assert prompt == asker.ids(TOLD + "<|user|>How sure?<|end|><|assistant|>")
    # one that begins before it
    assert asker.question(None, (END, ASSISTANT)) == asker.ids(TOLD + "<|assistant|>")


# refuses half a conversation; drops what the assistant thought, in ( ), before the last message
HALF = (
    "{%- if messages and messages[-1].role != 'user' -%}"
    "{{ raise_exception('the user speaks last') }}{%- endif -%}" + PLAIN
)
SAID = (
    Message("user", "a <certainty> b"), Message("assistant", "(x) <certainty>"),
    Message("user", "when"), Message("assistant", "(y) <certainty>"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "instruction", "talk", "end"),
    [
        (PLAIN, None, SAID, "<certainty>"),
        (PLAIN, None, SAID[:1], "<certainty>"),
        (PLAIN, "How sure?", SAID, "<certainty> How sure?"),
        (PLAIN, "How sure?", SAID[:1], "<certainty> How sure?"),
        (PLAIN, "{last_message}!", SAID, "(y) <certainty>!"),
        (PLAIN, "{last_message}!", SAID[:3], "<certainty> when!"),
        (HALF, "How sure?", SAID, "<certainty> How sure?"),
        (HALF, ". sure?", SAID, "<certainty> . sure?"),
        (STRICT, "How sure?", SAID, "<certainty> How sure?"),
        (STRICT, None, SAID, "<certainty>"),
        (TRIMS, "How sure?", SAID, "<certainty> How sure?"),
        (TRIMS, None, SAID, "<certainty>"),
    ],
)
def test_one_that_was_said_before_does_not_count(
    model: ag.Model, template: str, instruction: str | None, talk: tuple[Message, ...], end: str
) -> None:
    asker = Asker(model, template)
    prompt = asker.question(instruction, "<certainty>", talk)
    expected = asker.ids(f"<|user|>{end}<|end|><|assistant|>")
    assert prompt[-len(expected) :] == expected
    assert asker.show(prompt).count("<|user|>") == len(talk) // 2 + len(talk) % 2 + 1


def test_a_plain_lora_has_none(asker: Asker) -> None:
    assert asker.question(None, ()) == asker.ids(TOLD + "<|assistant|>")
    assert asker.question("How?", ()) == asker.ids(TOLD + "<|user|>How?<|end|><|assistant|>")


def test_nothing_was_said_yet(asker: Asker) -> None:
    assert asker.question(None, (BOS,), ()) == (BOS,)
    assert asker.question(None, "<certainty>", ()) == asker.ids(
        "<|user|><certainty><|end|><|assistant|>"
    )
    assert asker.question("How?", (ASSISTANT,), ()) == asker.ids("<|user|>How?<|end|><|assistant|>")


def test_an_instruction_that_the_template_rewrites(model: ag.Model) -> None:
    """Where the invocation's text is nowhere to be found any more, nothing is put anywhere."""
    asker = Asker(model, PLAIN.replace("m.content", "(m.content | upper)"))
    with pytest.raises(ag.InvocationNotFoundError) as caught:
        asker.question("<certainty>", "<certainty>", (Message("user", "say <certainty>"),))
    assert str(caught.value) == (
        "template: the chat template does not write the adapter's invocation '<certainty>' as it "
        "was given; ask with Session.invoke() and a prompt of your own"
    )


def test_a_template_that_refuses_the_question(model: ag.Model) -> None:
    with pytest.raises(ag.InputError, match="refused the conversation: roles must alternate"):
        Asker(model, STRICT).question("How sure?", "<certainty>")


def test_a_contracts_arguments_reach_the_template(model: ag.Model) -> None:
    asker = Asker(model, "{{ '<|user|>' + mood | default('none') + '<|end|>' }}" + PLAIN)
    contract = "parameters: {extra_body: {chat_template_kwargs: {mood: good, other: [1]}}}"
    prompt = asker.question(None, (BOS,), contract=contract)
    assert asker.show(prompt) == "<|user|>good<|end|>" + TOLD + "<|bos|>"
    prompt = asker.question(None, (BOS,), contract=contract, arguments={"mood": "bad"})
    assert asker.show(prompt).startswith("<|user|>good<|end|>")
    prompt = asker.question(None, (BOS,), arguments={"mood": "bad"})
    assert asker.show(prompt).startswith("<|user|>bad<|end|>")


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "documents", "eos_token"])
def test_a_contract_cannot_set_what_is_ours(asker: Asker, name: str) -> None:
    with pytest.raises(ag.InputError) as caught:
        asker.question(None, (BOS,), kwargs={name: []})
    assert str(caught.value) == (
        f"the contract's chat_template_kwargs cannot set {name!r}: it is set for every conversation"
    )


def test_documents_in_the_template_or_as_a_message(asker: Asker) -> None:
    pages = (Document("one"), Document("two", doc_id="7"))
    prompt = asker.question(None, (BOS,), documents=pages)
    assert asker.show(prompt) == "<|user|>[one]<|end|><|user|>[two]<|end|>" + TOLD + "<|bos|>"
    prompt = asker.question(None, (BOS,), documents=pages, contract="docs_as_message: roles")
    assert (
        asker.show(prompt) == "<|document 0|>one<|end|><|document 7|>two<|end|>" + TOLD + "<|bos|>"
    )
    prompt = asker.question(None, (BOS,), documents=pages, contract="docs_as_message: string")
    assert asker.show(prompt).startswith("<|user|>You have access to the following documents:\n\n")


def test_a_contract_may_leave_the_assistants_marker_out(asker: Asker) -> None:
    contract = "parameters: {extra_body: {add_generation_prompt: false}}"
    for instruction, invocation, end in (
        ("How <certainty>?", "<certainty>", "<|user|>How <certainty>?<|end|>"),
        ("How sure?", "<certainty>", "<|user|><certainty> How sure?<|end|>"),
        (None, "<certainty>", "<|user|><certainty><|end|>"),
        ("How sure?", "", "<|user|>How sure?<|end|>"),
        (None, (ASSISTANT,), "<|assistant|>"),
    ):
        assert asker.question(instruction, invocation, contract=contract) == asker.ids(TOLD + end)


# Replies ----------------------------------------------------------------------------------------


def test_what_a_reply_follows(model: ag.Model, asker: Asker) -> None:
    dialogue, word = asker.dialogue(), asker.ids("<certainty>")
    assert dialogue.reply_prompt(()).tokens == asker.ids(TOLD + "<|assistant|>")
    assert dialogue.reply_prompt((ASSISTANT,)).tokens == asker.ids(TOLD + "<|assistant|>")
    assert dialogue.reply_prompt(word).tokens == (*asker.ids(TOLD), *word)
    role = dialogue.reply_prompt((BOS, *b"j"))
    assert role == Transcript(TOLD + "<|bos|>j", (*asker.ids(TOLD), BOS, *b"j"))
    talk = (*TALK, Message("assistant", "x"), Message("user", "is <certainty> it"))
    end = "<|user|>is <certainty> it<|end|>"
    assert asker.dialogue(talk).reply_prompt(word).text.endswith(f"{end}<certainty>")
    trusted = replace(asker.dialogue(talk), template=Asker(model, trusting=True).template)
    assert trusted.reply_prompt(word).text.endswith(f"{end}<|assistant|>")


@pytest.mark.parametrize("template", [PLAIN, STRICT, TRIMS])
def test_a_reply_does_not_follow_an_earlier_messages_invocation(
    model: ag.Model, template: str
) -> None:
    asker = Asker(model, template, trusting=True)
    word = asker.ids("<certainty>")
    talk = (Message("user", "<certainty>"), Message("assistant", "<certainty>"))
    for messages in (talk, (*talk, Message("user", "so"))):
        prompt = asker.dialogue(messages).reply_prompt(word)
        if len(messages) == 2:  # the assistant's turn is the last one, and has it
            assert prompt.tokens[-1] == ASSISTANT
        else:
            assert prompt.tokens[-len(word) - 1 :] == (END, *word)
    only = asker.dialogue((Message("user", "<certainty>"),)).reply_prompt(word)
    assert only.tokens == asker.ids("<|user|><certainty><|end|><|assistant|>")
    for messages in (talk, (*talk, Message("user", "so <certainty>"))):  # nor any that is quoted
        prompt = Asker(model, template).dialogue(messages).reply_prompt(word)
        assert prompt.tokens[-len(word) - 1 :] == (END, *word)


# Transcripts ------------------------------------------------------------------------------------

PIECES = ["<|user|>", "<|assistant|>", "<|end|>", "<|en", "d|>", "the ", "ain", "t", "h", "e", " ",
          "\n", "€", ">", "<", "in"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
NOTHING = Transcript()


@settings(max_examples=300, deadline=None)
@given(one=TEXTS, other=TEXTS, third=TEXTS)
@pytest.mark.slow
def test_a_transcript_has_the_tokens_of_the_whole_text(
    model: ag.Model, one: str, other: str, third: str
) -> None:
    vocab = inside.vocab(model)

    def whole(text: str) -> tuple[int, ...]:
        return tuple(vocab.tokenize(text, add_special=False, parse_special=True)) if text else ()

    transcript = NOTHING
    for text in (one, one + other, one + other + third, one + third, other, one, ""):
        transcript = transcript.become(text, vocab)
        assert transcript == Transcript(text, whole(text))


@settings(max_examples=200, deadline=None)
@given(
    turns=st.lists(st.tuples(TEXTS, st.lists(st.integers(0, 255), max_size=5)), max_size=4),
    cut=st.integers(0, 4),
    more=TEXTS,
)
@pytest.mark.slow
def test_what_the_model_said_keeps_its_tokens(
    model: ag.Model, turns: list[tuple[str, list[int]]], cut: int, more: str
) -> None:
    """Byte by byte, as no tokenizer would, and perhaps amid a character."""
    vocab, transcript, seams = inside.vocab(model), NOTHING, [NOTHING]
    for asked, said in turns:
        text = transcript.text + f"<|user|>{asked}<|end|><|assistant|>"
        prompt = transcript.become(text, vocab)
        assert prompt.tokens[: len(transcript.tokens)] == transcript.tokens
        transcript = Transcript(
            text + vocab.detokenize(said, special=True), (*prompt.tokens, *said)
        )
        seams.append(transcript)
    kept = seams[min(cut, len(seams) - 1)]
    for after in ("<|end|>" + more, ""):
        again = transcript.become(kept.text + after, vocab)
        if after:
            assert again.tokens[: len(kept.tokens) + 1] == (*kept.tokens, END)
        rest = again.tokens[len(kept.tokens) :] if after else ()
        assert vocab.detokenize(rest, special=True) == after
        assert again.text == kept.text + after


def test_only_what_changed_is_tokenized_anew(asker: Asker) -> None:
    """An earlier turn that is written otherwise does not touch those before it."""
    vocab = asker.vocab
    apart = tuple(b"the")
    one = Transcript(
        "<|user|>a<|end|><|assistant|>the", (*asker.ids("<|user|>a<|end|><|assistant|>"), *apart)
    )
    two = one.become(one.text + "<|end|><|user|>b<|end|><|assistant|>", vocab)
    two = Transcript(two.text + "the", (*two.tokens, *apart))
    assert two.tokens.count(ord("t")) == 2
    changed = two.become(two.text.removesuffix("the") + "the.<|end|>", vocab)
    assert changed.tokens.count(ord("t")) == 1
    assert changed.tokens[: len(one.tokens)] == one.tokens
    back = two.become(one.text + "<|end|>", vocab)
    assert back.tokens == (*one.tokens, END)
    longer = one.become(one.text + "re<|end|>", vocab)  # no seam: "there" is tokenized as a whole
    assert longer.tokens == asker.ids("<|user|>a<|end|><|assistant|>there<|end|>")
    assert one.become(one.text, vocab) is one


def test_added_tokens_can_reach_over_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma has a token for one line break and one for two: neither is a seam for the other."""
    tokens, types, merges = tiny_base.vocabulary()
    user_defined = int(gguf.TokenType.USER_DEFINED)
    for at, text in ((188, "\n"), (189, "\n\n")):  # in the place of two bytes nobody needs
        tokens[at], types[at] = text, user_defined
    monkeypatch.setattr(tiny_base, "vocabulary", lambda: (tokens, types, merges))
    base = tiny_base.write_base(tmp_path / "lines.gguf")
    with ag.Model(base, n_ctx=64, n_threads=1) as model:
        vocab: Vocabulary = inside.vocab(model)
        assert model.tokenize("a\n\nb") == [ord("a"), 189, ord("b")]
        assert vocab.is_special(188)
        one = NOTHING.become("<|user|>a\n", vocab)
        assert one.tokens == (USER, ord("a"), 188)
        two = one.become("<|user|>a\n\nb", vocab)
        assert two.tokens == (USER, ord("a"), 189, ord("b"))
        three = NOTHING.become("<|user|>a", vocab).become("<|user|>a\n\nb", vocab)
        assert three == two
        assert two.become("<|user|>a\n", vocab) == one


def test_it_writes_no_token_that_the_template_does_not(asker: Asker) -> None:
    text = rendered(PLAIN, TALK, prompt=True)
    assert asker.dialogue().written(prompt=True) == Transcript(text, asker.ids(text))
    assert asker.ids(text)[0] == USER


def test_a_grammars_words_are_what_the_tests_say() -> None:
    assert says('a"b').grammar == 'root ::= "a\\"b" '


def test_a_template_that_is_too_deep_or_speaks_in_escape_codes(model: ag.Model) -> None:
    with pytest.raises(ag.ModelError, match="cannot be parsed"):
        Asker(model, "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}")
    shouts = Asker(model, "{{ raise_exception('\\x1b[2J' + 'a' * 5000) }}")
    with pytest.raises(ag.InputError) as caught:
        shouts.dialogue().written(prompt=True)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1100
