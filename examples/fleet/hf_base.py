"""`python -m examples.fleet.hf_base BASE.gguf DIRECTORY`: a base's GGUF as a model of transformers.

For engines on GPUs, where what the base was published as is not at hand. Its weights are those that
the GGUF's dequantise to; with the extra `train`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alora_gguf.files import check_directory, write_whole_directory
from examples.demo_model import program


def write(base: Path, target: Path) -> None:
    """Weights in BF16, tokenizer and chat template, into a directory that is empty or not there.
    Raises what load_model() and write_whole_directory() do.
    """
    import torch
    from transformers import AutoTokenizer

    from alora_gguf.train import load_model

    check_directory(target)  # before minutes of reading
    model = load_model(base)
    tokenizer = AutoTokenizer.from_pretrained(str(base.parent), gguf_file=base.name)
    with write_whole_directory(target) as part:
        model.to(torch.bfloat16).save_pretrained(part)
        tokenizer.save_pretrained(part)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args(argv)
    write(args.base, args.directory)
    print(f"{args.directory}: written")
    return 0


if __name__ == "__main__":
    program.run(main)
