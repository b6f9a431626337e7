"""Writes F32 base GGUFs with upstream's own converter; run as a program by tiny_models.py.

A process of its own, because upstream's `conversion` brings its own `gguf`, which must not mix with
the installed one. Arguments: the upstream tree, then pairs of HF directory and output file.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any


def as_transformers_4(hparams: dict[str, Any]) -> None:
    """Undoes what transformers 5 changed in configurations and upstream does not know yet."""
    if hparams["model_type"] == "granitemoehybrid":
        names = {"linear_attention": "mamba", "full_attention": "attention"}
        hparams["layer_types"] = [names.get(t, t) for t in hparams["layer_types"]]
    if hparams["model_type"] == "gpt2":
        hparams["n_ctx"] = hparams["n_positions"]


def write(source: Path, target: Path) -> None:
    import gguf
    from conversion import (  # type: ignore[import-not-found]
        ModelType,
        get_model_architecture,
        get_model_class,
    )

    hparams = json.loads((source / "config.json").read_text())
    family = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    as_transformers_4(hparams)

    class WithoutVocabulary(family):  # type: ignore[misc,valid-type]
        model_arch = family.model_arch

        def set_vocab(self) -> None:
            self.gguf_writer.add_tokenizer_model("none")
            key = f"{self.gguf_writer.arch}.vocab_size"
            if not any(key in shard for shard in self.gguf_writer.kv_data):
                self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    WithoutVocabulary(source, gguf.LlamaFileType.ALL_F32, target, hparams=hparams).write()


def main() -> None:
    tree = Path(sys.argv[1])
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    logging.basicConfig(level=logging.WARNING)
    pairs = sys.argv[2:]
    for source, target in zip(pairs[::2], pairs[1::2], strict=True):
        write(Path(source), Path(target))


if __name__ == "__main__":
    main()
