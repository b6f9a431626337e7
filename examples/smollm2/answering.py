"""The examples of answerability: at each place as many questions that can be answered as not."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from . import rewriting, sayings, wordings
from .facts import Clause, Fact
from .scenes import LINES, Scene, whole
from .tasks import (
    YEAR,
    Made,
    Pools,
    holds,
    is_said,
    otherwise,
    swap_name,
    user,
    words,
    wrong_answer,
)
from .wordings import Split

_FORMS: Final = {"which": 0.62, "whether": 0.26, "chat": 0.12}
# how what cannot be answered is made
_UNKNOWN: Final = {"unsaid": 0.3, "verb": 0.3, "swapped": 0.2, "removed": 0.15, "other": 0.05}
_WEIGHTS: Final = {"subject": 1.0, "object": 2.0}  # how often which facts are asked for; others:
_TELLING: Final = 4.0
_NEEDS_WH: Final = ("unsaid", "verb")  # "did it sell the ships?": no, if it lost them
# verbs that may stand for many another
_VAGUE: Final = frozenset({
    "have", "receive", "get", "experience", "provide", "offer", "support", "make", "take", "give",
    "include", "contain", "become", "remain", "require", "use", "see", "show", "hold", "bring",
    "used", "made", "given", "called", "considered", "needed", "known", "seen",
})  # fmt: skip
_TRIES: Final = 20  # until a question is worded as it was not yet
_MAY_SAY_WHEN: Final = re.compile(r"\d|century|year|month|day|January|June|July|March|decade|time")
_MAY_SAY_HOW_LONG: Final = re.compile(r"\d|\bfor\b|year|month|week|since|until|centur|decade")
_CUTS: Final = re.compile(r" (?=(?:in|on|at|with|from|for|to|by|as|after|during|under)\b)")


@dataclass(frozen=True)
class _Asked:
    text: str
    sort: str
    frame: str
    gold: str = ""


def answerability(
    begun: Sequence[Scene], pools: Pools, split: Split, n: int, rng: random.Random
) -> list[Made]:
    """`n` lines, in pairs of the same wording: one can be answered, one cannot."""
    makes = _Makes(begun, pools, split, rng)
    made = []
    for one in begun:
        for pair in makes.pairs(one):
            for asked, verdict in zip(pair, ("answerable", "unanswerable"), strict=True):
                line = {
                    "messages": [*one.earlier, user(asked.text)],
                    **({"documents": one.documents} if one.texts else {}),
                    "answer": {"answerability": verdict},
                }
                made.append(Made(line, one.passage.article, asked.sort, asked.frame, asked.gold))
    return made[:n]


class _Makes:
    def __init__(
        self, begun: Sequence[Scene], pools: Pools, split: Split, rng: random.Random
    ) -> None:
        self._begun, self._pools, self._split, self._rng = begun, pools, split, rng
        self._verbs = [f.clause for one in begun for f in one.kept if f.kind != "subject"]

    def pairs(self, one: Scene) -> list[tuple[_Asked, _Asked]]:
        """Those of a place, each text once."""
        made: list[tuple[_Asked, _Asked]] = []
        asked = {each["content"] for each in one.earlier}
        for _ in range(8 * _TRIES):
            if len(made) == LINES // 2:
                break
            pair = self._pair(one)
            if pair[0].text != pair[1].text and not {each.text for each in pair} & asked:
                made.append(pair)
                asked |= {each.text for each in pair}
        return made

    def _pair(self, one: Scene) -> tuple[_Asked, _Asked]:
        form = self._rng.choices([*_FORMS], [*_FORMS.values()])[0] if one.kept else "chat"
        if form == "chat":
            return self._chat(one)
        weights = [_WEIGHTS.get(each.kind, _TELLING) for each in one.kept]
        known = self._rng.choices(one.kept, weights)[0]
        unknown = self._unknown(one, known, whether=form == "whether")
        if unknown is None:
            return self._chat(one) if self._rng.random() < 0.1 else self._pair(one)
        fact, sort, new = unknown
        if form == "whether":
            frame = self._rng.choice(wordings.YES_NO[self._split])
            known = self._perhaps_wrong(one, known)
            texts = [
                self._put(wordings.filled(frame, self._pronoun(one, whole(each))))
                for each in (known, fact)
            ]
            return _Asked(texts[0], "whether", frame), _Asked(texts[1], sort, frame)
        frame = self._rng.choice(wordings.FRAMES[self._split])
        texts = [self._which(one, each, frame, name) for each, name in ((known, ""), (fact, new))]
        gold = fact.answer if sort == "removed" else ""
        kept = _Asked(texts[0], "kept", frame, known.answer)
        return kept, _Asked(texts[1], sort, frame, gold)

    def _which(self, one: Scene, fact: Fact, frame: str, new: str) -> str:
        short = _shortened(fact, self._rng) if self._rng.random() < 0.5 else fact
        if new and not holds(short.clause.statement, new):
            short = fact
        short = replace(short, clause=self._pronoun(one, short.clause))
        rng = self._rng
        return self._put(wordings.question(short, self._split, rng, frame=frame).text)

    def _put(self, text: str) -> str:
        return otherwise(text, self._split, self._rng)

    def _pronoun(self, one: Scene, clause: Clause) -> Clause:
        """The clause about "it", where the last turn says what that is."""
        if not one.it or clause.subject != one.it or self._rng.random() < 0.3:
            return clause
        return replace(clause, subject=rewriting.pronoun(clause) or clause.subject)

    def _perhaps_wrong(self, one: Scene, fact: Fact) -> Fact:
        """The fact with a wrong figure, at times: a no is an answer, too."""
        if fact.kind not in ("when", "how many", "how much") or self._rng.random() < 0.5:
            return fact
        wrong = wrong_answer(one, fact, self._pools, self._rng, here=False)
        if wrong is None:
            return fact
        return replace(fact, answer=wrong, said=fact.said.replace(fact.answer, wrong, 1))

    def _unknown(self, one: Scene, like: Fact, *, whether: bool) -> tuple[Fact, str, str] | None:
        """A fact that cannot be known here, of the same kind as `like` if there is one; and how it
        was made, and the name that must stay in it. Another year is a wrong answer to "whether".
        """
        weights = {k: w for k, w in _UNKNOWN.items() if not whether or k not in _NEEDS_WH}
        for _ in range(_TRIES):
            sort = self._rng.choices([*weights], [*weights.values()])[0]
            found = self._of_sort(sort, one, like)
            if found is not None and not (whether and found[1].isdigit()):
                return found[0], sort, found[1]
        return None

    def _of_sort(self, sort: str, one: Scene, like: Fact) -> tuple[Fact, str] | None:
        rng = self._rng
        if sort == "removed":
            same = [each for each in one.removed if each.kind == like.kind]
            pool = same or (one.removed if rng.random() < 0.5 else [])
            return (rng.choice(pool), "") if pool else None
        if sort == "other":
            other = rng.choice(self._begun)
            pool = [each for each in other.kept if each.kind == like.kind]
            a, b = one.passage, other.passage
            if a.source != b.source or a.article == b.article or not pool:
                return None
            fact = rng.choice(pool)
            new = [name for name in fact.names if not words(name) & words(one.text)]
            return (fact, new[0]) if new and not is_said(fact, [one.text]) else None
        fact = rng.choice([each for each in one.kept if each.kind == like.kind])
        if sort == "swapped":
            return swap_name(one, fact, self._pools, rng)
        made: Fact | None = self._verb(one, fact) if sort == "verb" else _unsaid(one, like, rng)
        return (made, "") if made is not None else None

    def _verb(self, one: Scene, fact: Fact) -> Fact | None:
        """The fact with another verb, which the text does not have."""
        c = fact.clause
        if fact.kind == "subject" or not (c.rest or fact.kind == "object"):
            return None
        if len(c.base.split()) != 1 or c.base in _VAGUE:
            return None
        fitting = [
            each
            for each in self._rng.sample(self._verbs, min(300, len(self._verbs)))
            if each.aux == c.aux
            and each.rest.split()[:1] == c.rest.split()[:1]
            and len(each.base.split()) == 1
            and each.base not in {c.base, *_VAGUE}
            and each.base[:4] not in one.text
        ]
        return replace(fact, clause=_with_verb(c, fitting[0])) if fitting else None

    def _chat(self, one: Scene) -> tuple[_Asked, _Asked]:
        """What needs no fact, and what needs one that is not there."""
        rng, split = self._rng, self._split
        free = rng.choice((sayings.ACKNOWLEDGED, sayings.ACKNOWLEDGED, sayings.FREE))[split]
        general = [asked for asked, _ in sayings.GENERAL[split]]
        if rng.random() < 0.4:
            free, general = (
                (sayings.OF_TEXT[split], general)
                if one.texts
                else (free, [*sayings.OF_TEXT[split]])
            )
        a, b = rng.choice(free), rng.choice(general)
        return _Asked(a, "chat", a), _Asked(b, "chat", b)


def _with_verb(clause: Clause, other: Clause) -> Clause:
    return replace(clause, verb=other.verb, base=other.base)


def _around(one: Scene, fact: Fact) -> str:
    """The fact's sentence, and the one before it."""
    begin = max(0, fact.sentence - 1)
    return " ".join(each.text for each in one.passage.sentences[begin : fact.sentence + 1])


def _unsaid(one: Scene, like: Fact, rng: random.Random) -> Fact | None:
    """When, how long or by whom something was that the page tells without that."""
    kind = like.kind
    if kind not in ("when", "how long", "by"):
        if rng.random() < 0.5:
            return None
        kind = "when"
    silent = {"when": _MAY_SAY_WHEN, "how long": _MAY_SAY_HOW_LONG, "by": re.compile(r"\bby\b")}
    pool = []
    for fact in one.kept:
        clause = whole(fact)
        if clause.aux not in ("did", "was", "were") or silent[kind].search(_around(one, fact)):
            continue
        if kind == "by" and not (clause.aux != "did" and clause.base.endswith("ed")):
            continue
        if clause.base:
            pool.append(Fact(kind, clause, "", "", fact.sentence, names=fact.names))
    return rng.choice(pool) if pool else None


def _shortened(fact: Fact, rng: random.Random) -> Fact:
    """The fact without the last of what is said about it, where enough is left."""
    c = fact.clause
    cuts = [m.start() for m in _CUTS.finditer(c.rest)]
    cuts = [at for at in cuts if len(words(f"{c.subject} {c.base} {c.rest[:at]}")) >= 3]
    if not cuts or "between" in c.rest or YEAR.search(c.rest):
        return fact
    return replace(fact, clause=replace(c, rest=c.rest[: rng.choice(cuts)]))
