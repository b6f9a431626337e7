"""A completion as generate() knows it: who computes it, and what is noted of its tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_cpp import Llama as Stock
from llama_cpp.llama_tokenizer import LlamaTokenizer

from alora_gguf.engine.llama_context import Logits
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.generate.sampling import token_logprob
from alora_gguf.options import AdapterLike, TokenLogprob


def shown(data: bytes) -> str:
    """Whole characters of some tokens' bytes."""
    return data.decode("utf-8", "ignore")


class Logprobs(dict[str, Any]):
    """OpenAI's log-probabilities of completions. `scored` are the tokens they are of."""

    scored: Sequence[TokenLogprob]

    def content(self, vocab: Vocabulary) -> Iterator[dict[str, Any]]:
        """The same as chats have it, with raw bytes."""
        for one in self.scored:
            tops = {t.token: t.logprob for t in one.top} | {one.token: one.logprob}
            data = vocab.piece(one.token)
            yield {
                "token": shown(data),
                "bytes": list(data),
                "logprob": one.logprob,
                "top_logprobs": [
                    {"token": shown(data), "logprob": logprob, "bytes": list(data)}
                    for data, logprob in ((vocab.piece(t), each) for t, each in tops.items())
                ],
            }


@dataclass
class Request:
    """What generate() is asked for by a completion beside stock's options, and what it notes.

    tokens  those that were sampled; behind a beginning-of-sequence token if the prompt is empty,
            which stock has count as the reply's
    data    their bytes
    scored  their log-probabilities if these were asked for; None for one that was not sampled
    prompt  the prompt's tokens, prompt_scored the same of them
    found   a state that stock has found in a cache
    full    whether the context's end has ended it
    """

    llama: Stock
    vocab: Vocabulary
    adapter: AdapterLike | None = None
    scale: float = 1.0
    logprobs: int | None = None
    echo: bool = False
    tokens: list[int] = field(default_factory=list)
    scored: list[TokenLogprob | None] = field(default_factory=list)
    data: bytes = b""
    prompt: list[int] = field(default_factory=list)
    prompt_scored: list[TokenLogprob | None] = field(default_factory=list)
    found: Any = None
    full: bool = False

    @property
    def scores_prompt(self) -> bool:
        """Whether the rows of all of the prompt's tokens are wanted."""
        return self.echo and self.logprobs is not None

    def score_prompt(self, at: int, rows: Logits) -> None:
        """Takes the logits after the prompt's tokens from position `at` on."""
        if not self.prompt_scored:
            self.prompt_scored.append(None)  # nothing comes before the first
        for position, row in enumerate(rows, at + 1):
            if position < len(self.prompt):
                self.prompt_scored.append(self._score(self.prompt[position], row))

    def note(self, token: int, row: Logits) -> None:
        """Takes a token that was sampled from a row of logits, unless it ends the reply."""
        llama = self.llama
        if self.vocab.is_end(token):
            return
        self.tokens.append(token)
        self.scored.append(None if self.logprobs is None else self._score(token, row))
        if len(self.tokens) == 2 and self.tokens[0] == llama.token_bos():
            self.data = llama.detokenize(self.tokens)  # without a space that it may begin with
        elif type(llama.tokenizer_) is LlamaTokenizer:
            self.data += self.vocab.piece(token)
        else:
            before = [*self.prompt, *self.tokens[:-1]]
            self.data += llama.detokenize([token], prev_tokens=before)

    def _score(self, token: int, row: Logits) -> TokenLogprob:
        return token_logprob(token, "", row, self.logprobs or 0, self.vocab)

    def lists(self, first: int, end: int, offset: int) -> Logprobs:
        """Of the tokens [first, end) of the reply, whose text begins at `offset`; with echo of the
        prompt's, too.
        """
        bos, vocab = self.llama.token_bos(), self.vocab
        tokens, scored = self.tokens[first:end], self.scored[first:end]
        if self.echo:
            skip = 1 if self.prompt[:1] == [bos] else 0
            tokens = [*self.prompt[skip:], *tokens]
            scored = [None, *self.prompt_scored[skip + 1 :], *scored]
        found = Logprobs(tokens=[], text_offset=[], token_logprobs=[], top_logprobs=[])
        found.scored = [one for one in scored if one is not None and one.token != bos]
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        for token, one in zip(tokens, scored, strict=False):
            if token == bos:
                continue
            data = vocab.piece(token)
            name = data.decode("utf-8", "ignore")
            found["tokens"].append(name)
            found["text_offset"].append(offset)
            offset += len(decoder.decode(data))
            found["token_logprobs"].append(None if one is None else one.logprob)
            # of tokens that look the same, the least likely, as in llama-cpp-python
            top = {} if one is None else {shown(vocab.piece(t.token)): t.logprob for t in one.top}
            found["top_logprobs"].append(None if one is None else {**top, name: one.logprob})
        return found
