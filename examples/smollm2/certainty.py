"""What the base itself answers, and whether it is right.

    python -m examples.smollm2.certainty BASE OUT

asks BASE questions on passages and writes OUT/answers.jsonl as it goes; called again it goes on
from there. `python -m examples.smollm2.data OUT` then makes the uncertainty adapter's lines of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from alora_gguf import Chat, Model
from alora_gguf.gguf.base import BaseFile
from examples.demo_model import program

from . import tasks, wordings
from .facts import Fact
from .passages import Passage
from .tasks import Made, Page, assistant, user

FILE: Final = "answers.jsonl"
KEPT: Final = Path(__file__).with_name(FILE)
_MAX_TOKENS: Final = 24  # of an answer: the gold ones are a few words
_LONGEST_GOLD: Final = 5  # words
_AT_ONCE: Final = 8  # questions on one passage, in one batch
_TEMPERATURES: Final = (0.0, 0.7)
_OVERHEAD: Final = 40  # what an answer costs, in words that are read
_PAGES_AT_ONCE: Final = 3
_SEQUENCES: Final = _PAGES_AT_ONCE * (_AT_ONCE + 1) + 2  # a fork for each question, and pages
_ASIDE: Final = re.compile(r"[^a-z0-9%$]+")


@dataclass(frozen=True)
class Asked:
    """A question on a page. `sort` is "kept" if the page answers it, else "removed"."""

    page: Page
    question: str
    wording: str
    gold: str
    sort: str
    temperature: float

    @property
    def key(self) -> str:
        """By which an answer finds its question."""
        said = [self.page.text, *(m["content"] for m in self.page.earlier), self.question]
        text = "\0".join([*said, str(self.temperature)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """What the base said; `log_probability` is of all its tokens, a natural logarithm."""

    key: str
    part: str
    answer: str
    tokens: int
    log_probability: float
    correct: bool


def asked(page: Page, part: str) -> list[Asked]:
    """What the base is asked about a page: what can be answered in a few words, at each
    temperature in a wording of its own; and at times what it cannot know.
    """
    rng = random.Random(f"uncertainty {page.text}")
    split = wordings.of_part(part)
    chosen = [(f, "kept") for f in page.kept if _is_short(f)]
    if page.removed and rng.random() < 0.35:
        chosen += [(f, "removed") for f in page.removed if _is_short(f)][:1]
    rng.shuffle(chosen)
    made = []
    for fact, sort in chosen:
        for temperature in _TEMPERATURES:
            question = wordings.question(fact, split, rng)
            if normal(fact.answer) not in normal(question.text):
                gold = fact.answer
                made.append(Asked(page, question.text, question.frame, gold, sort, temperature))
    return made[:_AT_ONCE]


def _is_short(fact: Fact) -> bool:
    """Of a few words, and more than "the country", which stands in many a wrong answer."""
    telling = any(c.isupper() or c.isdigit() for c in fact.answer) or fact.kind == "how many"
    return len(fact.answer.split()) <= _LONGEST_GOLD and (
        telling or len(tasks.words(fact.answer)) >= 2
    )


def normal(text: str) -> str:
    """The text's words without articles, for comparing."""
    kept = [w for w in _ASIDE.split(text.lower()) if w and w not in ("the", "a", "an")]
    return f" {' '.join(kept)} "


def is_right(one: Asked, answer: str) -> bool:
    """Whether the answer contains the gold one, and could."""
    return one.sort == "kept" and normal(one.gold) in normal(answer)


def answers(model: Model, page: Page, part: str) -> list[Answer]:
    """What the base says to all questions on a page, in one batch; the page is read once."""
    questions = asked(page, part)
    if not questions:
        return []
    with model.chat(documents=page.documents, messages=page.earlier) as chat:
        chat.read()
        forks = [chat.fork() for _ in questions]
        with ThreadPoolExecutor(len(questions)) as threads:
            found = list(threads.map(_answer, forks, questions, [part] * len(questions)))
        for fork in forks:
            fork.close()
    return found


def _answer(chat: Chat, one: Asked, part: str) -> Answer:
    seed = int(one.key[:6], 16)
    reply = chat.say(
        one.question, max_tokens=_MAX_TOKENS, temperature=one.temperature, seed=seed, logprobs=0
    )
    text = reply.text.strip()
    said = reply.logprobs or ()
    total = round(sum(token.logprob for token in said), 4)
    return Answer(one.key, part, text, len(said), total, is_right(one, text))


def lines(parts: dict[str, list[Passage]], found: Sequence[Answer]) -> dict[str, list[Made]]:
    """The adapter's lines by part, of the questions that have an answer."""
    by_key = {each.key: each for each in found}
    made: dict[str, list[Made]] = {part: [] for part in parts}
    for part, some in parts.items():
        for passage in some:
            page = tasks.page(passage, wordings.of_part(part))
            for one in asked(page, part):
                said = by_key.get(one.key)
                if said is not None and said.answer:
                    made[part].append(_line(one, said))
    return made


def _line(one: Asked, said: Answer) -> Made:
    line = {
        "messages": [*one.page.earlier, user(one.question), assistant(said.answer)],
        "documents": one.page.documents,
        "answer": {"correct": "yes" if said.correct else "no"},
    }
    sort = f"{one.sort}, temperature {one.temperature}"
    more = {"log_probability": said.log_probability, "tokens": said.tokens}
    return Made(line, one.page.passage.article, sort, one.wording, one.gold, more)


def read(out: Path) -> list[Answer]:
    """The answers that there are: those in OUT, and those that the repository keeps, as they take
    hours.
    """
    found: dict[str, Answer] = {}
    for path in (KEPT, out / FILE):
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                answer = Answer(**json.loads(line))
                found[answer.key] = answer
    return list(found.values())


def in_turn(parts: dict[str, list[Passage]]) -> list[tuple[str, Page]]:
    """All pages that something is asked about, those first that cost least an answer; each part
    grows in step with the others.
    """
    placed = []
    for part, some in parts.items():
        pages = [tasks.page(each, wordings.of_part(part)) for each in some]
        costs = [(_cost(page, len(asked(page, part))), page) for page in pages]
        pages = [page for cost, page in sorted(costs, key=lambda one: one[0]) if cost]
        placed += [((i + 0.5) / len(pages), part, page) for i, page in enumerate(pages)]
    return [(part, page) for _, part, page in sorted(placed, key=lambda one: one[:2])]


def _cost(page: Page, n: int) -> float:
    """In words to read for each of `n` answers; 0 if there are none."""
    return (len(page.text.split()) + _OVERHEAD * n) / n if n else 0.0


def main(argv: list[str] | None = None) -> int:
    from . import data

    parser = argparse.ArgumentParser(
        prog="python -m examples.smollm2.certainty", description="Asks the base itself."
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path, help="where data.py makes the data")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    BaseFile.read(args.base)  # before packages are fetched
    done = {each.key for each in read(args.out)}
    parts = data.passages_by_part(args.out)
    began, n, right = time.monotonic(), 0, 0
    left = [
        (part, page)
        for part, page in in_turn(parts)
        if not all(each.key in done for each in asked(page, part))
    ]
    with (
        (args.out / FILE).open("a", encoding="utf-8") as file,
        Model(args.base, n_threads=args.threads, n_ctx=8192, n_seq_max=_SEQUENCES) as model,
        ThreadPoolExecutor(_PAGES_AT_ONCE) as threads,
    ):
        for some in threads.map(lambda one: answers(model, one[1], one[0]), left):
            for answer in some:
                file.write(json.dumps(asdict(answer)) + "\n")
                n, right = n + 1, right + answer.correct
            file.flush()
            print(f"{n} answers, {right} right, {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    program.run(main)
