"""The tokenizer: reproducible, complete, and the same in tokenizers, transformers and llama.cpp."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import alora_gguf as ag
from alora_gguf.errors import FileFormatError, InputError
from examples.demo_model import chat, tokenizer
from examples.demo_model.base_gguf import write_base_gguf
from tests.demo_model.tiny_granite import N_VOCAB, TEXTS, write_granite
from tests.support.upstream import ROOT

SHIPPED = ROOT / "examples" / "demo_model" / "base", ROOT / "alora_gguf" / "demo" / "base.gguf"

VARIED = [
    "The copper kettle costs 48 crowns.",
    "1987 12.50 3,000 07:45 a1b22c333 ½ ² ٣٤ Ⅳ",
    "It's Mara's; they'RE, we'll, I'd 've 'tis ''' \"quoted\" “curly”",
    '{"rewritten_question": "What does the clock weigh?", "n": [1, 2.5e-3, null]}\n',
    "  two  spaces,\ttab,\n\nlines \r\n and an end   ",
    " \n \n\n\t x   \n",
    "naïve Σίσυφος Привет 你好世界 こんにちは 🙂👩‍👩‍👧 é e\u0301 \u00a0\u2009\u3000.",
    "under_score-hyphen/slash\\back #tag @me 100% $5 €6 <certainty> <|not_a_token|>",
    "word" * 60 + "!" * 40 + "7" * 30,
    "\x00\x01\x7f\ufeff\u200b",
    chat.render(
        ["A plain text.", "Another, 2 of them."],
        [chat.Message("system", "Be brief."), chat.Message("user", "Who's there?\n")],
        generation_prompt=True,
    ),
    *(chat.role_marker(name) for name in chat.INTRINSICS),
    f"{chat.END_TEXT}{chat.END_TEXT} {chat.START}{chat.END_ROLE}\n",
]


def random_texts(n: int, seed: int) -> list[str]:
    """Strings that mix what splits a text: digits, letters, spaces, marks, other scripts, roles."""
    rng = random.Random(seed)
    parts = [*"0179abzT '\"\n\t.,:{}_-", "  ", "'s", "'ll", " the", "é", "字", "🙂", "½", "\u00a0"]
    parts += chat.CONTROL_TOKENS
    return ["".join(rng.choices(parts, k=rng.randint(1, 40))) for _ in range(n)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(TEXTS, folder, N_VOCAB)
    return folder


# Training ----------------------------------------------------------------------------------------


def test_control_tokens_come_first_and_every_byte_has_a_token(directory: Path) -> None:
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(N_VOCAB))
    trained = tokenizer.load(directory)
    assert trained.get_vocab_size() == N_VOCAB
    assert [trained.token_to_id(t) for t in chat.CONTROL_TOKENS] == [0, 1, 2]
    assert trained.encode(chat.role_marker("a")).ids == [1, trained.token_to_id("a"), 2]
    single = {token for token in vocabulary if len(token) == 1}
    assert len(single) == 256


def test_the_same_texts_give_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from examples.demo_model import tokenizer\n"
        "from tests.demo_model.tiny_granite import N_VOCAB, TEXTS\n"
        "tokenizer.train(iter(TEXTS), Path(sys.argv[1]), N_VOCAB)\n"
    )
    # another hash seed, another process, several threads
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, cwd=ROOT, env=environment
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()


def test_control_tokens_are_not_counted_as_words(tmp_path: Path) -> None:
    bare = [chat.START, chat.END_ROLE, chat.END_TEXT]
    tokenizer.train([*TEXTS, *bare * 500], tmp_path, N_VOCAB)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert not [t for t in vocabulary if "_of_" in t and t not in chat.CONTROL_TOKENS]


@pytest.mark.parametrize("size", [0, 259])
def test_refuses_a_size_without_merges(size: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"vocab_size: expected more than 259 .*found {size}"):
        tokenizer.train(TEXTS, tmp_path, size)


def test_refuses_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"enough to learn 4000 tokens, found enough for \d+"):
        tokenizer.train(TEXTS, tmp_path, 4000)
    assert list(tmp_path.iterdir()) == []


def test_says_what_is_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"tokenizer\.json: cannot be read .*run `train`"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizer.load(tmp_path)


# The same everywhere -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", VARIED)
def test_text_comes_back_and_transformers_agrees(text: str, directory: Path) -> None:
    from transformers import AutoTokenizer

    ours = tokenizer.load(directory).encode(text).ids
    theirs = AutoTokenizer.from_pretrained(directory)
    assert theirs(text).input_ids == ours
    assert theirs.decode(ours) == text


def test_transformers_knows_the_ends_and_adds_none(directory: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory)
    assert (theirs.eos_token, theirs.eos_token_id) == (chat.END_TEXT, 0)
    assert (theirs.pad_token, theirs.pad_token_id) == (chat.END_TEXT, 0)
    assert theirs.bos_token is None
    assert theirs("").input_ids == []
    assert theirs.chat_template == chat.TEMPLATE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ag.Model:
    """Our runtime with the tiny tokenizer, whose vocabulary `directory` has too."""
    folder = write_granite(tmp_path_factory.mktemp("granite"))
    write_base_gguf(folder, folder / "base.gguf", "f32")
    return ag.Model(folder / "base.gguf", n_ctx=64, n_threads=1)


@pytest.mark.parametrize("text", VARIED)
def test_llama_cpp_splits_as_trained(text: str, directory: Path, model: ag.Model) -> None:
    ids = tokenizer.load(directory).encode(text).ids
    assert model.tokenize(text) == ids
    assert model.tokenize(text, add_special=True) == ids  # nothing is added
    if "\x00" not in text:
        assert model.detokenize(ids, special=True) == text


def test_llama_cpp_splits_random_texts_as_trained(directory: Path, model: ag.Model) -> None:
    trained = tokenizer.load(directory)
    for text in random_texts(1000, seed=1):
        assert model.tokenize(text) == trained.encode(text).ids, ascii(text)


def test_a_turn_boundary_is_a_token_boundary(directory: Path) -> None:
    """So a conversation's tokens are a prefix of those with an invocation appended."""
    trained = tokenizer.load(directory)
    talk = chat.render(["A text."], [chat.Message("user", "What?")])
    for name in chat.INTRINSICS:
        alone = trained.encode(chat.role_marker(name)).ids
        assert trained.encode(talk + chat.role_marker(name)).ids == trained.encode(talk).ids + alone


@pytest.mark.skipif(not all(p.exists() for p in SHIPPED), reason="the demo model is not trained")
def test_the_shipped_base_splits_as_it_was_trained() -> None:
    source, base = SHIPPED
    trained = tokenizer.load(source)
    with ag.Model(base, n_ctx=64, n_threads=1) as shipped:
        assert shipped.n_vocab >= trained.get_vocab_size()
        for text in [*VARIED, *random_texts(1000, seed=2)]:
            assert shipped.tokenize(text) == trained.encode(text).ids, ascii(text)
