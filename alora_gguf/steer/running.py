"""A base that is read and steered: pairs in tokens, the states of its layers, and what it says next
under a vector. Beside the probe, this alone knows a model here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated, Final, cast

import numpy as np
from numpy.typing import NDArray

from alora_gguf._calls import Within, check_kind, checked
from alora_gguf.engine.llama_context import Logits, Run
from alora_gguf.errors import CacheFullError, InputError, ModelError, NotFiniteError
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.vector import Hook
from alora_gguf.messages import Message
from alora_gguf.model import Model
from alora_gguf.options import ContextOptions, Invocation, Sampling
from alora_gguf.verification.probe import Hidden, Probe, open_probe

from .neutral import NEUTRAL
from .pairs import Pair, Side

Progress = Callable[[float], None]
Tokens = tuple[int, ...]
Doubles = NDArray[np.float64]

N_TOGETHER: Final = 8  # vectors that read in one batch
_ROWS: Final = 256  # of logits at a time
_BEFORE: Final = 16  # tokens of a text that the base reads, before a vector acts
_PIECE: Final = 128  # tokens of a long text at a time
_PIECES: Final = 8  # of it, at most


@checked
@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a base is run with; both as in ContextOptions."""

    n_threads: Annotated[int, Within(1, 512)] | None = None
    n_gpu_layers: Annotated[int, Within()] = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """A prompt and what follows it, () if nothing does. A vector acts on the prompt's last token,
    whose output chooses the first that follows, and on what follows.
    """

    prompt: Tokens
    after: Tokens

    @property
    def tokens(self) -> Tokens:
        """All of them."""
        return self.prompt + self.after


@dataclass(frozen=True, slots=True)
class Steering:
    """A loaded vector at a scale; without a name the base."""

    name: str | None
    scale: float = 1.0


BASE: Final = Steering(None)


@contextmanager
def open_model(
    base: str | os.PathLike[str],
    vectors: Mapping[str, str | os.PathLike[str]],
    options: RunOptions | None,
) -> Iterator[Model]:
    """The base, with vectors by name. Raises what Model() does."""
    options = options or RunOptions()
    how = ContextOptions(
        n_threads=options.n_threads,
        n_seq_max=N_TOGETHER + 2,
        n_outputs=_ROWS,
        n_pooled=0,
        max_adapters=1,
    )
    with Model(base, adapters=vectors, options=how, n_gpu_layers=options.n_gpu_layers) as model:
        yield model


# What is given -----------------------------------------------------------------------------------


def check_apart(output: Path, read: Mapping[str, str | os.PathLike[str]]) -> None:
    """Raises InputError if writing the output would replace what is read, by what it is called."""
    for name, path in read.items():
        same = False
        with suppress(OSError, ValueError):  # one that is not there is refused by its reader
            same = output.samefile(path)
        if same:
            raise InputError(f"{output}: is the {name} that is read; name another output")


def layers_given(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    """They in order, each once. Raises InputError if there are none, or other things."""
    if layers is None:
        return None
    for each in layers:
        check_kind(each, "each of layers", lambda x: isinstance(x, Integral), "an integer")
    if not len(layers):
        raise InputError("layers is empty; give layers, or None to have them chosen")
    return tuple(sorted({int(each) for each in layers}))


def check_layers(base: str | os.PathLike[str], layers: Sequence[int] | None) -> None:
    """Raises InputError if the base's file says that it has not got one, before it is run."""
    n = None if layers is None else BaseFile.read(base).n_layer
    if layers is not None and n is not None and (wrong := [i for i in layers if not 0 <= i < n]):
        raise InputError(f"layers has {wrong[0]}, but {Path(base).name} has layers 0 to {n - 1}")


# Tokens ------------------------------------------------------------------------------------------


def prompt_tokens(model: Model, messages: Sequence[Message]) -> Tokens:
    """A conversation up to where a reply begins. Raises ModelError if there is no chat template."""
    try:
        chat = model.chat(messages=messages)
    except ModelError:
        raise ModelError(
            f"{model.path}: has no chat template, so it does not say how a conversation is "
            "written; give pairs of plain texts, or use a base that was tuned to chat"
        ) from None
    with chat:
        return tuple(chat._dialogue().written(prompt=True).tokens)


def passages(model: Model, pair: Pair, file: Path) -> tuple[Passage, Passage]:
    """Both sides of a pair of a `file`, in tokens. Raises InputError if one does not fit."""
    found = []
    for name, side in (("positive", pair.positive), ("negative", pair.negative)):
        where = f"{file}: line {pair.line}: {name}"
        try:
            with told(model, where):
                found.append(fitting(model, _passage(model, pair.prompt, side), where))
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith(where) else f"{where}: {text}") from None
    return found[0], found[1]


def _passage(model: Model, prompt: Sequence[Message] | None, side: Side) -> Passage:
    if not isinstance(side, str):
        if side[-1].role != "assistant":
            return Passage(prompt_tokens(model, side), ())
        return Passage(prompt_tokens(model, side[:-1]), _written(model, side[-1].content))
    if prompt is not None:
        return Passage(prompt_tokens(model, prompt), _written(model, side))
    tokens = (*model.tokenize("", add_special=True), *_written(model, side))
    return Passage(tokens[:1], tokens[1:])


def _written(model: Model, text: str) -> Tokens:
    return tuple(model.tokenize(text, parse_special=False))


@contextmanager
def told(model: Model, where: str) -> Iterator[None]:
    """Has the refusal of a text that is too long to be made into tokens say `where` it is from."""
    try:
        yield
    except CacheFullError:
        raise InputError(
            f"{where} has more tokens than the context's {model.n_ctx - _BEFORE:,}; shorten it"
        ) from None


def fitting(model: Model, passage: Passage, where: str) -> Passage:
    """It, if the context has room for it. Raises InputError, which says `where` it is from."""
    if (n := len(passage.tokens)) > model.n_ctx - _BEFORE:
        raise InputError(
            f"{where} has {n:,} tokens, more than the context's {model.n_ctx - _BEFORE:,}; "
            "shorten it"
        )
    return passage


def neutral_passages(model: Model, text: str | None) -> list[Passage]:
    """A text in pieces, of which the base reads the beginning; without one, questions with their
    answers.
    """
    bos = tuple(model.tokenize("", add_special=True))
    if text is not None:
        ids = _written(model, text)
        size = min(_PIECE, model.n_ctx // 4)
        pieces = [ids[at : at + size] for at in range(0, len(ids), size)][:_PIECES]
        return [
            Passage((*bos, *each[:_BEFORE]), each[_BEFORE:])
            for each in pieces
            if len(each) >= 2 * _BEFORE
        ]
    found = []
    for question, answer in NEUTRAL:
        try:
            prompt = prompt_tokens(model, [Message("user", question)])
        except ModelError:
            prompt = (*bos, *_written(model, f"{question}\n"))
        found.append(Passage(prompt, _written(model, answer)))
    return found


# States ------------------------------------------------------------------------------------------


@contextmanager
def open_reader(model: Model, texts: Sequence[Passage], hook: Hook = "block") -> Iterator[Probe]:
    """A probe of what flows at a hook, which has room for each of these."""
    n_tokens = max(len(each.tokens) for each in texts)
    n_rows = max(len(each.after) for each in texts) + 1
    with open_probe(model, {}, n_tokens=n_tokens, n_rows=n_rows, hook=hook) as probe:
        yield probe


def states(probe: Probe, passage: Passage, n_rows: int) -> Mapping[int, Hidden]:
    """What flows at the hook for the last `n_rows` tokens by layer, [n_rows, n_embd]. Raises
    ModelError where the graph has no such place, or several of a layer; NotFiniteError.
    """
    reading = probe.read(passage.tokens, n_rows)
    if not reading.layers:
        raise ModelError(
            f"llama.cpp's graph of this architecture does not show the hook '{probe.hook}', so "
            "nothing can be read there"
            + ("" if probe.hook == "block" else "; use the hook 'block'")
        )
    if (where := reading.not_finite) is not None:
        raise NotFiniteError(
            f"the base: {where} holds values that are not finite, so nothing can be learnt there"
        )
    return reading.layers


# What comes next ---------------------------------------------------------------------------------


def next_logits(
    model: Model, jobs: Sequence[tuple[Steering, Passage]]
) -> Iterator[tuple[int, Logits]]:
    """For each passage the logits of what follows its prompt, [n_after, n_vocab], beside its
    number, as the base reads it up to there and a vector from there on: from the prompt's last
    token. Of those with the same prompt that is read once, and several are read in one batch.
    """
    at = 0
    while at < len(jobs):
        prompt, together = jobs[at][1].prompt, list[tuple[Steering, Passage]]()
        n_tokens = len(prompt)
        while at + len(together) < len(jobs) and len(together) < N_TOGETHER:
            steering, passage = jobs[at + len(together)]
            n_tokens += len(passage.after)
            if passage.prompt != prompt or (together and n_tokens > model.n_ctx - _BEFORE):
                break
            together.append((steering, passage))
        for logits in _read(model, prompt, together):
            yield at, logits
            at += 1


def _read(
    model: Model, prompt: Tokens, jobs: Sequence[tuple[Steering, Passage]]
) -> Iterator[Logits]:
    """Forks of one prompt, side by side."""
    runtime = model._runtime
    engine, n, seqs = runtime.engine, len(prompt) - 1, list[int]()
    stack = ExitStack()
    try:
        seqs.append(engine.allocate())
        if n:
            engine.decode([Run(seqs[0], prompt[:n], "none")])
        runs = []
        for steering, passage in jobs:
            seq = engine.fork(seqs[0], n)
            seqs.append(seq)
            use = stack.enter_context(runtime.bank.using(steering.name, steering.scale))
            if steering.name is not None:
                engine.activate(seq, n, use.slot, use.scale)
            runs.append(Run(seq, (prompt[n], *passage.after[:-1]), "all"))
        for rows in engine.decode(runs):
            yield np.atleast_2d(cast(Logits, rows))
    finally:
        for seq in seqs:
            engine.drop(seq)
        stack.close()


def log_softmax(logits: Logits) -> Doubles:
    """By row, in float64."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))


def mean_logprob(logits: Logits, after: Tokens) -> float:
    """Of the tokens that follow, per token in nats."""
    rows = logits[: len(after)].astype(np.float64)
    top = rows.max(axis=1)
    totals = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
    return float((rows[np.arange(len(after)), list(after)] - totals).mean())


def replies(
    model: Model, prompts: Sequence[Tokens], steering: Steering, n_tokens: int
) -> list[tuple[Tokens, str]]:
    """The likeliest reply to each prompt, of up to `n_tokens` tokens: its tokens, its text."""
    asked = [
        Invocation(
            steering.name,
            prompt=prompt,
            scale=steering.scale,
            max_tokens=n_tokens,
            sampling=Sampling(temperature=0),
        )
        for prompt in prompts
    ]
    with model.session() as session:
        return [(each.tokens, each.text) for each in session.invoke_many(asked)]
