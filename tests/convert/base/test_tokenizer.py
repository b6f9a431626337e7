"""Text to ids and back, by a GGUF's vocabulary and by a tokenizer.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert.base.families import FAMILIES
from alora_gguf.convert.base.hf_tokenizer import HFTokenizer
from alora_gguf.convert.base.tokenizer import GGUFTokenizer

from alora_gguf.errors import ConvertError, FileFormatError
from alora_gguf.gguf.header import GGUFHeader, read_header
from tests.support.vocabularies import (
    BYTE,
    NORMAL,
    Vocabulary,
    byte_level,
    sentence_piece,
    write_gguf,
)

TEXTS = [
    "the",
    " the in",
    "a  b",
    "<certainty>",
    "a\nb",
    "naïve Σ 🙂",
    "x" * 300,
    "in the end.",
]
BPE_TEXTS = ["<|start_of_role|>the<|end_of_role|>", "<tool> <tool>", "<|end_of_role|>\n", " "]
SPM_TEXTS = ["<|user|>", "<|user|>the<|assistant|> a", "<s>a</s>", "the <|user|> the"]


def tokenize_gguf(header: GGUFHeader, text: str) -> list[int]:
    return GGUFTokenizer(header).tokenize(text)


def text_of(header: GGUFHeader, tokens: list[int]) -> str | None:
    return GGUFTokenizer(header).text_of(tokens)


def ordinary(header: GGUFHeader, tokens: list[int]) -> list[bool] | None:
    return GGUFTokenizer(header).ordinary(tokens)


def written(folder: Path, vocabulary: Vocabulary | None, **changes: Any) -> GGUFHeader:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return read_header(write_gguf(folder / "base.gguf", vocabulary, dotted))


# A GGUF's vocabulary -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*TEXTS, *BPE_TEXTS])
def test_byte_level_text_comes_back(text: str, tmp_path: Path) -> None:
    header = written(tmp_path, byte_level())
    tokens = tokenize_gguf(header, text)
    assert text_of(header, tokens) == text


@pytest.mark.parametrize("prefix", [None, True, False])
@pytest.mark.parametrize("text", [*TEXTS, *SPM_TEXTS])
def test_sentence_piece_text_comes_back(text: str, prefix: bool | None, tmp_path: Path) -> None:
    header = written(tmp_path, sentence_piece(), tokenizer__ggml__add_space_prefix=prefix)
    tokens = tokenize_gguf(header, text)
    assert text_of(header, tokens) == text


def test_ids_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """Special tokens are found in a text, and no token is added to it."""
    bpe = byte_level()
    header = written(tmp_path, bpe, tokenizer__ggml__add_bos_token=True)
    start, end = bpe.id_of("<|start_of_role|>"), bpe.id_of("<|end_of_role|>")
    the = bpe.id_of("the")
    assert tokenize_gguf(header, "<|start_of_role|>the<|end_of_role|>") == [start, the, end]
    assert tokenize_gguf(header, " the") == [bpe.id_of("Ġthe")]
    spm = sentence_piece()
    header = written(tmp_path, spm)
    user = spm.id_of("<|user|>")
    assert tokenize_gguf(header, "the<|user|>\n") == [
        spm.id_of("▁the"),
        user,
        spm.id_of("▁"),
        spm.id_of("<0x0A>"),
    ]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_familys_vocabulary_loads(architecture: str, tmp_path: Path) -> None:
    """Of the model itself llama.cpp asks nothing."""
    path = write_gguf(tmp_path / "base.gguf", byte_level(), architecture=architecture)
    assert tokenize_gguf(read_header(path), "the") == [byte_level().id_of("the")]


def test_the_beginning_of_a_file_is_enough(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "base.gguf", byte_level()).read_bytes()
    start = read_header(whole).data_offset
    header = read_header(whole[:start], name="hf://org/model/base.gguf", size=len(whole))
    assert text_of(header, tokenize_gguf(header, "the <tool>")) == "the <tool>"


def test_nothing_stays_behind_and_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    header = written(tmp_path, byte_level())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for _ in range(3):
        tokenize_gguf(header, "the")
    with pytest.raises(ConvertError):
        tokenize_gguf(written(tmp_path, byte_level(), tokenizer__ggml__merges=None), "the")
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_memory_is_given_back(tmp_path: Path) -> None:
    """A vocabulary of 20,000 tokens takes megabytes; forty of them would show."""
    tokens = [*byte_level().tokens, *(f"token{i}" for i in range(20_000))]
    vocabulary = Vocabulary("gpt2", tokens, [NORMAL] * len(tokens), ["t h"], [])
    path = write_gguf(tmp_path / "base.gguf", vocabulary)
    program = (
        "import resource, sys\n"
        "from alora_gguf.convert.base.tokenizer import GGUFTokenizer\n"
        "from alora_gguf.gguf.header import read_header\n"
        "header, peaks = read_header(sys.argv[1]), []\n"
        "for _ in range(45):\n"
        "    GGUFTokenizer(header).tokenize('the')\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(peaks[-1] - peaks[4])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 16 << 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__model": "none"}, r"has no vocabulary \(tokenizer\.ggml\.model, "),
        ({"tokenizer__ggml__model": None}, r"has no vocabulary \(tokenizer\.ggml\.model, "),
        ({"tokenizer__ggml__tokens": None}, "has no vocabulary"),
        ({"tokenizer__ggml__tokens": [1, 2]}, "has no vocabulary"),
        ({"tokenizer__ggml__model": "bert"}, "is of the unknown kind 'bert'"),
        ({"tokenizer__ggml__model": 7}, "is of the unknown kind '7'"),
        ({"tokenizer__ggml__merges": None}, r"cannot be read by llama\.cpp \(llama\.cpp: .*merges"),
        ({"tokenizer__ggml__pre": "unheard-of"}, r"cannot be read by llama\.cpp"),
        ({"tokenizer__ggml__token_type": [1, 1]}, r"cannot be read by llama\.cpp"),
    ],
)
def test_refuses_a_vocabulary_that_cannot_tokenize(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    header = written(tmp_path, byte_level(), **changes)
    with pytest.raises(ConvertError, match=message) as caught:
        tokenize_gguf(header, "the")
    assert str(caught.value).startswith(str(tmp_path / "base.gguf"))
    assert "pass the invocation's ids with --invocation-tokens" in str(caught.value)


@pytest.mark.parametrize("twice", ["the", "the\0more", ""])
def test_refuses_tokens_that_llama_cpp_would_abort_on(twice: str, tmp_path: Path) -> None:
    """It asserts that all are different, after it has cut them at zeros and named the empty."""
    bpe = byte_level()
    unnamed = f"[EMPTY_{len(bpe.tokens)}]" if not twice else "the"
    tokens = [*bpe.tokens, twice, unnamed]
    header = written(
        tmp_path,
        bpe,
        tokenizer__ggml__tokens=tokens,
        tokenizer__ggml__token_type=[*bpe.types, NORMAL, NORMAL],
    )
    with pytest.raises(ConvertError, match=r"its vocabulary holds [12] tokens twice"):
        tokenize_gguf(header, "the")


def test_refuses_text_that_sentence_piece_could_not_spell(tmp_path: Path) -> None:
    spm = sentence_piece()
    kept = [i for i, kind in enumerate(spm.types) if kind != BYTE]
    header = written(
        tmp_path,
        spm,
        tokenizer__ggml__tokens=[spm.tokens[i] for i in kept],
        tokenizer__ggml__token_type=[spm.types[i] for i in kept],
        tokenizer__ggml__scores=[spm.scores[i] for i in kept],
    )
    assert text_of(header, tokenize_gguf(header, "the a")) == "the a"
    with pytest.raises(ConvertError, match=r"has no token for the byte 0xC3"):
        tokenize_gguf(header, "the é")


def test_says_how_to_do_without_the_library(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "base.gguf", byte_level())
    program = (
        "import sys\n"
        "from alora_gguf.convert.base.tokenizer import GGUFTokenizer\n"
        "from alora_gguf.errors import ConvertError\n"
        "from alora_gguf.gguf.header import read_header\n"
        "header = read_header(sys.argv[1])\n"
        "print(GGUFTokenizer(header).text_of([104]), 'llama_cpp' in sys.modules)\n"
        "try:\n"
        "    GGUFTokenizer(header).tokenize('the')\n"
        "except ConvertError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ALORA_LIB_DIR": str(tmp_path / "nowhere")},
    )
    assert run.stdout.startswith("h False\n")
    assert "its vocabulary cannot be used without the native library: " in run.stdout
    assert "--invocation-tokens" in run.stdout


# Ids alone ---------------------------------------------------------------------------------------


def test_what_is_ordinary(tmp_path: Path) -> None:
    bpe = byte_level()
    header = written(tmp_path, bpe)
    names = ["the", "<|start_of_role|>", "<tool>", "a", "[PAD]"]
    tokens = [bpe.id_of(name) for name in names]
    assert ordinary(header, tokens) == [True, False, False, True, True]
    spm = sentence_piece()
    header = written(tmp_path, spm)
    assert ordinary(header, [0, 1, 3, spm.id_of("the")]) == [False, False, True, True]
    assert ordinary(header, [0, len(spm.tokens)]) is None
    assert ordinary(header, [-1]) is None
    assert ordinary(written(tmp_path, None), [0]) is None


def test_without_types_all_are_ordinary(tmp_path: Path) -> None:
    bpe = byte_level()
    header = written(tmp_path, bpe, tokenizer__ggml__token_type=None)
    assert ordinary(header, [bpe.id_of("the")]) == [True]
    assert text_of(header, [bpe.id_of("the"), bpe.id_of("Ġa")]) == "the a"
    short = written(tmp_path, bpe, tokenizer__ggml__token_type=[1, 1])
    assert ordinary(short, [0]) is None
    assert text_of(short, [0]) is None


@pytest.mark.parametrize(
    "tokens",
    [
        pytest.param([0xC3], id="half a character"),
        pytest.param([-1], id="negative"),
        pytest.param([10**6], id="outside"),
        pytest.param([2**70], id="huge"),
        pytest.param([], id="nothing"),
    ],
)
def test_ids_that_stand_for_no_text(tokens: list[int], tmp_path: Path) -> None:
    assert text_of(written(tmp_path, byte_level()), tokens) is None


def test_tokens_that_stand_for_no_text(tmp_path: Path) -> None:
    bpe, spm = byte_level(), sentence_piece()
    header = written(tmp_path, bpe)
    assert text_of(header, [bpe.id_of("[PAD]")]) is None  # unused: no text reads as it
    header = written(tmp_path, spm)
    assert text_of(header, [spm.id_of("the")]) is None  # only with a space before it
    assert text_of(header, [spm.id_of("▁")]) is None  # a prefix, of nothing
    assert text_of(header, [spm.id_of("▁the"), spm.id_of("the")]) == "thethe"
    renamed = [*spm.tokens[:3], "no byte", *spm.tokens[4:]]
    header = written(tmp_path, spm, tokenizer__ggml__tokens=renamed)
    assert text_of(header, [spm.id_of("▁"), 3]) is None
    strange = [*bpe.tokens[:-1], "漢"]  # outside the alphabet of bytes
    header = written(tmp_path, bpe, tokenizer__ggml__tokens=strange)
    strange_types = [*bpe.types[:-1], NORMAL]
    header = written(
        tmp_path,
        bpe,
        tokenizer__ggml__tokens=strange,
        tokenizer__ggml__token_type=strange_types,
    )
    assert text_of(header, [len(strange) - 1]) is None
    for model in ("bert", None, 7):
        header = written(tmp_path, bpe, tokenizer__ggml__model=model)
        assert text_of(header, [0]) is None


# tokenizer.json ----------------------------------------------------------------------------------

METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}


def hf_tokenizer(folder: Path, vocabulary: Vocabulary, **parts: Any) -> HFTokenizer:
    (folder / "tokenizer.json").write_text(vocabulary.tokenizer_json(**parts))
    return HFTokenizer(folder)


@pytest.mark.parametrize("text", [*TEXTS, *BPE_TEXTS])
def test_byte_level_json_is_the_ggufs(text: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    header = written(tmp_path, byte_level())
    tokenizer = hf_tokenizer(tmp_path, byte_level())
    tokens = tokenizer.tokenize(text)
    assert tokens == tokenize_gguf(header, text)
    assert tokenizer.text_of(tokens) == text
    assert tokenizer.ordinary(tokens) == ordinary(header, tokens)


@pytest.mark.parametrize("parts", [{"normalizer": PREPEND}, {"pre_tokenizer": METASPACE}])
@pytest.mark.parametrize("text", [*TEXTS, *SPM_TEXTS])
def test_sentence_piece_json_comes_back(text: str, parts: dict[str, Any], tmp_path: Path) -> None:
    """Metaspace puts no space before one, so that two texts can read as the same tokens."""
    pytest.importorskip("tokenizers")
    tokenizer = hf_tokenizer(tmp_path, sentence_piece(), **parts)
    tokens = tokenizer.tokenize(text)
    found = tokenizer.text_of(tokens)
    assert found is not None
    assert tokenizer.tokenize(found) == tokens
    assert found == text or (parts == {"pre_tokenizer": METASPACE} and " " in text)
    header = written(tmp_path, sentence_piece())
    assert text_of(header, tokens) == found
    assert tokenizer.ordinary(tokens) == ordinary(header, tokens)


def test_a_space_prefix_only_where_there_is_one(tmp_path: Path) -> None:
    spm = sentence_piece()
    the = [spm.id_of("▁the")]
    never = {**METASPACE, "prepend_scheme": "never"}
    older = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}
    for part, text in ((METASPACE, "the"), (never, " the"), (older, " the")):
        tokenizer = hf_tokenizer(tmp_path, spm, pre_tokenizer=part)
        assert tokenizer.text_of(the) == text
    assert hf_tokenizer(tmp_path, spm).text_of(the) == " the"


def test_special_tokens_are_not_added_and_texts_not_cut(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    bpe = byte_level()
    start = "<|start_of_role|>"
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": start, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {start: {"id": start, "ids": [bpe.id_of(start)], "tokens": [start]}},
    }
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    tokenizer = hf_tokenizer(tmp_path, bpe, post_processor=template, truncation=cut)
    assert tokenizer.tokenize("the a") == [bpe.id_of("the"), bpe.id_of("Ġa")]


def test_a_unigram_vocabulary_is_a_list(tmp_path: Path) -> None:
    listed = [["<unk>", 0], ["▁the", -1.0], ["▁", -2.0], [], 7]
    fields = {"model": {"type": "Unigram", "vocab": listed}, "pre_tokenizer": METASPACE}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    tokenizer = HFTokenizer(tmp_path)
    assert tokenizer.text_of([1, 1]) == "the the"
    assert tokenizer.text_of([3]) is None
    assert tokenizer.n_listed == 3


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"model": []}',
        '{"model": {"vocab": 5}}',
        '{"model": {"vocab": {"a": "0"}}, "added_tokens": [1, {"id": "x"}]}',
        '{"model": {"vocab": {"a": 0}}, "decoder": {"type": "WordPiece"}}',
        "version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_without_a_usable_json_no_text_is_known(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    tokenizer = HFTokenizer(tmp_path)
    assert tokenizer.text_of([0]) is None
    with pytest.raises(FileFormatError, match=r"tokenizer\.json: (is a Git|cannot be used: )"):
        tokenizer.tokenize("the")


def test_without_a_json(tmp_path: Path) -> None:
    tokenizer = HFTokenizer(tmp_path)
    assert (tokenizer.text_of([0]), tokenizer.ordinary([0]), tokenizer.n_listed) == (None,) * 3
    message = r"tokenizer\.json: there is no such file, so text cannot be tokenized; fetch it, give"
    with pytest.raises(ConvertError, match=message):
        tokenizer.tokenize("the")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = hf_tokenizer(tmp_path, byte_level())
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not installed
    message = r"`pip install tokenizers`, give the base as a GGUF, or pass the ids with --invoc"
    with pytest.raises(ConvertError, match=message):
        tokenizer.tokenize("the")
    assert tokenizer.text_of([104]) is not None
