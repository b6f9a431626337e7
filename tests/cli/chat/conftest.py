"""The demo model, a base that talks without end, and `alora-gguf chat` in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from alora_gguf.cli.chat.talk import Talk

import alora_gguf as ag
from alora_gguf import cli
from alora_gguf.demo import adapter_paths, base_path
from alora_gguf.demo.script import DOCUMENTS
from tests.support import inside, tiny_base
from tests.support.chats import PLAIN
from tests.support.chatting import GREEDY, Chatting, Outcome, Tiny, masked


@pytest.fixture(scope="package")
def demo() -> Iterator[ag.Model]:
    with ag.Model(base_path(), adapters=adapter_paths(), n_threads=1) as model:
        yield model


@pytest.fixture
def talk(demo: ag.Model) -> Iterator[Talk]:
    inside.forget_prefixes(demo)  # other tests' cells
    talk = Talk(demo, demo.chat(documents=[ag.Document(text) for text in DOCUMENTS]), GREEDY)
    yield talk
    talk.close()


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("chat")
    base = tiny_base.write_base(folder / "endless.gguf", template=PLAIN)
    with ag.Model(base, n_ctx=256, n_threads=1) as model:
        invocation = model.tokenize("<certainty>")
    return Tiny(
        base=base,
        bare=tiny_base.write_base(folder / "bare.gguf"),
        alora=tiny_base.write_adapter(folder / "sure.gguf", invocation=invocation),
        lora=tiny_base.write_adapter(folder / "plain.gguf"),
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("ALORA_GGUF_HOME", str(home))
    return home


@pytest.fixture
def chatting(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Chatting:
    """Runs `alora-gguf chat` with lines on its input."""

    def run(*arguments: str | Path, lines: str | bytes = "") -> Outcome:
        data = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capsys.readouterr()
        status = cli.run(["chat", "--threads", "1", *map(str, arguments)])
        captured = capsys.readouterr()
        return Outcome(status, masked(captured.out), masked(captured.err))

    return run
