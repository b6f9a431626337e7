"""What a completion has beside stock's code: adapters, log-probabilities, infill, and an end of a
stream that loses no character.

Stock's own generator decides when a completion ends and makes its object or chunks; it never sees
`echo`, `logprobs`, `suffix` or `logit_bias`, which it gets wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from llama_cpp import Llama as Stock

from alora_gguf.engine.infill import infill_prompt
from alora_gguf.engine.llama_context import Logits
from alora_gguf.errors import InputError
from alora_gguf.options import Sampling

from .reader import Reader
from .request import Request, shown


def complete(llama: Reader, options: dict[str, Any], request: Request) -> Iterator[Any]:
    """Stock's _create_completion() for `request`: one completion object, or its chunks. Each step
    is made while no other thread is at work on `llama`.
    """
    length = 0 if options["echo"] and not options["stream"] else len(options["prompt"])
    echoed, tail = _prepare(llama, options, request)
    steps = Stock._create_completion(llama, **options)
    stops = [stop.encode() for stop in options["stop"]]
    mended = _Chunks(request, stops, length)
    while True:
        with llama._lock:
            llama._request = request
            try:
                answer: Any = next(steps, None)
            finally:
                llama._request = None
        if answer is None:
            return
        choice = answer["choices"][0]
        if request.full and choice["finish_reason"] is not None:
            choice["finish_reason"] = "length"
        if options["stream"]:
            yield from mended.of(answer)
            continue
        if len(stops) > 1 and choice["finish_reason"] == "stop":
            first = shown(_ended(request.data, stops))  # stock ends at the first of the list
            choice["text"] = first if choice["text"].startswith(first) else choice["text"]
        choice["text"] = echoed + choice["text"] + tail
        if request.logprobs is not None:
            choice["logprobs"] = request.lists(0, len(request.tokens), length)
        yield answer


def _ended(data: bytes, stops: Sequence[bytes]) -> bytes:
    """A reply's bytes up to the first stop string in it."""
    found = [at for stop in stops if (at := data.find(stop)) >= 0]
    return data[: min(found, default=len(data))]


class _Chunks:
    """The chunks of a stream, with log-probabilities, and with the characters at the end that stock
    loses: it shows what it has held back token by token, so that one of several tokens vanishes.
    """

    def __init__(self, request: Request, stops: Sequence[bytes], length: int) -> None:
        self._request, self._stops, self._length = request, stops, length
        self._sent = 0  # bytes
        self._told = 0  # tokens whose log-probabilities were given
        self._end = 0  # of the latter's bytes

    def of(self, chunk: Any) -> Iterator[Any]:
        """What to send in place of a chunk of stock's."""
        choice, data = chunk["choices"][0], self._request.data
        if not data:  # nothing yet, or a subclass's generate() has tokens of its own
            yield chunk
            return
        if choice["finish_reason"] is None:
            text = choice["text"].encode()
            if data.startswith(text, self._sent):
                self._sent += len(text)
                yield self._scored(chunk)
            return
        whole = _ended(data, self._stops) if choice["finish_reason"] == "stop" else data
        rest = shown(whole[self._sent :])
        self._sent = max(self._sent, len(whole))
        last = {**chunk, "choices": [{**choice, "text": rest, "finish_reason": None}]}
        last = self._scored(last)
        if rest or (last["choices"][0]["logprobs"] or {}).get("tokens"):
            yield last
        yield chunk

    def _scored(self, chunk: Any) -> Any:
        """`chunk` with the log-probabilities of the tokens that it shows, if only in part."""
        request = self._request
        if request.logprobs is not None:
            first, begin = self._told, self._end
            while self._told < len(request.tokens):
                n = len(request.vocab.piece(request.tokens[self._told]))
                if self._end + min(n, 1) > self._sent:
                    break
                self._end += n
                self._told += 1
            offset = self._length + len(shown(request.data[:begin]))
            chunk["choices"][0]["logprobs"] = request.lists(first, self._told, offset)
        return chunk


# What stock gets ---------------------------------------------------------------------------------


def _prepare(llama: Reader, options: dict[str, Any], request: Request) -> tuple[str, str]:
    """Makes of `options` what stock's code gets; returns what goes before and behind the text."""
    stop = options["stop"]
    options["stop"] = [stop] if isinstance(stop, str) else list(stop or ())
    prompt = options["prompt"]
    if isinstance(prompt, str):
        llama._check_fits(prompt)
    else:
        options["prompt"] = llama._runtime.vocab.check(prompt, "prompt")
    if not len(prompt):
        request.tokens.append(llama.token_bos())
        request.scored.append(None)
    request.logprobs, request.echo = options["logprobs"], options["echo"]
    options["logprobs"], options["echo"] = None, False
    echoed = prompt if isinstance(prompt, str) else shown(llama.detokenize(options["prompt"]))
    tail = _infill(llama, options)
    _add_bias(llama, options)
    if options["stream"]:
        request.echo = False  # as in stock
    return echoed if request.echo else "", tail


def _infill(llama: Reader, options: dict[str, Any]) -> str:
    """Puts prompt and suffix into the model's infill tokens (stock writes token 0 for each);
    returns what goes behind the text of a model that has none.
    """
    suffix, options["suffix"] = options["suffix"], None
    if suffix is None:
        return ""
    if not isinstance(suffix, str):
        raise InputError(f"suffix must be text, got {suffix!r}")
    prompt = infill_prompt(
        llama._runtime.vocab,
        options["prompt"],
        suffix,
        tokenize=lambda text: llama.tokenize(text.encode(), add_bos=False),
        suffix_first=llama.spm_infill,
    )
    if prompt is None:
        return suffix
    options["prompt"] = prompt
    return ""


def _add_bias(llama: Reader, options: dict[str, Any]) -> None:
    """Makes `logit_bias` the last logits processor; stock drops both where both are given."""
    bias, options["logit_bias"] = options["logit_bias"], None
    if not bias:
        return
    try:
        biases = {int(token): float(value) for token, value in bias.items()}
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"logit_bias maps tokens to numbers: {error}") from None
    Sampling(logit_bias=biases)  # checks them
    llama._runtime.vocab.check(list(biases), "logit_bias")
    tokens = np.array(list(biases), np.intp)
    added = np.array(list(biases.values()), np.float32)

    def add_bias(_: object, row: Logits) -> Logits:
        row = row.copy()
        row[tokens] += added
        return row

    options["logits_processor"] = [*(options["logits_processor"] or ()), add_bias]
