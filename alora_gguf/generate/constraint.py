"""JSON Schemas as masks over a vocabulary: which tokens may come next in a reply, by llguidance."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine.tokens import Vocabulary, token_bytes
from alora_gguf.errors import DecodeError, InputError, ModelError, SchemaError
from alora_gguf.options import Form

from .schema import form_of, grammar_of, n_nodes, never_ends

_Bools = NDArray[np.bool_]

MAX_SCHEMA: Final = 256 * 1024
"""The longest schema that is compiled, in characters of compact JSON."""

MAX_NODES: Final = 10_000
"""The most objects and arrays of a schema: no chain of references through them is longer."""

_STACK: Final = (
    128 << 20
)  # bytes, of which only those in use are taken: 13 KiB for each node, where
# llguidance, which recurses along references, takes 2 to 6; a thread's own stack may have 512 KiB

_T = TypeVar("_T")
_starting: Final = threading.Lock()  # the size of new threads' stacks is one for the process
_compiling: Final = threading.Lock()  # a vocabulary is read once, though several threads want it
_MAX_KEPT: Final = 32  # compiled schemas per vocabulary: some 100 KiB each
_BANNED: Final = np.float32(-np.inf)
_MAX_PIECE: Final = 512  # bytes of a token that replies may use: llguidance panics at longer ones
_SPECIAL: Final = b"\xff"  # llguidance's mark of a token that no text contains

OPTIONS: Final[Any] = {
    # json.dumps escapes what is not ASCII unless told otherwise; adapters may have learnt that
    "json_allow_general_unicode_escapes": True,
    "lenient": False,  # and not as the schema says: a keyword that would be ignored is an error
    "coerce_one_of": False,
}


class Constraint:
    """A JSON Schema, compiled for one vocabulary. Immutable; threads may share it.

    Replies that it admits are JSON values that match the schema, each property in the schema's
    order, in any spelling by tokens; or bare words, where the schema asks for that form. Whitespace
    inside a value is that of the schema's form. Where it is free it is bounded: at each place where
    JSON allows it at most two spaces, or one line break with an indent of up to 16 spaces or tabs.
    Strings may hold any character (U+007F only escaped), and lone surrogates are never admitted.
    Names of additional properties may repeat. Unknown keywords are annotations, as JSON Schema has
    it; known ones that cannot be enforced are refused.
    """

    def __init__(self, schema: str, form: Form, prototype: Any, tokens: _Tokens) -> None:
        self.schema, self.form = schema, form
        self._prototype = prototype  # copied, never advanced
        self._tokens = tokens

    @classmethod
    def compile(cls, schema: Mapping[str, Any] | str, vocab: Vocabulary) -> Constraint:
        """The constraint of a schema, as a mapping or as JSON text, for an open model's vocabulary.

        The first call for a vocabulary prepares it (0.7 s for 128k tokens); the latest schemas are
        kept with it. Raises SchemaError for a schema that is malformed, longer than MAX_SCHEMA,
        that nothing can match, or that uses keywords which cannot be enforced, with the reason;
        ModelError if the model has no vocabulary.
        """
        text = _canonical(schema)
        with _compiling:
            compiled: Constraint = _known(vocab).compile(text)
            return compiled

    def start(self) -> Matcher:
        """The state of a reply that has not begun."""
        return Matcher(self._prototype.deep_copy(), self._tokens)


class Matcher:
    """How far one reply has come. Not for two threads at once; copies are independent."""

    __slots__ = ("_allowed", "_ended", "_matcher", "_tokens")

    def __init__(self, matcher: Any, tokens: _Tokens) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._ended = False
        self._allowed: _Bools | None = None  # of the present state, once asked for; never changed

    def mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of a row of logits, [n_vocab], with -inf for every token that cannot come next.
        End tokens can come exactly when the value is complete.

        Raises DecodeError if the reply has ended, if the vocabulary has no token to go on with,
        or if the schema is too complex to go on.
        """
        if logits.shape != (self._tokens.n,):
            raise InputError(f"logits: expected shape ({self._tokens.n},), got {logits.shape}")
        return np.where(self._mask(), logits, _BANNED)

    def allows(self, token: int) -> bool:
        """Whether `token` can come next. Raises DecodeError if the schema is too complex."""
        if self._ended or not 0 <= token < self._tokens.n:
            return False
        if token in self._tokens.ends:
            return self.can_end
        if self._allowed is not None:
            return bool(self._allowed[token])
        valid: int = self._matcher.validate_tokens([int(token)])
        self._check()
        return valid == 1

    def accept(self, token: int) -> None:
        """Goes on by one token. Raises DecodeError for one that is not allowed; the state is then
        as it was.
        """
        if not self.allows(token):
            where = "after the end of the reply" if self._ended else "here"
            raise DecodeError(f"token {token} is not allowed {where} by the schema")
        if token in self._tokens.ends:
            self._ended = True
        else:
            self._matcher.consume_token(int(token))
            self._check()
        self._allowed = None

    @property
    def can_end(self) -> bool:
        """Whether the value is complete, so that the reply may end here."""
        return self._ended or bool(self._matcher.is_accepting())

    @property
    def must_end(self) -> bool:
        """Whether nothing but an end token is possible; true once one was accepted."""
        if self._ended or self._matcher.is_stopped():
            return self.can_end
        return self.can_end and np.count_nonzero(self._mask()) == len(self._tokens.ends)

    def forced(self) -> bytes:
        """The bytes that must come next; none if there is a choice, or the reply may end."""
        found: bytes = b"" if self._ended else self._matcher.compute_ff_bytes()
        return found

    def spell(self, text: bytes) -> bool:
        """Goes on by bytes of text, whatever tokens they were; says whether it could."""
        for token in (self._tokens.bytes_.get(byte, -1) for byte in text):
            if not self.allows(token):
                return False
            self.accept(token)
        return True

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens can come next, [n_vocab]; not to be changed."""
        return self._mask()

    def without_ends(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of a row of logits, [n_vocab], with -inf for the tokens that end a reply."""
        row: NDArray[np.float32] = logits.copy()
        row[self._tokens.end_ids] = _BANNED
        return row

    def copy(self) -> Matcher:
        """An independent matcher in the same state."""
        other = Matcher(self._matcher.deep_copy(), self._tokens)
        other._ended, other._allowed = self._ended, self._allowed
        return other

    def _mask(self) -> _Bools:
        """Which tokens can come next, [n_vocab]."""
        if self._ended:
            raise DecodeError("the reply has ended: no token can follow")
        if self._allowed is None:
            # one byte per token, a few more at the end
            bias = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)
            self._check()
            allowed = bias[: self._tokens.n] != 0
            allowed[self._tokens.end_ids] = self.can_end
            self._allowed = allowed
        return self._allowed

    def _check(self) -> None:
        if not self._matcher.is_error():
            return
        reason = _one_line(self._matcher.get_error())
        if reason.startswith("NoExtension"):
            raise DecodeError("the vocabulary has no token with which the reply could go on")
        raise DecodeError(f"the schema is too complex to go on: {reason}")


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What llguidance makes of a vocabulary, and the ids of its `n` tokens that end a reply, that
    no text contains, and that are one byte of text each.
    """

    tokenizer: Any
    limits: Any
    n: int
    ends: frozenset[int]
    end_ids: NDArray[np.intp]
    special: frozenset[int]
    bytes_: Mapping[int, int]


class _Known:
    """A vocabulary's tokens, and the latest schemas and grammars compiled for it."""

    def __init__(self, vocab: Vocabulary) -> None:
        self.tokens = tokens = _read_tokens(vocab)
        self.compile = lru_cache(_MAX_KEPT)(lambda text: _compile(text, tokens))
        self.grammar = lru_cache(_MAX_KEPT)(lambda text: _compile_grammar(text, tokens))


def _known(vocab: Vocabulary) -> _Known:
    """Read once; the caller holds `_compiling`."""
    if "constraints" not in vocab.kept:
        vocab.kept["constraints"] = _Known(vocab)
    known: _Known = vocab.kept["constraints"]
    return known


def grammar_matcher(write: Callable[[Collection[int]], str], vocab: Vocabulary) -> Matcher:
    """The state of a reply that has not begun, to a grammar in llguidance's form of Lark's; `write`
    gets the tokens that no text contains, which a grammar names by their ids: `<[7]>`. Raises
    SchemaError, ModelError.
    """
    with _compiling:
        known = _known(vocab)
        prototype = known.grammar(write(known.tokens.special))
        return Matcher(prototype.deep_copy(), known.tokens)


def _compile_grammar(text: str, tokens: _Tokens) -> Any:
    prototype = compile_grammar(text, tokens.tokenizer, tokens.limits)
    if prototype.is_error():
        raise _unusable(_one_line(prototype.get_error()))
    return prototype


def _canonical(schema: Mapping[str, Any] | str) -> str:
    """Compact JSON, with keys in their order: it is the order of the properties."""
    try:
        if isinstance(schema, str) and len(schema) <= MAX_SCHEMA:
            schema = json.loads(schema)
        plain = dict(schema) if isinstance(schema, Mapping) else schema
        text = json.dumps(plain, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaError(f"the JSON Schema is not JSON: {error}") from None
    if len(text) > MAX_SCHEMA:
        n = len(text)
        raise SchemaError(f"the JSON Schema has {n} characters, expected at most {MAX_SCHEMA}")
    if not isinstance(schema, Mapping):
        raise SchemaError(
            f"the JSON Schema is a {type(schema).__name__}, expected an object such as "
            '{"type": "object"}'
        )
    return text


def compile_grammar(grammar: str, tokenizer: Any, limits: Any) -> Any:
    """Llguidance's matcher of a grammar, which may have failed; no depth that a schema can have
    exhausts the stack.
    """
    from llguidance import LLMatcher

    return _deep(lambda: LLMatcher(tokenizer, grammar, log_level=0, limits=limits))


def _deep(work: Callable[[], _T]) -> _T:
    """What `work`, a call of llguidance, returns on a thread with a deep stack."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="schema")
    with _starting:
        before = threading.stack_size(_STACK)
        try:
            future = pool.submit(work)
        except RuntimeError as error:
            size = f"a thread with {_STACK >> 20} MiB of address space"
            raise SchemaError(f"the JSON Schema needs {size} to be compiled: {error}") from None
        finally:
            threading.stack_size(before)
            pool.shutdown(wait=False)
    try:
        return future.result()
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # no Exception, and has no public name
            raise
        reason = _one_line(str(error))
        raise SchemaError(f"the JSON Schema cannot be compiled for this model: {reason}") from None


def _compile(text: str, tokens: _Tokens) -> Constraint:
    schema = _read(text)
    form = form_of(schema)
    grammar = grammar_of(schema, form, OPTIONS)
    prototype = compile_grammar(grammar, tokens.tokenizer, tokens.limits)
    if prototype.is_error():
        raise _unusable(_reason(text) or _one_line(prototype.get_error()))
    _check_ends(text)
    return Constraint(text, form, prototype, tokens)


def check_schema(schema: Mapping[str, Any] | str) -> None:
    """Raises SchemaError for a schema that cannot constrain the replies of any model. It takes 2 ms
    where Constraint.compile() has to read a vocabulary first.
    """
    text = _canonical(schema)
    read = _read(text)
    grammar_of(read, form_of(read), OPTIONS)
    if reason := _reason(text):
        raise _unusable(reason)
    _check_ends(text)


def _read(text: str) -> Any:
    schema = json.loads(text)
    if (n := n_nodes(schema)) > MAX_NODES:
        raise SchemaError(
            f"the JSON Schema has {n} objects and arrays, expected at most {MAX_NODES}"
        )
    return schema


def _check_ends(text: str) -> None:
    if never_ends(json.loads(text)):
        raise _unusable("it requires itself within itself, so that no value is ever complete")


def _unusable(reason: str) -> SchemaError:
    return SchemaError(f"the JSON Schema cannot be used: {reason}")


def _reason(text: str) -> str:
    """Why `text` does not compile, without our grammar around it; "" if it does."""
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)
    except ValueError as error:  # JSON to Python and not to Rust: lone surrogates, deep nesting
        return _one_line(str(error))
    return _one_line(_deep(lambda: LLMatcher.validate_grammar(grammar, None)))


def _one_line(text: str) -> str:
    """A message of llguidance's, which may quote a stranger's schema, as a terminal can show it."""
    text = " ".join(text.split())[:400]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Pieces:
    """The vocabulary in the form that llguidance takes: token bytes, the special ones marked."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end

    def __call__(self, text: object) -> list[int]:
        """Would tokenize text that is forced, and none is."""
        raise RuntimeError(f"llguidance wanted {text!r} tokenized although nothing is forced")


def _read_tokens(vocab: Vocabulary) -> _Tokens:
    """Reads the whole vocabulary; by itself, as Vocabulary would keep 128k pieces in a dict."""
    if not vocab.has_text:
        raise ModelError(
            "the model has no vocabulary (tokenizer.ggml.model is 'none'), so its replies cannot "
            "be constrained by a JSON Schema; use a model with one"
        )
    from llguidance import LLParserLimits, LLTokenizer

    with vocab.opened() as llama:
        every = range(vocab.n_tokens)
        ends = [t for t in every if llama.llama_vocab_is_eog(vocab.handle, t)]
        pieces = [_piece(llama, vocab, t) for t in every] if ends else []
    if not ends:
        raise ModelError(
            "the model's vocabulary has no token that ends a reply (tokenizer.ggml.eos_token_id), "
            "so a reply cannot be constrained by a JSON Schema"
        )
    special = frozenset(t for t, piece in enumerate(pieces) if piece[:1] == _SPECIAL and piece[1:])
    bytes_ = {piece[0]: token for token, piece in enumerate(pieces) if len(piece) == 1}
    wrapper: Any = _Pieces(pieces, ends[0])
    slices = LLTokenizer.json_slices()
    tokenizer = _deep(lambda: LLTokenizer(wrapper, eos_token=ends, slices=slices))
    wrapper.tokens.clear()  # it keeps the wrapper, and has read them
    limits = LLParserLimits(verbose_errors=False)
    end_ids = np.array(ends, np.intp)
    return _Tokens(tokenizer, limits, vocab.n_tokens, frozenset(ends), end_ids, special, bytes_)


def _piece(llama: Any, vocab: Vocabulary, token: int) -> bytes:
    """The bytes that a token adds to a reply's text; a mark where it adds none (control, unknown
    and unused tokens) or too many, or is user-defined as a tag (`<tool_call>`): such tokens are
    not JSON.
    """
    piece = token_bytes(llama, vocab.handle, token, special=False)
    if piece.startswith(b"<") and piece.endswith(b">"):
        attributes = llama.llama_vocab_get_attr(vocab.handle, token)
        if attributes & llama.LLAMA_TOKEN_ATTR_USER_DEFINED:
            piece = b""
    return piece if 0 < len(piece) <= _MAX_PIECE else _SPECIAL + b"[%d]" % token
