"""One text completion: when it ends, and its OpenAI-shaped answer, whole or in chunks.

Ends, chunks and shapes are llama-cpp-python's; docs/llama.md lists where they are not, and why.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from alora_gguf.engine.batch import Logits

from .logprobs import Scored, score
from .options import CompletionOptions
from .prompt import Prompt
from .stream import TokenStream

if TYPE_CHECKING:
    from llama_cpp import llama_types

    from .llama import Llama

    Chunk = llama_types.CreateCompletionStreamResponse

Finish = Literal["stop", "length"]


@dataclass
class Completion:
    """A completion being made.

    It ends at `max_tokens`, or the end of the character that they end within, but never takes more
    than `room` tokens. `tokens` are those of the reply, an end token left out; `scored` goes along
    with them if log-probabilities were asked for (None for a token that was not sampled).
    """

    llama: Llama
    options: CompletionOptions
    prompt: Prompt
    max_tokens: int
    room: int
    tokens: list[int] = field(default_factory=list)
    scored: list[Scored | None] = field(default_factory=list)
    prompt_scored: list[Scored | None] = field(default_factory=list)
    text: bytes = b""
    finish_reason: Finish = "length"

    def __post_init__(self) -> None:
        self.id = f"cmpl-{uuid.uuid4()}"
        self.created = int(time.time())
        self.model = self.options.model or self.llama.model_path
        self._sent = 0
        if not self.options.prompt:
            # as llama-cpp-python has it: the beginning-of-sequence token counts as the reply's
            self.tokens.append(self.llama.token_bos())
            self.scored.append(None)

    # What is generated ---------------------------------------------------------------------------

    def score_prompt(self, at: int, rows: Logits) -> None:
        """Takes the logits after the prompt's tokens from position `at` on."""
        tokens, n_top = self.prompt.tokens, self.options.logprobs or 0
        if not self.prompt_scored:
            self.prompt_scored.append(None)  # nothing comes before the first
        for position, row in enumerate(rows, at + 1):
            if position < len(tokens):
                self.prompt_scored.append(score(row, tokens[position], n_top))

    def run(self, stream: TokenStream) -> Iterator[None]:
        """Samples to the end; yields whenever there is more text that no stop string is in."""
        stops = [stop.encode() for stop in self.options.stops]
        text = self._bytes(self.tokens, 0)
        missing = 0
        for token in stream:
            if self.llama._model.is_end(token):
                self.text, self.finish_reason = text, "stop"
                return
            self.tokens.append(token)
            if self.options.logprobs is not None:
                self.scored.append(score(stream.row, token, self.options.logprobs))
            text = self._longer(text)
            missing = _bytes_missing(text, missing)
            if missing and len(self.tokens) < self.room:  # within a character, nothing ends
                missing -= 1
                continue
            ends = [at for stop in stops if (at := text.find(stop)) >= 0]
            if ends:
                self.text, self.finish_reason = text[: min(ends)], "stop"
                return
            yield
            if len(self.tokens) >= self.max_tokens:
                self.text, self.finish_reason = text, "length"
                return
        self.text, self.finish_reason = text, "stop"  # by a stopping criterion

    def _longer(self, text: bytes) -> bytes:
        """The reply's bytes now that it has one more token than in `text`."""
        if self.llama._own_tokenizer and text:
            return text + self._bytes(self.tokens[-1:], len(self.tokens) - 1)
        return self._bytes(self.tokens, 0)

    def _bytes(self, tokens: list[int], at: int) -> bytes:
        """The bytes of some tokens of the reply, the first of which is its `at`-th."""
        if self.llama._own_tokenizer:
            return self.llama.detokenize(tokens)
        before = self.prompt.tokens + self.tokens[:at]
        return self.llama.detokenize(tokens, prev_tokens=before)

    # In chunks -----------------------------------------------------------------------------------

    def chunks(self, stream: TokenStream) -> Iterator[Chunk]:
        """The reply as it comes, then an empty chunk with the reason why it ended."""
        ready = self._ready if self.options.logprobs is None else self._ready_scored
        for _ in self.run(stream):
            yield from ready()
        yield from self._rest()
        yield self._chunk("", None, self.finish_reason)

    def _ready(self) -> Iterator[Chunk]:
        """Whole characters that cannot turn out to belong to a stop string."""
        rest = self.tokens[self._sent :]
        certain, end = self._certain(rest), 0
        while rest:
            n, data = self._whole(rest)
            end += len(data)
            if n == 0 or end > certain:
                return
            rest = rest[n:]
            self._sent += n
            yield self._chunk(data.decode(), None)

    def _ready_scored(self) -> Iterator[Chunk]:
        """The same token by token: each comes with its log-probability."""
        rest = self.tokens[self._sent :]
        certain, end = self._certain(rest), 0
        for token in rest:
            if token == self.llama.token_bos():
                self._sent += 1
                continue
            data = self._bytes([token], self._sent)
            end += len(data)
            if end > certain:
                return
            yield self._scored_chunk(token, data)

    def _rest(self) -> Iterator[Chunk]:
        """What was held back, up to the stop string that ended the reply."""
        rest = self.tokens[self._sent :]
        data = self._bytes(rest, self._sent)
        ends = [at for stop in self.options.stops if (at := data.find(stop.encode())) >= 0]
        last, end = min(ends, default=len(data)), 0
        while rest:
            if self.options.logprobs is not None and rest[0] == self.llama.token_bos():
                rest = rest[1:]
                self._sent += 1
                continue
            n, data = self._whole(rest) if self.options.logprobs is None else (0, b"")
            n = n or 1
            data = data or self._bytes(rest[:1], self._sent)
            end += len(data)
            data = data[: len(data) - max(0, end - last)]
            if self.options.logprobs is not None:
                yield self._scored_chunk(rest[0], data)
            else:
                self._sent += n
                yield self._chunk(data.decode("utf-8", "ignore"), None)
            if end >= last:
                return
            rest = rest[n:]

    def _certain(self, rest: list[int]) -> int:
        """How many of the bytes of `rest` are certain: not the longest end that begins a stop."""
        data, held = self._bytes(rest, self._sent), 0
        for stop in self.options.stops:
            begin = stop.encode()
            for n in range(min(len(begin), len(data)), held, -1):
                if data.endswith(begin[:n]):
                    held = n
                    break
        return len(data) - held

    def _whole(self, rest: list[int]) -> tuple[int, bytes]:
        """How many of the first tokens make whole characters, and their bytes; (0, "") if none."""
        for n in range(1, len(rest) + 1):
            data = self._bytes(rest[:n], self._sent)
            try:
                data.decode()
            except UnicodeDecodeError as error:
                if error.reason != "unexpected end of data":
                    break  # more tokens would not mend it
                continue
            return n, data
        return 0, b""

    def _scored_chunk(self, token: int, data: bytes) -> Chunk:
        scored, n = self.scored[self._sent], self._sent
        offset = self.prompt.length + len(self._text(self.tokens[:n], 0))
        logprobs = None
        if scored is not None:
            name = self._text([token], n)
            logprobs = _lists([name], [offset], [scored], [self._top(scored, name, n)])
        self._sent += 1
        return self._chunk(data.decode("utf-8", "ignore"), logprobs)

    def _chunk(
        self,
        text: str,
        logprobs: llama_types.CompletionLogprobs | None,
        finish_reason: Finish | None = None,
    ) -> Chunk:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
            ],
        }

    # Whole ---------------------------------------------------------------------------------------

    def response(self, stream: TokenStream) -> llama_types.CreateCompletionResponse:
        """Runs to the end and returns the whole answer."""
        for _ in self.run(stream):
            pass
        text = self.text.decode("utf-8", "ignore") + self.prompt.appended
        if self.options.echo:
            text = self.prompt.text + text
        logprobs = None if self.options.logprobs is None else self._logprobs()
        answer = self._chunk(text, logprobs, self.finish_reason)
        n, n_prompt = len(self.tokens), len(self.prompt.tokens)
        answer["usage"] = {
            "prompt_tokens": n_prompt,
            "completion_tokens": n,
            "total_tokens": n_prompt + n,
        }
        return answer

    def _logprobs(self) -> llama_types.CompletionLogprobs:
        """Of the reply's tokens, and with echo of the prompt's, the first of which has none."""
        tokens, scored, bos = self.tokens, self.scored, self.llama.token_bos()
        start = self.prompt.length
        if self.options.echo:
            head = self.prompt.tokens
            skip = 1 if head[:1] == [bos] else 0
            tokens, scored = head[skip:] + tokens, self.prompt_scored[skip:] + scored
            start = 0
        names, offsets, kept, tops = list[str](), list[int](), list["Scored | None"](), []
        for i, (token, value) in enumerate(zip(tokens, scored, strict=False)):
            if token == bos:
                continue
            name = self._name(token, tokens[:i])
            names.append(name)
            offsets.append(start + len(self.llama.detokenize(tokens[:i]).decode("utf-8", "ignore")))
            first = self.options.echo and len(kept) == 0
            kept.append(None if first else value)
            tops.append(None if first or value is None else self._top(value, name, i))
        return _lists(names, offsets, kept, tops)

    def _name(self, token: int, before: list[int]) -> str:
        return self.llama.detokenize([token], prev_tokens=before).decode("utf-8", "ignore")

    def _text(self, tokens: list[int], at: int) -> str:
        return self._bytes(tokens, at).decode("utf-8", "ignore")

    def _top(self, scored: Scored, name: str, at: int) -> dict[str, float]:
        """The likeliest tokens' texts, the chosen one's among them; of tokens that look the same,
        the least likely, as in llama-cpp-python.
        """
        top = {self._text([token], at): logprob for token, logprob in scored.top}
        top[name] = scored.logprob
        return top


def _lists(
    names: list[str],
    offsets: list[int],
    scored: list[Scored | None],
    tops: list[dict[str, float] | None],
) -> llama_types.CompletionLogprobs:
    return {
        "tokens": names,
        "text_offset": offsets,
        "token_logprobs": [None if one is None else one.logprob for one in scored],
        "top_logprobs": tops,
    }


def _bytes_missing(text: bytes, before: int) -> int:
    """How many bytes the character at the end of `text` lacks, as the last three bytes tell; if
    none of them begins one that lacks any, `before`.
    """
    for distance, byte in zip(range(min(3, len(text)), 0, -1), text[-3:], strict=True):
        length = 4 if byte >= 240 else 3 if byte >= 224 else 2 if byte >= 192 else 0
        if length > distance:
            before = length - distance
    return before
