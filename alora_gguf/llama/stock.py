"""What stands in the place of stock's model, sampler and state."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from llama_cpp import LlamaState as StockState
from llama_cpp import _internals as internals
from llama_cpp.llama_grammar import LlamaGrammar

from alora_gguf.engine import native as _native
from alora_gguf.engine.llama_context import Logits
from alora_gguf.engine.runtime import Runtime
from alora_gguf.engine.tokens import CachedTokens, Spans, Vocabulary
from alora_gguf.errors import AloraError, InputError, SavedSessionError
from alora_gguf.generate.sampling import Chain, grammar_sampler, likeliest, whole_escapes
from alora_gguf.options import check_grammar
from alora_gguf.saved.session_file import SavedSession
from alora_gguf.saved.snapshot import check


class Model(internals.LlamaModel):
    """Stock's model; its texts of tokens are whole (stock drops those of more than 32 bytes)."""

    _vocabulary: Vocabulary
    _latest: tuple[list[int], bytes, bool] = ([], b"", False)

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Token ids of a text; where memory ends llama_tokenize() would end the process."""
        return self._vocabulary.tokenize_bytes(text, add_special=add_bos, parse_special=special)

    def detokenize(self, tokens: list[int], special: bool = False) -> bytes:
        """The bytes of `tokens`, of control tokens with `special` only."""
        # stock's completion asks for the whole reply after every token
        known, text, kind = self._latest
        tokens = list(tokens)
        if kind != special or tokens[: len(known)] != known:
            known, text = [], b""
        for token in self._vocabulary.check(tokens[len(known) :], "tokens"):
            text += self._vocabulary.piece(token, special=special)
        if len(tokens) > 1:  # a stream asks for its latest token between
            self._latest = tokens, text, special
        # some vocabularies put a space behind a leading beginning-of-sequence token
        leading = text[:1] == b" " and tokens[0] == self.token_bos()
        return text[1:] if leading else text


class Sampler:
    """Stock's sampler chain over rows of logits, and logits processors whose errors are heard."""

    def __init__(
        self,
        init: Callable[..., internals.LlamaSampler],
        options: dict[str, Any],
        vocab: Vocabulary,
        last_n: int,
    ) -> None:
        self._processors = tuple(options.pop("logits_processor") or ())
        grammar = options["grammar"]
        if grammar is not None:
            if not isinstance(grammar, LlamaGrammar):
                raise InputError(f"grammar must be a LlamaGrammar, got {type(grammar).__name__}")
            llama = _native.load().llama  # stock would add a grammar that is not valid as null
            check_grammar(grammar._grammar)
            llama.llama_sampler_free(grammar_sampler(llama, grammar._grammar, vocab))
            options["grammar"] = copy(grammar)
            options["grammar"]._grammar = whole_escapes(grammar._grammar)
        plain = last_n == 0 or (
            options["repeat_penalty"] == 1
            and options["frequency_penalty"] == options["presence_penalty"] == 0
        )
        self._stock = self._chain = None
        if options["temp"] != 0 or grammar is not None or not plain:
            self._stock = init(**options)  # frees the chain when it goes
            self._chain = Chain(_native.load().llama, self._stock.sampler, vocab.n_tokens)

    def choose(self, logits: Logits, read: Any) -> int:
        """A token from a row of logits [n_vocab] after the tokens `read`."""
        row = logits
        for processor in self._processors:
            row = np.asarray(processor(read, row.copy() if row is logits else row), np.float32)
            if row.shape != logits.shape:
                raise InputError(
                    f"a logits processor returned shape {row.shape}, expected {logits.shape}"
                )
        best = likeliest(row)
        return best if self._chain is None else self._chain.sample(row)


class Nothing:
    """Takes the place of what is freed, or was never there."""

    def __init__(self, kind: type[AloraError], message: str) -> None:
        self._kind, self._message = kind, message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._kind(self._message)


class LlamaState(StockState):
    """What Llama.save_state() gives and load_state() takes; for this process or, pickled by those
    who trust the file, another one.

    saved     the tokens that were read, their cells, and the base and adapters that computed them
    seed      the next sampler's
    settings  what else the cells' content depends on, such as RoPE scaling
    scores    float32 [n_tokens, n_vocab] logits, if the model keeps them (logits_all)
    """

    def __init__(self, saved: SavedSession, seed: int, settings: str, scores: Logits) -> None:
        super().__init__(
            input_ids=np.array(saved.tokens, np.intc),
            scores=scores,
            n_tokens=len(saved.tokens),
            llama_state=saved.state,
            llama_state_size=len(saved.state) + scores.nbytes,
            seed=seed,
        )
        self.saved = saved
        self.settings = settings

    def check(self, runtime: Runtime, settings: str, *, logits_all: bool) -> None:
        """Raises SavedSessionError unless a model with such settings can go on from here."""
        check(runtime, self.saved)
        if self.settings != settings:
            raise SavedSessionError(
                f"the state was saved with other settings of the context: {self.settings}, but "
                f"this model has {settings}"
            )
        if logits_all and len(self.scores) < self.n_tokens:
            raise SavedSessionError("the state was saved without logits_all=True")

    def common_prefix(self, tokens: list[int], spans: Spans) -> int:
        """How many of `tokens`, computed as `spans` say, its cells hold."""
        cached = CachedTokens()
        cached.extend(self.saved.tokens[: self.saved.n_cached], self.saved.spans)
        return cached.common_prefix(tokens, spans)


def settings_of_cells(params: Any, kv_overrides: object) -> str:
    """What a cell's content depends on besides the base, the adapter and the layout; `params` are
    llama_context_params.
    """
    names = (
        "rope_scaling_type", "attention_type", "rope_freq_base", "rope_freq_scale",
        "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx",
    )  # fmt: skip
    return repr(
        [("kv_overrides", kv_overrides), *((name, getattr(params, name)) for name in names)]
    )
