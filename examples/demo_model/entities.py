"""Whom and what the documents speak of.

Every name belongs either to training or to evaluation. Surnames and the names of places and towns
are invented, as many as are needed; things and events are named by two words ("the copper kettle"),
which both halves have, but never together. Values (prices, days, colours ...) are the same for
both.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Split = Literal["train", "eval"]
Kind = Literal["item", "person", "event", "place"]

# one name in so many is kept for evaluation
_HELD_OUT_EVERY: Final = 5

_NOUNS: Final = [
    "kettle",
    "lamp",
    "bicycle",
    "clock",
    "blanket",
    "teapot",
    "mirror",
    "chair",
    "basket",
    "ladder",
    "carpet",
    "drum",
    "violin",
    "camera",
    "tent",
    "lantern",
    "globe",
    "bottle",
    "vase",
    "candle",
    "hammer",
    "saw",
    "bucket",
    "rope",
    "barrel",
    "bench",
    "cradle",
    "wagon",
    "sledge",
    "kite",
    "umbrella",
    "suitcase",
    "trunk",
    "desk",
    "stool",
    "cupboard",
    "shelf",
    "wardrobe",
    "bell",
    "whistle",
    "flute",
    "guitar",
    "piano",
    "harp",
    "trumpet",
    "painting",
    "statue",
    "mask",
    "necklace",
    "ring",
    "bracelet",
    "brooch",
    "crown",
    "goblet",
    "plate",
    "bowl",
    "spoon",
    "knife",
    "teacup",
    "jug",
    "saucepan",
    "oven",
    "stove",
    "fan",
    "heater",
    "radio",
    "telescope",
    "microscope",
    "compass",
    "map",
    "atlas",
    "notebook",
    "diary",
    "stamp",
    "coin",
    "medal",
    "flag",
    "banner",
    "tapestry",
    "curtain",
    "pillow",
    "quilt",
    "mattress",
    "hammock",
    "boat",
    "canoe",
    "paddle",
    "anchor",
    "net",
    "helmet",
    "shield",
    "sword",
    "bow",
    "saddle",
    "boot",
    "glove",
    "scarf",
    "hat",
    "coat",
    "jacket",
    "shirt",
    "belt",
    "purse",
    "wallet",
    "backpack",
    "puzzle",
    "doll",
    "puppet",
    "marble",
    "chessboard",
    "typewriter",
    "printer",
    "loom",
    "spindle",
    "anvil",
    "plough",
    "rake",
    "shovel",
    "wheelbarrow",
    "fountain",
    "gate",
    "door",
    "window",
    "chest",
    "cabinet",
    "tray",
    "cushion",
    "rug",
    "armchair",
    "sofa",
    "table",
    "pan",
    "mill",
    "press",
    "scale",
    "thermometer",
    "barometer",
    "hourglass",
    "sundial",
    "calendar",
    "poster",
    "postcard",
    "envelope",
    "inkwell",
    "pen",
    "brush",
    "easel",
    "palette",
    "carving",
    "totem",
    "urn",
    "pitcher",
    "ladle",
    "grinder",
    "kayak",
    "raft",
    "skateboard",
    "scooter",
    "tricycle",
    "unicycle",
    "accordion",
    "banjo",
    "cello",
    "clarinet",
]

_MODIFIERS: Final = [
    "copper",
    "silver",
    "wooden",
    "old",
    "new",
    "small",
    "large",
    "round",
    "square",
    "striped",
    "painted",
    "heavy",
    "light",
    "folding",
    "carved",
    "antique",
    "broken",
    "polished",
    "plain",
    "tall",
    "narrow",
    "wide",
    "leather",
    "iron",
    "glass",
    "paper",
    "velvet",
    "woollen",
    "rusty",
    "shiny",
]

_EVENT_MODIFIERS: Final = [
    "spring",
    "summer",
    "autumn",
    "winter",
    "harvest",
    "river",
    "garden",
    "music",
    "bread",
    "cheese",
    "apple",
    "honey",
    "flower",
    "poetry",
    "chess",
    "cycling",
    "swimming",
    "running",
    "dance",
    "film",
    "pottery",
    "tea",
    "wool",
    "pumpkin",
    "onion",
    "herring",
    "cider",
    "mushroom",
]

_EVENT_NOUNS: Final = [
    "fair",
    "festival",
    "parade",
    "concert",
    "race",
    "show",
    "contest",
    "exhibition",
    "workshop",
    "lecture",
    "picnic",
    "dinner",
    "gathering",
    "reunion",
    "auction",
    "tournament",
    "supper",
    "walk",
    "ball",
]

_PLACE_NOUNS: Final = [
    "library",
    "museum",
    "bakery",
    "theatre",
    "school",
    "station",
    "hotel",
    "pharmacy",
    "bookshop",
    "gallery",
    "cinema",
    "hospital",
    "restaurant",
    "garage",
    "brewery",
    "chapel",
    "harbour",
    "stadium",
    "market",
    "bank",
    "inn",
    "cafe",
    "dairy",
    "mill",
    "academy",
    "observatory",
    "aquarium",
    "nursery",
    "sawmill",
    "laundry",
    "post-office",
    "swimming-pool",
]

_FIRST_NAMES: Final = [
    "Anna",
    "Mara",
    "Lucia",
    "Mei",
    "Amira",
    "Clara",
    "Nora",
    "Elena",
    "Sofia",
    "Ingrid",
    "Petra",
    "Yuki",
    "Leila",
    "Rosa",
    "Hanna",
    "Greta",
    "Ada",
    "Vera",
    "Julia",
    "Lena",
    "Maya",
    "Nina",
    "Olga",
    "Paula",
    "Rita",
    "Sara",
    "Tessa",
    "Ursula",
    "Wanda",
    "Zoe",
    "Alba",
    "Bella",
    "Carla",
    "Dora",
    "Edith",
    "Flora",
    "Gloria",
    "Helga",
    "Irene",
    "Judith",
    "Karin",
    "Linda",
    "Martha",
    "Naomi",
    "Olivia",
    "Priya",
    "Ruth",
    "Stella",
    "Thea",
    "Viola",
    "Jonas",
    "Tomas",
    "Pavel",
    "Henrik",
    "Omar",
    "Diego",
    "Felix",
    "Hugo",
    "Ivan",
    "Karl",
    "Leo",
    "Marco",
    "Nils",
    "Oscar",
    "Peter",
    "Rafael",
    "Simon",
    "Theo",
    "Victor",
    "Walter",
    "Adam",
    "Boris",
    "Carlos",
    "David",
    "Emil",
    "Frank",
    "Georg",
    "Hassan",
    "Igor",
    "Jakob",
    "Kenji",
    "Lars",
    "Martin",
    "Noah",
    "Otto",
    "Paul",
    "Quentin",
    "Robert",
    "Stefan",
    "Tim",
    "Ulrich",
    "Vincent",
    "William",
    "Xavier",
    "Yusuf",
    "Zeno",
    "Arthur",
    "Bruno",
    "Conrad",
    "Dmitri",
]
_N_WOMEN: Final = 50  # the first so many are women's names

_ONSETS: Final = [
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_CODAS: Final = ["l", "m", "n", "r", "s", "nd", "rn", "v", "k", "b"]
# as many as there are tokens for: a name is a stem and an end
_STEMS: Final = [
    (onset + vowel + _CODAS[(3 * i + 7 * j) % len(_CODAS)]).capitalize()
    for i, onset in enumerate(_ONSETS)
    for j, vowel in enumerate("aeiou")
]
_SURNAME_ENDS: Final = [
    *(
        "er",
        "in",
        "o",
        "as",
        "ov",
        "ez",
        "son",
        "mann",
        "ley",
        "well",
        "ton",
        "ard",
        "i",
        "a",
        "el",
    ),
]
_TOWN_ENDS: Final = [
    *("ford", "wick", "haven", "ville", "burg", "mouth", "dale", "stad", "by", "field"),
]
_PLACE_ENDS: Final = ["a", "in", "o", "is", "an", "el", "us", "ex", "um", "ia"]


@dataclass(frozen=True)
class Entity:
    """Something a document is about. `name` as in a sentence ("the copper kettle")."""

    kind: Kind
    name: str
    pronoun: str
    possessive: str


def split_of(name: str) -> Split:
    """Where a name belongs: one in five, told by its hash, is kept for evaluation."""
    return "train" if zlib.crc32(name.encode()) % _HELD_OUT_EVERY else "eval"


def _of(split: Split, make: Callable[[], str]) -> str:
    while True:
        name = make()
        if split_of(name) == split:
            return name


def _invented(rng: random.Random, split: Split, ends: list[str]) -> str:
    return _of(split, lambda: rng.choice(_STEMS) + rng.choice(ends))


def surname(rng: random.Random, split: Split) -> str:
    return _invented(rng, split, _SURNAME_ENDS)


def item(rng: random.Random, split: Split) -> Entity:
    name = _of(split, lambda: f"the {rng.choice(_MODIFIERS)} {rng.choice(_NOUNS)}")
    return Entity("item", name, "it", "its")


def person(rng: random.Random, split: Split) -> Entity:
    first = rng.choice(_FIRST_NAMES)
    woman = first in _FIRST_NAMES[:_N_WOMEN]
    name = f"{first} {surname(rng, split)}"
    return Entity("person", name, "she" if woman else "he", "her" if woman else "his")


def event(rng: random.Random, split: Split) -> Entity:
    name = _of(split, lambda: f"the {rng.choice(_EVENT_MODIFIERS)} {rng.choice(_EVENT_NOUNS)}")
    return Entity("event", name, "it", "its")


def place(rng: random.Random, split: Split) -> Entity:
    name = f"the {_invented(rng, split, _PLACE_ENDS)} {rng.choice(_PLACE_NOUNS)}"
    return Entity("place", name, "it", "its")


MAKERS: Final = {"item": item, "person": person, "event": event, "place": place}


# Values -------------------------------------------------------------------------------------------

DAYS: Final = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS: Final = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
COLOURS: Final = [
    "red",
    "blue",
    "green",
    "yellow",
    "black",
    "white",
    "brown",
    "grey",
    "orange",
    "purple",
    "pink",
    "golden",
]
MATERIALS: Final = [
    "oak",
    "pine",
    "steel",
    "brass",
    "clay",
    "marble",
    "cotton",
    "silk",
    "wool",
    "bamboo",
    "wax",
    "ivory",
    "tin",
    "cork",
    "stone",
    "linen",
]
JOBS: Final = [
    "teacher",
    "baker",
    "nurse",
    "carpenter",
    "painter",
    "lawyer",
    "gardener",
    "pilot",
    "farmer",
    "plumber",
    "dentist",
    "tailor",
    "butcher",
    "singer",
    "librarian",
    "engineer",
    "cook",
    "driver",
    "clerk",
    "fisherman",
]
HOBBIES: Final = [
    "chess",
    "swimming",
    "fishing",
    "knitting",
    "painting",
    "cycling",
    "cooking",
    "dancing",
    "sailing",
    "hiking",
    "singing",
    "gardening",
    "photography",
    "climbing",
    "reading",
    "rowing",
]
PETS: Final = [
    "dog",
    "cat",
    "parrot",
    "rabbit",
    "hamster",
    "turtle",
    "goat",
    "pony",
    "canary",
    "ferret",
    "lizard",
    "hen",
]
SPOTS: Final = [
    "cellar",
    "attic",
    "kitchen",
    "hallway",
    "garden",
    "shed",
    "workshop",
    "office",
    "studio",
    "storeroom",
    "library",
    "pantry",
]
STREETS: Final = [
    "Mill",
    "Bridge",
    "Church",
    "Station",
    "Harbour",
    "Castle",
    "River",
    "Market",
    "Garden",
    "King",
    "Queen",
    "School",
    "Park",
    "Tower",
]


def price(rng: random.Random, _: Split) -> str:
    return f"{rng.randint(2, 99)} euros"


def clock(rng: random.Random, _: Split) -> str:
    return f"{rng.randint(6, 22)}:{rng.choice(('00', '15', '30', '45'))}"


def date(rng: random.Random, _: Split) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def year(rng: random.Random, _: Split) -> str:
    return str(rng.randint(1650, 2019))


def number(rng: random.Random, _: Split) -> str:
    return str(rng.randint(2, 99))


def extension(rng: random.Random, _: Split) -> str:
    return str(rng.randint(100, 999))


def weight(rng: random.Random, _: Split) -> str:
    return f"{rng.randint(2, 60)} kilos"


def day(rng: random.Random, _: Split) -> str:
    return rng.choice(DAYS)


def colour(rng: random.Random, _: Split) -> str:
    return rng.choice(COLOURS)


def material(rng: random.Random, _: Split) -> str:
    return rng.choice(MATERIALS)


def job(rng: random.Random, _: Split) -> str:
    return rng.choice(JOBS)


def hobby(rng: random.Random, _: Split) -> str:
    return rng.choice(HOBBIES)


def pet(rng: random.Random, _: Split) -> str:
    return rng.choice(PETS)


def spot(rng: random.Random, _: Split) -> str:
    return f"the {rng.choice(SPOTS)}"


def street(rng: random.Random, _: Split) -> str:
    return f"{rng.choice(STREETS)} Street"


def town(rng: random.Random, split: Split) -> str:
    return _invented(rng, split, _TOWN_ENDS)
