"""`python -m examples.demo_model`: everything from data to the shipped files.

Stages, in order; each reads what the one before left in the work directory:

    base       the tokenizer and the base, from scratch
    certainty  the base's own answers, and how probable each is
    adapters   five intrinsics, each as an aLoRA and as a LoRA
    files      copies what was trained beside this example, and writes the shipped GGUF files

`make demo-eval` (evaluate.py, report.py) then measures the result, `make demo-parity` (parity.py)
compares it with PEFT.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from alora_gguf.errors import InputError

from . import chat, program

_HERE: Final = Path(__file__).parent
_ROOT: Final = _HERE.parents[1]
_SHIPPED: Final = _ROOT / "alora_gguf" / "demo"
_STAGES: Final = ("base", "certainty", "adapters", "files")
# Training frees and takes the same large blocks all the time: glibc should keep them.
_KEEP_MEMORY: Final = (
    "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592"
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="all of them if none is named")
    parser.add_argument("--work", type=Path, default=_ROOT / "build" / "demo-model")
    args = parser.parse_args(argv)
    unknown = set(args.stages) - set(_STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; choose from {_STAGES}")
    args.work.mkdir(parents=True, exist_ok=True)
    for stage in args.stages or _STAGES:
        print(f"== {stage}", flush=True)
        check_inputs(stage, args.work)
        if stage == "files":
            write_files(args.work)
        elif status := _train(stage, args.work):
            print(f"error: {stage} failed, see above", file=sys.stderr)
            return status if status > 0 else 128 - status  # a signal
    return 0


def check_inputs(stage: str, work: Path) -> None:
    """Raises InputError, before anything is changed, if what earlier stages write is not there."""
    base = [work / "base" / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
    written = {
        "base": base,
        "certainty": [work / "certainty_train.jsonl"],
        "adapters": [
            work / "peft" / kind / name / file
            for kind in ("alora", "lora")
            for name in chat.INTRINSICS
            for file in ("adapter_config.json", "adapter_model.safetensors")
        ],
    }
    needs = {
        "certainty": ("base",),
        "adapters": ("base", "certainty"),
        "files": ("base", "adapters"),
    }
    for before in needs.get(stage, ()):
        for path in written[before]:
            if not path.is_file():
                raise InputError(
                    f"{path}: missing, {stage} reads it; "
                    f"run `python -m examples.demo_model {before}` first"
                )


def _train(stage: str, work: Path) -> int:
    """The exit status of a training program, which says itself what went wrong."""
    base, answers = str(work / "base"), str(work / "certainty_train.jsonl")
    module, arguments = {
        "base": ("pretrain", [base]),
        "certainty": ("certainty", [base, answers]),
        "adapters": ("adapters", [base, str(work / "peft"), "--certainty", answers]),
    }[stage]
    environment = {**os.environ, "GLIBC_TUNABLES": _KEEP_MEMORY}
    command = [sys.executable, "-m", f"examples.demo_model.{module}", *arguments]
    return subprocess.run(command, check=False, env=environment, cwd=_ROOT).returncode


def write_files(work: Path) -> None:
    """The trained files: Hugging Face's beside this example, GGUF in the package.

    The LoRA twins' GGUF files stay here too: nobody needs them but those who compare.
    """
    from alora_gguf.convert import convert_adapter

    from .base_gguf import write_base_gguf

    for name in ("base", "peft"):
        shutil.rmtree(_HERE / name, ignore_errors=True)
        shutil.copytree(work / name, _HERE / name)
    base = _SHIPPED / "base.gguf"
    write_base_gguf(_HERE / "base", base, "q8_0")
    for name in chat.INTRINSICS:
        for kind, out in (("alora", _SHIPPED), ("lora", _HERE / "lora")):
            out.mkdir(exist_ok=True)
            report = convert_adapter(
                _HERE / "peft" / kind / name, base, out / f"{name}.gguf", name=name, overwrite=True
            )
            print(f"{report.out}: {report.nbytes:,} bytes", flush=True)


if __name__ == "__main__":
    program.run(main)
