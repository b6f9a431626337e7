"""The converter against upstream's script: `python -m benchmarks.convert`.

Both sides are whole processes that convert the same adapter of an 8B model's shape, rank 32, on the
attention's four projections, to F16. Ours is given a base GGUF with a vocabulary of 128,256 tokens,
upstream's the model directory that it wants. Ours alone converts one on all linear layers, and one
on the experts of a model of Qwen3-30B-A3B's shape, 36,864 tensors.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import options, report
from .measure import Result, Side, alternate
from .models import FOLDER

LAYERS, HIDDEN, KV, HEADS, KV_HEADS, FF = 32, 4096, 1024, 32, 8, 14336
VOCAB, MERGES = 128256, 280147
RANK = 32


@dataclass(frozen=True)
class Case:
    """An adapter's and its base's shape: by module of a layer, the base's tensor and [n_out, n_in],
    of each of the experts if there are any.
    """

    name: str
    arch: str
    rank: int
    modules: Mapping[str, tuple[str, tuple[int, int]]]
    counts: Mapping[str, int]
    vocab: int
    layers: int
    experts: int = 0

    def tensors(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Names of the adapter's tensors in PEFT, and their shapes."""
        for layer in range(self.layers):
            for expert in range(self.experts or 1):
                for module, (_, (n_out, n_in)) in self.modules.items():
                    path = f"layers.{layer}.{module.format(expert=expert)}"
                    stem = f"base_model.model.model.{path}.lora_"
                    yield f"{stem}A.weight", (self.rank, n_in)
                    yield f"{stem}B.weight", (n_out, self.rank)


_8B = {
    "block_count": LAYERS,
    "embedding_length": HIDDEN,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
}
_ATTENTION = {
    "self_attn.q_proj": ("attn_q", (HIDDEN, HIDDEN)),
    "self_attn.k_proj": ("attn_k", (KV, HIDDEN)),
    "self_attn.v_proj": ("attn_v", (KV, HIDDEN)),
    "self_attn.o_proj": ("attn_output", (HIDDEN, HIDDEN)),
}
_MLP = {
    "mlp.gate_proj": ("ffn_gate", (FF, HIDDEN)),
    "mlp.up_proj": ("ffn_up", (FF, HIDDEN)),
    "mlp.down_proj": ("ffn_down", (HIDDEN, FF)),
}
ATTENTION = Case("8B, attention", "llama", RANK, _ATTENTION, _8B, VOCAB, LAYERS)
ALL_LINEAR = Case("8B, all-linear", "llama", RANK, _ATTENTION | _MLP, _8B, VOCAB, LAYERS)
EXPERTS = Case(
    "30B-A3B, experts", "qwen3moe", 8,
    {
        "mlp.experts.{expert}.gate_proj": ("ffn_gate_exps", (768, 2048)),
        "mlp.experts.{expert}.up_proj": ("ffn_up_exps", (768, 2048)),
        "mlp.experts.{expert}.down_proj": ("ffn_down_exps", (2048, 768)),
    },
    {
        "block_count": 48, "embedding_length": 2048, "attention.head_count": 32,
        "attention.head_count_kv": 4, "attention.key_length": 128,
        "attention.value_length": 128, "expert_count": 128, "expert_used_count": 8,
        "expert_feed_forward_length": 768,
    },
    151936, 48, 128,
)  # fmt: skip
DTYPES = ("F32", "BF16")


@dataclass
class Run:
    """What one process took: seconds, and its largest resident set in bytes."""

    seconds: float
    memory: int


# A small process between us and what is measured: a process's largest resident set begins with what
# the one that started it held.
_LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - start
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss]), file=sys.stderr)
"""


def measured(command: list[str]) -> Run:
    """Runs a command and measures the whole process."""
    # as people run it: modules are compiled once, not at every start
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    launched = subprocess.run(
        [sys.executable, "-S", "-c", _LAUNCH, *command],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    errors, _, last = launched.stderr.rstrip().rpartition("\n")
    code, seconds, rss = json.loads(last)
    if code:
        raise RuntimeError(f"{command[:4]} failed:\n{errors}")
    return Run(seconds, rss * (1 if sys.platform == "darwin" else 1024))


def adapter(dtype: str, case: Case = ATTENTION) -> Path:
    """A PEFT directory with random weights, written if it is missing."""
    folder = FOLDER / f"{_slug(case)}-r{case.rank}-{dtype}"
    if not (folder / "adapter_config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        size = 4 if dtype == "F32" else 2
        header: dict[str, Any] = {}
        end = 0
        for name, shape in case.tensors():
            begin, end = end, end + size * shape[0] * shape[1]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        rng = np.random.default_rng(0)
        with (folder / "adapter_model.safetensors").open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for _, shape in case.tensors():
                values = rng.standard_normal(shape, dtype="<f4") * np.float32(0.02)
                file.write(values.tobytes() if dtype == "F32" else _bf16(values))
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": case.rank,
            "lora_alpha": case.rank,
            "alora_invocation_tokens": [27, 91, 3],
            "base_model_name_or_path": "org/base",
            "peft_version": "0.21.2",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _slug(case: Case) -> str:
    return case.name.lower().replace(", ", "-")


def _bf16(values: np.ndarray[Any, Any]) -> bytes:
    return (values.view("<u4") >> 16).astype("<u2").tobytes()


def gguf_base(case: Case = ATTENTION) -> Path:
    """A base GGUF of that shape: a real header, and data that is a hole in the file."""
    import gguf

    path = FOLDER / f"{_slug(case)}-header.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        writer = gguf.GGUFWriter(temporary, case.arch)
        writer.add_name(case.name)
        for key, number in case.counts.items():
            writer.add_uint32(f"{case.arch}.{key}", number)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"token{i}" for i in range(case.vocab)])
        writer.add_token_types([1] * case.vocab)
        writer.add_token_merges([f"a{i} b{i}" for i in range(MERGES)])
        width = case.counts["embedding_length"]
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("token_embd", "output"), (case.vocab, width)
        )
        experts = (case.experts,) if case.experts else ()
        for layer in range(case.layers):
            for name, shape in case.modules.values():
                shapes[f"blk.{layer}.{name}"] = (*experts, *shape)
        total = 0
        for name, size in shapes.items():
            n_bytes = 2 * math.prod(size)
            writer.add_tensor_info(f"{name}.weight", size, np.dtype(np.float16), n_bytes)
            total += n_bytes
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        start = -(-temporary.stat().st_size // 32) * 32
        os.truncate(temporary, start + total)
        temporary.replace(path)
    return path


def model_directory() -> Path:
    """What upstream's script wants of the base: its config.json."""
    folder = FOLDER / "8b-config"
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "vocab_size": VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def compare(dtype: str, rounds: int) -> list[Result]:
    """Seconds and memory of both converters, in turns."""
    from tests.support.upstream import upstream_tree

    source, base, directory = adapter(dtype), gguf_base(), model_directory()
    script = upstream_tree() / "convert_lora_to_gguf.py"
    runs: dict[str, list[Run]] = {"ours": [], "other": []}
    outs = {side: FOLDER / f"8b-{side}.gguf" for side in runs}
    commands = {
        "ours": [
            str(Path(sys.executable).with_name("alora-gguf")), "convert", str(source),
            "--base", str(base), "-o", str(outs["ours"]),
        ],
        "other": [
            sys.executable, str(script), str(source),
            "--base", str(directory), "--outfile", str(outs["other"]), "--outtype", "f16",
        ],
    }  # fmt: skip

    def side(name: str) -> float:
        outs[name].unlink(missing_ok=True)
        runs[name].append(measured(commands[name]))
        return runs[name][-1].seconds

    samples = alternate({name: lambda name=name: side(name) for name in runs}, rounds)  # type: ignore[misc]
    case = f"8B, attention, r={RANK}, {dtype} to F16"
    memory = {name: [float(run.memory) for run in taken[1:]] for name, taken in runs.items()}
    for path in outs.values():
        path.unlink(missing_ok=True)
    return [
        Result("convert", case, Side("alora-gguf convert", samples["ours"]),
               Side("convert_lora_to_gguf.py", samples["other"]), "speedup", 10.0, "≥ 10x"),
        Result("convert, whole process", case, Side("", samples["ours"]), None, "value", 0.3,
               "≤ 0.3 s"),
        Result("convert, resident memory", case, Side("", memory["ours"], "B"),
               Side("convert_lora_to_gguf.py", memory["other"], "B"), "value", 150 * 2.0**20,
               "≤ 150 MB"),
    ]  # fmt: skip


def alone(dtype: str, case: Case, rounds: int) -> list[Result]:
    """Seconds and memory of ours."""
    source, base, out = adapter(dtype, case), gguf_base(case), FOLDER / f"{_slug(case)}-ours.gguf"
    command = [str(Path(sys.executable).with_name("alora-gguf")), "convert", str(source)]
    runs = []
    for _ in range(rounds + 1):
        out.unlink(missing_ok=True)
        runs.append(measured([*command, "--base", str(base), "-o", str(out)]))
    out.unlink()
    seconds = Side("", [run.seconds for run in runs[1:]])
    memory = Side("", [float(run.memory) for run in runs[1:]], "B")
    what = f"{case.name}, r={case.rank}, {dtype} to F16"
    most, said = (1.0, "≤ 1.0 s") if case is ALL_LINEAR else (None, "")
    return [
        Result("convert, whole process", what, seconds, None, "value", most, said),
        Result("convert, resident memory", what, memory, None, "value", 400 * 2.0**20, "≤ 400 MB"),
    ]


def asking(rounds: int) -> Result:
    """Seconds of `alora-gguf --help`, a whole process."""
    command = [str(Path(sys.executable).with_name("alora-gguf")), "--help"]
    measured(command)
    samples = [measured(command).seconds for _ in range(rounds)]
    return Result("--help, whole process", "", Side("", samples), None, "value", 0.15, "< 0.15 s")


def main() -> int:
    parser = options.parser("benchmarks.convert", __doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of each side (%(default)s)")
    parser.add_argument("--write-readme", action="store_true", help="puts the table into README.md")
    parser.add_argument("--check", action="store_true", help="fails if a goal is missed")
    chosen = parser.parse_args()
    results = [asking(chosen.rounds)]
    print(f"{report.HEAD}\n{report.line(results[0])}")
    for dtype in DTYPES:
        for result in compare(dtype, chosen.rounds):
            results.append(result)
            print(report.line(result), flush=True)
    for dtype, case, rounds in (
        ("F32", ALL_LINEAR, chosen.rounds),
        ("BF16", ALL_LINEAR, chosen.rounds),
        ("BF16", EXPERTS, min(chosen.rounds, 3)),
    ):
        for result in alone(dtype, case, rounds):
            results.append(result)
            print(report.line(result), flush=True)
    if chosen.write_readme:
        table = "\n".join([report.HEAD, *(report.line(result) for result in results)])
        report.write_section("converter", table)
    return 1 if chosen.check and not all(result.ok for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
