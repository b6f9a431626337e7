"""Passages that are asked about, and the examples of hallucination."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from . import facts, sayings, wordings
from .facts import Fact
from .passages import Passage
from .wordings import Split

Line = dict[str, Any]
_WORD: Final = re.compile(r"[a-z0-9]+")
YEAR: Final = re.compile(r"\b(?:1[4-9]|20)\d\d\b")
_COMMON: Final = frozenset({
    "the", "a", "an", "of", "in", "on", "at", "by", "for", "to", "from", "with", "and", "or", "is",
    "are", "was", "were", "did", "do", "does", "has", "have", "had", "be", "been", "what", "who",
    "when", "where", "which", "how", "many", "much", "its", "their", "his", "as",
})  # fmt: skip
_BROKEN: Final = re.compile(
    r"(?:\b(?:the|a|an|of|for|and|or|to|in|by|with|as|roughly|nearly|only)|,)$"
    r"|^(?:Inc|Ltd|Co|Corp)\b"
)
# how answers that are not faithful are made
_WRONG: Final = {"removed": 0.3, "here": 0.35, "elsewhere": 0.35}
_LINES_PER_PAGE: Final = 4  # on average: a page is read once for all of them
_SMALL_TALK: Final[dict[Split, tuple[tuple[str, str], ...]]] = {
    "train": (
        ("I have a question about this text.", "Go ahead."),
        ("Hello!", "Hello, how can I help you?"),
        ("Have you read the text?", "Yes, I have."),
        ("Thanks for your help so far.", "You are welcome."),
    ),
    "eval": (
        ("May I ask you something?", "Of course."),
        ("Good morning.", "Good morning! What would you like to know?"),
        ("I am reading this just now.", "Ask me if anything is unclear."),
    ),
    "final": (
        ("There is something I need to look up.", "Sure, I can look."),
        ("Hi, are you there?", "Yes, I am here."),
    ),
}


@dataclass
class Page:
    """A passage without one of its sentences, and what can be asked about it."""

    passage: Passage
    text: str
    kept: list[Fact]
    removed: list[Fact]
    earlier: list[dict[str, str]] = field(default_factory=list)

    @property
    def documents(self) -> list[dict[str, str]]:
        return [{"text": self.text}]


def words(text: str) -> set[str]:
    """The words that carry meaning."""
    return {w for w in _WORD.findall(text.lower()) if w not in _COMMON}


def holds(text: str, answer: str) -> bool:
    """Whether the answer stands in the text, as whole words."""
    return bool(re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", text.lower()))


def is_sound(fact: Fact) -> bool:
    """Whether it reads as a whole, as far as that can be seen."""
    dated_twice = fact.kind == "when" and YEAR.search(fact.clause.statement)
    texts = (fact.clause.statement, fact.with_answer(fact.answer))
    return not dated_twice and not any(_BROKEN.search(each) for each in texts)


def is_said(fact: Fact, sentences: Sequence[str]) -> bool:
    """Whether some sentence may well say it."""
    about = words(fact.clause.statement)
    for one in sentences:
        near = len(about & words(one)) >= 0.5 * len(about)
        if holds(one, fact.answer) and (near or fact.kind not in ("subject", "by")):
            return True
        if len(about & words(one)) >= 0.8 * len(about):
            return True
    return False


def page(passage: Passage, split: Split) -> Page:
    """The passage without a sentence, at random: where that said something that the rest does not,
    this can no longer be answered. All tasks have the same, which is read once for all of them.
    """
    rng = random.Random(f"{split} {passage.sentences[0].text}")
    found = facts.facts(passage)
    telling = sorted({each.sentence for each in found})
    silent = [i for i in range(len(passage.sentences)) if i not in telling]
    if telling and (len(telling) > 1 or not silent or rng.random() < 0.4):
        gone = rng.choice(telling)
    else:
        gone = rng.choice(silent or telling)
    rest = [s.text for i, s in enumerate(passage.sentences) if i != gone]
    removed = [f for f in found if f.sentence == gone and not is_said(f, rest)]
    kept = [f for f in found if f.sentence != gone]
    made = Page(passage, passage.text(gone), kept, removed)
    _begin(made, split, rng)
    return made


def _begin(made: Page, split: Split, rng: random.Random) -> None:
    """Up to two turns that went before."""
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        by_sentence = {each.sentence for each in made.kept}
        if len(by_sentence) > 1 and len(made.kept) > 2 and rng.random() < 0.7:
            fact = made.kept.pop(rng.randrange(len(made.kept)))
            asked = wordings.question(fact, split, rng).text
            said = facts.capitalised(fact.said) + "."
        else:
            asked, said = rng.choice(_SMALL_TALK[split])
            if any(each["content"] == asked for each in made.earlier):
                continue
        made.earlier += [user(asked), assistant(said)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def said(turns: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """The messages of turns."""
    return [each for asked, reply in turns for each in (user(asked), assistant(reply))]


@dataclass(frozen=True)
class Made:
    """A line, and what is known about it for tests and reports: `about` is the passage's article,
    `sort` how it was made, `wording` what it is worded in.
    """

    line: Line
    about: str
    sort: str
    wording: str
    gold: str = ""
    more: Mapping[str, float] = field(default_factory=dict)

    @property
    def notes(self) -> dict[str, Any]:
        """All but the line."""
        return {"about": self.about, "sort": self.sort, "wording": self.wording,
                "gold": self.gold, **self.more}  # fmt: skip


class Pools:
    """Answers and names of a source, by form, for wrong ones to be taken from."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.answers: dict[str, list[str]] = defaultdict(list)
        self.names: dict[str, list[str]] = defaultdict(list)
        for passage in passages:
            for fact in facts.facts(passage):
                self.answers[f"{passage.source} {form(fact, fact.answer)}"].append(fact.answer)
                for name in fact.names:
                    self.names[f"{passage.source} {len(name.split())}"].append(name)


def form(fact: Fact, answer: str) -> str:
    """What an answer may be exchanged for: one of the same form."""
    shape = re.sub("[0-9]+", "0", answer) if fact.kind == "when" else ""
    return f"{fact.kind} {shape}{' counted' if fact.counted else ''}"


def richest(pages: Sequence[Page], n: int) -> list[Page]:
    """As many of the pages as `n` lines need, those first that most can be asked about."""
    wanted = -(-n // _LINES_PER_PAGE)
    order = sorted(range(len(pages)), key=lambda i: -len(pages[i].kept) - len(pages[i].removed))
    return [pages[i] for i in sorted(order[:wanted])]


def swap_name(one: Page, fact: Fact, pools: Pools, rng: random.Random) -> tuple[Fact, str] | None:
    """The fact asked about something else that the page does not mention: another name or year."""
    c = fact.clause
    text = c.statement
    years = YEAR.findall(text)
    names = [n for n in fact.names if holds(text, n) and not n.islower()]
    choices = [*names, *(years[:1] if rng.random() < 0.5 or not names else ())]
    if not choices:
        return None
    old = rng.choice(choices)
    for _ in range(20):
        if old in years:
            new = str(int(old) + rng.choice((-1, 1)) * rng.randint(1, 12))
        else:
            new = rng.choice(pools.names[f"{one.passage.source} {len(old.split())}"])
        if new != old and not words(new) & words(one.text):

            def put(part: str, old: str = old, new: str = new) -> str:
                return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new, part)

            about = replace(c, subject=put(c.subject), rest=put(c.rest))
            return replace(fact, clause=about), new
    return None


def wrong_answer(
    one: Page, fact: Fact, pools: Pools, rng: random.Random, *, here: bool
) -> str | None:
    """Another answer of the same form, from the same page if `here`."""
    if fact.kind == "when" and here:
        shape = re.sub(r"[0-9]+", "[0-9]+", re.escape(fact.answer))
        if fact.year:
            shape = r"\b(?:1[0-9]|20)\d\d\b"
        pool = re.findall(shape, one.text)
    elif fact.kind in ("how many", "how much") and here:
        pool = re.findall(r"\$[\d.,]*\d(?: [mb]illion)?|\b\d[\d,.]*\d%?|\d%", one.text)
        pool = [x for x in pool if ("%" in x, "$" in x) == ("%" in fact.answer, "$" in fact.answer)]
    elif here:
        others = [f for f in (*one.kept, *one.removed) if f.kind == fact.kind]
        pool = [f.answer for f in others if f in one.kept]
        if fact.kind in ("subject", "where", "by"):
            pool += [n for f in one.kept for n in f.names if len(n) > 3]
    else:
        pool = pools.answers[f"{one.passage.source} {form(fact, fact.answer)}"]
    mine = words(fact.answer)
    clause = words(fact.clause.statement)
    pool = [x for x in pool if not words(x) & mine and not words(x) <= clause and words(x)]
    if fact.kind == "subject":  # what is said of many should not be said of one
        plural = fact.answer.split()[-1].endswith("s")
        pool = [x for x in pool if x.split()[-1].endswith("s") == plural]
    return rng.choice(pool) if pool else None


def hallucination(
    pages: Sequence[Page], pools: Pools, split: Split, n: int, rng: random.Random
) -> list[Made]:
    """Half of the `n` lines are faithful, in each wording as many as not."""
    good: dict[str, list[Made]] = defaultdict(list)
    bad: dict[str, dict[str, list[Made]]] = defaultdict(lambda: defaultdict(list))
    for one in pages:
        for fact in one.kept:
            for here in (True, False):
                wrong = wrong_answer(one, fact, pools, rng, here=here)
                if wrong is None:
                    continue
                for wording in _some_wordings(fact, split, rng):
                    right_first = _stated(one, fact, wording, fact.answer, wrong, split, rng)
                    wrong_first = _stated(one, fact, wording, wrong, fact.answer, split, rng)
                    if wording.turned:
                        right_first, wrong_first = wrong_first, right_first
                    good[wording.template].append(_verdict(right_first, "yes", "kept"))
                    sort = "here" if here else "elsewhere"
                    bad[wording.template][sort].append(_verdict(wrong_first, "no", sort))
                for template, right, not_right in _in_two(one, fact, wrong, split, rng):
                    good[template].append(_verdict(right, "yes", "two"))
                    bad[template]["here"].append(_verdict(not_right, "no", "two"))
            refused = rng.choice(wordings.REFUSED[split])
            made = _refused(one, fact, refused, split, rng)
            bad[refused]["here"].append(_verdict(made, "no", "refused"))
        for fact in one.removed:
            refused = rng.choice(wordings.REFUSED[split])
            made = _refused(one, fact, refused, split, rng)
            good[refused].append(_verdict(made, "yes", "refused"))
            wrong = wrong_answer(one, fact, pools, rng, here=False)
            for wording in _some_wordings(fact, split, rng):
                if wrong is not None and not wording.turned:
                    made = _stated(one, fact, wording, fact.answer, wrong, split, rng)
                    bad[wording.template]["removed"].append(_verdict(made, "no", "removed"))
    return _balanced(good, bad, n, rng)


def _in_two(
    one: Page, fact: Fact, wrong: str, split: Split, rng: random.Random
) -> list[tuple[str, Made, Made]]:
    """Answers of two sentences: right, and with `wrong` in one of them."""
    others = [each for each in one.kept if each.sentence != fact.sentence]
    if not others:
        return []
    first, second = rng.sample((fact, rng.choice(others)), 2)
    template, (opening, more) = rng.choice([*wordings.IN_TWO[split].items()])
    question = wordings.question(first, split, rng).text
    made = []
    for answer in (fact.answer, wrong):
        said = " ".join(
            wordings.answer(each, each_wording, answer if each is fact else each.answer, "")
            for each, each_wording in ((first, opening), (second, more))
        )
        made.append(_said(one, question, otherwise(said, split, rng), template, answer))
    return [(template, made[0], made[1])]


def _refused(one: Page, fact: Fact, template: str, split: Split, rng: random.Random) -> Made:
    """An answer that says that the documents do not say it."""
    asked = wordings.question(fact, split, rng)
    return _said(one, asked.text, wordings.worded(fact, template, asked.asked), template, "")


def otherwise(text: str, split: Split, rng: random.Random) -> str:
    """The text with other words for some, at times."""
    if rng.random() < 0.5:
        return text
    known = sayings.SYNONYMS[split]
    return re.sub(r"\b[a-z]+\b", lambda word: known.get(word[0], word[0]), text)


def _some_wordings(fact: Fact, split: Split, rng: random.Random) -> list[wordings.Wording]:
    fitting = [each for each in wordings.WORDINGS[split] if each.fits(fact)]
    return rng.sample(fitting, min(4, len(fitting)))


def _stated(
    one: Page,
    fact: Fact,
    wording: wordings.Wording,
    stated: str,
    other: str,
    split: Split,
    rng: random.Random,
) -> Made:
    asked = wordings.question(fact, split, rng)
    said = otherwise(wordings.answer(fact, wording, stated, other), split, rng)
    return _said(one, asked.text, said, wording.template, stated)


def _said(one: Page, asked: str, said: str, template: str, gold: str) -> Made:
    line = {
        "messages": [*one.earlier, user(asked), assistant(said)],
        "documents": one.documents,
    }
    return Made(line, one.passage.article, "", template, gold)


def _verdict(made: Made, faithful: str, sort: str) -> Made:
    line = {**made.line, "answer": {"faithful": faithful}}
    return Made(line, made.about, sort, made.wording, made.gold)


def _balanced(
    good: dict[str, list[Made]],
    bad: dict[str, dict[str, list[Made]]],
    n: int,
    rng: random.Random,
) -> list[Made]:
    by_template = {template: _different(some) for template, some in good.items()}
    # turned ones and those with little to choose from come first; the others make up for them
    templates = sorted(by_template, key=lambda each: _order(each, by_template))
    chosen: list[Made] = []
    for k, template in enumerate(templates):
        right = by_template[template]
        wanted = min((n - len(chosen)) // 2 // (len(templates) - k), len(right))
        if template in wordings.TURNED:  # hard for a small model
            wanted //= 2
        wrong: list[Made] = []
        for sort, share in _WRONG.items():
            pool = _different(bad[template][sort])
            wrong += rng.sample(pool, min(len(pool), round(wanted * share)))
        used = {id(each) for each in wrong}
        more = [e for s in ("here", "elsewhere") for e in bad[template][s] if id(e) not in used]
        wrong += rng.sample(more, min(len(more), max(0, wanted - len(wrong))))
        wrong = wrong[:wanted]
        chosen += wrong + rng.sample(right, len(wrong))
    return chosen


def _order(template: str, some: Mapping[str, Sequence[Made]]) -> tuple[bool, int, str]:
    return template not in wordings.TURNED, len(some[template]), template


def _different(some: Sequence[Made]) -> list[Made]:
    return [*{str(each.line): each for each in some}.values()]
