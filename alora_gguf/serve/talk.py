"""Conversations at work, on a request's own thread: what every door's request comes to, and what is
told of it while it goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import alora_gguf as ag

from .adapters import Asked, View
from .errors import RequestError, TooLongError
from .work import Job

Kind = Literal["content", "reasoning", "tool_call"]
MAX_REPLIES: Final = 8
"""Replies of one request (`n`): each is a sequence of cells of its own."""
_USUAL: Final = 512  # tokens of an answer whose contract sets no limit
_QUESTION: Final = 128  # tokens of an instruction


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of reply `index`: text that became certain, with the log-probabilities of its tokens
    if these were asked for.
    """

    index: int
    text: str
    logprobs: tuple[Scored, ...] = ()
    kind: Kind = "content"
    call: ag.ToolCall | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A token as it is written: its bytes, its log-probability (None for the first of a text) and
    its alternatives.
    """

    text: str
    data: bytes
    logprob: float | None
    top: tuple[tuple[str, bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Read:
    """So many tokens of a prompt were read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Reply `index` is over."""

    index: int
    reason: str
    timings: ag.Timings


@dataclass(frozen=True, slots=True)
class Answered:
    """An intrinsic's answer: about the conversation, or about reply `index`."""

    result: Mapping[str, Any]
    timings: ag.Timings
    index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What is asked about a conversation: replies, verdicts on each of them, or intrinsics' answers
    alone, in place of a reply.
    """

    messages: Sequence[Any]
    documents: Sequence[Any] = ()
    tools: Sequence[Any] = ()
    tool_choice: str = "auto"
    several_calls: bool = True
    template: Mapping[str, object] = field(default_factory=dict)
    jinja: str | None = None
    options: ag.GenerateOptions = field(default_factory=ag.GenerateOptions)
    whom: Asked = field(default_factory=Asked)
    n: int = 1
    intrinsics: Sequence[ag.IntrinsicCall] = ()
    verdicts: Sequence[ag.IntrinsicCall] = ()


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts to go on with, in tokens and as text, each in `n` ways. With `echo` a reply begins
    with its prompt, whose log-probabilities are wanted if it is `scored`; and nothing else if it is
    `scored_only`.
    """

    tokens: Sequence[Sequence[int]]
    texts: Sequence[str]
    options: ag.GenerateOptions
    whom: Asked
    n: int = 1
    echo: bool = False
    scored: bool = False
    scored_only: bool = False


def converse(model: ag.Model, view: View, turn: Turn, job: Job) -> None:
    """Answers a turn: tells Read, Piece, Ended and Answered."""
    options = replace(turn.options, adapter=view.computed_by(turn.whom))
    calls = [replace(each, name=view.loaded(each.name, "intrinsics")) for each in turn.intrinsics]
    verdicts = [replace(each, name=view.loaded(each.name, "verdicts")) for each in turn.verdicts]
    with contextlib.ExitStack() as closing:
        chat = closing.enter_context(
            model.chat(
                messages=turn.messages,
                documents=turn.documents,
                tools=turn.tools,
                template=turn.jinja,
                template_arguments=turn.template,
            )
        )
        if calls:
            for result in chat.invoke_many(calls, cancel=job.cancel):
                job.tell(_answered(result, view))
            return
        n_prompt = chat.count()
        options = _fitting(model, n_prompt, options)
        more = max((_most(model, each) for each in verdicts), default=0)
        chats = [chat]
        if turn.n > 1:
            chat.read(cancel=job.cancel, progress=lambda done, n: job.tell(Read(done, n)))
            chats += [closing.enter_context(chat.fork()) for _ in range(turn.n - 1)]

        def reply(index: int) -> None:
            mine = chats[index]
            mine.reserve(
                min(options.max_tokens + more, model.n_ctx - n_prompt),
                adapter=options.adapter,
                scale=options.scale,
                cancel=job.cancel,
            )
            _reply(mine, index, turn, _seeded(options, index), verdicts, view, job)

        _together(reply, turn.n, job)


def complete(model: ag.Model, view: View, asked: Prompts, job: Job) -> None:
    """Goes on with prompts: tells Read, Piece and Ended, of reply j to prompt i by i * n + j."""
    options = replace(asked.options, adapter=view.computed_by(asked.whom))

    def reply(index: int) -> None:
        which, turn = divmod(index, asked.n)
        tokens = asked.tokens[which]
        mine = _seeded(_fitting(model, len(tokens), options), turn)
        with model.session() as session:
            session.reserve(
                mine.max_tokens,
                prompt=tokens,
                adapter=mine.adapter,
                scale=mine.scale,
                cancel=job.cancel,
            )
            if asked.echo:
                scored = _of_prompt(session, tokens, mine, job) if asked.scored else ()
                job.answered = True
                job.tell(Piece(index, asked.texts[which], scored))
            said = session.generate(
                mine,
                prompt=tokens,
                cancel=job.cancel,
                progress=lambda done, n: job.tell(Read(done, n)),
            )
            if asked.scored_only:
                said.close()
                job.tell(Ended(index, "length", said.timings))
                return
            scoring = Scoring(model)
            for text in said:
                job.answered = True
                job.tell(Piece(index, text, scoring.of(said.logprobs, said.text)))
            _end(said, index, scoring, view, job)

    _together(reply, len(asked.tokens) * asked.n, job)


def _of_prompt(
    session: ag.Session, tokens: Sequence[int], how: ag.GenerateOptions, job: Job
) -> tuple[Scored, ...]:
    """How likely a prompt's tokens are, each after those before it."""
    model = session.model
    found = session.score(
        tokens,
        logprobs=how.logprobs or 0,
        adapter=how.adapter,
        scale=how.scale,
        cancel=job.cancel,
    )
    first = model.token_bytes(tokens[0])
    begins = Scored(first.decode("utf-8", "replace"), first, None, ())
    return (begins, *Scoring(model).of(found, "".join(each.text for each in found)))


def _reply(
    chat: ag.Chat,
    index: int,
    turn: Turn,
    options: ag.GenerateOptions,
    verdicts: Sequence[ag.IntrinsicCall],
    view: View,
    job: Job,
) -> None:
    progress = lambda done, total: job.tell(Read(done, total))  # noqa: E731
    said = chat.reply(
        options, stream=True, tool_choice=turn.tool_choice, cancel=job.cancel, progress=progress
    )
    scoring = Scoring(chat.model)
    for kind, part in said.events():
        scored = scoring.of(said.logprobs, said.text)
        job.answered = True
        if isinstance(part, ag.ToolCall):
            job.tell(Piece(index, "", scored, "tool_call", part))
            if not turn.several_calls:
                said.close()
                break
        else:
            job.tell(Piece(index, part, scored, "reasoning" if kind == "reasoning" else "content"))
    called = bool(said.tool_calls) and said.finish_reason in ("stop", "closed")
    _end(said, index, scoring, view, job, "tool_calls" if called else None)
    if verdicts:
        for result in chat.invoke_many(verdicts, cancel=job.cancel):
            job.tell(_answered(result, view, index))


def _end(
    said: ag.Generation,
    index: int,
    scoring: Scoring,
    view: View,
    job: Job,
    reason: str | None = None,
) -> None:
    """Tells what is left of a reply, and that it is over."""
    if said.finish_reason == "cancelled":
        job.cancel.check()
    if rest := scoring.rest(said.logprobs):
        job.tell(Piece(index, "", rest))
    timings = replace(said.timings, reuse_note=view.shown(said.timings.reuse_note))
    job.tell(Ended(index, reason or said.finish_reason or "stop", timings))


class Scoring:
    """The log-probabilities of a reply's tokens, each with the text that shows it."""

    def __init__(self, model: ag.Model) -> None:
        self._model = model
        self._n_tokens = self._n_characters = 0  # that were told

    def of(self, logprobs: Sequence[ag.TokenLogprob] | None, text: str) -> tuple[Scored, ...]:
        """Of the tokens that are new in `text`, all of the reply so far."""
        found: list[ag.TokenLogprob] = []
        for each in (logprobs or ())[self._n_tokens :]:
            if self._n_characters + len(each.text) > len(text):
                break
            self._n_characters += len(each.text)
            found.append(each)
        self._n_tokens += len(found)
        # an end token has neither
        return tuple(each for each in map(self._scored, found) if each.text or each.data)

    def rest(self, logprobs: Sequence[ag.TokenLogprob] | None) -> tuple[Scored, ...]:
        """Of those that are left at the end, but for what a stop string cut off."""
        left = [each for each in (logprobs or ())[self._n_tokens :] if each.text]
        return tuple(map(self._scored, left))

    def _scored(self, each: ag.TokenLogprob) -> Scored:
        top = tuple((t.text, self._bytes(t.token, t.text), t.logprob) for t in each.top)
        return Scored(each.text, self._bytes(each.token, each.text), each.logprob, top)

    def _bytes(self, token: int, text: str) -> bytes:
        """A token's own bytes, which may be a part of a character; or those of `text` where they
        show as another one: a first token without its blank, one that a stop string cut short.
        """
        data = self._model.token_bytes(token)
        try:
            return data if data.decode() == text else text.encode()
        except UnicodeDecodeError:
            return data


def _together(work: Callable[[int], None], n: int, job: Job) -> None:
    """Does `work(index)` for each of `n` at a time: they share batches. One that fails ends all."""
    if n == 1:
        work(0)
        return

    def one(index: int) -> None:
        try:
            work(index)
        except BaseException:
            job.cancel.cancel()
            raise

    with ThreadPoolExecutor(min(n, MAX_REPLIES), thread_name_prefix="alora_gguf-reply") as pool:
        futures = [pool.submit(one, index) for index in range(n)]
    failed = [error for each in futures if (error := each.exception()) is not None]
    if failed:  # the others were only cancelled
        raise next((e for e in failed if not isinstance(e, ag.CancelledError)), failed[0])


def _fitting(model: ag.Model, n_prompt: int, options: ag.GenerateOptions) -> ag.GenerateOptions:
    """A reply that ends where the context does. Raises TooLongError if none can begin."""
    room = model.n_ctx - n_prompt
    if room < 1:
        raise TooLongError(
            f"the conversation has {n_prompt} tokens with what begins the reply, and this server's "
            f"context holds {model.n_ctx}; shorten it, or start the server with a larger --n-ctx"
        )
    return replace(options, max_tokens=min(options.max_tokens, room))


def _most(model: ag.Model, call: ag.IntrinsicCall) -> int:
    """The most cells that an intrinsic's question and answer take, nearly always."""
    limit = call.max_tokens or model.contract(call.name).max_tokens or _USUAL
    return limit + _QUESTION


def _seeded(options: ag.GenerateOptions, index: int) -> ag.GenerateOptions:
    """Further replies of one request are drawn by seeds of their own."""
    seed = options.sampling.seed
    if not index or seed is None:
        return options
    return replace(options, sampling=replace(options.sampling, seed=(seed + index) % 2**32))


def _answered(result: ag.IntrinsicResult, view: View, index: int | None = None) -> Answered:
    name = view.shown(result.name)
    said = {"label": result.alias or name, "name": name, **result.to_dict()}
    said["timings"] |= {"reuse_note": view.shown(result.timings.reuse_note)}
    if "error" in said:
        said["error"] = view.shown(said["error"])
    return Answered(said, result.timings, index)


def as_calls(given: Sequence[Any], what: str) -> list[ag.IntrinsicCall]:
    """The calls of a request's list: names, or mappings with IntrinsicCall's fields."""
    calls = []
    for i, each in enumerate(given):
        if isinstance(each, str):
            calls.append(ag.IntrinsicCall(each))
            continue
        if not isinstance(each, Mapping) or not isinstance(each.get("name"), str):
            raise RequestError(f'{what}[{i}] must be a name, or an object with "name"', what)
        known = ("name", "arguments", "upto", "alias", "max_tokens", "stop", "scale")
        unknown = [key for key in each if key not in known]
        if unknown:
            raise RequestError(f"{what}[{i}] has {unknown[0]!r}, expected {', '.join(known)}", what)
        try:
            calls.append(ag.IntrinsicCall(**{k: v for k, v in each.items() if v is not None}))
        except ag.InputError as error:
            raise RequestError(f"{what}[{i}]: {error}", what) from error
    return calls


def timings_of(timings: Sequence[ag.Timings]) -> dict[str, Any]:
    """Timings as llama-server has them, in milliseconds, with what was reused and why not more."""
    first = min((t.first_token for t in timings if t.first_token is not None), default=None)
    total = max((t.total for t in timings), default=0.0)
    read = sum(t.evaluated for t in timings)
    written = sum(t.generated for t in timings)
    before = total if first is None else first
    after = total - before

    def rate(n: int, seconds: float) -> float | None:
        return None if seconds <= 0 else n / seconds

    return {
        "cache_n": max((t.reused for t in timings), default=0),
        "prompt_n": read,
        "prompt_ms": before * 1000,
        "prompt_per_second": rate(read, before),
        "predicted_n": written,
        "predicted_ms": after * 1000,
        "predicted_per_second": rate(written, after),
    }


def usage_of(timings: Sequence[ag.Timings]) -> dict[str, Any]:
    """Tokens of some replies to one prompt, as OpenAI's API has them."""
    prompt = max((t.reused + t.evaluated for t in timings), default=0)
    written = sum(t.generated for t in timings)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": timings[0].reused if timings else 0},
    }


def now() -> int:
    """Unix time, in seconds."""
    return int(time.time())
