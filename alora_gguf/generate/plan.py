"""What an invocation comes to: its prompt, the cells it can reuse, and what can be drafted: tokens
that its reply will very likely begin with, read together with the prompt. What the model then
chooses decides: a wrong draft costs a little time and changes nothing.

What a schema fixes of its replies is found by walking llguidance, over bytes in place of a
vocabulary.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np

from alora_gguf.engine.activation import Activations, ActiveAdapter, not_found
from alora_gguf.engine.context import Engine
from alora_gguf.engine.llama_context import Head, Logits, Run
from alora_gguf.engine.tokens import (
    BASE,
    CachedTokens,
    Provenance,
    Spans,
    Vocabulary,
    common,
    find_last,
    spans_for,
)
from alora_gguf.errors import AdapterMismatchError, CacheFullError, InputError
from alora_gguf.gguf.head import Classifier
from alora_gguf.options import CancelToken, Form, Invocation

from .constraint import compile_grammar
from .sampling import SampledReply, usual_tokens
from .schema import form_of, grammar_of, written

_MAX_PATHS: Final = 8
MAX_DRAFTS: Final = 128
"""The most ways to begin an answer that a caller has read along; each is a fork for a moment."""
_MAX_TOKENS: Final = 48
_MAX_FORCED: Final = 256  # tokens, read unasked: a schema may have long constants

Path = tuple[int, ...]
_MAX_ANSWERS: Final = 64
_MAX_STEPS: Final = 1000  # states that a walk looks at, some 20 us each
_BYTES: Final = 256  # the first tokens of llguidance's vocabulary of bytes
# One spelling for each value: without escapes that are not needed.
_SPELLING: Final[Any] = {
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}


@dataclass(frozen=True, slots=True)
class Draft:
    """`forced` are the tokens that every reply begins with, as its form leaves no choice. `paths`
    are beginnings of the reply, in tokens; after each, and after each of its own beginnings from
    `forced` on, the logits are wanted. `answers` are all the replies there are, as bytes, if they
    are few.
    """

    forced: Path = ()
    paths: tuple[Path, ...] = ((),)
    answers: tuple[bytes, ...] = ()

    def rest(self, said: bytes) -> bytes | None:
        """How a reply that began with `said` goes on, if it can go on in one way only."""
        found = [answer for answer in self.answers if answer.startswith(said)]
        return found[0][len(said) :] if len(found) == 1 else None


NO_DRAFT: Final = Draft()


def draft_reply(schema: Mapping[str, Any], vocab: Vocabulary, pinned: bool) -> Draft:
    """The draft of a reply to `schema`, whose form leaves no choice of spacing if it is `pinned`.

    Where the answers are a small enumeration, its paths lead to every token at which they part, so
    that one pass scores all of them.
    """
    texts, opening = fixed(schema)
    if texts is None:
        path = tuple(usual_tokens(opening.encode(), vocab))
        # what comes next may be one token with the end of what is fixed
        forced = path[:-1][:_MAX_FORCED] if pinned else ()
        return Draft(forced, (path[: len(forced) + _MAX_TOKENS],))
    leaves = [tuple(usual_tokens(text.encode(), vocab)) for text in texts]
    forced = _common(leaves)[:_MAX_FORCED] if pinned else ()
    paths = _partings(leaves)[:_MAX_PATHS]
    return Draft(
        forced,
        tuple(path[: len(forced) + _MAX_TOKENS] for path in paths) or (forced,),
        tuple(text.encode() for text in texts),
    )


def _common(leaves: Sequence[Path]) -> Path:
    """What all of them begin with."""
    alike = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*leaves, strict=False))
    return tuple(tokens[0] for tokens in alike)


def _partings(leaves: Sequence[Path]) -> list[Path]:
    """The beginnings after which the leaves part and that do not begin another one, the longest
    first.
    """
    branches: dict[Path, set[int]] = {}
    for leaf in leaves:
        for at, token in enumerate(leaf):
            branches.setdefault(leaf[:at], set()).add(token)
    nodes = [node for node, tokens in branches.items() if len(tokens) > 1]
    nodes.sort(key=len, reverse=True)
    return [
        node
        for i, node in enumerate(nodes)
        if not any(longer[: len(node)] == node for longer in nodes[:i])
    ]


# What a schema fixes ------------------------------------------------------------------------------


class Fixed(NamedTuple):
    """`answers` are the texts of all values that match, if they are known to be few, else None;
    `opening` is what all of them begin with, as far as it is known.

    A text is what a reply in the schema's form has, where that is free what json.dumps(value,
    ensure_ascii=False) writes, with properties in the schema's order. An opening is `{"answer": "`
    where an object's first required property is a string, `[` for an array, "" where nothing is
    fixed.
    """

    answers: tuple[str, ...] | None = None
    opening: str = ""


def fixed(schema: Mapping[str, Any]) -> Fixed:
    """What `schema` fixes; nothing where it cannot be compiled. The latest schemas are kept."""
    return _fixed(json.dumps(dict(schema)))


@functools.lru_cache(maxsize=64)
def _fixed(schema: str) -> Fixed:
    parsed = json.loads(schema)
    form = form_of(parsed)
    form = "json.dumps" if form == "free" else form
    found: list[bytes] = []
    pending = [(_matcher(parsed, form), b"")]
    opening: str | None = None
    for _ in range(_MAX_STEPS):
        matcher, text = pending.pop()
        text += _forced(matcher)
        # it may end within a character
        opening = text.decode(errors="ignore") if opening is None else opening
        following = _following(matcher)
        found += [text] if matcher.is_accepting() else []
        if matcher.is_error() or len(found) + len(pending) + len(following) > _MAX_ANSWERS:
            break
        for byte in reversed(following):
            branch = matcher.deep_copy()
            branch.consume_token(byte)
            pending.append((branch, text + bytes([byte])))
        if not pending:
            return Fixed(_answers(found, form), opening)
    return Fixed(None, opening or "")


def _forced(matcher: Any) -> bytes:
    """Goes on by the bytes that must come next, and returns them."""
    forced: bytes = matcher.compute_ff_bytes()
    return forced if forced and matcher.consume_tokens(list(forced)) else b""


def _following(matcher: Any) -> list[int]:
    """The bytes of which any can come next."""
    if matcher.is_stopped():
        return []
    bias = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[:_BYTES]
    return list(map(int, np.flatnonzero(bias)))


def _answers(found: Sequence[bytes], form: Form) -> tuple[str, ...] | None:
    """Each value once, as its form has it: -0 is 0."""
    texts = [text.decode() for text in found]
    if form != "text":
        once = dict.fromkeys(written(json.loads(text), form) for text in texts)
        return tuple(once) if once and once.keys() <= set(texts) else None
    return tuple(texts)


def _matcher(schema: Mapping[str, Any], form: Form) -> Any:
    from llguidance import LLParserLimits

    grammar = grammar_of(schema, form, _SPELLING)
    limits = LLParserLimits(verbose_errors=False)
    return compile_grammar(grammar, _tokenizer(), limits)


@functools.cache
def _tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


@dataclass(frozen=True, slots=True)
class Parent:
    """A sequence to fork: what its cells hold, the tokens it stands for, the logits after its last
    cell.
    """

    seq: int
    cached: CachedTokens
    tokens: tuple[int, ...]
    logits: Logits | None


@dataclass(slots=True)
class InvocationPlan:
    """One invocation, checked and worked out: what to prefill, and how much of it is cached."""

    index: int
    invocation: Invocation
    active: ActiveAdapter
    prompt: list[int]
    activations: Activations
    spans: Spans
    reply: SampledReply
    parent: Parent
    reuse: int = 0
    extra: int = 0  # tokens of a shared prefix that are counted here
    note: str = ""
    draft: Draft = NO_DRAFT
    head: Head | None = None

    @property
    def first(self) -> int | None:
        """From which token on it is not the base that computes; None: nowhere."""
        return self.activations.first

    def needs(self) -> int:
        """Cells of its own at most; the last token is sampled but never decoded."""
        forced = len(self.draft.forced)
        return len(self.prompt) - self.reuse + forced + self.invocation.max_tokens - 1


def plan_invocation(
    engine: Engine,
    parent: Parent,
    index: int,
    invocation: Invocation,
    active: ActiveAdapter,
    started: float,
) -> InvocationPlan:
    """Checks an invocation and works out what it needs. Raises what Session.invoke_many() does."""
    head = None
    if active.classifier is not None:
        head, invocation = _classifying(active, active.classifier, invocation, engine.vocab)
    vocab, schema = engine.vocab, invocation.schema
    prompt = _prompt(engine, parent, invocation, active)
    reply = SampledReply(invocation, vocab, started)
    draft = NO_DRAFT if schema is None else draft_reply(schema, vocab, reply.pinned)
    if invocation.drafts:
        paths = tuple(tuple(vocab.check(path, "drafts")) for path in invocation.drafts)
        draft = Draft((), paths[:MAX_DRAFTS], draft.answers)
    if invocation.begun:
        begun = tuple(vocab.check(invocation.begun, "begun"))
        draft = Draft(begun, (begun,), draft.answers)
    if head is not None:
        draft = Draft(answers=draft.answers)
    elif invocation.stop or not engine.rewinds:
        draft = Draft(draft.forced, (draft.forced,))
    activations = active.over(prompt, vocab)
    return InvocationPlan(
        index=index,
        invocation=invocation,
        active=active,
        prompt=prompt,
        activations=activations,
        spans=activations.spans,
        reply=reply,
        parent=parent,
        draft=draft,
        head=head,
    )


def _classifying(
    active: ActiveAdapter, classifier: Classifier, invocation: Invocation, vocab: Vocabulary
) -> tuple[Head, Invocation]:
    """What scores a classifier's labels, each by its first token, and what it is asked then: to
    answer with one of them. Raises AdapterMismatchError where two labels begin alike.
    """
    labels = classifier.labels
    firsts = [(usual_tokens(label.encode(), vocab) or [-1])[0] for label in labels]
    for i, (label, token) in enumerate(zip(labels, firsts, strict=True)):
        if token < 0:
            raise AdapterMismatchError(
                f"adapter {active.label}: this base's vocabulary has no tokens for its label "
                f"{label!r}; convert it with other labels (--labels)"
            )
        if token in firsts[:i]:
            raise AdapterMismatchError(
                f"adapter {active.label}: its labels '{labels[firsts.index(token)]}' and "
                f"'{label}' begin with the same token, {vocab.show([token])}; convert it with "
                "other labels (--labels)"
            )
    if invocation.begun or invocation.drafts:
        raise InputError(f"adapter {active.label} is a classifier, whose answer cannot be begun")
    asked = invocation
    if invocation.schema is None:
        asked = replace(
            invocation,
            schema={"type": "string", "enum": list(labels), "x-alora": {"form": "text"}},
        )
    return Head(classifier.weight, classifier.bias, tuple(firsts)), asked


def _prompt(
    engine: Engine, parent: Parent, invocation: Invocation, active: ActiveAdapter
) -> list[int]:
    """The conversation, the suffix, and the adapter's invocation if it is not there yet."""
    vocab, suffix = engine.vocab, invocation.suffix
    if invocation.prompt is not None:
        if suffix is not None:
            raise InputError("an invocation has a suffix or a prompt, not both")
        return _with_invocation(active, vocab.check(invocation.prompt, "prompt"), 0, invocation)
    ids = vocab.encode(suffix or (), "suffix", begins=not parent.tokens)
    prompt = _with_invocation(active, [*parent.tokens, *ids], len(parent.tokens), invocation)
    if len(prompt) > len(parent.tokens) + len(ids):
        wanted = active.invocation
        if isinstance(suffix, str) and vocab.detokenize(wanted, special=True) in suffix:
            raise not_found(active, [*parent.tokens, *ids], vocab)  # it would stand there twice
    if not prompt:
        raise InputError("there is nothing to ask about: conversation and suffix are empty")
    return prompt


def _with_invocation(
    active: ActiveAdapter, prompt: list[int], n: int, invocation: Invocation
) -> list[int]:
    """`prompt`, and the adapter's invocation if it does not occur after the first `n` tokens. It
    may begin in them, but one that ends there is an earlier turn's. Raises InputError where more
    would follow that of a classifier, which is asked at the last token.
    """
    wanted = active.invocation
    if not wanted:
        return prompt
    start = max(0, n - len(wanted) + 1)
    at = find_last(prompt[start:], wanted)
    if active.classifier is not None:
        ends = at is not None and start + at + len(wanted) == len(prompt)
        if not ends and (at is not None or not invocation.append_invocation):
            raise InputError(
                f"adapter {active.label} is a classifier, which is asked at its invocation: the "
                "prompt has to end with that (in a contract's parameters, extra_body: "
                "{add_generation_prompt: false})"
            )
    return [*prompt, *wanted] if at is None and invocation.append_invocation else prompt


def _reusable(engine: Engine, plan: InvocationPlan, parent: Parent) -> int:
    """How many of the parent's cells a fork for this plan can share."""
    keep = parent.cached.common_prefix(plan.prompt, plan.spans)
    whole = keep == len(parent.cached)
    has_row = whole and parent.logits is not None and plan.head is None
    if keep == len(plan.prompt) and not has_row:
        keep, whole = keep - 1, False  # a token must be decoded to have logits to sample from
    return keep if engine.rewinds or whole else 0


def choose_parent(engine: Engine, plan: InvocationPlan, parents: Sequence[Parent]) -> None:
    """Decides whose cells the plan's fork shares, and notes why not more."""
    plan.parent = max(parents, key=lambda parent: _reusable(engine, plan, parent))
    plan.reuse = _reusable(engine, plan, plan.parent)
    same = plan.parent.cached.common_prefix(plan.prompt, plan.spans)
    who, n = plan.active.label, len(plan.parent.tokens)
    if plan.reuse >= n - 1:
        return
    if plan.first == 0:
        what = "a plain LoRA" if plan.active.plain_lora else "on from the first token"
        plan.note = f"{who} is {what}: it recomputes every token"
    elif plan.prompt[:n] != list(plan.parent.tokens):
        plan.note = f"its prompt differs from the conversation from token {same} of {n} on"
    elif plan.reuse < same - 1:
        plan.note = "this model's memory can be forked only as a whole, so everything is read again"
    elif plan.first is not None and plan.first < n:
        plan.note = f"{who} is on from token {plan.first} of the conversation's {n}"
    else:
        plan.note = f"tokens from {same} on are cached as another adapter computed them"


def prefill_shared(
    engine: Engine, parent: Parent, plans: Sequence[InvocationPlan], cancel: CancelToken | None
) -> Parent | None:
    """Where the conversation's end is not in the cache as the base computes it (an adapter wrote
    the last reply, say) and several plans need it so, prefills it once: a shared prefix that all of
    them fork.
    """
    base, n = spans_for(None, BASE), len(parent.tokens)
    if not plans or not n:
        return None
    have = parent.cached.common_prefix(parent.tokens, base)
    if not engine.rewinds and have < len(parent.cached):
        have = 0
    least = n - 1 if engine.rewinds else n  # a vector may begin at the last token
    wanting = [
        p
        for p in plans
        if (p.first is None or p.first >= least) and p.prompt[:n] == list(parent.tokens)
    ]
    free = engine.cells.free() - (n - have)
    if have == n or len(wanting) < 2 or engine.cells.free_sequences < 2:
        return None
    if free < min(p.needs() - (n if p.first is None else min(n, p.first)) for p in wanting):
        return None
    try:
        seq = engine.fork(parent.seq, have, promise=n - have, cancel=cancel)
    except CacheFullError:
        return None
    try:
        (logits,) = engine.decode([Run(seq, parent.tokens[have:])], cancel=cancel)
    except BaseException:
        engine.drop(seq)
        raise
    cached = parent.cached.copy(have)
    cached.extend(parent.tokens[have:], base)
    return Parent(seq, cached, parent.tokens, logits)


def count_shared(parent: Parent, shared: Parent | None, plans: Sequence[InvocationPlan]) -> None:
    """Counts the tokens of the shared prefix with the first plan that forks it."""
    users = [plan for plan in plans if plan.parent is shared and plan.reuse]
    if shared is None or not users:
        return
    plan = users[0]
    had = parent.cached.common_prefix(shared.tokens, shared.cached.spans)
    plan.extra = max(0, plan.reuse - had)
    if not plan.note:
        plan.note = (
            f"{plan.extra} tokens were cached as another adapter computed them, and read again for "
            f"{len(users)} invocations together"
        )


WORTH: Final = 16
"""The fewest tokens of a beginning that are worth a batch of their own to be read once for two."""


@dataclass(frozen=True, slots=True)
class Lead:
    """The plan whose cells another one can share, and how many of them."""

    index: int
    n: int


def leads(plans: Sequence[InvocationPlan]) -> dict[int, Lead]:
    """For plans that begin like one before them, and not like the conversation, that one, by index:
    questions that are asked several times, or of several adapters that read all anew.
    """
    found: dict[int, Lead] = {}
    known = {plan.index: plan for plan in plans}
    for before, plan in itertools.pairwise(plans):
        # those that begin alike follow one another: the one before, and those that it shares with
        candidates, at = [before.index], before.index
        while at in found:
            at = found[at].index
            candidates.append(at)
        shared = [Lead(i, _shared(known[i], plan)) for i in reversed(candidates)]
        best = max(shared, key=lambda lead: lead.n)  # of equals the first, which waits for none
        if best.n - plan.reuse >= WORTH:
            found[plan.index] = best
    return found


def _shared(one: InvocationPlan, other: InvocationPlan) -> int:
    """How many cells can be those of both; each has at least one token of its own, for logits."""
    n = min(common(one.prompt, other.prompt), len(one.prompt) - 1, len(other.prompt) - 1)
    edges = sorted({start for start, _ in (*one.spans, *other.spans)})
    return min(n, *(at for at in edges if _by(one.spans, at) != _by(other.spans, at)), n)


def _by(spans: Spans, position: int) -> Provenance:
    """Who computes the token at a position."""
    return next(by for start, by in reversed(spans) if start <= position)


def title(plan: InvocationPlan) -> str:
    """Who is asked, for messages."""
    return plan.active.label if plan.active.name is None else f"adapter {plan.active.label}"
