"""The examples of answerability and hallucination: conversations about passages."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from . import facts, wordings
from .facts import Fact
from .passages import Passage
from .wordings import Split

Line = dict[str, Any]
_WORD: Final = re.compile(r"[a-z0-9]+")
_COMMON: Final = frozenset({
    "the", "a", "an", "of", "in", "on", "at", "by", "for", "to", "from", "with", "and", "or", "is",
    "are", "was", "were", "did", "do", "does", "has", "have", "had", "be", "been", "what", "who",
    "when", "where", "which", "how", "many", "much", "its", "their", "his", "as",
})  # fmt: skip
# how answers that are not faithful are made
_WRONG: Final = {"removed": 0.3, "here": 0.35, "elsewhere": 0.35}
_LINES_PER_PAGE: Final = 4  # on average: a page is read once for all of them
_TRIES: Final = 20  # until a question is worded as it was not yet
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


def answerability(
    pages: Sequence[Page], pools: Pools, split: Split, n: int, rng: random.Random
) -> list[Made]:
    """Half of the `n` lines can be answered; of the others half lack the sentence, a quarter is
    about another passage, a quarter has another name in the question.
    """
    pages = richest(pages, n)
    by_sort: dict[str, list[tuple[int, Fact, str]]] = defaultdict(list)
    for i, one in enumerate(pages):
        for fact in one.kept:
            by_sort["kept"].append((i, fact, ""))
        for fact in one.removed:
            by_sort["removed"].append((i, fact, ""))
        if one.kept:
            swapped = swap_name(one, rng.choice(one.kept), pools, rng)
            if swapped:
                by_sort["swapped"].append((i, *swapped))
        for other in rng.sample(pages, min(4, len(pages))):
            a, b = one.passage, other.passage
            if a.source != b.source or a.article == b.article or not other.kept:
                continue
            fact = rng.choice(other.kept)
            unknown = any(not holds(one.text, name) for name in fact.names)
            if unknown and not is_said(fact, [one.text]):
                by_sort["other"].append((i, fact, ""))
    taken = [
        *_take(by_sort["kept"], n // 2, "kept", rng),
        *_take(by_sort["removed"], n // 4, "removed", rng),
        *_take(by_sort["other"], n // 8, "other", rng),
        *_take(by_sort["swapped"], n - n // 2 - n // 4 - n // 8, "swapped", rng),
    ]
    made, seen = [], set[tuple[int, str]]()
    for i, fact, _, sort in sorted(taken, key=lambda each: each[0]):
        one = pages[i]
        asked = wordings.question(fact, split, rng)
        for _ in range(_TRIES):
            if (i, asked.text) not in seen:
                break
            asked = wordings.question(fact, split, rng)
        seen.add((i, asked.text))
        verdict = "answerable" if sort == "kept" else "unanswerable"
        line = {
            "messages": [*one.earlier, user(asked.text)],
            "documents": one.documents,
            "answer": {"answerability": verdict},
        }
        gold = fact.answer if sort in ("kept", "removed") else ""
        made.append(Made(line, one.passage.article, sort, asked.frame, gold))
    return made


def _take(
    pool: list[tuple[int, Fact, str]], n: int, sort: str, rng: random.Random
) -> Iterator[tuple[int, Fact, str, str]]:
    """`n` of the pool; more than once, in other words, where it is smaller than that."""
    if not pool:
        return
    order: list[tuple[int, Fact, str]] = []
    while len(order) < n:
        order += rng.sample(pool, len(pool))
    for i, fact, swapped in order[:n]:
        yield i, fact, swapped, sort


def swap_name(one: Page, fact: Fact, pools: Pools, rng: random.Random) -> tuple[Fact, str] | None:
    """The fact asked about something else that the page does not mention: another name or year."""
    c = fact.clause
    text = c.statement
    years = re.findall(r"\b(?:1[4-9]|20)\d\d\b", text)
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
    pages = richest(pages, n * 5 // 4)  # each wording fits some facts alone
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
        for fact in one.removed:
            wrong = wrong_answer(one, fact, pools, rng, here=False)
            for wording in _some_wordings(fact, split, rng):
                if wrong is not None and not wording.turned:
                    made = _stated(one, fact, wording, fact.answer, wrong, split, rng)
                    bad[wording.template]["removed"].append(_verdict(made, "no", "removed"))
    return _balanced(good, bad, n, rng)


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
    said = wordings.answer(fact, wording, stated, other)
    line = {
        "messages": [*one.earlier, user(asked.text), assistant(said)],
        "documents": one.documents,
    }
    return Made(line, one.passage.article, "", wording.template, stated)


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
    # those with little to choose from come first, and what they lack the others make up for
    templates = sorted(by_template, key=lambda each: (len(by_template[each]), each))
    chosen: list[Made] = []
    for k, template in enumerate(templates):
        right = by_template[template]
        wanted = min((n - len(chosen)) // 2 // (len(templates) - k), len(right))
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


def _different(some: Sequence[Made]) -> list[Made]:
    return [*{str(each.line): each for each in some}.values()]
