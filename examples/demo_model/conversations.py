"""Conversations over short documents, made from a seed: what the base learns to chat from.

A `Talk` is a world of facts, the documents that state them, and turns about them, each with what is
known about it (the value asked for, the stand-alone question ...), from which tasks.py makes the
intrinsics' examples.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from . import entities, wordings
from .chat import Message
from .entities import Entity, Split
from .wordings import Relation

KINDS: Final = ("item", "item", "person", "person", "event", "place")
_ROLES_OF_PERSONS: Final = ("organiser", "manager")  # relations whose value is a person
_COUNTABLE: Final = ("job", "pet")  # "a baker", "a dog"
DOUBTED: Final = 0.2

# before {s}, these want "him" and "her"
_WANTS_OBJECT: Final = re.compile(
    r"\b(?:reach|call|for|expect|makes|visit|with|of|dial|at|to) \{s\}"
)


@dataclass(frozen=True)
class Fact:
    """`subject`'s `relation` is `value`; `person` if the value is one."""

    subject: Entity
    relation: Relation
    value: str
    person: Entity | None = None


@dataclass(frozen=True)
class Question:
    """A user's question: `wording` still has its hole {s} (or {n}, see `standing_alone`)."""

    wording: str
    relation: Relation
    subject: Entity
    fact: Fact | None  # None: the documents do not say it
    field: str | None = None  # an answer as JSON was asked for, in this field
    twice: bool = False  # and besides, what it is about

    @property
    def standing_alone(self) -> str:
        """The question in full, the subject by its name."""
        return fill(self.wording, self.subject.name)

    @property
    def plainest(self) -> str:
        """The same, whatever its wording, with the noun that answers are given with."""
        who = "Who" if self.relation.key in _ROLES_OF_PERSONS else "What"
        return f"{who} is the {self.relation.answer} of {self.subject.name}?"


@dataclass(frozen=True)
class Turn:
    """A message and what is known about it.

    learn      the base should learn to say this
    values     where (start, end) the message tells what the documents say, or that they do not
    any_order  it could as well say this in another order: only the values can be learned
    faithful   of an assistant's answer: do the documents say so
    """

    message: Message
    learn: bool = True
    question: Question | None = None
    faithful: bool | None = None
    values: tuple[tuple[int, int], ...] = ()
    any_order: bool = False


@dataclass
class Talk:
    """Documents and turns, growing."""

    rng: random.Random
    split: Split
    facts: list[Fact]
    documents: tuple[str, ...]
    sentences: tuple[tuple[Entity, str], ...]  # of the documents, fillers left out
    turns: list[Turn] = field(default_factory=list)
    question: Question | None = None  # the last one

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(turn.message for turn in self.turns)

    def user(self, text: str, question: Question | None = None) -> None:
        self.turns.append(Turn(Message("user", text), question=question))

    def assistant(self, text: str, **known: Any) -> None:
        """`known` are Turn's fields; where there is a question, the text ends with its value."""
        question: Question | None = known.get("question")
        if question is not None:
            value = question.fact.value if question.fact else wordings.UNKNOWN
            first = text.rfind(value)
            if first >= 0:
                known["values"] = ((first, first + len(value)),)
        self.turns.append(Turn(Message("assistant", text), **known))


def fill(wording: str, subject: str, value: str = "") -> str:
    """`wording` as a sentence."""
    text = wording.replace("a {v}", f"{_article(value)} {{v}}")
    text = text.replace("{s}", subject).replace("{v}", value)
    return text[0].upper() + text[1:]


def _article(noun: str) -> str:
    return "an" if noun.startswith(("a", "e", "i", "o")) else "a"


def fill_pronoun(wording: str, subject: Entity, value: str = "") -> str:
    """The same with a pronoun for the subject."""
    noun = re.search(r"the ([\w ]+?) of \{s\}", wording)
    if noun and subject.kind != "event":  # "the price of it" is "its price"
        wording = wording.replace(noun[0], f"{subject.possessive} {noun[1]}")
    objective = {"she": "her", "he": "him"}.get(subject.pronoun, subject.pronoun)
    if _WANTS_OBJECT.search(wording):
        return fill(wording, objective, value)
    return fill(wording, subject.pronoun, value)


# Worlds -------------------------------------------------------------------------------------------


def start(rng: random.Random, split: Split, *, n_documents: int) -> Talk:
    """A talk with documents and no turn yet."""
    facts, documents, sentences = [], [], []
    taken: set[str] = set()
    kinds = rng.choices(KINDS, k=max(1, min(3, n_documents)))
    for _ in range(n_documents):
        entities_here = []
        for _ in range(rng.choice((1, 1, 2))):
            # the same kinds again: what is said of one must not be taken for another
            entity = entities.MAKERS[rng.choice(kinds)](rng, split)
            if entity.name not in taken:
                taken.add(entity.name)
                entities_here.append(entity)
        here = [f for entity in entities_here for f in _facts(rng, split, entity, facts)]
        if here:
            facts += here
            text, said = _document(rng, split, here)
            documents.append(text)
            sentences += said
    system = Message("system", rng.choice(wordings.SYSTEMS))
    talk = Talk(rng, split, facts, tuple(documents), tuple(sentences))
    if rng.random() < 0.25:
        talk.turns.append(Turn(system, learn=False))
    return talk


def _facts(rng: random.Random, split: Split, entity: Entity, others: list[Fact]) -> Iterator[Fact]:
    relations = wordings.BY_KIND[entity.kind]
    for relation in rng.sample(relations, rng.randint(2, 3)):
        if relation.key in _ROLES_OF_PERSONS:
            known = [f.subject for f in others if f.subject.kind == "person"]
            if known and rng.random() < 0.6:
                person = rng.choice(known)
            else:
                person = entities.person(rng, split)
            yield Fact(entity, relation, person.name, person)
        else:
            yield Fact(entity, relation, new_value(rng, split, relation, others))


def new_value(rng: random.Random, split: Split, relation: Relation, others: list[Fact]) -> str:
    """A value that no other fact has."""
    if relation.key in _ROLES_OF_PERSONS:
        return entities.person(rng, split).name
    value = relation.value(rng, split)
    for _ in range(20):
        if all(f.value != value for f in others):
            break
        value = relation.value(rng, split)
    return value


def _document(
    rng: random.Random, split: Split, facts: list[Fact]
) -> tuple[str, list[tuple[Entity, str]]]:
    """The text, and its sentences about entities."""
    if rng.random() < 0.15:
        rng.shuffle(facts)
    sentences: list[str] = []
    said: list[tuple[Entity, str]] = []
    before: Entity | None = None
    for fact in facts:
        wording = _statement(rng, split, fact.relation)
        if rng.random() < 0.25:
            begins = wording if wording.startswith("{") else wording[0].lower() + wording[1:]
            wording = f"{wordings.OPENINGS.pick(rng, split)} {begins}"
        if fact.subject == before and wording.startswith("{s}") and rng.random() < 0.35:
            sentences.append(fill_pronoun(wording, fact.subject, fact.value))
        else:
            sentences.append(fill(wording, fact.subject.name, fact.value))
        said.append((fact.subject, sentences[-1]))
        before = fact.subject
        # a pronoun after a person's name would be that person's
        if fact.person is not None:
            before = None
        if rng.random() < 0.12:
            sentences.append(wordings.FILLERS.pick(rng, split))
            before = None
    return " ".join(sentences), said


def _statement(rng: random.Random, split: Split, relation: Relation) -> str:
    if split == "train" and rng.random() < 0.2:
        plain = rng.choice(wordings.PLAIN_STATES)
        wording = plain.replace("{n}", rng.choice((*relation.nouns.train, relation.answer)))
        if relation.key in _COUNTABLE:
            wording = wording.replace("{v}", "a {v}")
    else:
        wording = relation.states.pick(rng, split)
    return _with_adverb(rng, split, wording)


def _with_adverb(rng: random.Random, split: Split, wording: str) -> str:
    """Sometimes, in training, with one more word amid the others."""
    if split != "train" or rng.random() > 0.15:
        return wording
    words = wording.split(" ")
    words.insert(rng.randint(1, len(words)), rng.choice(wordings.ADVERBS))
    if words[-1] in wordings.ADVERBS:  # before the full stop
        words[-1], words[-2] = words[-2], words[-1]
    return " ".join(words)


# Questions ----------------------------------------------------------------------------------------


def ask(
    talk: Talk,
    *,
    answerable: bool,
    reference: str | None = None,
    prefix: bool = False,
    as_json: bool = False,
) -> Question:
    """Appends a user's question: its subject named ("full"), a "pronoun", or an "ellipsis".

    A reference that does not fit here becomes "full". `prefix`: in words that a jailbreak uses.
    """
    reference = (
        reference
        or talk.rng.choices(
            ("full", "pronoun", "ellipsis"), (50, 32, 18) if talk.question else (1, 0, 0)
        )[0]
    )
    question = None
    if talk.question is not None and reference == "pronoun":
        question = _about_last(talk, talk.question, answerable)
    elif talk.question is not None and reference == "ellipsis":
        question = _about_another(talk, talk.question, answerable)

    if question is None:
        question = _in_full(talk, answerable)
        text = question.standing_alone
    elif reference == "pronoun":
        text = fill_pronoun(question.wording, question.subject)
        if talk.rng.random() < 0.3:
            text = "And " + text[0].lower() + text[1:] if not text.startswith("I ") else text
    else:
        ellipsis = wordings.ELLIPSES.pick(talk.rng, talk.split)
        text = fill(ellipsis, question.subject.name)
    if prefix:
        text = wordings.LOOKALIKES.pick(talk.rng, talk.split).replace("{q}", text)
    if as_json:
        twice = talk.rng.random() < 0.5
        question = replace(question, field=talk.rng.choice(wordings.FIELDS), twice=twice)
        form = (wordings.AS_JSON_TWICE if twice else wordings.AS_JSON).pick(talk.rng, talk.split)
        text = f"{text} {form.replace('{f}', question.field or '')}"

    talk.user(text, question)
    talk.question = question
    return question


def _wording(talk: Talk, relation: Relation) -> str:
    rng, split = talk.rng, talk.split
    form = rng.random()
    if form < 0.55:
        return relation.asks.pick(rng, split)
    if form < 0.8:
        noun = f"the {relation.nouns.pick(rng, split)} of {{s}}"
        return wordings.NOUN_QUESTIONS.pick(rng, split).replace("{n}", noun)
    clause = relation.clauses.pick(rng, split)
    return wordings.CLAUSE_QUESTIONS.pick(rng, split).replace("{c}", clause)


def _in_full(talk: Talk, answerable: bool) -> Question:
    rng = talk.rng
    if answerable:
        fact = rng.choice(talk.facts)
        return Question(_wording(talk, fact.relation), fact.relation, fact.subject, fact)
    if rng.random() < 0.3:  # about something that the documents do not mention
        kind = rng.choice(talk.facts).subject.kind
        subject = entities.MAKERS[kind](rng, talk.split)
        relation = rng.choice(wordings.BY_KIND[kind])
        if _fact(talk, subject, relation) is None:
            return Question(_wording(talk, relation), relation, subject, None)
    while True:  # an entity has at most four facts of more relations
        subject = rng.choice(talk.facts).subject
        missing = _missing(talk, subject)
        relation = rng.choice(missing)
        return Question(_wording(talk, relation), relation, subject, None)


def _missing(talk: Talk, subject: Entity) -> list[Relation]:
    """What the documents do not say of `subject`; what they say of others comes first, often."""
    missing = [r for r in wordings.BY_KIND[subject.kind] if _fact(talk, subject, r) is None]
    tempting = [r for r in missing if any(f.relation is r for f in talk.facts)]
    return tempting if tempting and talk.rng.random() < 0.5 else missing


def _about_last(talk: Talk, last: Question, answerable: bool) -> Question | None:
    """Another question about the last subject, or about the person who was the last answer."""
    rng, subject = talk.rng, last.subject
    person = last.fact.person if last.fact else None
    if person is not None and rng.random() < 0.7:
        subject = person
    elif person is not None or not _clear(talk, subject):
        return None
    if answerable:
        facts = [f for f in talk.facts if f.subject == subject and f.relation is not last.relation]
        if not facts:
            return None
        fact = rng.choice(facts)
        return Question(_wording(talk, fact.relation), fact.relation, subject, fact)
    missing = [r for r in _missing(talk, subject) if r is not last.relation]
    if not missing:
        return None
    relation = rng.choice(missing)
    return Question(_wording(talk, relation), relation, subject, None)


def _clear(talk: Talk, subject: Entity) -> bool:
    """Whether a pronoun would be understood: the last question was the last thing talked about."""
    asked = [t for t in talk.turns if t.message.role == "user"][-1]
    return asked.question is not None and asked.question.subject == subject


def _about_another(talk: Talk, last: Question, answerable: bool) -> Question | None:
    """The same question about another subject of the same kind."""
    rng = talk.rng
    others = list(
        dict.fromkeys(
            f.subject
            for f in talk.facts
            if f.subject.kind == last.subject.kind and f.subject != last.subject
        )
    )
    rng.shuffle(others)
    for subject in others:
        fact = _fact(talk, subject, last.relation)
        if (fact is not None) == answerable:
            return Question(last.wording, last.relation, subject, fact)
    if answerable:
        return None
    stranger = entities.MAKERS[last.subject.kind](rng, talk.split)
    if _fact(talk, stranger, last.relation) is not None:
        return None
    return Question(last.wording, last.relation, stranger, None)


def _fact(talk: Talk, subject: Entity, relation: Relation) -> Fact | None:
    for fact in talk.facts:
        if fact.subject.name == subject.name and fact.relation is relation:
            return fact
    return None


# Answers ------------------------------------------------------------------------------------------


def answer_text(question: Question, value: str | None) -> str:
    """The sentence that gives `value`, or says that the documents do not; as JSON where asked."""
    text = sentence(question, value)
    if question.field is None:
        return text
    fields = {question.field: text}
    return json.dumps({**fields, "about": question.subject.name} if question.twice else fields)


def sentence(question: Question, value: str | None) -> str:
    wording = wordings.ANSWER.replace("{a}", question.relation.answer)
    if value is not None and question.relation.key in _COUNTABLE:
        wording = wording.replace("{v}", "a {v}")
    return fill(wording, question.subject.name, value or wordings.UNKNOWN)


def answer(talk: Talk) -> None:
    """The right answer to the last question."""
    assert talk.question is not None
    value = talk.question.fact.value if talk.question.fact else None
    talk.assistant(answer_text(talk.question, value), question=talk.question, faithful=True)


def answer_wrongly(talk: Talk) -> None:
    """An answer that the documents do not support; nothing for the base to learn."""
    question = talk.question
    assert question is not None
    text = answer_text(question, wrong_value(talk, question))
    talk.assistant(text, learn=False, question=question, faithful=False)


def wrong_value(talk: Talk, question: Question) -> str:
    """A value that the documents do not give: often another one's, or one of the same sort."""
    right = question.fact.value if question.fact else None
    same = [f.value for f in talk.facts if f.relation is question.relation and f.value != right]
    alike = [
        f.value
        for f in talk.facts
        if f.relation.value is question.relation.value and f.value != right
    ]
    way = talk.rng.random()
    if same and way < 0.5:
        return talk.rng.choice(same)
    if alike and way < 0.6:
        return talk.rng.choice(alike)
    return new_value(talk.rng, talk.split, question.relation, talk.facts)


# Other turns --------------------------------------------------------------------------------------


def small_talk(talk: Talk) -> None:
    """A greeting, thanks or a question about the model, and the reply."""
    rng = talk.rng
    if rng.random() < 0.2:
        asked, said = rng.choice(wordings.SELF)
        field = rng.choice(wordings.FIELDS)
        form = wordings.AS_JSON.pick(rng, talk.split).replace("{f}", field)
        talk.user(f"{asked} {form}")
        talk.assistant(json.dumps({field: said}))
        return
    if not [t for t in talk.turns if t.message.role == "user"] and rng.random() < 0.7:
        asks, replies = wordings.GREETINGS, wordings.GREETING_REPLIES
    else:
        asks, replies = rng.choice(
            (
                (wordings.THANKS, wordings.THANKS_REPLIES),
                (wordings.ABOUT, wordings.ABOUT_REPLIES),
            )
        )
    talk.user(asks.pick(rng, talk.split))
    talk.assistant(rng.choice(replies))


def quote(talk: Talk) -> None:
    """The user asks for everything about something, and is told the documents' own sentences."""
    subject = talk.rng.choice(talk.sentences)[0]
    talk.user(fill(wordings.QUOTES.pick(talk.rng, talk.split), subject.name))
    talk.assistant(" ".join(text for entity, text in talk.sentences if entity == subject))
    talk.question = None


def survey(talk: Talk) -> None:
    """The user asks for all facts, and is told them one by one, with some that there are not.

    In few tokens, many values to be found by subject and relation.
    """
    rng = talk.rng
    known = [(fact.subject, fact.relation, fact) for fact in talk.facts]
    unknown = [
        (subject, rng.choice(_missing(talk, subject)), None)
        for subject in {fact.subject.name: fact.subject for fact in talk.facts}.values()
        if rng.random() < 0.5
    ]
    told, values = "", []
    for subject, relation, fact in rng.sample([*known, *unknown], len(known) + len(unknown)):
        question = Question("", relation, subject, fact)
        value = fact.value if fact else wordings.UNKNOWN
        told += (" " if told else "") + answer_text(question, fact.value if fact else None)
        end = len(told) - 1  # a full stop
        values.append((end - len(value), end))
    talk.user(wordings.SURVEYS.pick(rng, talk.split))
    talk.turns.append(Turn(Message("assistant", told), values=tuple(values), any_order=True))
    talk.question = None


def doubt(talk: Talk) -> None:
    """The user asks whether the last answer is right; the model looks again, and compares."""
    last, question, rng = talk.turns[-1], talk.question, talk.rng
    assert question is not None
    assert last.faithful is not None
    asked = wordings.DOUBTS.pick(rng, talk.split)
    text, values = _compared(question, last.faithful)
    if rng.random() < 0.2:
        name = rng.choice(wordings.FIELDS)
        asked += f" {wordings.AS_JSON.pick(rng, talk.split).replace('{f}', name)}"
        bare, text = text, json.dumps({name: text})
        by = text.index(bare)
        values = [(start + by, end + by) for start, end in values]
    talk.user(asked, question)
    talk.turns.append(
        Turn(Message("assistant", text), question=question, faithful=True, values=tuple(values))
    )


def _compared(question: Question, was_right: bool) -> tuple[str, list[tuple[int, int]]]:
    """The right answer and whether what was said was right; where these two stand in it."""
    value = question.fact.value if question.fact else None
    text = sentence(question, value)
    first = text.rindex(value or wordings.UNKNOWN)
    verdict = wordings.CONFIRM if was_right else wordings.RETRACT
    values = [
        (first, first + len(value or wordings.UNKNOWN)),
        (len(text), len(text) + 1 + verdict.index(",")),  # with the space: there they part
    ]
    return f"{text} {verdict}", values


def review(talk: Talk) -> None:
    """The user states several things at once; the model says of each whether it is right."""
    rng = talk.rng
    claims, told = "", ""
    values: list[tuple[int, int]] = []
    for _ in range(rng.randint(2, 6)):
        question = _in_full(talk, rng.random() < 0.8)
        right = question.fact.value if question.fact else None
        faithful = rng.random() < 0.5
        claimed = right if faithful else wrong_value(talk, question)
        claims += f" {sentence(question, claimed)}"
        text, here = _compared(question, faithful)
        told += " " if told else ""
        values += [(start + len(told), end + len(told)) for start, end in here]
        told += text
    talk.user(wordings.REVIEWS.pick(rng, talk.split) + claims)
    talk.turns.append(Turn(Message("assistant", told), values=tuple(values)))
    talk.question = None


def jailbreak_text(talk: Talk) -> str:
    rng, split = talk.rng, talk.split
    goal = wordings.GOALS.pick(rng, split)
    goal = goal.replace("{s}", entities.item(rng, split).name)
    goal = goal.replace("{p}", entities.person(rng, split).name)
    form = wordings.JAILBREAK_FORMS.pick(rng, split)
    text = form.replace("{o}", wordings.OVERRIDES.pick(rng, split)).replace("{g}", goal)
    sentences = re.split(r"(?<=[.!]) ", text)
    return " ".join(s[0].upper() + s[1:] for s in sentences)


def jailbreak(talk: Talk) -> None:
    """An attempt, and the refusal."""
    talk.user(jailbreak_text(talk))
    talk.assistant(talk.rng.choice(wordings.REFUSALS))


# Whole talks --------------------------------------------------------------------------------------


def documents_for(rng: random.Random, *, long: bool = False) -> int:
    return rng.randint(6, 14) if long else rng.choices((1, 2, 3, 4, 5), (28, 34, 22, 11, 5))[0]


def talk(
    rng: random.Random,
    split: Split,
    *,
    n_turns: int,
    long: bool = False,
    doubted: float = DOUBTED,
) -> Talk:
    """A talk of `n_turns` exchanges, as the base learns them; `doubted`: see exchange()."""
    made = start(rng, split, n_documents=documents_for(rng, long=long))
    if rng.random() < 0.12:
        small_talk(made)
    while sum(t.message.role == "user" for t in made.turns) < n_turns:
        exchange(made, doubted)
    return made


def listing(rng: random.Random, split: Split) -> Talk:
    """The same fact about several subjects, and the question about each: whose is whose?"""
    relation = rng.choice([r for r in wordings.RELATIONS if r.key not in _ROLES_OF_PERSONS])
    facts: list[Fact] = []
    for _ in range(rng.randint(3, 7)):
        subject = entities.MAKERS[relation.kind](rng, split)
        facts.append(Fact(subject, relation, new_value(rng, split, relation, facts)))
    text, said = _document(rng, split, facts)
    made = Talk(rng, split, facts, (text,), tuple(said))
    for fact in rng.sample(facts, len(facts)):
        made.question = Question(_wording(made, relation), relation, fact.subject, fact)
        made.user(made.question.standing_alone, made.question)
        answer(made)
    return made


def exchange(talk: Talk, doubted: float = DOUBTED) -> None:
    """One exchange, sometimes two: a question and its answer, a doubt, a jailbreak, small talk.

    A share `doubted` of answers is wrong and then doubted, and as many of the right ones are.
    """
    rng = talk.rng
    kind = rng.random()
    if kind < 0.05:
        small_talk(talk)
    elif kind < 0.11:
        jailbreak(talk)
    elif kind < 0.18:
        quote(talk)
    else:
        ask(
            talk,
            answerable=rng.random() < 0.78,
            prefix=rng.random() < 0.06,
            as_json=rng.random() < 0.08,
        )
        if rng.random() < doubted:
            answer_wrongly(talk)
            doubt(talk)
        else:
            answer(talk)
            if rng.random() < doubted:
                doubt(talk)
