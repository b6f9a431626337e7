"""Where a batch's time goes, by kind of node: `python -m benchmarks.profile --help`.

Each node is run and timed by itself, so the sum is more than the batch takes when it runs as one;
the shares are what counts.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter, defaultdict
from contextlib import ExitStack

from . import growing, options
from .bench import N_ADAPTERS, ROOM, Bench, Settings, steps, suffix
from .models import SHAPES, TARGETS
from .runtime import Context, ContextSize, Library, Rows


class _Tensor(ctypes.Structure):
    """The head of struct ggml_tensor, up to the weight that a product reads."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


class Profile:
    """Seconds and number of nodes by what a node does."""

    def __init__(self, library: Library) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.nodes: Counter[str] = Counter()
        self._start = 0.0
        ggml = ctypes.CDLL(library.ggml_base)
        self._describe = ggml.ggml_op_desc
        self._describe.argtypes, self._describe.restype = [ctypes.c_void_p], ctypes.c_char_p

    def watch(self, tensor: int, ask: bool, _user_data: object) -> bool:
        if ask:
            self._start = time.perf_counter()
            return True
        seconds = time.perf_counter() - self._start
        what = self._what(tensor)
        self.seconds[what] += seconds
        self.nodes[what] += 1
        return True

    def clear(self) -> None:
        self.seconds.clear()
        self.nodes.clear()

    def _what(self, address: int) -> str:
        tensor = _Tensor.from_address(address)
        op = self._describe(address).decode()
        if op == "CUSTOM":  # of a fused product; its last node bears the product's name
            name = tensor.name.decode(errors="replace")
            return name if name.startswith("alora_") else "alora_expand"
        if op not in ("MUL_MAT", "MUL_MAT_ID"):
            return str(op)
        weight = _Tensor.from_address(tensor.src[0])
        name = weight.name.decode(errors="replace").split(" ")[0]
        if weight.view_src or not name.endswith(".weight"):  # of the bank or a LoRA's file
            return f"{op} adapter [{weight.ne[0]}, {weight.ne[1]}]"
        return f"{op} {name.split('.')[-2]}"


def prepare(bench: Bench, stack: ExitStack, case: str, targets: str) -> tuple[Context, Profile]:
    """A context with the conversation forked eight times, and adapters active as `case` says."""
    profile = Profile(bench.weights.library)
    size = ContextSize(bench.settings.n_cached + ROOM, N_ADAPTERS + 1, bench.settings.n_threads)
    context = stack.enter_context(Context(bench.weights, size, profile.watch))
    context.restore(bench.prefix)
    slots = [0] * N_ADAPTERS if case == "base" else context.add(bench.adapters(targets))
    for seq in range(1, N_ADAPTERS + 1):
        context.fork(0, seq)
        slot = slots[0] if case == "single" else slots[seq - 1]
        if slot:
            context.activate(seq, bench.settings.n_cached, slot)
    return context, profile


def show(profile: Profile, n: int) -> None:
    total = sum(profile.seconds.values())
    print(f"{total / n * 1e3:9.2f} ms  {sum(profile.nodes.values()) // n:6d} nodes  in all")
    for what, seconds in sorted(profile.seconds.items(), key=lambda item: -item[1]):
        if seconds > total / 200:
            print(f"{seconds / n * 1e3:9.2f} ms  {profile.nodes[what] // n:6d} nodes  {what}")


def main() -> None:
    parser = options.parser("benchmarks.profile", __doc__)
    parser.add_argument("--model", default="1b", choices=SHAPES)
    parser.add_argument("--targets", default="attention-only", choices=TARGETS)
    parser.add_argument("--case", default="mixed", choices=("base", "single", "mixed"))
    parser.add_argument("--batch", default="steps", choices=("one", "steps", "suffixes"))
    parser.add_argument("--cached", type=options.number(growing.N_READ), default=2048)
    parser.add_argument("--threads", type=options.number(), default=1)
    parser.add_argument("--repeat", type=options.number(), default=5)
    chosen = parser.parse_args()

    seqs, at = range(1, N_ADAPTERS + 1), chosen.cached
    batches: dict[str, Rows] = {
        "one": steps([1], [1], at),
        "steps": steps(seqs, [1] * N_ADAPTERS, at),
        "suffixes": [row for seq in seqs for row in suffix(seq, at)],
    }
    bench = Bench(Library(), SHAPES[chosen.model], Settings(chosen.threads, chosen.cached))
    with ExitStack() as stack:
        context, profile = prepare(bench, stack, chosen.case, chosen.targets)
        for turn in range(-1, chosen.repeat):
            if turn == 0:
                profile.clear()
            context.decode(batches[chosen.batch])
            for seq in seqs:
                context.truncate(seq, at)
        print(f"{chosen.case}, {chosen.targets}, {chosen.batch}, {chosen.threads} threads")
        show(profile, chosen.repeat)


if __name__ == "__main__":
    main()
