"""How conversations begin: documents, and turns that went before. What is asked at one place shares
its beginning.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from . import facts, sayings, tasks, wordings
from .facts import Clause, Fact, capitalised
from .tasks import Page, assistant, user
from .wordings import Split

LINES: Final = 4  # that share a beginning, two of each label
# how many turns went before, and how many passages the documents have: shares
TURNS: Final = (((0, 0), 0.4), ((1, 1), 0.2), ((2, 3), 0.25), ((4, 8), 0.15))
_PASSAGES: Final = {1: 0.6, 2: 0.18, 3: 0.12, 4: 0.1}
_NONE: Final = 0.15  # have no documents, where that makes sense
_JOINED: Final = 0.4  # of several passages are one document
_TOLD: Final = 0.5  # of those that lack something are told it in an earlier turn


@dataclass
class Scene(Page):
    """A page with more around it. `kept` can be known, from documents or turns, `removed` cannot;
    `it` is what the last turn was about.
    """

    texts: list[str] = field(default_factory=list)
    it: str = ""

    @property
    def documents(self) -> list[dict[str, str]]:
        return [{"text": each} for each in self.texts]


def n_turns(rng: random.Random) -> int:
    """How many turns went before."""
    (span, _), *_ = rng.choices(TURNS, [share for _, share in TURNS])
    return rng.randint(*span)


def whole(fact: Fact) -> Clause:
    """The fact's clause without a gap."""
    c = fact.clause
    if fact.kind == "subject":
        return replace(c, subject=fact.said)
    parts = (fact.said, c.rest) if fact.kind in _OBJECTS else (c.rest, fact.said)
    return replace(c, rest=" ".join(part for part in parts if part))


_OBJECTS: Final = ("object", "how many", "how much")


def scenes(pages: Sequence[Page], split: Split, n: int, *, documents: bool) -> list[Scene]:
    """Beginnings for `n` lines, of the pages that say most. With `documents` all have some, and
    nobody tells what is not in them.
    """
    pages = [replace(each, kept=_sound(each), earlier=[]) for each in pages]
    by_article: dict[str, list[Page]] = defaultdict(list)
    by_source: dict[str, list[Page]] = defaultdict(list)
    for each in pages:
        by_article[each.passage.article].append(each)
        by_source[each.passage.source].append(each)
    chosen = tasks.richest([each for each in pages if each.kept], n)
    return [
        _scene(
            one,
            by_article[one.passage.article],
            by_source[one.passage.source],
            split,
            documents=documents,
        )
        for one in chosen
    ]


def _sound(page: Page) -> list[Fact]:
    """All that the page says and that reads well."""
    return [
        each
        for each in facts.facts(page.passage)
        if page.passage.sentences[each.sentence].text in page.text and tasks.is_sound(each)
    ]


def _scene(
    page: Page, near: Sequence[Page], far: Sequence[Page], split: Split, *, documents: bool
) -> Scene:
    rng = random.Random(f"scene {split} {page.text}")
    n = n_turns(rng)
    bare = rng.random() < _NONE and not documents
    others = [] if bare else _others(page, near, far, rng)
    texts = [each.text for each in (page, *others)]
    rng.shuffle(texts)
    joined = len(texts) > 1 and rng.random() < _JOINED
    made = Scene(page.passage, "\n\n".join(texts), [*page.kept], [])
    made.texts = [] if bare else ["\n\n".join(texts)] if joined else texts
    removed = [f for f in page.removed if tasks.is_sound(f)]
    made.removed = [f for f in removed if not tasks.is_said(f, [made.text])]
    if bare:
        _tell(made, split, rng, max(n, rng.random() < 0.6))
    else:
        spoken = [*made.kept, *(f for each in others for f in each.kept)]
        _talk(made, spoken, split, rng, n, tells=not documents)
    return made


def _others(
    page: Page, near: Sequence[Page], far: Sequence[Page], rng: random.Random
) -> list[Page]:
    """More pages for the documents: of the same article, or of any."""
    n = rng.choices([*_PASSAGES], [*_PASSAGES.values()])[0] - 1
    pool = near if len(near) > n and rng.random() < 0.5 else far
    pool = [each for each in pool if each.text != page.text]
    return rng.sample(pool, min(n, len(pool)))


def _talk(
    made: Scene, spoken: Sequence[Fact], split: Split, rng: random.Random, n: int, *, tells: bool
) -> None:
    """`n` turns: what the documents say, what they do not, which the user may tell, and small
    talk.
    """
    removed = [*made.removed]
    at = rng.randrange(n) if n and removed and tells and rng.random() < _TOLD else -1
    asked = set[str]()
    while len(made.earlier) < 2 * n:
        made_it, draw = "", rng.random()
        last = len(made.earlier) == 2 * n - 2
        if len(made.earlier) == 2 * at:
            fact = rng.choice(removed)
            question, said = rng.choice(sayings.TOLD[split])
            question = question.format(it=_stated(fact))
            _know(made, fact)
        elif draw < 0.65 and spoken:
            fact = rng.choice((_leading(made.kept) or made.kept) if last else spoken)
            made_it = fact.clause.subject
            question = wordings.question(fact, split, rng).text
            short = rng.random() < 0.6
            said = capitalised(fact.said if short else fact.with_answer(fact.answer)) + "."
        elif draw < 0.78 and (open_ones := _telling_nothing(made.removed)):
            question = wordings.question(rng.choice(open_ones), split, rng).text
            said = rng.choice(sayings.UNKNOWN[split])
        else:
            pool = sayings.SMALL_TALK if draw < 0.93 else sayings.GENERAL
            question, said = rng.choice(pool[split])
        if question not in asked or len(asked) > 3 * n:
            made.earlier += [user(question), assistant(said)]
            made.it = made_it
        asked.add(question)


def _telling_nothing(removed: Sequence[Fact]) -> list[Fact]:
    """Those whose question does not hold what another asks for."""
    return [
        each
        for each in removed
        if not any(tasks.holds(each.clause.statement, other.answer) for other in removed)
    ]


def _leading(kept: Sequence[Fact]) -> list[Fact]:
    """Those after which one would say "it" in the next question."""
    subjects = [each.clause.subject for each in kept if each.clause.subject]
    return [each for each in kept if subjects.count(each.clause.subject) > 1]


def _tell(made: Scene, split: Split, rng: random.Random, n: int) -> None:
    """The same without documents: it is the user who says something."""
    told = rng.sample(made.kept, len(made.kept))
    made.removed, made.kept = [*made.kept, *made.removed], []
    made.text = ""
    asked = set[str]()
    for _ in range(n):
        if told and rng.random() < 0.65:
            fact = told.pop()
            asking, said = rng.choice(sayings.TOLD[split][:3])
            question = capitalised(asking.format(it=_stated(fact)))
            _know(made, fact)
            made.text += f"{capitalised(whole(fact).statement)}. "
            made.it = fact.clause.subject
        else:
            question, said = rng.choice(sayings.SMALL_TALK[split])
            made.it = ""
        if question not in asked:
            made.earlier += [user(question), assistant(said)]
        asked.add(question)
    made.removed = [f for f in made.removed if not tasks.is_said(f, [made.text])]


def _stated(fact: Fact) -> str:
    return whole(fact).statement.rstrip(".")


def _know(made: Scene, fact: Fact) -> None:
    """The fact, and what else its sentence says, is known from now on."""
    said = whole(fact).statement
    for each in [*made.removed]:
        if whole(each).statement == said or each == fact:
            made.kept.append(each)
            made.removed.remove(each)
