"""An intrinsic's question with the reply that it should get, in tokens: what training needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alora_gguf.engine.activation import begins_at
from alora_gguf.engine.tokens import Vocabulary, find_last
from alora_gguf.errors import InputError
from alora_gguf.generate.constraint import Constraint
from alora_gguf.generate.plan import draft_reply
from alora_gguf.generate.sampling import usual_tokens
from alora_gguf.generate.schema import form_of, written
from alora_gguf.intrinsics import Contract
from alora_gguf.options import IntrinsicCall

from .asking import Contracts, Question
from .prompt import Dialogue


@dataclass(frozen=True, slots=True)
class Supervised:
    """A call's prompt and its right reply, in token ids.

    prompt    what is read before the reply: what the contract makes of the conversation, and the
              adapter's invocation
    first     from which of its tokens on the adapter acts; 0 for a plain LoRA, the last one for a
              vector; of several where the first of them does
    reply     what should be replied, and the token that ends it if the vocabulary has one
    n_forced  how many of the reply's first tokens the contract leaves no choice about
    """

    prompt: tuple[int, ...]
    first: int
    reply: tuple[int, ...]
    n_forced: int


def supervise(
    contracts: Contracts, dialogue: Dialogue, call: IntrinsicCall, answer: Any
) -> Supervised:
    """A call about a dialogue, and its reply. Raises InputError for an answer that the contract
    excludes, and what asking would.
    """
    vocab = dialogue.vocab
    question = Question.about(contracts, dialogue, call)
    asked = contracts.adapter(call.name)
    prompt = tuple(question.invocation.prompt or ())
    first = begins_at(asked, prompt)
    if asked.invocation and find_last(prompt, asked.invocation) is None:
        prompt = (*prompt, *asked.invocation)
    text, n_forced = _reply(question.contract, answer, vocab)
    tokens = usual_tokens(text.encode(), vocab)
    if not tokens:
        raise InputError(
            f"the answer {text[:60]!r} has no tokens that spell just that in this vocabulary; take "
            "out what it cannot write"
        )
    # the token that ended the last turn, or else a text: chat models know it as a reply's end
    ends = (token for token in reversed(prompt) if vocab.is_end(token))
    end = next(ends, vocab.end)
    return Supervised(prompt, first, (*tokens, *(() if end is None else (end,))), n_forced)


def _reply(contract: Contract, answer: Any, vocab: Vocabulary) -> tuple[str, int]:
    """The text of a reply, and how many of its tokens are no choice."""
    schema = contract.response_format
    if schema is None:
        if not isinstance(answer, str):
            raise InputError(
                f"the answer is {answer!r:.60}, but the contract {contract.source} has no schema "
                "in response_format, so that replies are text; give text, or a schema"
            )
        return answer, 0
    text = written(answer, form_of(schema))
    matcher = Constraint.compile(schema, vocab).start()
    if not (matcher.spell(text.encode()) and matcher.can_end):
        raise InputError(
            f"the answer {text[:80]} does not match the schema in {contract.source}; correct one "
            "of them"
        )
    return text, len(draft_reply(schema, vocab, True).forced)
