"""`python -m benchmarks.serve`: what HTTP costs, what it gains, and llama-server beside it.

Servers run in processes of their own. Sides take turns; figures are medians, ratios those of each
round.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx
import psutil

import alora_gguf as ag
from alora_gguf import demo

from . import llama_server

CHAT: Final = "/v1/chat/completions"
N_CTX: Final = 8192
WORDS: Final = "The {} library in {} Street opens at {} and its manager is {} {}. "
NAMES: Final = ["Ruth", "Covin", "Ida", "Noor", "Frank", "Sind", "Mara", "Bomel", "Otto", "Harwich"]


def conversation(model: ag.Model, n_tokens: int) -> list[dict[str, str]]:
    """A conversation of about so many tokens, in turns of some sentences."""
    turns: list[dict[str, str]] = []
    i = 0
    while True:
        said = "".join(
            WORDS.format(NAMES[(i + k) % 10], NAMES[(3 * i + k) % 10], 1 + (i + k) % 12,
                         NAMES[(i * k) % 10], NAMES[(7 * i + k) % 10])
            for k in range(4)
        )  # fmt: skip
        turns.append({"role": "assistant" if i % 2 else "user", "content": said})
        i += 1
        with model.chat(messages=turns) as chat:
            if chat.count() > n_tokens and turns[-1]["role"] == "user":
                return turns


@contextlib.contextmanager
def serving(n_threads: int, *options: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """Our server in a process of its own."""
    command = [sys.executable, "-m", "alora_gguf", "serve", "--port", "0", "-t", str(n_threads)]
    command += ["-c", str(N_CTX), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        with httpx.Client(base_url=line.split()[-1], timeout=600) as client:
            yield client, process
    finally:
        process.terminate()
        process.wait(60)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternating(rounds: int, *sides: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each side, which take turns, beginning with another one each time."""
    for side in sides:
        side()
    found: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds):
        for k in range(len(sides)):
            which = (turn + k) % len(sides)
            found[which].append(seconds(sides[which]))
    return found


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def ms(times: Sequence[float]) -> str:
    return f"{statistics.median(times) * 1000:.1f} ms"


def checked(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


# Rows --------------------------------------------------------------------------------------------


def verdicts(n_threads: int, rounds: int) -> None:
    """Five verdicts on a conversation that both servers have read."""
    names = list(demo.INTRINSICS)
    paths = [demo.adapter_path(name) for name in names]
    with ag.Model(demo.base_path(), adapters=demo.adapter_paths(), n_ctx=N_CTX) as model:
        # llama-server gives a conversation what the base was trained for, 2,048 tokens
        turns = conversation(model, 1750)
        with model.chat(messages=turns) as chat:
            wanted = {each.name: each for each in chat.invoke_many(names)}
            n = chat.session.cached
            prompt = model.detokenize(chat.tokens, special=True)
        forms = {name: model.contract(name).response_format for name in names}
        limits = {name: model.contract(name).max_tokens or 96 for name in names}
        words = {
            name: model.detokenize(model.adapter(name).invocation, special=True) for name in names
        }
    with (
        serving(n_threads) as (ours, _),
        llama_server.running(demo.base_path(), paths, n_ctx=N_CTX, n_threads=n_threads) as theirs,
    ):

        def mine() -> dict[str, str]:
            got = checked(ours.post(CHAT, json={"messages": turns, "intrinsics": names}))
            return {each["name"]: each["text"] for each in got["alora"]["intrinsics"]}

        def one(name: str) -> str:
            lora = [{"id": i, "scale": float(each == name)} for i, each in enumerate(names)]
            schema = {k: v for k, v in dict(forms[name] or {}).items() if k != "x-alora"}
            asked = {
                "prompt": prompt + words[name], "lora": lora, "json_schema": schema,
                "temperature": 0, "n_predict": limits[name], "cache_prompt": True,
            }  # fmt: skip
            text: str = checked(theirs.post("/completion", json=asked))["content"]
            return text

        def stock() -> dict[str, str]:
            return {name: one(name) for name in names}

        a, b = alternating(rounds, mine, stock)
        right = [sum(side()[name] == wanted[name].text for name in names) for side in (mine, stock)]
    print(
        f"five verdicts on {n} tokens, {n_threads} threads: ours {ms(a)}, llama-server {ms(b)}, "
        f"{ratio(b, a):.2f}x sooner (goal 4x); equal to the Python API's: ours {right[0]} of 5, "
        f"llama-server {right[1]} of 5"
    )


def overhead(n_threads: int, rounds: int) -> None:
    """What HTTP adds to a call, and five typed questions beside invoke_many."""
    options = {"n_ctx": N_CTX, "n_threads": n_threads, "n_seq_max": 49, "n_pooled": 16}
    with (
        ag.Model(demo.base_path(), adapters=demo.adapter_paths(), **options) as model,
        serving(n_threads) as (client, _),
    ):
        for n_tokens in (40, 2000):
            turns = conversation(model, n_tokens)

            def here(turns: Any = turns) -> None:
                with model.chat(messages=turns) as chat:
                    chat.reply(temperature=0, max_tokens=1)

            def there(turns: Any = turns) -> None:
                checked(client.post(CHAT, json={"messages": turns, "temperature": 0,
                                                "max_tokens": 1}))  # fmt: skip

            a, b = alternating(rounds * 4, here, there)
            more = statistics.median(y - x for x, y in zip(a, b, strict=True)) * 1000
            print(
                f"a token of a cached conversation, {n_tokens} tokens: Python {ms(a)}, HTTP "
                f"{ms(b)}, {more:+.2f} ms (goal +3 ms)"
            )
        turns = conversation(model, 2000)
        five = ["jailbreak"] * 5
        asked = {str(i): {"intrinsic": name} for i, name in enumerate(five)}

        def invoked() -> None:
            with model.chat(messages=turns) as chat:
                chat.invoke_many([ag.IntrinsicCall(name, alias=str(i))
                                  for i, name in enumerate(five)])  # fmt: skip

        def decided() -> None:
            checked(client.post("/v1/systemone", json={"state": turns, "questions": asked}))

        typed = {str(i): {"type": "noul", "instructions": "Is it urgent?"} for i in range(5)}

        def base() -> None:
            checked(client.post("/v1/systemone", json={"state": turns, "questions": typed}))

        a, b, c = alternating(rounds, invoked, decided, base)
        print(
            f"five decisions on 2,000 tokens: invoke_many {ms(a)}, /v1/systemone {ms(b)}, "
            f"{ratio(b, a):.2f}x (goal 1.1x); five yes/no questions to the base, in two orders "
            f"each, {ms(c)}, {ratio(c, a):.2f}x"
        )
        tokenizing(model, turns, rounds)


def tokenizing(model: ag.Model, turns: list[dict[str, str]], rounds: int) -> None:
    """The tokens of a conversation that begins like none before, and of one that does."""
    numbers = iter(range(10**6))

    def count(first: str, last: str) -> int:
        with model.chat(messages=[{"role": "user", "content": first}, *turns[1:-1],
                                  {"role": "user", "content": last}]) as chat:  # fmt: skip
            return chat.count()

    n = count("Hello.", "?")
    new = lambda: count(f"Hello {next(numbers)}.", "?")  # noqa: E731
    known = lambda: count("Hello.", f"And {next(numbers)}?")  # noqa: E731
    a, b = alternating(rounds * 4, new, known)
    print(
        f"tokens of {n}: of a conversation that begins like none before {ms(a)}, like one before "
        f"{ms(b)}, {ratio(a, b):.1f}x sooner"
    )


def clients(n_threads: int, rounds: int) -> None:
    """Clients at once, against one after another."""
    with serving(n_threads, "--parallel", "32") as (client, _):
        asked = [
            {"messages": [{"role": "user", "content": f"When does library {i} open?"}],
             "temperature": 0.8, "seed": i, "max_tokens": 48}
            for i in range(32)
        ]  # fmt: skip

        def ask(body: Any) -> int:
            got = checked(client.post(CHAT, json=body))
            return int(got["usage"]["completion_tokens"])

        written = [0, 0]

        def apart() -> None:
            written[0] = sum(map(ask, asked))

        def together() -> None:
            with ThreadPoolExecutor(32) as pool:
                written[1] = sum(pool.map(ask, asked))

        a, b = alternating(max(2, rounds // 2), apart, together)
        print(
            f"32 clients, {n_threads} threads: one after another {written[0] / min(a):.0f} "
            f"tokens/s, at once {written[1] / min(b):.0f} tokens/s, {ratio(a, b):.2f}x (goal 2.5x)"
        )


def memory(n_threads: int, n_requests: int) -> None:
    """The server's memory over many requests."""
    with serving(n_threads) as (client, process):
        seen = psutil.Process(process.pid)

        def ask(i: int) -> None:
            body: dict[str, Any] = {
                "messages": [{"role": "user", "content": f"When does library {i % 97} open?"}],
                "max_tokens": 1 + i % 5, "stream": i % 3 == 0,
            }  # fmt: skip
            if i % 4 == 0:
                body["intrinsics"] = ["jailbreak"]
            if i % 7 == 0:
                body["adapter"] = demo.INTRINSICS[i % 5]
            assert client.post(CHAT, json=body).status_code == 200

        sizes = []
        for i in range(n_requests):
            ask(i)
            if i in (n_requests // 5, n_requests - 1):
                sizes.append(seen.memory_info().rss)
        print(
            f"memory after {n_requests // 5} and {n_requests} requests: {sizes[0] >> 20} and "
            f"{sizes[1] >> 20} MiB, {sizes[1] / sizes[0] - 1:+.2%} (goal 1 %)"
        )


ROWS: Final = {"verdicts": verdicts, "overhead": overhead, "clients": clients, "memory": memory}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help="which, with commas between them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=5000, help="of the memory row")
    arguments = parser.parse_args()
    for name in arguments.rows.split(","):
        count = arguments.requests if name == "memory" else arguments.rounds
        ROWS[name](arguments.threads, count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
