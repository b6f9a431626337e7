"""What a sentence says: a clause with a gap where the answer was.

A shallow grammar over parts of speech. It reads simple clauses and gives up at the rest: a question
that reads badly costs more than one that is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

from .passages import Passage, Sentence, Word, said

Kind = Literal["subject", "object", "when", "where", "how many", "how much", "how long", "by"]

_BE: Final = {"is", "are", "was", "were"}
_AUX: Final = _BE | {"has", "have", "had", "will", "can", "could", "would", "may", "must", "should"}
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_PREPOSITIONS: Final = {
    "in", "on", "at", "near", "by", "for", "from", "to", "with", "under", "over", "into", "against",
    "between", "through", "during", "after", "before", "since", "until", "as", "within", "across",
    "throughout", "along", "around", "without", "among", "toward", "towards", "about", "despite",
}  # fmt: skip
_LEADS: Final = {"in", "on", "after", "during", "at", "by", "since", "from", "following", "under"}
# words that point at what was said before: such a clause cannot be understood alone
_POINTING: Final = {
    "this", "these", "those", "that", "such", "it", "its", "he", "she", "they", "his", "her",
    "their", "them", "him", "we", "our", "us", "i", "my", "you", "your", "another", "other",
    "others", "both", "each", "some", "many", "most", "all", "several", "few", "more", "former",
    "latter", "same", "one", "first", "second", "here", "there", "following", "above", "however",
    "also", "therefore", "thus", "then", "what", "which", "who", "whose", "whom", "where", "when",
    "why", "how", "no", "not", "never", "n't", "any", "every", "only", "even", "still",
    "so", "yet", "later", "earlier", "again", "now", "today", "addition", "example", "instance",
    "myself", "me", "let", "part", "result", "either", "neither", "nor", "rest",
}  # fmt: skip
# what ties a noun phrase to the one before
_JOINS: Final = {"of", "in", "for", "between", "from", "on"}
_LONGEST_SUBJECT: Final = 14
# in the rest of a clause these do little harm
_HARMLESS: Final = {
    "first", "second", "one", "all", "most", "many", "several", "some", "more", "other", "each",
    "both", "every", "only", "part", "rest", "result", "few", "any", "no", "same",
}  # fmt: skip
# said of the clause's own subject
_OWN: Final = {"its", "their", "his"}
_STOP: Final = {"which", "who", "while", "where", "when", "although", "though", "but", "because",
                "as", "whereas", "until", "after", "before", "with", "including", "making", "that",
                "since", "if", "thereby", "thus", "so", "and"}  # fmt: skip
_SPANS: Final = {"year", "month", "day", "week", "decade", "hour", "century", "time", "percent"}
_NOT_PLACES: Final = re.compile(
    r"War|Act|Treaty|Congress|Part|Age|Era|Rev|Agree|Day|Program|Week|Conf|Corp|Inc|Constit|"
    r"Dynasty|Century|Senate|House|Council|Empire|Period|Unix|UNIX|Accord|Summit|Assembly|"
    r"Commission|Parliament|Committee|General|President|Government|English|French|Christ|God"
)


@dataclass(frozen=True)
class Clause:
    """`subject` `verb` `rest`, with a gap in one of them. Texts are without a final stop.

    verb  the finite form as it stands ("was established", "grew")
    base  what follows the auxiliary if it is turned round ("established", "grow")
    aux   the auxiliary ("was", "did")
    """

    subject: str
    verb: str
    aux: str
    base: str
    rest: str
    person: bool = False
    plural: bool = False

    @property
    def statement(self) -> str:
        return _joined(self.subject, self.verb, self.rest)

    @property
    def inverted(self) -> str:
        return _joined(self.aux, self.subject, self.base, self.rest)


@dataclass(frozen=True)
class Fact:
    """A question's matter. `clause` lacks the answer; `answer` is it, bare ("1991"); `said` as it
    stood in the sentence ("in 1991"); `counted` is what is counted ("seats").
    """

    kind: Kind
    clause: Clause
    answer: str
    said: str
    sentence: int
    counted: str = ""
    names: tuple[str, ...] = ()  # proper names in the clause

    @property
    def year(self) -> bool:
        return bool(re.fullmatch(r"\d{4}", self.answer))

    def with_answer(self, answer: str) -> str:
        """The whole statement, with this answer in place of the right one."""
        stated = self.said.replace(self.answer, answer, 1)
        c = self.clause
        if self.kind == "subject":
            return capitalised(_joined(stated, c.verb, c.rest))
        if self.kind in ("object", "how many", "how much"):
            return capitalised(_joined(c.subject, c.verb, stated, c.rest))
        return capitalised(_joined(c.subject, c.verb, c.rest, stated))


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def facts(passage: Passage) -> list[Fact]:
    """All of a passage, by sentence."""
    return [
        replace(fact, sentence=i)
        for i, one in enumerate(passage.sentences)
        for fact in of_sentence(one)
    ]


def of_sentence(one: Sentence) -> Iterator[Fact]:
    """What its main clause says."""
    if not one.plain:
        return
    parted = _lead_and_clause(list(one.words[:-1]))  # without the stop
    if parted is None:
        return
    lead, words = parted
    end = _subject(words)
    found = _verb_group(words, end) if end else None
    if not found:
        return
    verb_end, verb, aux, base = found
    rest = _rest(words[verb_end:])
    if rest is None or not (base or rest) or not _stands_alone(rest):
        return
    subject = words[:end]
    if not lead and one.begins_lower:
        first = subject[0]
        subject[0] = first._replace(text=first.text[0].lower() + first.text[1:])
    head = _head(subject)
    plural = head.tag == "NOUN" and head.text.lower() != head.lemma.lower()
    if aux == "does" and plural:
        return
    person = _is_person(subject)
    clause = Clause(said(subject), verb, aux, base, said(rest), person=person, plural=plural)
    yield from _gaps(subject, clause, rest, lead)


def _lead_and_clause(words: list[Word]) -> tuple[list[Word], list[Word]] | None:
    """What stands before the clause ("In 1991"), and the clause; None if that is hard to tell."""
    if not words or words[0].text.lower() not in _LEADS:
        return [], words
    comma = next((i for i, w in enumerate(words[:12]) if w.text == ","), 0)
    lead, clause = words[:comma], words[comma + 1 :]
    if not lead or not clause or any(w.tag == "VERB" for w in lead) or clause[0].text.isdigit():
        return None
    return lead, clause


def _subject(words: Sequence[Word]) -> int:
    """Where the subject ends; 0 if there is none that can be understood alone."""
    end = _noun_phrase(words, 0)
    if not end or (end < len(words) and words[end].text == "-"):
        return 0
    while end < len(words) and words[end].text in _JOINS:
        more = _noun_phrase(words, end + 1)
        if not more:
            return 0
        end = more
    subject = words[:end]
    if len(subject) > _LONGEST_SUBJECT or any(w.lemma.lower() in _POINTING for w in subject):
        return 0
    return end if any(w.tag in ("PROPN", "NOUN") for w in subject) else 0


def _stands_alone(rest: Sequence[Word]) -> bool:
    """Whether it points at nothing but the clause's own subject."""
    pointing = _POINTING - _HARMLESS - _OWN
    return not any(
        w.lemma.lower() in pointing or (w.tag == "PRON" and w.text not in _OWN) for w in rest
    )


def _head(words: Sequence[Word]) -> Word:
    stop = next((i for i, w in enumerate(words) if w.text in _PREPOSITIONS | {"of"}), len(words))
    return words[max(0, stop - 1)]


def _is_person(words: Sequence[Word]) -> bool:
    names = [w.text for w in words if w.tag == "PROPN"]
    return bool(names) and names[0].rstrip(".") in {
        "President", "King", "Queen", "General", "Prince", "Emperor", "Mr", "Sultan", "Sheikh",
        "Pope", "Admiral", "Captain", "Colonel", "Senator", "Secretary", "Judge", "Dr", "Lord",
    }  # fmt: skip


def _noun_phrase(words: Sequence[Word], start: int) -> int:
    """Where the noun phrase that begins at `start` ends, 0 if there is none. "A and B" is one where
    both are proper names; "a of b" is one.
    """
    i, nouns = start, 0
    while i < len(words):
        if words[i].text == "of" and nouns:
            return _noun_phrase(words, i + 1)
        counts = _in_noun_phrase(words, i, start, nouns)
        if counts is None:
            break
        nouns = counts
        i += 1
    return i if nouns else 0


def _in_noun_phrase(words: Sequence[Word], i: int, start: int, nouns: int) -> int | None:
    """How many nouns there are with word `i`, which may begin anew; None if it is not in it."""
    w = words[i]
    before = words[i - 1] if i > start else None
    after = words[i + 1] if i + 1 < len(words) else None
    if w.tag in ("NOUN", "PROPN") or (before is not None and before.text == "-"):
        return nouns + 1
    if w.text == "'s" or (w.text == "'" and nouns):
        return 0
    if w.text in ("%", "$", "-") or w.tag == "SYM":
        return nouns + (w.text == "%")
    if w.tag == "NUM":
        return nouns + (after is None or after.tag not in ("NOUN", "ADJ"))
    if not nouns and (
        (w.tag == "DET" and before is None)
        or w.tag == "ADJ"
        or (w.tag == "ADV" and after is not None and after.tag in ("ADJ", "NUM"))
    ):
        return nouns
    names = before is not None and after is not None and before.tag == after.tag == "PROPN"
    return 0 if w.text == "and" and nouns and names else None


_IRREGULAR: Final = {
    "became", "began", "broke", "brought", "built", "came", "chose", "drew", "drove", "fell",
    "fought", "found", "gave", "grew", "held", "kept", "knew", "led", "left", "lost", "made", "met",
    "paid", "ran", "rose", "said", "saw", "sent", "sold", "spent", "stood", "spoke", "taught",
    "took", "told", "thought", "threw", "understood", "went", "won", "wore", "wrote", "sought",
    "bore", "bought", "caught", "flew", "forbade", "forgot", "froze", "got", "hid", "laid", "lay",
    "lent", "overcame", "overthrew", "sank", "shook", "shot", "slew", "struck", "swept", "swore",
    "withdrew", "fled", "bred", "fed", "rebuilt",
}  # fmt: skip
_SAME: Final = {"put", "set", "cut", "let", "hit", "cost", "spread", "split", "shut", "read"}


def _verb_group(words: Sequence[Word], start: int) -> tuple[int, str, str, str] | None:
    """Its end, its text, the auxiliary, and what follows that if it is turned round."""
    i = start + (words[start : start + 1] != [] and _is_adverb(words[start]))
    if i >= len(words):
        return None
    first, adverb = words[i], words[start:i]
    if first.text in _AUX:
        return _with_auxiliary(words, start, i)
    if first.tag != "VERB" or not first.text.islower():
        return None
    text, lemma = first.text, first.lemma
    if text in _SAME or text.endswith("ing"):
        return None
    if text in _IRREGULAR or (text.endswith("ed") and lemma != text):
        aux = "did"
    elif text in (lemma + "s", lemma + "es", lemma[:-1] + "ies"):
        aux = "does"
    else:
        return None
    end = i + 1
    if end < len(words) and (words[end].tag == "PART" or words[end].text == "by"):
        return None  # "a language produced by ..." is no clause
    base = said([*adverb, Word(lemma, " ", "VERB", lemma, "")])
    return end, said(words[start:end]), aux, base


def _is_adverb(word: Word) -> bool:
    return word.tag == "ADV" and word.text.endswith("ly")


def _with_auxiliary(words: Sequence[Word], start: int, i: int) -> tuple[int, str, str, str] | None:
    end = i + 1
    while end < len(words) and words[end].tag in ("AUX", "ADV"):
        if words[end].text.lower() in _POINTING:
            return None
        end += 1
    aux, adverb = words[i].text, words[start:i]
    is_verb = end < len(words) and words[end].tag == "VERB"
    if is_verb or aux in _BE:
        end += is_verb
        return end, said(words[start:end]), aux, said([*adverb, *words[i + 1 : end]])
    turned = {"has": "does", "have": "do", "had": "did"}.get(aux)
    if turned is None or end > i + 1:
        return None
    return end, said(words[start:end]), turned, said([*adverb, Word("have", " ", "", "", "")])


def _rest(words: Sequence[Word]) -> list[Word] | None:
    """What follows the verb as far as it surely belongs to the clause, None if that is not sure."""
    for i, w in enumerate(words):
        follows = words[i + 1] if i + 1 < len(words) else None
        if w.text in ("which", "who", "where", "when", "that", "if", "than"):
            return None
        if w.text in ("while", "although", "because"):
            return _whole(words[:i]) if i >= 2 else None
        ends: bool | None = False
        if w.text == "," and follows is not None:
            ends = _comma_ends(words, i, follows)
        elif w.text in ("and", "or", "but") and follows is not None:
            ends = _conjunction_ends(words, i, follows)
        if ends is None:
            return None
        if ends:
            return _whole(words[:i])
    return _whole(words)


def _comma_ends(words: Sequence[Word], i: int, follows: Word) -> bool | None:
    """Whether the clause ends at the comma; None if that is not sure."""
    if words[i].entity and follows.entity == words[i].entity:
        return False  # "July 4, 1776"
    if follows.text == "and":
        return any(x.tag in ("VERB", "AUX", "PRON") for x in words[i + 2 :])
    if follows.text in _STOP or follows.text.endswith("ing"):
        return True
    hard = follows.tag in ("PRON", "ADV", "VERB", "AUX", "SCONJ") or any(
        x.tag in ("AUX", "PRON") or x.text in _STOP - {"and", "as"} for x in words[i:]
    )
    return None if hard else False


def _conjunction_ends(words: Sequence[Word], i: int, follows: Word) -> bool | None:
    """The same for "and"."""
    if follows.tag in ("VERB", "AUX", "PRON", "ADV") or follows.text in ("that", "to"):
        return True
    return None if any(x.tag in ("VERB", "AUX") for x in words[i + 1 : i + 9]) else False


def _whole(words: Sequence[Word]) -> list[Word] | None:
    """`words` if they do not break off within a list, and hold no other clause."""
    if any(w.tag == "AUX" and i and words[i - 1].text != "to" for i, w in enumerate(words)):
        return None
    commas = sum(w.text == "," and not w.entity for w in words)
    listed = any(w.text in ("and", "or") for w in words)
    return list(words) if len(words) <= 24 and (not commas or listed) else None


def _phrases(rest: Sequence[Word]) -> list[tuple[int, int]]:
    """The rest's phrases: an object or complement, and those that a preposition begins."""
    begins = [
        i
        for i, w in enumerate(rest)
        if i and w.text.lower() in _PREPOSITIONS and w.tag in ("ADP", "SCONJ", "PART")
    ]
    return list(pairwise([0, *begins, len(rest)])) if rest else []


def _is_date(words: Sequence[Word]) -> bool:
    text = said(words)
    months = "|".join(_MONTHS)
    return bool(
        re.fullmatch(r"(1[0-9]|20)\d\d", text)
        or re.fullmatch(rf"(early |late |mid-)?({months}) (\d\d?, )?(1[0-9]|20)\d\d", text)
        or re.fullmatch(rf"\d\d? ({months}) (1[0-9]|20)\d\d", text)
        or re.fullmatch(r"the (\d\d?(st|nd|rd|th)|[a-z]+th) century", text)
        or re.fullmatch(r"the (1[0-9]|20)\d\ds", text)
    )


def _names(words: Sequence[Word]) -> tuple[str, ...]:
    """Proper names, as runs of words."""
    found: list[str] = []
    run: list[Word] = []
    for w in [*words, None]:
        if w is not None and w.tag == "PROPN" and w.text[0].isupper() and w.text not in _MONTHS:
            run.append(w)
        elif run:
            found.append(said(run))
            run = []
    return tuple(found)


def _gaps(
    subject: list[Word], clause: Clause, rest: list[Word], lead: list[Word]
) -> Iterator[Fact]:
    names = _names([*subject, *rest])
    dated = any(w.entity.startswith("DATE") for w in rest)
    if lead and lead[0].text in ("In", "On") and _is_date(lead[1:]) and not dated:
        told = said(lead)
        yield Fact("when", clause, said(lead[1:]), told[0].lower() + told[1:], 0, names=names)
    # "what" asks after one thing: for many, a singular verb would be wrong
    many = clause.aux == "do" or (clause.plural and clause.aux in ("are", "were", "have"))
    content = [w for w in rest if w.tag in ("NOUN", "PROPN", "NUM")]
    if names and len(content) >= 2 and not many:
        gap, answer = replace(clause, subject=""), clause.subject
        yield Fact("subject", gap, answer, answer, 0, names=_names(rest))
    for begin, end in _phrases(rest):
        phrase = rest[begin:end]
        gap = replace(clause, rest=said([*rest[:begin], *rest[end:]]))
        if begin == 0 and phrase[0].text.lower() in _PREPOSITIONS and not clause.base:
            continue  # "The capital is in ..." leaves nothing
        yield from _of_phrase(phrase, begin, gap, names, rest)


def _of_phrase(
    phrase: list[Word], begin: int, gap: Clause, names: tuple[str, ...], rest: list[Word]
) -> Iterator[Fact]:
    first, body = phrase[0].text.lower(), phrase[1:]
    whole, told = said(phrase), said(body)
    tail = said(rest[begin + len(phrase) :])
    if first in ("in", "on") and _is_date(body):
        yield Fact("when", gap, told, whole, 0, names=names)
    elif (
        first in ("in", "at", "near")
        and body
        and all(w.tag == "PROPN" or w.text in ("the", "of", "and") for w in body)
        and body[-1].tag == "PROPN"
        and len(gap.rest.split()) + len(gap.base.split()) >= 2
        and not _NOT_PLACES.search(told)
        and told.split()[-1] not in _MONTHS
    ):
        yield Fact("where", gap, told, whole, 0, names=names)
    elif first == "for" and body and body[-1].lemma in _SPANS:
        if any(w.tag == "NUM" for w in body):
            yield Fact("how long", gap, told, whole, 0, names=names)
    elif first == "by" and body:
        done = gap.aux in _BE and gap.base.endswith(_PARTICIPLES)
        if done and _noun_phrase(body, 0) == len(body) and not any(w.tag == "NUM" for w in body):
            yield Fact("by", gap, told, whole, 0, names=names)
    elif begin == 0 and gap.base and first not in _PREPOSITIONS:
        yield from _of_object(phrase, replace(gap, rest=tail), names)


_PARTICIPLES: Final = ("ed", "en", "wn", "un", "lt", "ld", "de", "ught", "und", "ne")
_MONEY: Final = re.compile(
    r"((?:about|over|nearly|almost|roughly|some) )?(\$[\d.,]+(?: [mb]illion)?)"
)
_PERCENT: Final = re.compile(r"((?:about|over|nearly|almost|roughly|some) )?([\d.]+%) (of .+)")


def _of_object(phrase: list[Word], gap: Clause, names: tuple[str, ...]) -> Iterator[Fact]:
    if _noun_phrase(phrase, 0) != len(phrase):
        return
    whole = said(phrase)
    money, percent = _MONEY.fullmatch(whole), _PERCENT.fullmatch(whole)
    if money:
        yield Fact("how much", gap, money[2], whole, 0, names=names)
    elif percent:
        yield Fact("how much", gap, percent[2], whole, 0, counted=percent[3], names=names)
    elif any(w.tag == "NUM" for w in phrase):
        number, counted = phrase[0], phrase[1:]
        if number.tag == "NUM" and _is_count(number, counted):
            answer, of = number.text, said(counted)
            yield Fact("how many", gap, answer, whole, 0, counted=of, names=names)
    elif (
        gap.aux not in _BE
        and _head(phrase).tag == "NOUN"
        and (names or len(phrase) >= 3)
        and not any(w.lemma.lower() in _POINTING for w in phrase)
    ):
        yield Fact("object", gap, whole, whole, 0, names=names)


def _is_count(number: Word, counted: Sequence[Word]) -> bool:
    """Whether it says how many there are of something: not a year, one, or how long."""
    if not counted or counted[-1].tag != "NOUN" or number.text.lower() in ("one", "1"):
        return False
    if any(w.tag == "NUM" for w in counted) or counted[0].text in ("%", "-", "of"):
        return False
    head = _head(counted)
    year = re.fullmatch(r"(1[5-9]|20)\d\d", number.text)
    return not year and head.text != head.lemma and head.lemma not in _SPANS
