"""What the surface alone tells: the words of the message that is judged, and how many of them one
sentence of the conversation has. Whoever understands should do better than that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.train.asking import Deciding, Said
from alora_gguf.train.data import Example

WORDS: Final = "words alone"
OVERLAP: Final = "words of one sentence"
_WORD: Final = re.compile(r"[\w']+")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+")
_FEWEST: Final = 3  # examples that a word or pair of words must be in


def answers(
    asked: Deciding, training: Sequence[Example], examples: Sequence[Example]
) -> dict[str, list[Said]]:
    """What each of the two says about the examples, learned from `training`."""
    labels = np.array([asked.right(each) for each in training])
    n_labels = len(asked.names)
    found = {
        WORDS: _by_words(training, labels, n_labels, examples),
        OVERLAP: _by_overlap(training, labels, n_labels, examples),
    }
    return {
        name: [Said(int(row.argmax()), tuple(map(float, row))) for row in shares]
        for name, shares in found.items()
    }


def _by_words(
    training: Sequence[Example],
    labels: NDArray[np.int64],
    n_labels: int,
    examples: Sequence[Example],
) -> NDArray[np.float64]:
    """Naive Bayes with the words, and pairs of words, that the last message has."""
    features = [_features(each) for each in training]
    known = Counter(word for each in features for word in each)
    number = {word: i for i, word in enumerate(sorted(w for w in known if known[w] >= _FEWEST))}
    counts = np.ones((n_labels, len(number)))
    for each, label in zip(features, labels, strict=True):
        counts[label, [number[word] for word in each if word in number]] += 1
    sizes = np.bincount(labels, minlength=n_labels)
    logs = np.log(counts / (sizes[:, None] + 2))
    rows = []
    for each in map(_features, examples):
        there = [number[word] for word in each if word in number]
        rows.append(np.log(sizes + 1) + logs[:, there].sum(1))
    return _shares(np.array(rows))


def _by_overlap(
    training: Sequence[Example],
    labels: NDArray[np.int64],
    n_labels: int,
    examples: Sequence[Example],
) -> NDArray[np.float64]:
    """The side of the best threshold, and how often each label was there."""
    values = np.array([_overlap(each) for each in training])
    best, threshold = -1, 0.0
    for at in np.unique(values):
        above = np.bincount(labels[values >= at], minlength=n_labels)
        below = np.bincount(labels[values < at], minlength=n_labels)
        if (hits := int(above.max() + below.max())) > best:
            best, threshold = hits, float(at)
    sides = np.array(
        [
            np.bincount(labels[(values >= threshold) == side], minlength=n_labels) + 1.0
            for side in (False, True)
        ]
    )
    sides /= sides.sum(1, keepdims=True)
    return np.array([sides[int(_overlap(each) >= threshold)] for each in examples])


def _features(example: Example) -> set[str]:
    words = _words(example.messages[-1].content)
    return {*words, *(f"{a} {b}" for a, b in pairwise(["^", *words, "$"]))}


def _overlap(example: Example) -> float:
    """The largest share of the last message's words that one earlier sentence has."""
    own = set(_words(example.messages[-1].content))
    texts = [each.text for each in example.documents]
    texts += [each.content for each in example.messages[:-1]]
    sentences = [set(_words(each)) for text in texts for each in _SENTENCE.split(text)]
    return max((len(own & each) / max(len(own), 1) for each in sentences), default=0.0)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _shares(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(logs - logs.max(1, keepdims=True))
    return np.asarray(shares / shares.sum(1, keepdims=True))
