"""The kinds of files that strangers write, and what programs do with them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from alora_gguf.convert import convert_adapter

import alora_gguf as ag
from alora_gguf.generate.constraint import check_schema
from alora_gguf.intrinsics import Contract, rewrite, transform
from alora_gguf.saved.container import read_parts, write_parts
from alora_gguf.saved.session_file import write_saved
from tests.intrinsics.corpus_cases import all_cases
from tests.support import base_mutants, inside, vectors
from tests.support.files import EXACT, Files, write_files, write_hybrid_files
from tests.support.peft_files import sound_case
from tests.support.saving import collect

from .damage import changed, damaged
from .harness import Kind

_TEXTS: Final = (
    "Hello there, the end.",
    "<|im_start|>a\n\n  b\t\u0000c <s>",
    "😊 naïve 漢字 \u200b",
    "",
)


class Bases:
    """Opened, tokenized with, computed with, forked; those in `given` besides the tests' own."""

    def __init__(self, folder: Path, given: Sequence[Path]) -> None:
        paths = [*base_mutants.write_bases(folder), *given]
        self._parts = [base_mutants.Parts.read(path) for path in paths]

    def make(self, rng: random.Random, path: Path) -> str:
        made, what = base_mutants.mutant(rng.choice(self._parts), rng)
        path.write_bytes(made.encode())
        return what

    def use(self, path: Path) -> None:
        options = ag.ContextOptions(n_ctx=96, n_batch=48, n_ubatch=32, n_threads=1, n_seq_max=3)
        with ag.Model(path, options=options) as model:
            for text in _TEXTS:
                model.tokenize(text)
            top = model.n_vocab
            with model.session() as session:
                session.append([token % top for token in [5, 6, 7, 8] * 9])
                fork = session.fork()
                session.append([1 % top])
                fork.append([top - 1])
            for token in model.end_tokens:
                model.detokenize([token])
            model.detokenize(list(range(min(top, 400))))


class _WithModel:
    """Kinds that are used with a model, whose base must go on computing the same bits."""

    def __init__(self, folder: Path, _given: Sequence[Path]) -> None:
        self.files = self._write(folder)
        self.model = self.files.model(n_ctx=512)
        self._reference = self._logits()

    def _write(self, folder: Path) -> Files:
        return write_files(folder)

    def _logits(self) -> Any:
        with self.model.session() as session:
            session.append([5, 6, 7, 8, 9, 10, 11])
            return inside.last_logits(session).copy()

    def check_base(self) -> None:
        if not np.array_equal(self._logits(), self._reference):
            raise AssertionError("the base's logits changed")


class Adapters(_WithModel):
    """Loaded beside others, inspected, invoked, unloaded."""

    def __init__(self, folder: Path, given: Sequence[Path]) -> None:
        super().__init__(folder, given)
        files = self.files
        half = files.write_adapter(folder / "half.gguf", dtype=np.float16, seed=9)
        self._parts = [base_mutants.Parts.read(p) for p in (files.alora, files.lora, half)]

    def make(self, rng: random.Random, path: Path) -> str:
        parts = rng.choice(self._parts)
        if rng.random() < 0.3:
            data = parts.encode()
            first = data.find(b"blk.")
            path.write_bytes(damaged(data, rng, rng.choice((first, first + 2000, None))))
            return "damaged bytes"
        made, what = base_mutants.adapter_mutant(parts, rng)
        path.write_bytes(made.encode())
        return what

    def use(self, path: Path) -> None:
        model = self.model
        ag.inspect_gguf(path)
        model.load_adapter("mutant", path)
        try:
            with model.session() as session:
                session.append("so it is <certainty> and more", adapter="mutant")
                "".join(session.generate(max_tokens=2, temperature=0))
        finally:
            model.unload_adapter("mutant")
            self.check_base()


class Vectors(_WithModel):
    """Steering vectors: loaded beside others, inspected, a reply steered, unloaded."""

    def __init__(self, folder: Path, given: Sequence[Path]) -> None:
        super().__init__(folder, given)
        ids = {"adapter.alora.invocation_tokens": ([7, 8], vectors.Type.UINT32)}
        layers = {f"direction.{il}": vectors.rows(seed=il)[0] for il in (0, 1)}
        every = [
            vectors.plain(folder / "plain.gguf"),
            vectors.glp(folder / "glp.gguf", vectors.basis(2), ids),
            vectors.glp(folder / "add.gguf", layers, ids, mode="add_keep_norm", sha256=False),
            vectors.glp(folder / "ffn.gguf", None, ids, hook="ffn", sha256=False),
        ]
        self._parts = [base_mutants.Parts.read(path) for path in every]

    def make(self, rng: random.Random, path: Path) -> str:
        parts = rng.choice(self._parts)
        if rng.random() < 0.3:
            data = parts.encode()
            first = data.find(b"direction.")
            path.write_bytes(damaged(data, rng, rng.choice((first, None))))
            return "damaged bytes"
        made, what = base_mutants.adapter_mutant(parts, rng)
        path.write_bytes(made.encode())
        return what

    def use(self, path: Path) -> None:
        model = self.model
        ag.inspect_gguf(path)
        model.load_adapter("mutant", path)
        try:
            with model.session() as session:
                session.append([5, 7, 8, 9])
                "".join(session.generate(max_tokens=2, temperature=0, adapter="mutant"))
        finally:
            model.unload_adapter("mutant")
            self.check_base()


class Sessions(_WithModel):
    """Restored and gone on with; the checksum is right."""

    def __init__(self, folder: Path, given: Sequence[Path]) -> None:
        super().__init__(folder, given)
        with self.model.session() as session:
            session.append([20, 21, 22, 23, 24, 25])
            session.append([26, *self.files.invocation, 27], adapter="sure")
            write_saved(folder / "saved", collect(session, options=EXACT, notes={"a": ["b"]}))
        self._header, parts = read_parts(folder / "saved")
        self._tensors = dict(parts)

    def make(self, rng: random.Random, path: Path) -> str:
        header, tensors, what = self._header, dict(self._tensors), ""
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.4:
                header, change = changed(header, rng)
                header = header if isinstance(header, dict) else {}
                what += change + "; "
                continue
            name = rng.choice(("tokens", "logits", "state", "state", "state"))
            data = tensors[name]
            end = rng.choice((64, 512, len(data)))
            whole = rng.random() < 0.8
            tensors[name] = (
                _numbers(data, rng) if rng.random() < 0.2 else damaged(data, rng, end, whole=whole)
            )
            what += f"{name} damaged; "
        try:
            write_parts(path, header, tensors)
        except (TypeError, ValueError):  # what no JSON holds
            write_parts(path, self._header, tensors)
        return what

    def use(self, path: Path) -> None:
        try:
            with self.model.restore_session(path) as session:
                session.append([5, 6])
                "".join(session.generate(max_tokens=2, temperature=0))
                session.append([9, *self.files.invocation], adapter="sure")
        finally:
            self.check_base()


class HybridSessions(Sessions):
    """The same of a base that has states."""

    def _write(self, folder: Path) -> Files:
        return write_hybrid_files(folder)


class Contracts:
    """Read, compiled, asked with, and its rules applied to a reply."""

    def __init__(self, _folder: Path, _given: Sequence[Path]) -> None:
        self._cases = all_cases()
        self._case = self._cases[0]

    def make(self, rng: random.Random, path: Path) -> str:
        self._case = rng.choice(self._cases)
        text = self._case.config.read_text("utf-8")
        if rng.random() < 0.3:
            path.write_bytes(damaged(text.encode(), rng))
            return f"{self._case.id}: damaged"
        value, what = yaml.safe_load(text), ""
        for _ in range(rng.choice((1, 1, 2, 3))):
            value, change = changed(value, rng)
            what += change + "; "
        path.write_text(yaml.safe_dump(value, allow_unicode=True), "utf-8")
        return f"{self._case.id}: {what}"

    def use(self, path: Path) -> None:
        case = self._case
        contract = Contract.read(path)
        request = rewrite(contract, case.messages, case.documents, case.raw["arguments"])
        if contract.response_format is not None:
            check_schema(contract.response_format)
        transform(contract, case.raw["content"], case.tokens, request)


class PeftDirectories:
    """Converted; what comes of it is inspected."""

    def __init__(self, folder: Path, _given: Sequence[Path]) -> None:
        case = sound_case(folder)
        case.write()
        self._folder, self._case = folder, case
        self._config = (case.source / "adapter_config.json").read_bytes()
        self._weights = (case.source / "adapter_model.safetensors").read_bytes()
        self._base = case.base.read_bytes()

    def make(self, rng: random.Random, path: Path) -> str:
        config, weights, base = self._config, self._weights, self._base
        which = rng.randrange(4)
        if which == 0:
            made, what = changed(json.loads(config), rng)
            config = json.dumps(made).encode()
        elif which == 1:
            n = 8 + int.from_bytes(weights[:8], "little")
            head, change = changed(json.loads(weights[8:n]), rng)
            text, what = json.dumps(head).encode(), f"weights {change}"
            weights = struct.pack("<Q", len(text)) + text + weights[n:]
        else:
            what = f"damaged {which}"
            if which == 2:
                config = damaged(config, rng)
            elif rng.random() < 0.5:
                weights = damaged(weights, rng, 3000)
            else:
                base = damaged(base, rng, 3000)
        (self._case.source / "adapter_config.json").write_bytes(config)
        (self._case.source / "adapter_model.safetensors").write_bytes(weights)
        self._case.base.write_bytes(base)
        return what

    def use(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        try:
            convert_adapter(self._case.source, self._case.base, path)
            ag.inspect_gguf(path)
        except ag.AloraError:
            if path.exists():
                raise AssertionError("refused, and something was written") from None
            raise


def _numbers(data: bytes, rng: random.Random) -> bytes:
    """Floats and halves that are not finite."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 20))):
        at = rng.randrange(max(1, len(out) - 4)) & ~3
        out[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), 1e38, -0.0)))
    return bytes(out)


KINDS: Final[dict[str, type[Kind]]] = {
    "base": Bases,
    "adapter": Adapters,
    "vector": Vectors,
    "session": Sessions,
    "hybrid-session": HybridSessions,
    "contract": Contracts,
    "peft": PeftDirectories,
}
