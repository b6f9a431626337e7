"""The demo model's tokenizer: a byte-level BPE over GPT-2's pieces.

A number of two digits is a token then, not two as with Granite: easier to copy. Control tokens
have the first ids. No token is added before or after a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.files import write_whole
from examples.demo_model.chat import CONTROL_TOKENS, END_TEXT, TEMPLATE

CONTEXT: Final = 2048  # tokens
_CONTROL: Final = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))


def train(texts: Iterable[str], directory: Path, vocab_size: int) -> None:
    """Learns a vocabulary of `vocab_size` tokens and writes tokenizer.json and its configuration.

    The same texts in the same order give the same bytes. Control tokens in `texts` are cut out
    before anything is counted, so rendered conversations may be passed as they are. `vocab_size`
    counts the control tokens and the 256 bytes too. Raises InputError if that leaves no room for
    merges, or if `texts` are too few to fill it.
    """
    fixed = len(CONTROL_TOKENS) + 256
    if vocab_size <= fixed:
        raise InputError(
            f"vocab_size: expected more than {fixed} (the control tokens and all bytes), "
            f"found {vocab_size}"
        )
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True) for token in CONTROL_TOKENS],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_control(texts), trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise InputError(
            f"texts: expected enough to learn {vocab_size} tokens, found enough for {found}; "
            "pass more text or a smaller vocab_size"
        )
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    _write(directory / "tokenizer_config.json", json.dumps(_configuration(), indent=2) + "\n")


def load(directory: Path) -> Tokenizer:
    """The tokenizer that `train` wrote; `transformers.AutoTokenizer` reads the same directory.

    Raises FileFormatError if tokenizer.json is missing or not a tokenizer.
    """
    path = directory / "tokenizer.json"
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}); run `train`") from error
    except Exception as error:  # the tokenizers package raises nothing more precise
        raise FileFormatError(f"{path}: not a tokenizer ({error}); run `train`") from error


def _without_control(texts: Iterable[str]) -> Iterator[str]:
    # the trainer would otherwise count `start_of_role` among the words
    for text in texts:
        yield from filter(None, _CONTROL.split(text))


def _configuration() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_TEXT,
        "model_max_length": CONTEXT,
        "pad_token": END_TEXT,
    }


def _write(path: Path, text: str) -> None:
    with write_whole(path) as file:
        file.write(text.encode())
