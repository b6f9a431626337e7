"""No poisoning: whatever came before, logits are those of a model that has seen nothing else."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import alora_gguf as ag
from tests.support import inside, steered
from tests.support.files import EXACT, Files, write_hybrid_files, write_window_files

GREEDY = ag.Sampling(temperature=0.0)
SCALES = (1.0, 1.0, 0.5, 2.0)


class Walk:
    """Random steps on a few sessions of `model`; `clean` computes each result from scratch."""

    def __init__(
        self, files: Files, folder: Path, seed: int, options: ag.ContextOptions = EXACT
    ) -> None:
        self.rng = random.Random(seed)
        # upstream's flash attention reads F32 cells as F16
        rounds = (options.flash_attn, options.attention) == ("on", "upstream")
        self.bound = 2e-3 if rounds else 1e-4
        self.files = files
        self.folder = folder
        self.model = files.model(options=replace(options, n_pooled=3))
        self.clean = files.model(n_ctx=512, options=options)
        for name, path in steered.write_all(folder, self.model.architecture).items():
            for model in (self.model, self.clean):
                model.load_adapter(name, path, from_start=name == "half")
        for model in (self.model, self.clean):
            model.combine("both", {"other": 1.0, "add": 0.5, "out": 1.0})
        self.sessions = [self.model.session()]
        self.versions = 0

    def use(self) -> dict[str, object]:
        rng, vectors = self.rng, ["add", "out", "half", "norm"]
        name = rng.choice(["sure", "other", "lora", None, "vector", "several", "several", "both"])
        chosen: object = rng.choice(vectors) if name == "vector" else name
        if name == "several":
            some = rng.sample(vectors, rng.randint(1, 2)) + rng.sample(["sure", "lora", "add"], 1)
            chosen = {each: rng.choice(SCALES) for each in some}
        return {"adapter": chosen, "scale": rng.choice(SCALES) if name else 1.0}

    def invoked(self, use: dict[str, object]) -> bool:
        """Whether it begins at the invocation."""
        named = use["adapter"] if isinstance(use["adapter"], dict) else {use["adapter"]: 1}
        return not named.keys().isdisjoint({"sure", "other", "both"})

    def tokens(self, most: int = 12) -> list[int]:
        some = [self.rng.randrange(250) for _ in range(self.rng.randint(1, most))]
        if self.rng.random() < 0.5:
            some += self.files.invocation
        return some

    def step(self) -> None:
        session = self.rng.choice(self.sessions)
        if len(session.tokens) > 120:
            session.rewind(self.rng.randrange(40))
        moves = [self.read, self.read, self.reply, self.ask, self.ask, self.rewind, self.fork]
        moves += [self.restart, self.begin_alike]
        if self.rng.random() < 0.05:
            self.reload()
        self.rng.choice(moves)(session)

    def read(self, session: ag.Session) -> None:
        tokens, use = session.tokens + self.tokens(), self.use()
        try:
            session.sync(tokens, **use)  # type: ignore[arg-type]
        except ag.InvocationNotFoundError:
            return
        self.compare(inside.last_logits(session), tokens, use)

    def reply(self, session: ag.Session) -> None:
        if not session.tokens:
            return
        prompt, use, n = session.tokens, self.use(), self.rng.randint(1, 5)
        try:
            made = session.generate(max_tokens=n, sampling=GREEDY, **use)  # type: ignore[arg-type]
        except ag.InvocationNotFoundError:
            return
        for i, _ in enumerate(made):
            if i == 2:
                made.close()
        assert made.tokens == self.generated(prompt, n, use)[: len(made.tokens)]

    def generated(self, prompt: list[int], n: int, use: dict[str, object]) -> list[int]:
        with self.clean.session() as fresh:
            fresh.sync(prompt)
            made = fresh.generate(max_tokens=n, sampling=GREEDY, **use)  # type: ignore[arg-type]
            made.read()
            return made.tokens

    def ask(self, session: ag.Session) -> None:
        uses = [self.use() for _ in range(self.rng.randint(1, 4))]
        suffix = self.tokens(5)
        state = self.state(session)
        verdicts = session.invoke_many(
            [ag.Invocation(u["adapter"], suffix, scale=u["scale"], max_tokens=3) for u in uses]  # type: ignore[arg-type]
        )
        assert self.state(session) == state
        for use, verdict in zip(uses, verdicts, strict=True):
            prompt = [*session.tokens, *suffix]
            n = len(self.files.invocation)
            if self.invoked(use) and prompt[-n:] != list(self.files.invocation):
                prompt += self.files.invocation
            assert list(verdict.tokens) == self.generated(prompt, 3, use)

    def state(self, session: ag.Session) -> bytes:
        """Its cells; nothing where a question may make it read the conversation again."""
        return session.state() if inside.engine(self.model).rewinds else b""

    def rewind(self, session: ag.Session) -> None:
        session.rewind(self.rng.randint(0, len(session.tokens)))

    def fork(self, session: ag.Session) -> None:
        self.sessions.append(session.fork())
        if len(self.sessions) > 4:
            self.sessions.pop(self.rng.randrange(4)).close()

    def restart(self, session: ag.Session) -> None:
        """Saves it, and goes on with what is restored, if its adapters are still the same."""
        path = self.folder / "talk.alora"
        session.save(path)
        try:
            restored = self.model.restore_session(path)
        except ag.SavedSessionError:
            loaded = {file.identity for file in self.model.adapters.values()}
            acted = {each for _, by in session.provenance for each, _ in by.acting}
            assert acted - loaded
            return
        assert restored.tokens == session.tokens
        if inside.engine(self.model).rewinds:  # else it may hold more, which is not saved
            assert restored.provenance == session.provenance
            assert (inside.sequence(session).logits is None) == (
                inside.sequence(restored).logits is None
            )
        if inside.sequence(restored).logits is not None:
            assert np.array_equal(inside.last_logits(restored), inside.last_logits(session))
        self.sessions[self.sessions.index(session)] = restored
        session.close()

    def begin_alike(self, session: ag.Session) -> None:
        """Begins another one like an open or a closed one, whose cells stay for it."""
        tokens = session.tokens[: self.rng.randint(0, len(session.tokens))] + self.tokens()
        if self.rng.random() < 0.5:
            session.close()
            self.sessions.remove(session)
        elif len(self.sessions) > 3:
            return
        fresh = self.model.session()
        self.sessions.append(fresh)
        use = self.use()
        try:
            fresh.sync(tokens, **use)  # type: ignore[arg-type]
        except ag.InvocationNotFoundError:
            return
        self.compare(inside.last_logits(fresh), tokens, use)

    def reload(self) -> None:
        """The same name, other weights."""
        self.versions += 1
        name = self.rng.choice(["sure", "lora"])
        path = self.files.write_adapter(
            self.folder / f"{name}{self.versions}.gguf",
            seed=100 + self.versions % 3,  # some come back
            invocation=self.files.invocation if name == "sure" else None,
        )
        for model in (self.model, self.clean):
            model.unload_adapter(name)
            model.load_adapter(name, path)

    def compare(self, logits: np.ndarray, tokens: list[int], use: dict[str, object]) -> None:  # type: ignore[type-arg]
        with self.clean.session() as fresh:
            fresh.sync(tokens, **use)  # type: ignore[arg-type]
            expected = inside.last_logits(fresh)
            difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
        assert difference < self.bound


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5, 6, 7, 8])
def test_random_walks_poison_nothing(files: Files, tmp_path: Path, seed: int) -> None:
    walked(Walk(files, tmp_path, seed))


@pytest.mark.parametrize("attention", ["auto", "upstream"])
@pytest.mark.parametrize("seed", [3, 9])
def test_random_walks_with_flash_attention(
    files: Files, tmp_path: Path, seed: int, attention: Literal["auto", "upstream"]
) -> None:
    options = replace(EXACT, flash_attn="on", attention=attention)
    walked(Walk(files, tmp_path, seed, options))


@pytest.mark.parametrize("window", [8, 30])
@pytest.mark.parametrize("seed", [21, 22, 61])
def test_sessions_keep_what_lies_outside_their_windows(
    tmp_path: Path, window: int, seed: int
) -> None:
    walked(Walk(write_window_files(tmp_path, window), tmp_path, seed))


@pytest.mark.parametrize("seed", [1, 2])
def test_random_walks_where_the_memory_cannot_rewind(tmp_path: Path, seed: int) -> None:
    walked(Walk(write_hybrid_files(tmp_path), tmp_path, seed))


def walked(walk: Walk) -> None:
    with walk.model, walk.clean:
        for _ in range(150):
            walk.step()
        for session in walk.sessions:
            session.close()
        while inside.prefix_cache(walk.model).evict():
            pass
        inside.engine(walk.model).collect()
        assert inside.cells(walk.model).used() == 0
        assert inside.cells(walk.model).promised() == 0
