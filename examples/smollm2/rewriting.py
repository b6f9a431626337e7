"""The examples of query rewriting: talks whose last question leans on what was said before."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from . import facts, wordings
from .facts import Clause, Fact, capitalised
from .passages import Passage
from .tasks import Made, Page, Pools, assistant, swap_name, user
from .wordings import Split

# How a talk about {it} begins.
OPENERS: Final[dict[Split, tuple[tuple[str, str], ...]]] = {
    "train": (
        ("Tell me about {it}.", "Gladly. What would you like to know?"),
        ("I am reading about {it}.", "That is an interesting subject."),
        ("Do you know anything about {it}?", "Yes, I do."),
        ("Let us talk about {it}.", "All right."),
        ("I have a question about {it}.", "Please ask."),
        ("My homework is about {it}.", "Then let us have a look at it."),
    ),
    "eval": (
        ("What do you know about {it}?", "Quite a lot. Ask me."),
        ("We were speaking of {it}.", "Yes, go on."),
        ("I want to learn more about {it}.", "Good. Where shall we begin?"),
        ("Are you familiar with {it}?", "I think so."),
    ),
    "final": (
        ("Today I came across {it}.", "What caught your eye?"),
        ("Can we discuss {it}?", "Of course we can."),
    ),
}
# How one asks for what is missing in what was just said, and which question that is.
_MISSING: Final[dict[Split, dict[str, tuple[tuple[str, str], ...]]]] = {
    "train": {
        "when": (
            ("And when?", "when"), ("When was that?", "when"), ("In what year?", "in what year"),
        ),
        "where": (("And where?", "where"), ("Where was that?", "where")),
        "by": (("By whom?", "by whom"), ("And who did that?", "by whom")),
        "how long": (("For how long?", "for how long"), ("And how long?", "for how long")),
    },
    "eval": {
        "when": (("When exactly?", "when"), ("Since you mention it, when?", "when")),
        "where": (("Where exactly?", "where"), ("Do you know where?", "where")),
        "by": (("Do you know by whom?", "by whom"),),
        "how long": (("Do you know for how long?", "for how long"),),
    },
    "final": {
        "when": (("Can you say when?", "when"),),
        "where": (("Can you say where?", "where"),),
        "by": (("Can you say by whom?", "by whom"),),
        "how long": (("Can you say for how long?", "for how long"),),
    },
}  # fmt: skip
# How one asks the last question again of {it}.
_SAME_OF: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("And {it}?", "What about {it}?", "The same for {it}, please.", "And for {it}?"),
    "eval": ("How about {it}?", "And in the case of {it}?", "Now {it}."),
    "final": ("Then what of {it}?", "Likewise for {it}?"),
}
_SHARES: Final = {"pronoun": 0.4, "missing": 0.15, "same": 0.2, "whole": 0.25}


def query_rewrite(
    passages: Sequence[Passage], pools: Pools, split: Split, n: int, rng: random.Random
) -> list[Made]:
    """`n` lines; a quarter of the questions can be understood as they are."""
    found: dict[str, dict[str, Made]] = {sort: {} for sort in _SHARES}
    for passage in passages:
        told = [fact for fact in facts.facts(passage) if _can_be_spoken_of(fact.clause)]
        for fact in told:
            others = [each for each in told if each is not fact]
            for sort, make in _SORTS.items():
                for _ in range(2 if sort != "pronoun" else 3):
                    made = make(passage, fact, others, pools, split, rng)
                    if made is not None:
                        found[sort].setdefault(str(made.line), made)
    chosen = [
        each
        for sort, share in _SHARES.items()
        for each in rng.sample([*found[sort].values()], min(len(found[sort]), round(n * share)))
    ]
    taken = {id(each) for each in chosen}
    spare = [each for each in found["pronoun"].values() if id(each) not in taken]
    chosen += rng.sample(spare, min(len(spare), max(0, n - len(chosen))))
    return chosen


def _can_be_spoken_of(clause: Clause) -> bool:
    """Whether the subject is one thing that a pronoun can stand for; a missing one may be asked."""
    subject = clause.subject
    return not re.match(r"(a|an|\d|about|nearly|over)\b", subject, re.IGNORECASE)


_HE: Final = frozenset({
    "Abraham", "Adam", "Alan", "Albert", "Alexander", "Ali", "Andrew", "Bill", "Bob", "Charles",
    "Chris", "Christopher", "Daniel", "David", "Dennis", "Dick", "Donald", "Douglas", "Edgar",
    "Edward", "Eric", "Francis", "Franklin", "Frederick", "George", "Gordon", "Harry", "Henry",
    "Hugo", "Ian", "Isaac", "Jack", "Jacob", "James", "Jean", "Jim", "Joe", "John", "Jose",
    "Joseph", "Juan", "Karl", "Ken", "Kim", "Larry", "Linus", "Louis", "Luis", "Mark", "Martin",
    "Max", "Michael", "Mike", "Mohamed", "Mohammed", "Nelson", "Nicholas", "Niklaus", "Oliver",
    "Oscar", "Paul", "Peter", "Philip", "Ralph", "Raymond", "Richard", "Rob", "Robert", "Roger",
    "Ronald", "Samuel", "Simon", "Steve", "Stephen", "Theodore", "Thomas", "Tim", "Tom", "Viktor",
    "Vladimir", "Walter", "Warren", "William", "Winston",
})  # fmt: skip
_SHE: Final = frozenset({
    "Alice", "Angela", "Ann", "Anna", "Anne", "Barbara", "Carol", "Catherine", "Cristina", "Diana",
    "Elizabeth", "Eva", "Grace", "Helen", "Hillary", "Isabel", "Jane", "Joan", "Julia", "Laura",
    "Linda", "Margaret", "Maria", "Mary", "Michelle", "Nancy", "Rosa", "Ruth", "Sally", "Sarah",
    "Susan", "Victoria",
})  # fmt: skip
# what happens to people alone
_PERSONAL: Final = frozenset({
    "appointed", "assassinated", "born", "deposed", "die", "diagnosed", "elected", "executed",
    "exiled", "inaugurated", "marry", "reelected", "resign", "retire", "succeeded", "sworn", "win",
})  # fmt: skip


def pronoun(clause: Clause) -> str:
    """What stands for the subject: "it", "they", "he", "she", or "" if that is not sure."""
    words = clause.subject.split()
    last = words[-1] if words else ""
    if not last or " and " in clause.subject:
        return ""
    if clause.person or words[0] in _HE:
        return "he"
    if words[0] in _SHE:
        return "she"
    if words[0][0].isupper() and _PERSONAL & {*clause.base.split()}:
        return ""
    if clause.aux in ("were", "are", "have", "do") or clause.plural:
        return "they"
    if clause.aux in ("was", "is", "has", "does"):
        return "it"
    return "" if last.endswith(("s", "ese", "ish", "tch", "nch")) else "it"


def _line(
    said: Sequence[str], asked: str, rewritten: str, passage: Passage, sort: str, wording: str
) -> Made:
    turns = [(user, assistant)[i % 2](text) for i, text in enumerate(said)]
    line = {
        "messages": [*turns, user(asked)],
        "answer": {"rewritten_question": rewritten},
    }
    return Made(line, passage.article, sort, wording, rewritten)


def _before(fact: Fact, others: Sequence[Fact], split: Split, rng: random.Random) -> list[str]:
    """What was said about the fact's subject before: another fact, or an opener."""
    it = fact.clause.subject
    known = [each for each in others if it in each.with_answer(each.answer)]
    if known and rng.random() < 0.6:
        other = rng.choice(known)
        asked = wordings.question(other, split, rng).text
        return [asked, capitalised(other.with_answer(other.answer)) + "."]
    opener, reply = rng.choice(OPENERS[split])
    return [opener.format(it=it), reply]


def _pronoun(
    passage: Passage,
    fact: Fact,
    others: Sequence[Fact],
    pools: Pools,
    split: Split,
    rng: random.Random,
) -> Made | None:
    """ "When was it founded?" after a talk about the town."""
    del pools
    word = pronoun(fact.clause)
    if fact.kind == "subject" or not word:
        return None
    whole = wordings.question(fact, split, rng)
    short = replace(fact, clause=replace(fact.clause, subject=word))
    asked = wordings.worded(short, whole.frame, whole.asked)
    said = _before(fact, others, split, rng)
    return _line(said, asked, whole.text, passage, "pronoun", whole.frame)


def _missing(
    passage: Passage,
    fact: Fact,
    others: Sequence[Fact],
    pools: Pools,
    split: Split,
    rng: random.Random,
) -> Made | None:
    """ "And when?" after a statement."""
    del pools, others
    if fact.kind not in _MISSING[split]:
        return None
    asked, wh = rng.choice(_MISSING[split][fact.kind])
    if wh == "in what year" and not fact.year:
        return None
    opener, _ = rng.choice(OPENERS[split])
    told = capitalised(fact.clause.statement) + "."
    rewritten = wordings.worded(fact, "{Direct}?", wh)
    said = [opener.format(it=fact.clause.subject), told]
    return _line(said, asked, rewritten, passage, "missing", asked)


def _same(
    passage: Passage,
    fact: Fact,
    others: Sequence[Fact],
    pools: Pools,
    split: Split,
    rng: random.Random,
) -> Made | None:
    """ "And Sweden?" after a question about Norway."""
    del others
    it = fact.clause.subject
    if it not in fact.names:
        return None
    page = Page(passage, passage.text(), [], [])
    swapped = swap_name(page, replace(fact, names=(it,)), pools, rng)
    if swapped is None or not swapped[0].clause.subject.startswith(swapped[1]):
        return None
    first = wordings.question(fact, split, rng)
    rewritten = wordings.worded(swapped[0], first.frame, first.asked)
    template = rng.choice(_SAME_OF[split])
    said = [first.text, capitalised(fact.said) + "."]
    return _line(said, template.format(it=swapped[1]), rewritten, passage, "same", template)


def _whole(
    passage: Passage,
    fact: Fact,
    others: Sequence[Fact],
    pools: Pools,
    split: Split,
    rng: random.Random,
) -> Made | None:
    """A question that leans on nothing, after a talk about something else."""
    del pools
    asked = wordings.question(fact, split, rng)
    if not fact.names:
        return None
    apart = [each for each in others if each.sentence != fact.sentence and each.clause.subject]
    about = rng.choice(apart) if apart else fact
    if about is fact and not fact.clause.subject:
        return None
    said = _before(about, [each for each in others if each is not about], split, rng)
    return _line(said, asked.text, asked.text, passage, "whole", asked.frame)


_SORTS: Final = {"pronoun": _pronoun, "missing": _missing, "same": _same, "whole": _whole}
