"""The examples of query rewriting: talks whose last question leans on what was said before."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from . import facts, sayings, scenes, tasks, wordings
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
            ("Say when, please.", "when"), ("Tell me when.", "when"), ("Is it said when?", "when"),
            ("I wonder when.", "when"), ("Oh, when?", "when"), ("When did you say?", "when"),
            ("Really? In what year?", "in what year"), ("But when?", "when"),
        ),
        "where": (
            ("And where?", "where"), ("Where was that?", "where"), ("Tell me where.", "where"),
            ("Is it said where?", "where"), ("Oh, where?", "where"), ("But where?", "where"),
            ("Say where, please.", "where"), ("I wonder where.", "where"),
        ),
        "by": (
            ("By whom?", "by whom"), ("And who did that?", "by whom"), ("And by whom?", "by whom"),
            ("Tell me by whom.", "by whom"), ("Who was behind that?", "by whom"),
            ("Is it said by whom?", "by whom"), ("Oh, by whom?", "by whom"),
        ),
        "how long": (
            ("For how long?", "for how long"), ("And how long?", "for how long"),
            ("Tell me for how long.", "for how long"), ("But for how long?", "for how long"),
            ("I wonder for how long.", "for how long"), ("Say how long, please.", "for how long"),
        ),
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
    "train": (
        "And {it}?",
        "What about {it}?",
        "The same for {it}, please.",
        "And for {it}?",
        "{it}?",
        "{it} too?",
        "Same question for {it}.",
        "{it}, please.",
        "As for {it}?",
        "I meant {it}.",
        "Sorry, {it}.",
        "Answer that for {it} as well.",
        "With {it}, too?",
        "And how is that with {it}?",
        "Let us turn to {it}.",
        "Next comes {it}.",
        "But {it}?",
        "Could you say that of {it}, too?",
        "Do {it} as well.",
        "I also want that for {it}.",
    ),
    "eval": ("How about {it}?", "And in the case of {it}?", "Now {it}."),
    "final": ("Then what of {it}?", "Likewise for {it}?"),
}
# Questions to be rewritten are put in more ways than those that are answered.
_FRAMES: Final[dict[Split, tuple[str, ...]]] = {
    **wordings.FRAMES,
    "train": (
        *wordings.FRAMES["train"], "One more thing: {direct}?", "I need to know {indirect}.",
        "Remind me {indirect}.", "Do we know {indirect}?", "Help me out here: {direct}?",
        "I am not sure {indirect}.", "Perhaps you can say {indirect}.", "Then {direct}?",
        "Is there anything on {indirect}?", "Sorry, {direct}?", "I keep asking myself {indirect}.",
        "What does it say about {indirect}?", "Please say {indirect}.", "And {direct}?",
        "From what you have there, {direct}?", "Honestly, {direct}?",
        "It would help to know {indirect}.",
        "Be so kind and tell me {indirect}.", "May I ask {indirect}?", "Next question: {direct}?",
        "Also, {direct}?", "Who can say {indirect}?",
    ),
}  # fmt: skip
# Requests that are about {it}.
_ABOUT: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "Tell me more about {it}.", "Write a sentence about {it}.", "Give me an overview of {it}.",
        "Why do people talk about {it}?", "What else is known about {it}?",
        "Draw up a list of facts about {it}.",
    ),
    "eval": (
        "Can you say a bit more about {it}?", "Describe {it} briefly.",
        "What is special about {it}?",
    ),
    "final": ("Go deeper into the history of {it}.", "Sketch {it} in a few words."),
}  # fmt: skip
# Who made what, {he} and {she}; how one asks for that, and what else of the one who was named last.
_PEOPLE: Final[dict[Split, tuple[tuple[str, str, str, str], ...]]] = {
    "train": (
        ("wrote", "Hamlet", "William Shakespeare", "he"), ("wrote", "Ulysses", "James Joyce", "he"),
        ("wrote", "Faust", "Johann Wolfgang von Goethe", "he"),
        ("wrote", "Frankenstein", "Mary Shelley", "she"), ("wrote", "Emma", "Jane Austen", "she"),
        ("wrote", "Jane Eyre", "Charlotte Bronte", "she"),
        ("wrote", "The Trial", "Franz Kafka", "he"),
        ("wrote", "Moby-Dick", "Herman Melville", "he"), ("wrote", "Candide", "Voltaire", "he"),
        ("painted", "the Mona Lisa", "Leonardo da Vinci", "he"),
        ("painted", "Guernica", "Pablo Picasso", "he"),
        ("painted", "The Scream", "Edvard Munch", "he"),
        ("painted", "The Two Fridas", "Frida Kahlo", "she"),
        ("composed", "The Magic Flute", "Wolfgang Amadeus Mozart", "he"),
        ("composed", "Carmen", "Georges Bizet", "he"),
        ("discovered", "radium", "Marie Curie", "she"),
        ("discovered", "penicillin", "Alexander Fleming", "he"),
        ("invented", "dynamite", "Alfred Nobel", "he"),
        ("wrote", "Pippi Longstocking", "Astrid Lindgren", "she"),
        ("wrote", "Murder on the Orient Express", "Agatha Christie", "she"),
    ),
    "eval": (
        ("wrote", "Dracula", "Bram Stoker", "he"), ("wrote", "Middlemarch", "George Eliot", "she"),
        ("wrote", "Oliver Twist", "Charles Dickens", "he"),
        ("wrote", "Mrs Dalloway", "Virginia Woolf", "she"),
        ("painted", "The Night Watch", "Rembrandt", "he"),
        ("composed", "The Four Seasons", "Antonio Vivaldi", "he"),
        ("wrote", "Beloved", "Toni Morrison", "she"),
        ("wrote", "War and Peace", "Leo Tolstoy", "he"),
    ),
    "final": (
        ("wrote", "Treasure Island", "Robert Louis Stevenson", "he"),
        ("wrote", "Little Women", "Louisa May Alcott", "she"),
        ("composed", "Aida", "Giuseppe Verdi", "he"),
        ("wrote", "Rebecca", "Daphne du Maurier", "she"),
    ),
}  # fmt: skip
_NAMED: Final[dict[Split, tuple[tuple[str, str], ...]]] = {
    "train": (("Who {did} {it}?", "{who}."), ("Tell me who {did} {it}.", "{it} is by {who}.")),
    "eval": (("{it} is by whom?", "By {who}."), ("Who was it that {did} {it}?", "It was {who}.")),
    "final": (("Whose work is {it}?", "That of {who}."),),
}
_OF_PERSON: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "Where was {he} born?", "When did {he} die?", "Was {he} ever married?",
        "Which languages did {he} speak?", "What else did {he} do?", "How old was {he} then?",
    ),
    "eval": (
        "In which town did {he} grow up?", "Did {he} have children?", "What made {he} famous?",
    ),
    "final": ("Where is {he} buried?", "Did {he} travel a lot?"),
}  # fmt: skip
_HIM: Final = {"he": "him", "she": "her", "they": "them", "it": "it"}
_SHARES: Final = {
    "pronoun": 0.3, "missing": 0.1, "same": 0.14, "whole": 0.22, "about": 0.07, "person": 0.09,
    "message": 0.08,
}  # fmt: skip
_DOCUMENTS: Final = {0: 0.35, 1: 0.45, 2: 0.12, 3: 0.08}
_MOST_TURNS: Final = 6


def query_rewrite(
    passages: Sequence[Passage], pools: Pools, split: Split, n: int, rng: random.Random
) -> list[Made]:
    """`n` lines; of some three tenths the last message is to stay as it is."""
    found: dict[str, dict[str, Made]] = {sort: {} for sort in _SHARES}
    for passage in passages:
        told = [
            fact
            for fact in facts.facts(passage)
            if _can_be_spoken_of(fact.clause) and tasks.is_sound(fact)
        ]
        documents, turns = _begin(passage, passages, split)
        for fact in told:
            others = [each for each in told if each is not fact]
            for sort, make in _SORTS.items():
                for _ in range(2 if sort != "pronoun" else 3):
                    made = make(passage, fact, others, pools, split, rng)
                    if made is not None:
                        made = _behind(made, documents, turns)
                        found[sort].setdefault(str(made.line), made)
    chosen = [
        each
        for sort, share in _SHARES.items()
        for each in rng.sample([*found[sort].values()], min(len(found[sort]), round(n * share)))
    ]
    taken = {id(each) for each in chosen}
    spare = [each for each in found["pronoun"].values() if id(each) not in taken]
    chosen += rng.sample(spare, min(len(spare), max(0, n - len(chosen))))
    return chosen[:n]


def _begin(
    passage: Passage, passages: Sequence[Passage], split: Split
) -> tuple[list[str], list[dict[str, str]]]:
    """What all talks about a passage begin with: documents, and turns."""
    rng = random.Random(f"begin {split} {passage.text()}")
    n = rng.choices([*_DOCUMENTS], [*_DOCUMENTS.values()])[0]
    near = [each for each in passages if each.source == passage.source and each is not passage]
    others = rng.sample(near, min(max(0, n - 1), len(near)))
    documents = [each.text() for each in (passage, *others)][:n]
    rng.shuffle(documents)
    known = [fact for each in (passage, *others) for fact in facts.facts(each)] if n else []
    turns: dict[str, str] = {}
    for _ in range(min(scenes.n_turns(rng), _MOST_TURNS)):
        if known and rng.random() < 0.65:
            fact = known.pop(rng.randrange(len(known)))
            asked = wordings.question(fact, split, rng).text
            turns[asked] = capitalised(fact.with_answer(fact.answer)) + "."
        else:
            asked, said = rng.choice(sayings.SMALL_TALK[split])
            turns[asked] = said
    return documents, tasks.said(turns.items())


def _behind(made: Made, documents: Sequence[str], turns: Sequence[dict[str, str]]) -> Made:
    """The line after that beginning."""
    messages = made.line["messages"]
    room = max(0, 2 * _MOST_TURNS + 1 - len(messages))
    line = {**made.line, "messages": [*turns[:room], *messages]}
    if documents:
        line["documents"] = [{"text": each} for each in documents]
    return replace(made, line=line)


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
    whole = wordings.question(fact, split, rng, frame=rng.choice(_FRAMES[split]))
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
    first = wordings.question(fact, split, rng, frame=rng.choice(_FRAMES[split]))
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
    asked = wordings.question(fact, split, rng, frame=rng.choice(_FRAMES[split]))
    if not fact.names:
        return None
    apart = [each for each in others if each.sentence != fact.sentence and each.clause.subject]
    about = rng.choice(apart) if apart else fact
    if about is fact and not fact.clause.subject:
        return None
    said = []
    if rng.random() < 0.4:
        said = _before(about, [each for each in others if each is not about], split, rng)
    return _line(said, asked.text, asked.text, passage, "whole", asked.frame)


def _about(
    passage: Passage,
    fact: Fact,
    others: Sequence[Fact],
    pools: Pools,
    split: Split,
    rng: random.Random,
) -> Made | None:
    """ "Tell me more about it." """
    del pools
    word = pronoun(fact.clause)
    if fact.kind == "subject" or not word:
        return None
    template = rng.choice(_ABOUT[split])
    asked = template.format(it=_HIM[word])
    rewritten = template.format(it=fact.clause.subject)
    said = _before(fact, others, split, rng)
    return _line(said, asked, rewritten, passage, "about", template)


def _person(
    passage: Passage,
    fact: Fact,
    others: Sequence[Fact],
    pools: Pools,
    split: Split,
    rng: random.Random,
) -> Made | None:
    """ "Where was he born?" after one to three people: the last one that it can be."""
    del fact, others, pools
    people = rng.sample(_PEOPLE[split], rng.randint(1, 3))
    said = []
    for did, it, who, _ in people:
        said += [
            capitalised(each.format(did=did, it=it, who=who)) for each in rng.choice(_NAMED[split])
        ]
    word = rng.choice([each[3] for each in people])
    who = next(each[2] for each in reversed(people) if each[3] == word)
    template = rng.choice(_OF_PERSON[split])
    asked = template.format(he=_HIM[word] if "made {he}" in template else word)
    return _line(said, asked, template.format(he=who), passage, "person", template)


def _message(
    passage: Passage,
    fact: Fact,
    others: Sequence[Fact],
    pools: Pools,
    split: Split,
    rng: random.Random,
) -> Made | None:
    """ "Thanks!", which stays as it is."""
    del pools
    said = _before(fact, others, split, rng) if fact.clause.subject and rng.random() < 0.6 else []
    free = (sayings.ACKNOWLEDGED, sayings.ACKNOWLEDGED, sayings.FREE, sayings.OF_TEXT)
    general = tuple(each for each, _ in sayings.GENERAL[split])
    asked = rng.choice(rng.choice((*(each[split] for each in free), general)))
    if rng.random() < _EMPTY:
        asked = ""
    return _line(said, asked, asked, passage, "message", asked or split)


_EMPTY: Final = 0.03
_SORTS: Final = {
    "pronoun": _pronoun,
    "missing": _missing,
    "same": _same,
    "whole": _whole,
    "about": _about,
    "person": _person,
    "message": _message,
}
