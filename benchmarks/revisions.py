"""This checkout against another one: `python -m benchmarks.revisions OTHER`.

OTHER is a checkout with an environment of its own in .venv (`make setup` there). The same small
programs run in both, in turns, each in a process of its own, on the demo model; what each side
takes is printed with the ratio. Programs use only what both checkouts have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import options
from .measure import alternate, timed

ROOT = Path(__file__).resolve().parents[1]
_WHOLE = "from alora_gguf.__main__ import main; main()"

# Each program prints the seconds that count, as the smallest of its repetitions: what other work on
# the machine adds is never of interest here.
_FRAME = """
import time
import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.demo import script

def seconds(work, n):
    taken = []
    for _ in range(n):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)

greedy = ag.Sampling(temperature=0.0)
adapters = demo.adapter_paths()
model = ag.Model(demo.base_path(), adapters=adapters, n_ctx=2048, n_threads=THREADS)
"""
_REAL = (
    _FRAME.replace("demo.base_path()", "smollm2.base_path()")
    .replace("demo.adapter_paths()", "smollm2.adapter_paths()")
    .replace("import demo\n", "import demo, smollm2\n")
)  # with the extra `smollm2`
_CHAT = """
chat = model.chat(documents=script.DOCUMENTS)
chat.add("Who runs the Bomel library?")
"""
PROGRAMS = {
    "invoke": _FRAME + _CHAT + 'print(seconds(lambda: chat.invoke("answerability"), 15))',
    "five": _FRAME
    + _CHAT
    + """
names = ["answerability", "jailbreak", "query_rewrite"]
print(seconds(lambda: chat.invoke_many(names), 10))""",
    "scoring": _FRAME
    + """
schema = {"enum": ["yes", "no", "perhaps"]}
session = model.session()
session.append("Is it open on Monday? " * 20)
ask = ag.Invocation("answerability", prompt=None, schema=schema)
print(seconds(lambda: session.invoke(ask), 20))""",
    "reply": _FRAME
    + """
def work():
    with model.session() as session:
        session.append("The library of Bomel")
        for _ in session.generate(max_tokens=48, sampling=greedy):
            pass
print(seconds(work, 8))""",
    "threads": _FRAME
    + """
import threading
def one(i):
    with model.session() as session:
        session.append("The library of Bomel " + "x" * i)
        session.generate(max_tokens=48, sampling=greedy).read()
def work():
    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(seconds(work, 5))""",
    "binding": """
import time
import alora_gguf as ag
from alora_gguf import demo
llm = ag.Llama(str(demo.base_path()), n_ctx=1024, n_threads=THREADS, verbose=False)
taken = []
for _ in range(8):
    start = time.perf_counter()
    llm.create_completion("The library of Bomel is", max_tokens=48, temperature=0.0)
    taken.append(time.perf_counter() - start)
print(min(taken))""",
    "prefill": _REAL
    + """
numbers = iter(range(100, 200))  # what is read again is in the cache
def work():
    with model.session() as session:
        session.append(f"{next(numbers)} pages. " + "The library of Bomel is open on Monday. " * 52)
print(seconds(work, 5))""",
    "decode": _REAL
    + """
sampling = ag.Sampling(temperature=0.0, logit_bias=dict.fromkeys(model.end_tokens, -1e9))
with model.session() as session:
    session.append("The library of Bomel is open on Monday. " * 20)
    session.generate(max_tokens=4, sampling=sampling).read()
    print(seconds(lambda: session.generate(max_tokens=32, sampling=sampling).read(), 8) / 32)""",
    "judge": _REAL
    + """
chat = model.chat(documents=script.DOCUMENTS)
chat.add("Who runs the Bomel library?")
chat.invoke("answerability")
print(seconds(lambda: chat.invoke("answerability"), 8))""",
    "save": _FRAME
    + """
import os, tempfile
session = model.session()
session.append("The library of Bomel is open on Monday. " * 60)
path = os.path.join(tempfile.mkdtemp(), "saved")
def work():
    session.save(path)
    model.restore_session(path).close()
print(seconds(work, 8))""",
}
WHOLE = {
    "import": ("-c", "import alora_gguf"),
    "open": ("-c", "from alora_gguf import Model, Chat, Llama"),
    "help": ("-c", _WHOLE, "--help"),
    "inspect": ("-c", _WHOLE, "inspect", str(ROOT / "alora_gguf" / "demo" / "answerability.gguf")),
}
ROWS = (*WHOLE, "run", "convert", *PROGRAMS)


@dataclass(frozen=True)
class Checkout:
    """A folder with the code, its interpreter, and the library that its processes load."""

    folder: Path
    library: str | None

    def run(self, *arguments: str) -> str:
        """What a Python process prints there; raises CalledProcessError with its messages."""
        environment = dict(os.environ)
        environment.pop("PYTHONPATH", None)
        # as people run it: modules are compiled once, not at every start
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        if self.library is not None:
            environment["ALORA_LIB_DIR"] = self.library
        done = subprocess.run(
            [self.folder / ".venv" / "bin" / "python", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{self.folder}: {' '.join(arguments)[:60]}: {done.stderr[-2000:]}")
        return done.stdout


def whole(checkout: Checkout, arguments: tuple[str, ...]) -> float:
    """Seconds of a whole process."""
    return timed(lambda: checkout.run(*arguments))


def timed_inside(checkout: Checkout, program: str) -> float:
    """Seconds that a program says it took."""
    return float(checkout.run("-c", program).split()[-1])


def run_arguments(folder: Path) -> tuple[str, ...]:
    """`alora-gguf run` on forty conversations about two texts."""
    texts = ["The Bomel library opens at nine. " * 20, "The Duva cafe closes at six. " * 20]
    lines = [
        {
            "messages": [{"role": "user", "content": f"When does number {i} open?"}],
            "documents": [{"text": texts[i % 2]}],
        }
        for i in range(40)
    ]
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return ("-c", _WHOLE, "run", str(path), "--intrinsic", "jailbreak", "--threads", "2")


def convert_arguments(folder: Path) -> tuple[str, ...]:
    """`alora-gguf convert` on the adapter of benchmarks.convert."""
    from . import convert

    adapter, base = str(convert.adapter("BF16")), str(convert.gguf_base())
    out = str(folder / "out.gguf")
    return ("-c", _WHOLE, "convert", adapter, "--base", base, "-o", out, "--force")


def sides(row: str, threads: int, folder: Path) -> Callable[[Checkout], float]:
    """What one run of a row takes in a checkout."""
    if row == "run":
        return partial(whole, arguments=run_arguments(folder))
    if row == "convert":
        return partial(whole, arguments=convert_arguments(folder))
    if row in WHOLE:
        return partial(whole, arguments=WHOLE[row])
    return partial(timed_inside, program=PROGRAMS[row].replace("THREADS", str(threads)))


def main() -> None:
    """Prints a line for each row."""
    parser = options.parser("benchmarks.revisions", __doc__)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--library", help="folder of the other checkout's libllama")
    options.several(parser, "--rows", ",".join(ROWS), str, dict.fromkeys(ROWS))
    parser.add_argument("--rounds", type=options.number(), default=5)
    parser.add_argument("--threads", type=options.number(), default=2)
    arguments = parser.parse_args()
    python = arguments.other / ".venv" / "bin" / "python"
    if not python.exists():
        parser.error(f"{python}: missing, expected a checkout's own; run `make setup` there")
    if arguments.library and not [*Path(arguments.library).glob("*llama.*")]:
        parser.error(f"--library {arguments.library}: has no libllama, expected the folder of one")
    here, there = Checkout(ROOT, None), Checkout(arguments.other.resolve(), arguments.library)
    rounds, threads = arguments.rounds, arguments.threads
    print(f"best of {rounds} rounds in turns, {threads} threads")
    print(f"{'':10}{'here':>13}{'there':>13}{'ratio':>9}")
    with tempfile.TemporaryDirectory() as name:
        for row in arguments.rows:
            take = sides(row, threads, Path(name))
            samples = alternate(
                {"here": partial(take, here), "there": partial(take, there)}, rounds
            )
            ours, other = min(samples["here"]), min(samples["there"])
            print(
                f"{row:10}{ours * 1e3:10.1f} ms{other * 1e3:10.1f} ms{ours / other:8.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
