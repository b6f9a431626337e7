"""The prompt that an intrinsic is asked with, and where its adapter's invocation stands in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from alora_gguf.engine.provenance import find_last
from alora_gguf.engine.vocab import Vocabulary
from alora_gguf.errors import InvocationNotFoundError
from alora_gguf.messages import Document, Message

from .template import ChatTemplate, Transcript, common

if TYPE_CHECKING:
    from alora_gguf.intrinsics import Request


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation as prompts are made of it.

    template    writes it
    vocab       of the model
    messages    what was said
    documents   what it is about
    arguments   further variables of the template
    transcript  what a session holds of it
    """

    template: ChatTemplate
    vocab: Vocabulary
    messages: tuple[Message, ...]
    documents: tuple[Document, ...] = ()
    arguments: Mapping[str, object] = field(default_factory=dict)
    transcript: Transcript = field(default_factory=Transcript)

    def written(self, *, prompt: bool) -> Transcript:
        """All of it; with `prompt` it ends with what begins the assistant's turn."""
        return self._write(self.messages, self.documents, self.arguments, prompt=prompt)

    def _write(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document],
        arguments: Mapping[str, object],
        *,
        prompt: bool,
    ) -> Transcript:
        text = self.template.render(messages, documents, arguments, prompt=prompt)
        return self.transcript.become(text, self.vocab)

    def reply_prompt(self, invocation: tuple[int, ...]) -> Transcript:
        """What a reply follows, by the base (no `invocation`) or an adapter: its invocation takes
        the place of what begins the assistant's turn, unless it is in the last turn already.
        """
        whole = self.written(prompt=True)
        if not invocation:
            return whole
        before = self._before_last(self.messages, self.documents, self.arguments)
        if _occurs_after(whole, invocation, before):
            return whole
        return _followed_by(self.written(prompt=False), invocation, self.vocab)

    def question(
        self,
        request: Request,
        arguments: Mapping[str, object],
        *,
        invocation: tuple[int, ...],
        instructed: bool,
        opened: bool = True,
    ) -> tuple[int, ...]:
        """The prompt of a contract's `request` to an adapter; what begins the assistant's turn is
        part of it if that is `opened`.

        Its invocation is looked for in what follows the conversation: the instruction (if it was
        `instructed`) and what begins the assistant's turn. Where it is missing there,

        - one that begins with a control token, such as a role of its own, takes the place of what
          begins the assistant's turn;
        - one of ordinary text begins the instruction, or is all of it.

        Raises InvocationNotFoundError where the template does not write it.
        """
        self.template.check_ours(arguments, "the contract's chat_template_kwargs")
        arguments = {**self.arguments, **arguments}
        messages, documents = request.messages, request.documents
        whole = self._write(messages, documents, arguments, prompt=opened)
        if not invocation:
            return whole.tokens
        if instructed:
            before = self._before_last(messages, documents, arguments)
        else:
            before = self._write(messages, documents, arguments, prompt=False)
        if _occurs_after(whole, invocation, before):
            return whole.tokens
        if self.vocab.is_special(invocation[0]):
            bare = self._write(messages, documents, arguments, prompt=False)
            return _followed_by(bare, invocation, self.vocab).tokens
        words = self.vocab.detokenize(invocation, special=True).strip()
        said = messages[-1].content if instructed else ""
        if words not in said:
            conversation = messages[:-1] if instructed else messages
            asks = Message("user", f"{words} {said}".strip())
            whole = self._write((*conversation, asks), documents, arguments, prompt=opened)
        if _occurs_after(whole, invocation, before):
            return whole.tokens
        return self._spliced(whole, words, invocation, before)

    def _before_last(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document],
        arguments: Mapping[str, object],
    ) -> Transcript:
        """The same conversation with another last message: what the two have in common is not of
        that message. Without one, a template might refuse it, or write what is before otherwise.
        """
        last = messages[-1]
        other = replace(last, content="-" if last.content.startswith(".") else ".")
        return self._write((*messages[:-1], other), documents, arguments, prompt=True)

    def _spliced(
        self, whole: Transcript, words: str, invocation: tuple[int, ...], before: Transcript
    ) -> tuple[int, ...]:
        """The tokens of `whole` with the invocation's own where it says `words` last: with their
        neighbours they make other tokens.
        """
        text = whole.text
        at = text.rfind(words, max(0, common(before.text, text) - len(words)))
        if at < 0:
            raise InvocationNotFoundError(
                f"{self.template.name}: the chat template does not write the adapter's invocation "
                f"{words!r} as it was given; ask with Session.invoke() and a prompt of your own"
            )
        head = self.transcript.become(text[:at], self.vocab).tokens
        rest = self.vocab.tokenize(text[at + len(words) :], add_special=False, parse_special=True)
        return (*head, *invocation, *rest)


def _followed_by(
    transcript: Transcript, invocation: tuple[int, ...], vocab: Vocabulary
) -> Transcript:
    text = transcript.text + vocab.detokenize(invocation, special=True)
    return Transcript(text, (*transcript.tokens, *invocation))


def _occurs_after(whole: Transcript, invocation: tuple[int, ...], before: Transcript) -> bool:
    """Whether the invocation's last occurrence ends behind what `whole` begins with as `before`."""
    n = common(before.tokens, whole.tokens)
    return find_last(whole.tokens[max(0, n - len(invocation) + 1) :], invocation) is not None
