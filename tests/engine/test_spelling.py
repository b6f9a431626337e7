"""Texts that cannot fit are refused before they are split into tokens, which may take minutes, and
never one that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.chat.tokenizer import Tokenizer
from alora_gguf.engine.tokens import Pieces, Vocabulary
from alora_gguf.llama import Llama
from tests.support import vocabularies
from tests.support.chats import PLAIN
from tests.support.files import Files
from tests.support.running import Runner

LONG = "\t x" * 1_000_000
KINDS = ("bytes", "few bytes", "pieces", "phi3", "demo")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Vocabulary]]:
    folder = tmp_path_factory.mktemp("spelling")
    whole, spm = vocabularies.byte_level(), vocabularies.sentence_piece()
    gone = {*"ÀÁõö÷qQé", "ĉ"}  # bytes, a tab among them, that no token is for
    kept = [i for i, token in enumerate(whole.tokens) if token not in gone]
    few = replace(
        whole, tokens=[whole.tokens[i] for i in kept], types=[whole.types[i] for i in kept]
    )
    strips = replace(  # at whose markers llama.cpp drops spaces
        spm,
        tokens=[*spm.tokens, "<|endoftext|>"],
        types=[*spm.types, vocabularies.CONTROL],
        scores=[*spm.scores, 0.0],
    )
    made = {
        "bytes": (whole, "x"), "few bytes": (few, "x"), "pieces": (spm, "x"),
        "phi3": (strips, "phi-3"),
    }  # fmt: skip
    paths = {
        kind: vocabularies.write_gguf(folder / f"{i}.gguf", vocab, {"general.name": name})
        for i, (kind, (vocab, name)) in enumerate(made.items())
    }
    tokenizers = {
        kind: Tokenizer(path, template="{{ 'x' }}")
        for kind, path in {**paths, "demo": demo.base_path()}.items()
    }
    yield {kind: tokenizer._bare.vocab for kind, tokenizer in tokenizers.items()}
    for tokenizer in tokenizers.values():
        tokenizer.close()


def pieces_of(vocab: Vocabulary) -> Pieces:
    return Pieces(vocab._llama, vocab._model, vocab.handle, vocab.attributes)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_fits_is_never_called_too_long(
    opened: dict[str, Vocabulary], kind: str, data: st.DataObject
) -> None:
    vocab = opened[kind]
    own = [vocab.piece(t, special=True).decode("utf-8", "replace") for t in range(vocab.n_tokens)]
    parts = st.sampled_from([*own, " ", "\t", "\n", " " * 9, "▁", "▁▁the", "the a", "q", "é", "😊"])
    text = "".join(data.draw(st.lists(parts | st.text(max_size=5), max_size=30)))
    pieces = pieces_of(vocab)
    for parse_special in (True, False):
        n = len(vocab.tokenize(text, add_special=False, parse_special=parse_special))
        for most in (n, n + 1, 2 * n):
            assert not text or not pieces.more_than(most, text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_fit_is_told_without_reading_all_of_it(
    opened: dict[str, Vocabulary], kind: str
) -> None:
    vocab = opened[kind]
    for text in ("\t x", "the in ", "no such words. "):
        n = len(vocab.tokenize(text * 100, add_special=False, parse_special=True))
        long = (text * 300_000).encode()
        assert pieces_of(vocab).more_than(n // 2, long)
        vocab.room = n // 2
        assert vocab.too_long(text * 300_000)
        vocab.room = None
        assert not vocab.too_long(text * 300_000)


def test_where_one_token_may_stand_for_anything_nothing_is_told(tmp_path: Path) -> None:
    """BERT's vocabularies make one token of a word they do not know."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁the", "a"]
    kinds = [vocabularies.CONTROL] * 5 + [vocabularies.NORMAL] * 2
    bert = vocabularies.Vocabulary("bert", tokens, kinds, [], [0.0] * 7)
    path = vocabularies.write_gguf(tmp_path / "bert.gguf", bert)
    with Tokenizer(path, template="{{ 'x' }}") as tokenizer:
        vocab = tokenizer._bare.vocab
        vocab.room = 4
        assert len(vocab.tokenize("é" * 500, add_special=False, parse_special=True)) == 1
        assert not vocab.too_long("é" * 50_000)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing long is split into tokens."""
    tokenize = Vocabulary.tokenize

    def watched(self: Vocabulary, text: str, **how: bool) -> list[int]:
        assert len(text) < 10_000
        return tokenize(self, text, **how)

    monkeypatch.setattr(Vocabulary, "tokenize", watched)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.session().append(LONG),
        lambda m: m.session().invoke(None, LONG),
        lambda m: m.session().invoke("sure", LONG),
        lambda m: m.chat(template=PLAIN).say(LONG),
        lambda m: m.chat(template=PLAIN, messages=["a", LONG]).read(),
        lambda m: m.chat(template=PLAIN, documents=[LONG]).say("a"),
        lambda m: m.chat(template=PLAIN).check(LONG),
    ],
)
def test_sessions_and_chats(files: Files, call: Callable[[ag.Model], Any]) -> None:
    with (
        files.model() as model,
        pytest.raises(ag.CacheFullError, match=r"more than the 1024 cells that there are; shorten"),
    ):
        call(model)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("special_tokens_in_text", [False, True])
def test_the_drop_in(monkeypatch: pytest.MonkeyPatch, special_tokens_in_text: bool) -> None:
    """With stock's words and class, and what is not to be read is still split."""
    options: dict[str, Any] = {"n_ctx": 512, "verbose": False, "n_threads": 1}
    adapters = {"answerability": demo.adapter_path("answerability")}
    given = {"adapters": adapters, "special_tokens_in_text": special_tokens_in_text}
    with Llama(demo.base_path(), **options, **given) as llm:
        assert len(llm.tokenize(LONG[:9000].encode())) > 512
        tokenize = type(llm._model).tokenize

        def watched(self: Any, text: bytes, *how: Any) -> list[int]:
            assert len(text) < 10_000
            return tokenize(self, text, *how)

        monkeypatch.setattr(type(llm._model), "tokenize", watched)
        said = [{"role": "user", "content": LONG}]
        calls: list[Callable[[], Any]] = [
            lambda: llm(LONG),
            lambda: list(llm(LONG, stream=True)),
            lambda: llm(LONG, intrinsic="answerability"),
            lambda: llm.create_chat_completion(said),
            lambda: llm.create_chat_completion(said, stream=True),
            lambda: llm.create_chat_completion(said, adapter="answerability"),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"Requested tokens .* exceed context window of"):
                call()
        with pytest.raises(ag.CacheFullError, match="more than the 512 cells"):
            llm.create_chat_completion(said, intrinsic="answerability", documents=["a"])


@pytest.mark.usefixtures("untouched")
def test_a_line_of_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(f'[{{"role": "user", "content": "{LONG}"}}]'.replace("\t", "\\t"), "utf-8")
    outcome = Runner(monkeypatch, capsys)("--reply", "--n-ctx", "512", path)
    assert outcome.status == 1
    assert "more than the 512 cells" in outcome.error
