"""From logits to text that is safe to show: how the next token is chosen, the one step of every
reply, whole characters only, and nothing that may turn out to be the beginning of a stop string.
"""

from __future__ import annotations

import codecs
import ctypes
import math
import re
import secrets
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine import native as _native
from alora_gguf.engine.llama_context import Logits
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.errors import DecodeError, InputError, NotFiniteError
from alora_gguf.options import (
    MAX_LOGPROBS,
    GenerateOptions,
    Sampling,
    TokenLogprob,
    TopLogprob,
    check_int,
)

from .calls import CallMatcher, CallRules
from .constraint import Constraint, Matcher

_MANY: Final = 20  # alternatives to a token: beyond these only such as are likelier than
_UNLIKELY: Final = math.log(1e-9)
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """A sampler chain with its state (seed, last tokens, how far a grammar or schema has come), for
    one reply. With `top_logprobs` it also remembers the log-probability of each token it chooses,
    and of so many alternatives.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocab: Vocabulary,
        *,
        schema: Mapping[str, Any] | None = None,
        calls: CallRules | None = None,
        top_logprobs: int | None = None,
    ) -> None:
        self.sampling = sampling
        self._vocab = vocab
        self._n_vocab = vocab.n_tokens
        if schema is not None and sampling.grammar is not None:
            raise InputError("a reply can follow a grammar or a schema, not both")
        if top_logprobs is not None:
            check_int(top_logprobs, "logprobs", 0, MAX_LOGPROBS)
        for token in sampling.logit_bias or ():
            vocab.check([token], "logit_bias")
        self._top = top_logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._logprobs: list[TokenLogprob] = []
        constraint = None if schema is None else Constraint.compile(schema, vocab)
        self._constraint = constraint
        self._matcher: Matcher | CallMatcher | None = None
        self.pinned = False
        if constraint is not None:
            self._matcher, self.pinned = constraint.start(), constraint.form != "free"
        elif calls is not None:
            self._matcher, self.pinned = calls.start(vocab), calls.form.json != "free"
        self._llama = llama = _native.load().llama
        self._chain: Chain | None = None
        if sampling.is_plain_greedy:
            return
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        weakref.finalize(self, llama.llama_sampler_free, chain)
        for part in _parts(llama, sampling, vocab):
            llama.llama_sampler_chain_add(chain, part)
        self._chain = Chain(llama, chain, self._n_vocab)

    def sample(self, logits: Logits) -> int:
        """Chooses a token id from a row of logits [n_vocab] and remembers it for the penalties, the
        grammar or the schema. Raises DecodeError if the model computed no usable logits.
        """
        best = likeliest(logits)
        if self._matcher is not None:
            logits = self._matcher.mask(logits)
            best = int(np.argmax(logits))
        token = best if self._chain is None else self._chain.sample(logits)
        if self._matcher is not None:
            self._matcher.accept(token)
        if self._top is not None:
            text = self._decoder.decode(self._vocab.piece(token))
            self._logprobs.append(token_logprob(token, text, logits, self._top, self._vocab))
        return token

    @property
    def must_end(self) -> bool:
        """Whether a schema leaves nothing but to end."""
        return self._matcher is not None and self._matcher.must_end

    # Log-probabilities ---------------------------------------------------------------------------

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        """Of the tokens chosen so far; None if they were not asked for."""
        return None if self._top is None else tuple(self._logprobs)

    def alternatives(self, path: Sequence[int], logits: Logits) -> tuple[TopLogprob, ...]:
        """The likeliest tokens of a row of logits after `path`, another way to begin the reply, as
        far as log-probabilities were asked for. Raises DecodeError if the schema has no such way.
        """
        if self._constraint is not None:
            matcher = self._constraint.start()
            for token in path:
                matcher.accept(token)
            logits = matcher.mask(logits)
        best = likeliest(logits)
        return token_logprob(best, "", logits, self._top or 0, self._vocab).top

    @property
    def forced(self) -> bytes:
        """The bytes that a schema lets come next only; none without one."""
        return b"" if self._matcher is None else self._matcher.forced()

    def ends_after(self, tokens: Sequence[int]) -> bool:
        """Whether a schema leaves nothing but to end after `tokens`, which it allows."""
        if self._matcher is None or not tokens:
            return False
        after = self._matcher.copy()
        for token in tokens:
            after.accept(token)
        return after.must_end

    def take(self, tokens: Sequence[int]) -> None:
        """Goes on by tokens that are not sampled because there is no choice. Raises DecodeError for
        one that the schema does not allow.
        """
        for token in tokens:
            if self._matcher is not None:
                self._matcher.accept(token)
            if self._chain is not None:
                self._chain.accept(token)
            if self._top is not None:
                text = self._decoder.decode(self._vocab.piece(token))
                self._logprobs.append(TokenLogprob(token, text, 0.0, ()))


class Chain:
    """A llama.cpp sampler chain, the caller's, that chooses from rows of logits [n_vocab]."""

    def __init__(self, llama: Any, chain: Any, n_vocab: int) -> None:
        self._llama, self._chain, self._n_vocab = llama, chain, n_vocab
        self._data = np.empty(n_vocab, _TOKEN_DATA)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._pointer = self._data.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array(self._pointer, n_vocab, -1, False)

    def sample(self, logits: Logits) -> int:
        """Chooses a token id and lets the chain remember it. Raises DecodeError if there is nothing
        to choose from.
        """
        self._data["id"], self._data["logit"], self._data["p"] = self._ids, logits, 0.0
        array = self._array
        array.data, array.size, array.selected, array.sorted = (
            self._pointer, self._n_vocab, -1, False,
        )  # fmt: skip
        self._llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        at = array.selected
        if not (0 <= at < array.size and math.isfinite(array.data[at].logit)):
            raise DecodeError("no token was left to choose from; loosen the grammar or logit_bias")
        token = int(array.data[at].id)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Lets the chain remember a token."""
        self._llama.llama_sampler_accept(self._chain, token)


def likeliest(logits: Logits) -> int:
    """The likeliest token of a row of logits. Raises NotFiniteError."""
    best = int(np.argmax(logits))  # NaN counts as the largest
    if not math.isfinite(logits[best]):
        raise NotFiniteError(
            "the model computed logits that are not finite; its weights or an adapter's scale "
            "are unusable"
        )
    return best


def log_total(row: NDArray[np.float64]) -> float:
    """The logarithm of what a row of logits sums to; log-probabilities are the logits less it."""
    largest = float(row.max())
    return largest + math.log(np.exp(row - largest).sum())


def token_logprob(
    token: int, text: str, logits: Logits, n_top: int, vocab: Vocabulary
) -> TokenLogprob:
    """`token`, which adds `text`, as the row of logits before it has it, and the likeliest ones."""
    possible = np.flatnonzero(logits > -np.inf)  # under a schema often very few
    row = logits[possible].astype(np.float64)
    total = log_total(row)
    best = np.argpartition(-row, n_top)[:n_top] if n_top < len(row) else np.arange(len(row))
    best = best[np.argsort(-row[best], kind="stable")][:n_top]
    found = row[best] - total
    n = max(_MANY, int(np.count_nonzero(found > _UNLIKELY)))  # they are in descending order
    tokens = possible[best[:n]].tolist()
    texts = [vocab.piece(each).decode("utf-8", "replace") for each in tokens]
    top = tuple(map(TopLogprob, tokens, texts, found[:n].tolist()))
    return TokenLogprob(token, text, float(logits[token] - total), top)


def _parts(llama: Any, sampling: Sampling, vocab: Vocabulary) -> Iterator[Any]:
    """The chain's samplers, in llama-cpp-python's order; one by one, so that those before a grammar
    that fails are already the chain's and freed with it.
    """
    if sampling.logit_bias:
        n = len(sampling.logit_bias)
        biases = (llama.llama_logit_bias * n)(*sampling.logit_bias.items())
        yield llama.llama_sampler_init_logit_bias(vocab.n_tokens, n, biases)
    yield llama.llama_sampler_init_penalties(
        vocab.n_tokens,
        sampling.repeat_last_n,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    if sampling.grammar is not None:
        yield grammar_sampler(llama, sampling.grammar, vocab)
    if sampling.temperature == 0:
        yield llama.llama_sampler_init_greedy()
        return
    yield llama.llama_sampler_init_top_k(sampling.top_k)
    yield llama.llama_sampler_init_typical(sampling.typical_p, 1)
    yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama.llama_sampler_init_temp(sampling.temperature)
    seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
    yield llama.llama_sampler_init_dist(seed)


def usual_tokens(said: bytes, vocab: Vocabulary) -> list[int]:
    """The tokens that a vocabulary has for a text; none if they would not say just that, as where
    it ends within a character.
    """
    text = said.decode(errors="ignore")
    # a vocabulary may put a space before every text, but not behind a line break
    for before in ("", "\n") if text else ():
        tokens = vocab.tokenize(before + text, add_special=False, parse_special=False)
        pieces = [vocab.piece(token) for token in tokens]
        for skipped in range(min(3, len(tokens))):
            if b"".join(pieces[skipped:]) == said:
                return tokens[skipped:]
    return []


_ESCAPE: Final = re.compile(
    r"\\(?:u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|.)", re.IGNORECASE | re.DOTALL
)


def whole_escapes(grammar: str) -> str:
    """A grammar in which what is escaped as JSON does, as a surrogate pair, is one character;
    llama.cpp loses both halves. llama-cpp-python makes such grammars of schemas.
    """

    def whole(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        pair = bytes.fromhex(found[1] + found[2])
        return pair.decode("utf-16-be")

    return _ESCAPE.sub(whole, grammar)


def grammar_sampler(llama: Any, text: str, vocab: Vocabulary) -> Any:
    """llama.cpp's sampler of a GBNF grammar, the caller's. Raises InputError for an invalid one."""
    if not vocab.has_text:
        raise InputError("a grammar needs a model with a vocabulary")
    log = _native.load().log
    with log.capture():
        grammar = llama.llama_sampler_init_grammar(
            vocab.handle, whole_escapes(text).encode(), b"root"
        )
        if not grammar:
            raise InputError("the grammar is not valid GBNF with a rule named root" + log.tail())
    return grammar


class TextStream:
    """Text that grows by tokens' bytes.

    `text` is all that push() and finish() have returned; `stopped` turns true once a stop string
    has appeared, which ends the text before it.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._ends: list[int] = []  # after each token, the characters it has begun

    def push(self, data: bytes) -> str:
        """Adds a token's bytes; returns the text that is certain now: often none."""
        self._held += self._decoder.decode(data)
        partial = bool(self._decoder.getstate()[0])
        self._ends.append(len(self.text) + len(self._held) + partial)
        at = self._find_stop()
        if at is not None:
            self.stopped = True
            return self._give(at, drop=True)
        return self._give(len(self._held) - self._longest_beginning())

    def finish(self) -> str:
        """Returns what was held back; the text ends here."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._give(len(self._held))

    def tokens_in_text(self) -> int:
        """How many of the pushed tokens lie wholly within `text`."""
        return sum(end <= len(self.text) for end in self._ends)

    def _give(self, n: int, *, drop: bool = False) -> str:
        piece = self._held[:n]
        self._held = "" if drop else self._held[n:]
        self.text += piece
        return piece

    def _find_stop(self) -> int | None:
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return min(found, default=None)

    def _longest_beginning(self) -> int:
        """The length of the longest end of the held text that begins some stop string."""
        longest = 0
        for stop in self._stops:
            for n in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:n]):
                    longest = n
                    break
        return longest


class SampledReply:
    """A reply as it is sampled: what it says, and when and why it ends. Who generates it calls
    choose() with the logits after the last token, decodes the token it gives, and calls push(); or
    take() with tokens that there is no choice about.

    `ended` is None while it goes on, then "stop" or "length"; `first_token` is the time, in seconds
    from `started`, at which there was one; `n_sampled` counts those that were chosen;
    `pinned` tells whether a schema's form leaves no choice of spacing.
    """

    def __init__(
        self,
        how: GenerateOptions,
        vocab: Vocabulary,
        started: float,
        calls: CallRules | None = None,
    ) -> None:
        self.sampler = Sampler(
            how.sampling, vocab, schema=how.schema, calls=calls, top_logprobs=how.logprobs
        )
        self.stream = TextStream(tuple(how.stop))
        self.started, self._vocab, self._max_tokens = started, vocab, how.max_tokens
        self.pinned = self.sampler.pinned
        self.n_sampled = self._n_taken = 0
        self.first_token: float | None = None
        self.ended: Literal["stop", "length"] | None = None

    def choose(self, logits: Logits) -> int | None:
        """The next token, or None if the model ends its reply."""
        token = self.sampler.sample(logits)
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.started
        if not self._vocab.is_end(token):
            return token
        self.n_sampled += 1
        self.ended = "stop"
        return None

    def push(self, token: int) -> str:
        """Adds a chosen token; returns the text that became certain."""
        self.n_sampled += 1
        piece = self.stream.push(self._vocab.piece(token))
        self._look(0)
        return piece

    def certain(self) -> list[int]:
        """The tokens that must come next, where the schema's form leaves no choice; but for the
        last one, unless it ends the reply: what follows may be one token with its end.
        """
        if not self.pinned or self.ended is not None:
            return []
        tokens = usual_tokens(self.sampler.forced, self._vocab)
        return tokens if self.sampler.ends_after(tokens) else tokens[:-1]

    def take(self, tokens: Sequence[int], *, counted: bool = True) -> str:
        """Adds tokens that there is no choice about; returns the text that became certain. They
        count as sampled ones do where the reply's limit is concerned, unless told otherwise.
        """
        self.sampler.take(tokens)
        text = ""
        for token in tokens:
            text += "" if self.stream.stopped else self.stream.push(self._vocab.piece(token))
        self._look(len(tokens) if counted else 0)
        return text

    def _look(self, n_taken: int) -> None:
        """Whether the reply ends here, `n_taken` more tokens taken."""
        self._n_taken += n_taken
        if self.stream.stopped or self.sampler.must_end:
            self.ended = "stop"
        elif self.n_sampled + self._n_taken >= self._max_tokens:
            self.ended = "length"
