"""Schemas that are made to do harm by their shape: long chains of references, deep nesting, and a
vocabulary with tokens that llguidance does not take."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.demo import base_path
from alora_gguf.engine import native
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.errors import DecodeError, SchemaError
from alora_gguf.generate.constraint import MAX_NODES, Constraint, check_schema
from alora_gguf.generate.schema import n_nodes, never_ends
from tests.support import inside, vocabularies

Schema = dict[str, Any]
LINKS: dict[str, Callable[[Schema], Schema]] = {
    "plain": lambda inner: inner,
    "allOf": lambda inner: {"allOf": [inner]},
    "anyOf": lambda inner: {"anyOf": [inner, {"const": 1}]},
    "items": lambda inner: {"type": "array", "items": inner, "minItems": 1},
    "properties": lambda inner: {"type": "object", "properties": {"x": inner}, "required": ["x"]},
}


def chain(n: int, name: str) -> Schema:
    """`n` definitions of which each refers to the next, the last one first."""
    links = [LINKS[name]({"$ref": f"#/$defs/{i + 1:x}"}) for i in range(n)]
    defs = {f"{n:x}": {"type": "null"}} | {f"{i:x}": links[i] for i in reversed(range(n))}
    return {"$defs": defs, "$ref": "#/$defs/0"}


def longest(name: str) -> int:
    """How many links a schema may have."""
    by_link = n_nodes(chain(2, name)) - n_nodes(chain(1, name))
    return min((MAX_NODES - 3) // by_link, 3500)  # more are too many characters


def nested(n: int, name: str) -> Schema:
    schema: Schema = {"type": "null"}
    for _ in range(n):
        schema = LINKS[name](schema) if name != "plain" else {"$defs": {"a": schema}}
    return schema


def use_all() -> None:
    """Compiles and follows the worst schemas on a thread with 512 KiB of stack, the smallest that
    systems give."""
    with ag.Model(base_path(), n_ctx=64) as model:
        vocab = inside.vocab(model)
        for name in LINKS:
            check_schema(chain(longest(name), name))
            matcher = Constraint.compile(chain(longest(name), name), vocab).start()
            with contextlib.suppress(DecodeError):  # too complex to go on
                for _ in range(20):
                    row = matcher.mask(np.zeros(vocab.n_tokens, np.float32))
                    matcher.accept(int(row.argmax()))
            for n in (100, 900, 60_000):
                with pytest.raises(SchemaError) if n > 100 else contextlib.suppress(SchemaError):
                    Constraint.compile(nested(n, name), vocab)
    print("done")


def test_no_shape_exhausts_a_stack() -> None:
    code = (
        "import threading, tests.generate.test_schema_shapes as t; threading.stack_size(512 << 10);"
        "thread = threading.Thread(target=t.use_all); thread.start(); thread.join()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False,
        cwd=Path(__file__).parents[2], env={**os.environ},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_schemas_with_too_many_parts() -> None:
    with ag.Model(base_path(), n_ctx=64) as model, pytest.raises(SchemaError) as caught:
        Constraint.compile({"enum": [[] for _ in range(MAX_NODES)]}, inside.vocab(model))
    assert str(caught.value) == (
        f"the JSON Schema has {MAX_NODES + 2} objects and arrays, expected at most {MAX_NODES}"
    )


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("step", [1, -1])
def test_whether_it_ends_is_found_in_linear_time(name: str, step: int) -> None:
    schema = chain(5000, name)
    schema["$defs"] = dict(list(schema["$defs"].items())[::step])
    started = time.process_time()
    assert not never_ends(schema)
    schema["$defs"][f"{5000:x}"] = {"$ref": "#"}
    assert never_ends(schema) == (name != "anyOf")
    assert time.process_time() - started < 2


def test_one_with_many_parts_is_found_in_linear_time() -> None:
    """Each part of an allOf ends a step after the one before it."""
    defs = {f"{i}": {"$ref": f"#/$defs/{i + 1}"} for i in range(5000)} | {"5000": {}}
    schema = {"$defs": defs, "allOf": [{"$ref": f"#/$defs/{i}"} for i in range(5000)]}
    started = time.process_time()
    assert not never_ends(schema)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("n", [512, 70_000])
def test_tokens_that_are_too_long(tmp_path: Path, n: int) -> None:
    """A constrained reply does without them."""
    full = vocabularies.byte_level()
    words = [*full.tokens, "a" * n, "<|im_end|>"]
    long = vocabularies.Vocabulary("gpt2", words, [*full.types, 1, 3], full.merges, [])
    path = vocabularies.write_gguf(
        tmp_path / "long.gguf", long, {"tokenizer.ggml.eos_token_id": len(words) - 1}
    )
    llama = native.load().llama
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    matcher = Constraint.compile(
        {"type": "string"}, Vocabulary(native.load(), model, "long")
    ).start()
    matcher.accept(words.index('"'))
    assert matcher.allows(len(words) - 2) == (n == 512)
    llama.llama_model_free(model)


def test_the_size_of_other_threads_stacks_stays() -> None:
    before = threading.stack_size()
    with ag.Model(base_path(), n_ctx=64) as model:
        Constraint.compile(json.dumps({"const": "stacks"}), inside.vocab(model))
    assert threading.stack_size() == before
