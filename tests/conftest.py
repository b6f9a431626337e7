"""Fixtures of the Python tests: one tiny base and some adapters, written once per run."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator

import pytest

import alora_gguf as ag
from alora_gguf.engine.library import library_dir
from alora_gguf.engine.scheduler import BatchWindow
from tests.backends import attach
from tests.support.files import FOREVER, Files, write_files

# A process more for each of the many tiny bases; tests/engine/test_trial.py has it on.
os.environ["ALORA_TRIAL_LOAD"] = "0"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as shells start what runs in the background; programs that tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def backend() -> None:
    """The backend that ALORA_TEST_BACKEND names, before the first model is loaded."""
    attach(library_dir())


@pytest.fixture(autouse=True)
def environment(backend: None) -> Iterator[None]:
    """Commands that run in this process set variables for their own; none reaches the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_files(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(files: Files) -> Iterator[ag.Model]:
    with files.model() as opened:
        yield opened


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, no caller gives up waiting for another one to share a batch."""
    served = BatchWindow.served

    def long_since(self: BatchWindow, threads: Collection[int], _: float) -> None:
        served(self, threads, FOREVER)

    monkeypatch.setattr("alora_gguf.engine.scheduler._LONGEST_WAIT", FOREVER)
    monkeypatch.setattr("alora_gguf.engine.scheduler._PATIENCE", FOREVER)
    monkeypatch.setattr(BatchWindow, "served", long_since)
