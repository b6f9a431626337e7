"""Notices of invented places: questions in other words than theirs, for yes and no, and why."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from . import sayings, scenes, tasks
from .passages import Passage
from .tasks import Made, assistant, user
from .wordings import Split

SHARE: Final = 0.2  # of answerability's lines; of hallucination's half as many
_LEAST: Final = 4  # things that a notice says
_MOST: Final = 9


@dataclass(frozen=True)
class Item:
    """Something a notice may say, how it is asked for, what is right and what wrong to answer."""

    said: str
    asked: tuple[str, ...]
    right: str
    wrong: str


def _item(said: str, *asked: str, right: str, wrong: str) -> Item:
    return Item(said, asked, right, wrong)


PLACES: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "Lindenhof", "Old Mill Hostel", "Riverside Museum", "Hotel Aurora", "Beech Hall",
        "Harbour Theatre", "Castle Inn", "Northgate Library", "Villa Rosa", "Green Valley Camp",
        "Museum of Clocks", "Seaview House",
    ),
    "eval": ("Maple Lodge", "Palace Cinema", "Hillcrest Centre", "Lakeside Zoo", "Hotel Bristol"),
    "final": ("Willow Farm", "Tower Gallery", "Hotel Meridian"),
}  # fmt: skip

ITEMS: Final[dict[Split, tuple[Item, ...]]] = {
    "train": (
        _item("Guests may bring their dogs, but they are not let into the dining room.",
              "Can I come with my puppy?", "Are pets welcome?", "Do animals have to stay at home?",
              right="Yes, you can bring a dog, as long as it stays out of the dining room.",
              wrong="No, pets have to stay at home."),
        _item("The swimming pool is closed this week because its pump is being repaired.",
              "Why can't we swim at the moment?", "Is it possible to swim today?",
              "What is wrong with the pool?",
              right="A pump is broken, so nobody can swim this week.",
              wrong="The pool is shut since the water is too cold."),
        _item("Breakfast is served in the conservatory from seven to ten.",
              "Where do we eat in the morning?", "Until when can I get something to eat early?",
              "Will I find breakfast at nine?",
              right="You get it in the conservatory, ten o'clock at the latest.",
              wrong="It is brought to your room until noon."),
        _item("Tickets are cheaper on Tuesdays, when pensioners pay nothing at all.",
              "On which day do I save money?", "Does my grandmother have to pay on a Tuesday?",
              "Is there a discount for the retired?",
              right="Older people get in free once a week.",
              wrong="Pensioners pay the full price every day."),
        _item("Photography is forbidden so that the old colours do not fade.",
              "May I take pictures?", "Why is my camera not allowed?",
              "For what reason must there be no photos?",
              right="No, light would harm the colours.",
              wrong="Yes, you may take as many pictures as you like."),
        _item("The founder, a widow named Clara Voss, paid for the building with a lottery prize.",
              "Who started it all?", "How was the construction financed?",
              "Where did the money for the house come from?",
              right="Clara Voss had won in a lottery and used that.",
              wrong="A bank lent the founder the money."),
        _item("Parking costs four euros a day and is free for disabled drivers.",
              "What do I pay for leaving my car?", "Is there a place for my car?",
              "Do the disabled pay for parking?",
              right="You can leave your car for four euros a day.",
              wrong="There is nowhere to leave a car."),
        _item("The lift is out of order, and wheelchairs have to use the ramp at the back.",
              "How do I get in with a wheelchair?", "Is the elevator working?",
              "Can I avoid the stairs?",
              right="There is a ramp behind the building for wheelchairs.",
              wrong="The elevator takes wheelchairs to every floor."),
        _item("Children under six are not admitted, since the stairs are steep.",
              "Can my three-year-old come along?", "Why are toddlers kept out?",
              "Is it suitable for little kids?",
              right="No, it would be dangerous for the very young.",
              wrong="Yes, children of any age may come in."),
        _item("The garden was designed by two sisters and has more than sixty kinds of roses.",
              "What grows outside?", "Who planned the grounds?", "Are there flowers to see?",
              right="Two sisters laid out the grounds, with plenty of roses.",
              wrong="There are only trees and grass outside."),
        _item("Bicycles can be hired at the gate, and helmets are included.",
              "Can I rent a bike?", "Do I have to bring a helmet for cycling?",
              "Where would I get a bicycle?",
              right="Yes, you get one at the entrance, with a helmet.",
              wrong="Yes, but a helmet costs extra."),
        _item("Smoking is permitted on the terrace only.",
              "Where can I have a cigarette?", "Am I allowed to smoke in my room?",
              "Is smoking banned inside?",
              right="Only outside, on the terrace.",
              wrong="You can smoke in all rooms."),
        _item("The night train stops nearby, so light sleepers are given earplugs.",
              "Is it quiet at night?", "Why do they hand out earplugs?",
              "What helps those who wake up easily?",
              right="Trains can be heard at night, which is why there are earplugs.",
              wrong="It is silent at night, and nobody needs earplugs."),
        _item("Rooms must be left by eleven on the last day.",
              "When do I have to check out?", "Can I stay in my room until the afternoon?",
              "How late may we leave?",
              right="You check out at eleven at the latest.",
              wrong="You may keep the room until the evening."),
        _item("The kitchen cooks without meat, because the owners are vegetarians.",
              "Could I order a steak?", "Why is there no ham?", "Is the food vegetarian?",
              right="All dishes are vegetarian, as the owners are.",
              wrong="A steak is on the menu every day."),
        _item("A guide leads visitors through the cellar every full hour.",
              "How often are there tours?", "Can I see what lies below the house?",
              "Is there somebody to show us round?",
              right="Somebody shows you the cellar once an hour.",
              wrong="There is one tour a week."),
        _item("Wireless internet reaches the lobby, but not the upper floors.",
              "Can I go online in my bedroom upstairs?", "Where do I get an internet connection?",
              "Is there Wi-Fi everywhere?",
              right="Only in the lobby, not upstairs.",
              wrong="You can go online on each floor."),
        _item("The roof was torn off by a storm in March and has been renewed in copper.",
              "What happened in spring?", "Why does the building have a new top?",
              "Which metal covers it now?",
              right="After a storm it got a new roof, of copper.",
              wrong="A fire destroyed the roof."),
        _item("Payment is by card only, and no cash is accepted.",
              "Can I pay with coins?", "How do I settle the bill?", "Do they take banknotes?",
              right="You need a card; coins and notes are refused.",
              wrong="You have to bring cash."),
        _item("Lost things are kept at the reception for a month and then given to the poor.",
              "Where might my umbrella be?", "What becomes of what people leave behind?",
              "Could I still get back the scarf that I forgot yesterday?",
              right="The reception keeps it for some weeks.",
              wrong="What people forget is thrown away the same day."),
        _item("Concerts take place in the courtyard in summer, or in the chapel if it rains.",
              "Is there music?", "Where do musicians play in bad weather?",
              "Do I hear concerts outdoors in July?",
              right="They play outdoors, unless it is wet.",
              wrong="No music is played there."),
        _item("The shop sells honey that is made by the bees on the roof.",
              "What can I buy?", "Where does the honey come from?", "Do they keep insects?",
              right="There is honey from their own bees.",
              wrong="The shop has nothing but postcards."),
        _item("School classes get in free if they book a week ahead.",
              "What does it cost for my pupils?", "Do teachers need to reserve?",
              "How early should a class announce its visit?",
              right="Nothing for pupils, if the visit is booked in time.",
              wrong="Each pupil pays half the price."),
        _item("Heating is switched off at midnight in order to save gas.",
              "Why is it cold late at night?", "Do the radiators run until morning?",
              "When does it stop being warm?",
              right="They save gas after midnight.",
              wrong="It is warm all night."),
    ),
    "eval": (
        _item("Dogs are welcome in the park, though they have to be kept on a lead.",
              "Is my terrier allowed to run free outdoors?", "Could I take a pet along?",
              right="A dog may come, but not run about freely.",
              wrong="Dogs must not enter the park."),
        _item("The sauna stays shut until autumn, as the oven has burnt out.",
              "Why is there no sauna?", "Could I sweat in the sauna this summer?",
              right="Its oven is broken, so it does not open before autumn.",
              wrong="It is being painted."),
        _item("Supper has to be ordered before noon.",
              "Can I decide in the evening whether to eat?", "Till when do I say that I want food?",
              right="One has to say so in the morning.",
              wrong="Just ask for it in the evening."),
        _item("Students get a third off if they show a card.",
              "Is it cheaper for people at university?", "What must a student bring along?",
              right="With a card, students pay less.",
              wrong="There are no lower prices for students."),
        _item("Umbrellas are left at the cloakroom, because wet floors are slippery.",
              "May I keep my umbrella?", "What is the reason for handing in umbrellas?",
              right="No, somebody might slip.",
              wrong="Yes, you can carry it with you."),
        _item("A bus runs from the station twice an hour until nine.",
              "How can I come by train?", "Is there a ride at midnight?",
              right="From the station you take a bus, in the daytime and early evening.",
              wrong="You have to walk from the station."),
        _item("The fountain was a present from the town's Danish twin.",
              "Who gave them the fountain?", "Is there something from Denmark?",
              right="It was given by a Danish town.",
              wrong="A rich banker paid for it."),
        _item("Balls may be played only on the meadow behind the barn.",
              "Where can my children play football?", "Is football possible by the front door?",
              right="On the grass at the back.",
              wrong="Ball games are forbidden everywhere."),
        _item("Towels are changed on request, not daily, to spare water.",
              "Do I get fresh towels each day?", "Why aren't towels replaced every morning?",
              right="Only if you ask, since water is precious.",
              wrong="Yes, fresh ones come every morning."),
        _item("The gate is locked at ten, and latecomers ring the bell.",
              "What if I come home at eleven?", "Can one get in late in the evening?",
              right="Ring, and somebody lets you in.",
              wrong="Whoever is late stays outside till morning."),
    ),
    "final": (
        _item("Cats live in the house, which is a problem for people with allergies.",
              "Would it suit somebody who is allergic to fur?", "Which animals are kept indoors?",
              right="Whoever is allergic had better stay away.",
              wrong="No animal is kept there."),
        _item("The bridge is blocked for lorries, since it was built for carts.",
              "Can I cross with my truck?", "Why must heavy vehicles take another way?",
              right="It was not built for anything heavy.",
              wrong="Every vehicle may cross it."),
        _item("Visitors take off their shoes and are lent slippers.",
              "Do I walk in with my boots on?", "What do I wear on my feet?",
              right="You change into slippers.",
              wrong="Keep your boots on."),
        _item("The bakery opens at five on weekdays and never on Sundays.",
              "Can I buy bread on a Sunday?", "Is it open when I go to work at six?",
              right="On Sundays it is shut.",
              wrong="It sells bread seven days a week."),
        _item("Groups of more than ten are split, as the rooms are narrow.",
              "May all fifteen of us go in together?", "Why can't a big group stay together?",
              right="There is too little room for so many.",
              wrong="Any number may go in together."),
        _item("Water from the tap is not for drinking, but bottles stand in the hall.",
              "Can I fill my glass at the sink?", "Where do I find something to drink?",
              right="Drink from the bottles rather than from the tap.",
              wrong="The tap is safe to drink from."),
    ),
}  # fmt: skip


def n_lines(n: int, share: float) -> int:
    """How many of `n` lines are about notices; all of a place, and both labels, are together."""
    return round(n * share) // scenes.LINES * scenes.LINES


@dataclass(frozen=True)
class Notice:
    """What stands in documents, what does not, and what was said before."""

    place: str
    there: tuple[Item, ...]
    missing: tuple[Item, ...]
    documents: tuple[str, ...]
    earlier: tuple[tuple[str, str], ...]


def notice(split: Split, number: int, passages: Sequence[Passage], rng: random.Random) -> Notice:
    """A notice, at times among other documents, and a talk about it."""
    items = rng.sample(ITEMS[split], len(ITEMS[split]))
    n = rng.randint(min(_LEAST, len(items) // 2), min(_MOST, len(items) - 2))
    there, missing = items[:n], items[n:]
    place = f"{rng.choice(PLACES[split])}, no. {number // scenes.LINES + 1}"
    text = f"{place}: " + " ".join(each.said for each in there)
    documents = [text]
    if rng.random() < 0.35:
        more = rng.sample(passages, min(rng.randint(1, 3), len(passages)))
        documents = rng.sample([text, *(each.text() for each in more)], len(more) + 1)
    turns: list[tuple[str, str]] = []
    for _ in range(scenes.n_turns(rng)):
        draw = rng.random()
        if draw < 0.6:
            item = rng.choice(there)
            turns.append((rng.choice(item.asked), item.right))
        elif draw < 0.8:
            turns.append(
                (rng.choice(rng.choice(missing).asked), rng.choice(sayings.UNKNOWN[split]))
            )
        else:
            turns.append(rng.choice(sayings.SMALL_TALK[split]))
    turns = [*dict(turns).items()]
    return Notice(place, tuple(there), tuple(missing), tuple(documents), tuple(turns))


def _messages(one: Notice) -> list[dict[str, str]]:
    return tasks.said(one.earlier)


def answerability(
    split: Split, part: str, n: int, passages: Sequence[Passage], rng: random.Random
) -> list[Made]:
    """`n` lines: as many about what a notice says as about what it does not."""
    made: list[Made] = []
    while len(made) < n:
        one = notice(split, len(made), passages, rng)
        was = {asked for asked, _ in one.earlier}
        for items, verdict in ((one.there, "answerable"), (one.missing, "unanswerable")):
            asked = [each for item in items for each in item.asked if each not in was]
            if len(asked) < scenes.LINES // 2:
                break
            for question in rng.sample(asked, scenes.LINES // 2):
                line = _line([*_messages(one), user(question)], one, {"answerability": verdict})
                made.append(Made(line, f"notice {part}", "notice", question))
        else:
            continue
        del made[len(made) // scenes.LINES * scenes.LINES :]
    return made[:n]


def hallucination(
    split: Split, part: str, n: int, passages: Sequence[Passage], rng: random.Random
) -> list[Made]:
    """`n` lines: answers in other words than the notice's; wrong ones say what it does not say, or
    what it denies.
    """
    made: list[Made] = []
    while len(made) < n:
        one = notice(split, len(made), passages, rng)
        first, second, third = rng.sample(one.there, 3)
        missing = rng.choice(one.missing)  # so that what is right here is not so everywhere
        for item, answer, verdict in (
            (first, first.right, "yes"),
            (missing, missing.right, "no"),
            (second, second.right, "yes"),
            (third, third.wrong, "no"),
        ):
            said = [user(rng.choice(item.asked)), assistant(answer)]
            line = _line([*_messages(one), *said], one, {"faithful": verdict})
            made.append(Made(line, f"notice {part}", "notice", item.said, item.right))
    return made[:n]


def _line(messages: list[dict[str, str]], one: Notice, answer: dict[str, str]) -> tasks.Line:
    documents = [{"text": each} for each in one.documents]
    return {"messages": messages, "documents": documents, "answer": answer}
