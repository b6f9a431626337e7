"""Writes a base GGUF with upstream's own converter; run as a program by test_base_gguf.py.

A process of its own, because upstream brings its own `gguf`. Arguments: the upstream tree, the
Hugging Face directory, the file to write, the output type (f32, f16, q8_0).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}


def main() -> None:
    tree, source, target, outtype = sys.argv[1:]
    sys.path[:0] = [tree, str(Path(tree) / "gguf-py")]
    logging.basicConfig(level=logging.WARNING)

    import gguf
    from conversion.granite import GraniteModel  # type: ignore[import-not-found]

    class Granite(GraniteModel):  # type: ignore[misc]
        model_arch = GraniteModel.model_arch

        def get_vocab_base_pre(self, tokenizer: object) -> str:
            return "gpt-2"  # upstream knows the tokenizers of published models only

        def set_vocab(self) -> None:
            self._set_vocab_gpt2()  # after others, which need sentencepiece, have not matched

    file_type = getattr(gguf.LlamaFileType, FILE_TYPES[outtype])
    Granite(Path(source), file_type, Path(target)).write()


if __name__ == "__main__":
    main()
