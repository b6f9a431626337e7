"""The row about `alora-gguf run`: many conversations in one process, against a process for each of
them, and against reading each of them whole.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .bench import Bench
from .measure import Result, Side, alternate, timed

_CONVERSATIONS, _CONTEXTS, _SAMPLE = 500, 20, 15
_ASKED = ("--intrinsic", "answerability", "--intrinsic", "jailbreak")
_QUESTIONS = (
    "When does the Bomel library open?",
    "Who runs the Brosa dairy?",
    "On which day is the Brosa dairy closed?",
    "In which street is the Bomel library?",
    "When does the Duva cafe close?",
    "In which street is the Duva cafe?",
)
_PLAIN = "from alora_gguf.__main__ import main; main()"
# nothing is grouped, and no conversation uses another one's cells
_APART = f"""
from unittest import mock
with (
    mock.patch("alora_gguf.ChatSize.shared", lambda *_: 0),
    mock.patch("alora_gguf.engine.sequence.TokenSequence._share_with_others", lambda *_: 0),
):
    {_PLAIN}
"""


def run(bench: Bench) -> list[Result]:
    """Seconds for each conversation, whole processes from start to exit."""
    n = bench.settings.rounds(_CONVERSATIONS)
    talks = conversations(n)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every, one = folder / "all.jsonl", folder / "one.json"
        every.write_text("".join(json.dumps(each) + "\n" for each in talks))
        said: dict[str, list[dict[str, Any]]] = {}

        def together(side: str, code: str) -> Callable[[], float]:
            def seconds() -> float:
                taken = timed(lambda: said.update({side: _run(code, every, bench)}))
                return taken / n

            return seconds

        def one_by_one() -> float:
            taken = 0.0
            for each in talks[:_SAMPLE]:
                one.write_text(json.dumps(each))
                taken += timed(lambda: _run(_PLAIN, one, bench))
            return taken / min(n, _SAMPLE)

        sides = {
            "ours": together("ours", _PLAIN),
            "processes": one_by_one,
            "apart": together("apart", _APART),
        }
        samples = alternate(sides, rounds=2, warmup=0)
    ours = Side("one process, shared", samples["ours"])
    tokens, read = _tokens(said["apart"]), _tokens(said["ours"])
    case = f"{n} conversations, {_CONTEXTS} contexts, {tokens // n} tokens each"
    differ = sum(_texts(a) != _texts(b) for a, b in zip(said["ours"], said["apart"], strict=True))
    return [
        Result("run", f"{case}; {_SAMPLE} of them one by one", ours,
               Side("a process each", samples["processes"]), kind="speedup"),
        Result("run", f"{case}; {read} of {tokens} tokens read", ours,
               Side("nothing shared, no order", samples["apart"]), kind="speedup"),
        Result("run, different answers", case, Side("", [differ], unit=""), None, kind="value",
               goal="few: batches round differently"),
    ]  # fmt: skip


def conversations(n: int) -> list[dict[str, Any]]:
    """`n` of them about the contexts, in no order."""
    from alora_gguf.demo.script import DOCUMENTS

    rng = random.Random(0)
    contexts = [rng.sample(DOCUMENTS * 3, 3 * len(DOCUMENTS)) for _ in range(_CONTEXTS)]
    found = [
        {
            "id": i,
            "documents": contexts[i % _CONTEXTS],
            "messages": [
                {"role": "user", "content": _QUESTIONS[i % 7 % len(_QUESTIONS)]},
                {"role": "assistant", "content": "One moment."},
                {"role": "user", "content": _QUESTIONS[i % len(_QUESTIONS)]},
            ],
        }
        for i in range(n)
    ]
    rng.shuffle(found)
    return found


def _run(code: str, source: Path, bench: Bench) -> list[dict[str, Any]]:
    threads = str(bench.settings.n_threads)
    command = [sys.executable, "-c", code, "run", str(source), *_ASKED, "--threads", threads]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if source.suffix == ".jsonl":
        return [json.loads(line) for line in done.stdout.splitlines()]
    return [json.loads(done.stdout)]


def _tokens(lines: list[dict[str, Any]]) -> int:
    return sum(line["read"]["evaluated"] for line in lines)


def _texts(line: dict[str, Any]) -> list[str]:
    return [result["text"] for result in line["results"].values()]
