"""Writes F32 base GGUFs with upstream's own converter; run as a program by tiny_models.py.

A process of its own, because upstream's `conversion` brings its own `gguf`, which must not mix with
the installed one. Arguments: the upstream tree, then the files to write, each in the directory of
the model it is made of; in one named fused.gguf, query, key and value projections are one tensor.
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
    if hparams["model_type"] in ("cohere2", "gpt_neox"):
        hparams["rotary_pct"] = hparams["rope_parameters"].get("partial_rotary_factor", 1.0)


def write(target: Path) -> None:
    import gguf
    from conversion import (  # type: ignore[import-not-found]
        ModelType,
        get_model_architecture,
        get_model_class,
    )

    source = target.parent
    hparams = json.loads((source / "config.json").read_text())
    family = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    as_transformers_4(hparams)

    class WithoutVocabulary(family):  # type: ignore[misc,valid-type]
        model_arch = family.model_arch
        no_mtp = True  # transformers drops the layers that guess ahead

        def set_vocab(self) -> None:
            self.gguf_writer.add_tokenizer_model("none")
            key = f"{self.gguf_writer.arch}.vocab_size"
            if not any(key in shard for shard in self.gguf_writer.kv_data):
                self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    WithoutVocabulary(
        source,
        gguf.LlamaFileType.ALL_F32,
        target,
        hparams=hparams,
        fuse_qkv=target.stem == "fused",
    ).write()


def main() -> None:
    tree = Path(sys.argv[1])
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    logging.basicConfig(level=logging.WARNING)
    for target in sys.argv[2:]:
        write(Path(target))


if __name__ == "__main__":
    main()
