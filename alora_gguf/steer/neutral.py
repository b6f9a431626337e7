"""Ordinary questions and answers, none of which a vector should make unlikely: what fluency is
measured on where nobody gives a text.
"""

from __future__ import annotations

from typing import Final

NEUTRAL: Final = (
    (
        "What is a lighthouse for?",
        "A lighthouse marks a dangerous coast or the entrance of a harbour. Its light can be seen "
        "from far away at night, and each one flashes in a pattern of its own, so that sailors can "
        "tell where they are.",
    ),
    (
        "How does bread rise?",
        "Yeast feeds on the sugars in the dough and gives off carbon dioxide. The gas is caught in "
        "the gluten, and the dough grows. In the oven the bubbles expand once more before the "
        "crust becomes hard.",
    ),
    (
        "Why do leaves change colour in autumn?",
        "In autumn trees stop making chlorophyll, which is green. The yellow and orange pigments "
        "that were there all summer can then be seen, until the leaves dry out and fall.",
    ),
    (
        "What does a librarian do?",
        "A librarian chooses and orders books, keeps the catalogue, and helps people to find what "
        "they are looking for. Many also arrange readings and courses.",
    ),
    (
        "How far away is the Moon?",
        "The Moon is about 384,000 kilometres away from the Earth on average. Light needs a little "
        "more than a second for that distance, and the first astronauts needed three days.",
    ),
    (
        "What should I pack for a day in the mountains?",
        "Take good shoes, a warm jacket, something against the rain, water and food, a map, and a "
        "small first aid kit. Look at the weather forecast before you leave.",
    ),
)
