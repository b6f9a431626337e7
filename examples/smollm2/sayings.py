"""What is said in a talk beside questions about a text: none of it is in two splits."""

from __future__ import annotations

from typing import Final

from .wordings import Split

Turns = tuple[tuple[str, str], ...]

# Turns that ask for nothing in a text.
SMALL_TALK: Final[dict[Split, Turns]] = {
    "train": (
        ("Hello!", "Hello, how can I help you?"),
        ("Hi, how are you?", "Fine, thank you. What can I do for you?"),
        ("I have some questions about this.", "Please ask."),
        ("Can you write poems?", "Yes, I like to."),
        ("Are you a person?", "No, I am a computer program."),
        ("Thanks so far.", "With pleasure."),
        ("That was helpful.", "I am glad to hear it."),
        ("It is raining here again.", "Then it is a good day for reading."),
        ("I am a bit tired today.", "Shall we keep it short?"),
        ("Wait a moment, please.", "Take your time."),
        ("I am back.", "Welcome back. Where were we?"),
        ("You answer quickly.", "I do my best."),
        ("Please keep your answers short.", "I will."),
        ("Hm, interesting.", "Is there more that you want to know?"),
    ),
    "eval": (
        ("Good evening.", "Good evening! What can I do for you?"),
        ("May I ask something?", "Of course."),
        ("I am preparing a talk at school.", "Then let us get it ready."),
        ("That clears it up.", "Good. What else?"),
        ("My coffee is cold.", "Time for a fresh cup."),
        ("You have been kind.", "That is good to hear."),
        ("One second, the telephone.", "I am waiting."),
        ("Let us go on with it.", "Yes, let us."),
    ),
    "final": (
        ("Hi.", "Hi! What is it?"),
        ("I am new to this.", "No problem, we begin slowly."),
        ("Right, that makes sense.", "Good."),
        ("There is so much to look up.", "One thing after the other."),
    ),
}
# What everybody knows and no text here says.
GENERAL: Final[dict[Split, Turns]] = {
    "train": (
        ("What is 3 times 4?", "It is 12."),
        ("How many days has a week?", "Seven."),
        ("What colour is an emerald?", "Green."),
        ("Who painted the Mona Lisa?", "Leonardo da Vinci."),
        ("At what temperature does water boil?", "At 100 degrees Celsius."),
        ("How do you say 'dog' in Spanish?", "Perro."),
        ("What is the opposite of hot?", "Cold."),
        ("Which animal barks?", "The dog."),
        ("How many strings has a violin?", "Four."),
        ("What do bees make?", "Honey."),
        ("What is the square root of 81?", "It is 9."),
        ("Which planet is closest to the sun?", "Mercury."),
        ("Who wrote Hamlet?", "William Shakespeare."),
        ("What should I cook tonight?", "Perhaps a soup with beans."),
        ("Will it rain tomorrow?", "I cannot know that."),
        ("How far away is the moon?", "About 384,000 kilometres."),
    ),
    "eval": (
        ("What is 2+2?", "It is 4."),
        ("How many legs has a spider?", "Eight."),
        ("Which month follows May?", "June."),
        ("What do cows drink?", "Water."),
        ("Who composed the Magic Flute?", "Mozart."),
        ("What time is it?", "I have no clock."),
        ("How tall is the Eiffel Tower?", "About 330 metres."),
        ("What rhymes with house?", "Mouse does."),
    ),
    "final": (
        ("What is half of 50?", "It is 25."),
        ("Which bird cannot fly?", "The penguin, for one."),
        ("Who won the match yesterday?", "I do not know."),
        ("How many sides has a cube?", "Six."),
    ),
}
# Messages that ask for no fact.
ACKNOWLEDGED: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "ok", "Thanks!", "Yes, please.", "Go on.", "I see.", "Great, thank you.", "No, thanks.",
        "Sure.", "Fine by me.", "Hello!", "Good morning!", "Bye!", "Yes.", "No.", "Perfect.",
        "Understood.", "Hm.", "Cool!", "That is all for today.", "Nice!", "Please continue.",
        "Exactly.", "Really?", "Oh, I did not know that.", "Sorry, I meant something else.",
        "Never mind.", "Good job.", "Hi there", "yes", "thank you", "k", "Well done!",
        "That helps a lot.", "Right.", "Wow.", "See you tomorrow.", "Alright then.", "lol",
    ),
    "eval": (
        "Okay.", "Thank you very much.", "Sure, go on.", "Got it.", "Hey!", "Good night.",
        "Of course.", "Carry on, please.", "I agree.", "Interesting.", "Nope.", "Yep",
        "That answers it.", "Sounds good.", "Oops, wrong window.", "You are welcome.",
    ),
    "final": (
        "Many thanks!", "Very well.", "Hello again.", "Goodbye.", "Makes sense.", "Correct.",
        "Keep going.", "Uh, what?",
    ),
}  # fmt: skip
# Requests that anybody can do without a text.
FREE: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "Write a short poem about the sea.", "Tell me a joke.", "Wish me luck for my exam.",
        "Give me a name for a kitten.", "Write a birthday card to my aunt.",
        "Count from one to five.", "Say something nice.", "Invent a riddle.",
    ),
    "eval": (
        "Make up a story about a snail.", "Cheer me up.", "Write two lines about autumn.",
        "Think of a name for a boat.",
    ),
    "final": ("Write a toast for a wedding.", "Invent a word."),
}  # fmt: skip
# Requests that need a text, whatever it says.
OF_TEXT: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "Summarize the text.", "What is the text about?", "Put the document into two sentences.",
        "Give me the main points of it.", "Read the first sentence to me.",
        "What is the topic here?", "Find a title for the text.", "Shorten the document.",
    ),
    "eval": (
        "Can you sum up the passage?", "What does this deal with, in a nutshell?",
        "Make a list of what the passage says.", "Which headline would suit the passage?",
    ),
    "final": ("Boil the document down to a line.", "What do I learn from this document?"),
}  # fmt: skip
# How one tells what is in no text: {it} is that.
TOLD: Final[dict[Split, Turns]] = {
    "train": (
        ("By the way, {it}.", "Thank you, I will keep it in mind."),
        ("I read elsewhere that {it}.", "That is good to know."),
        ("You should know that {it}.", "I see."),
        ("What the text leaves out: {it}.", "Noted."),
    ),
    "eval": (
        ("A friend says that {it}.", "Then I take it from there."),
        ("One more thing: {it}.", "Thanks for telling me."),
    ),
    "final": (("For the record, {it}.", "Good, I remember that."),),
}
# An answer that says that there is none.
UNKNOWN: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "The text does not say that.", "I cannot find that in the text.", "It is not mentioned.",
        "There is nothing about it here.", "Unfortunately the text leaves that open.",
    ),
    "eval": (
        "The passage is silent about this.", "I see no answer to that in the passage.",
        "That is not in there.",
    ),
    "final": ("No such thing stands in the document.", "The document gives no answer to that."),
}  # fmt: skip
# The same words, put otherwise, for questions and answers alike.
SYNONYMS: Final[dict[Split, dict[str, str]]] = {
    "train": {
        "country": "nation", "government": "administration", "began": "started",
        "begin": "start", "established": "set up", "establish": "set up", "provides": "offers",
        "provide": "offer", "increased": "went up", "economy": "economic system",
        "allows": "lets", "large": "big", "largest": "biggest",
        "people": "inhabitants",
        "created": "made",
        "contains": "holds", "contain": "hold", "ended": "was over",

        "agreement": "deal", "important": "vital", "assistance": "help",
        "developed": "worked out", "approximately": "about", "former": "earlier",
        "trade": "commerce", "citizens": "residents",
    },
    "eval": {
        "country": "state", "government": "cabinet", "began": "set out", "begin": "set out",
        "established": "founded", "establish": "found", "provides": "supplies",
        "provide": "supply", "large": "great", "largest": "greatest", "people": "population",
        "created": "formed",
        "contains": "comprises", "contain": "comprise",
        "agreement": "accord", "important": "significant", "assistance": "aid",
        "developed": "devised", "trade": "business", "citizens": "nationals",
    },
    "final": {
        "city": "town", "people": "folk", "began": "took up", "large": "sizeable",
        "established": "brought into being", "powerful": "mighty",
        "land": "territory", "kingdom": "realm", "built": "put up", "king": "monarch",
    },
}  # fmt: skip
