"""The demo model, a base that talks without end, and `alora-gguf chat` in this process."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_base
from alora_gguf.cli.chat.talk import Talk
from chats import PLAIN

import alora_gguf as ag
from alora_gguf import cli
from alora_gguf.demo import adapter_paths, base_path
from alora_gguf.demo.script import DOCUMENTS

GREEDY = ag.ReplyOptions(max_tokens=64, sampling=ag.Sampling(temperature=0.0))


@pytest.fixture(scope="package")
def demo() -> Iterator[ag.Model]:
    with ag.Model(base_path(), adapters=adapter_paths(), n_threads=1) as model:
        yield model


@pytest.fixture
def talk(demo: ag.Model) -> Iterator[Talk]:
    while demo._runtime.prefix_cache.evict():  # other tests' cells
        pass
    talk = Talk(demo, demo.chat(documents=[ag.Document(text) for text in DOCUMENTS]), GREEDY)
    yield talk
    talk.close()


@dataclass(frozen=True)
class Tiny:
    """A base of random weights, which never ends a reply by itself if it is greedy."""

    base: Path
    bare: Path  # without a chat template
    alora: Path
    lora: Path


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


@dataclass(frozen=True)
class Outcome:
    """What a chat did: its exit status, stdout and stderr; times and numbers are masked."""

    status: int
    out: str
    err: str


Chatting = Callable[..., Outcome]


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


def masked(text: str) -> str:
    """Without times, probabilities and percentages: they differ between machines."""
    text = re.sub(r"\b\d+ ms\b", "T ms", text)
    text = re.sub(r"\b\d+\.\d+(e-\d+)?\b|\b\de-\d+\b", "P", text)
    return re.sub(r"\b\d+%", "P%", text)
