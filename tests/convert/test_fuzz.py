"""Damaged and hostile files convert or are refused with an AloraError, soon, and leave nothing.

Attempts are numbered and depend on nothing but their number, so a failure says what to run again.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import convert_adapter

from alora_gguf.errors import AloraError
from alora_gguf.gguf.header import read_header
from tests.fuzz.damage import damaged
from tests.support.peft_files import sound_case

SECONDS = 120  # until a test is taken to hang; they take some


@dataclass
class Target:
    """A folder with a sound adapter and base, whose files attempts replace."""

    folder: Path
    config: bytes
    weights: bytes
    base: bytes
    converted: int = 0
    refused: int = 0

    def attempt(
        self,
        label: object,
        *,
        config: bytes | None = None,
        weights: bytes | None = None,
        base: bytes | None = None,
        model: dict[str, bytes] | None = None,
    ) -> str:
        """Converts with the given files in place of the sound ones; the error, or "".

        `model` is a model directory's files, in place of the base.
        """
        source, base_path, out = (self.folder / n for n in ("adapter", "base.gguf", "out.gguf"))
        (source / "adapter_config.json").write_bytes(self.config if config is None else config)
        (source / "adapter_model.safetensors").write_bytes(
            self.weights if weights is None else weights
        )
        if model is None:
            base_path.write_bytes(self.base if base is None else base)
        for name, data in (model or {}).items():
            (base_path / name).write_bytes(data)
        message = ""
        try:
            convert_adapter(source, base_path, out, outtype="f32")
        except AloraError as error:
            message = str(error)
            self.refused += 1
            assert not out.exists(), label
        except Exception as error:
            raise AssertionError(f"attempt {label}: {error!r}") from error
        else:
            self.converted += 1
            read_header(out)
            out.unlink()
        assert len(message) < 1000, label
        assert "Traceback" not in message, label
        assert sorted(p.name for p in self.folder.iterdir()) == ["adapter", "base.gguf"], label
        assert len(list(source.iterdir())) == 2, label
        return message


@pytest.fixture
def target(tmp_path: Path) -> Target:
    case = sound_case(tmp_path)
    case.write()
    found = Target(
        tmp_path,
        (case.source / "adapter_config.json").read_bytes(),
        (case.source / "adapter_model.safetensors").read_bytes(),
        case.base.read_bytes(),
    )
    assert found.attempt("sound") == ""
    return found


@pytest.fixture(autouse=True)
def _nothing_hangs() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    if not hasattr(signal, "SIGALRM"):  # Windows: the run as a whole has a limit
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---- names, and what stands at them --------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="makes pipes and links")
@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "link", "loop", "unreadable"])
@pytest.mark.parametrize(
    "name", ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "base.gguf"]
)
def test_no_file_at_an_inputs_place(target: Target, kind: str, name: str) -> None:
    path = target.folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "unreadable":  # opens, and fails when it is read
        path.symlink_to("/proc/self/mem")
    else:
        path.symlink_to({"device": "/dev/zero", "link": "nowhere", "loop": path.name}[kind])
    with pytest.raises(AloraError, match=re.escape(str(path))):
        convert_adapter(target.folder / "adapter", target.folder / "base.gguf", target.folder / "o")
    assert not (target.folder / "o").exists()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "x/" * 3000, "~nobody"])
def test_names_that_cannot_be(target: Target, name: str) -> None:
    adapter, base, out = (target.folder / n for n in ("adapter", "base.gguf", "out.gguf"))
    out.write_bytes(b"old")
    for overwrite in (False, True):
        for paths in ((name, base, out), (adapter, name, out), (adapter, base, f"{name}/out")):
            with pytest.raises(AloraError):
                convert_adapter(*paths, overwrite=overwrite)
    assert out.read_bytes() == b"old"


# ---- adapter_config.json -------------------------------------------------------------------------

FIELDS = [
    *("alora_invocation_tokens", "alpha_pattern", "auto_mapping", "base_model_name_or_path"),
    *("bias", "brand_new", "corda_config", "ensure_weight_tying", "exclude_modules"),
    *("fan_in_fan_out", "init_lora_weights", "invocation_string", "layer_replication"),
    *("layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "modules_to_save"),
    *("peft_type", "peft_version", "r", "rank_pattern", "revision", "target_modules"),
    *("target_parameters", "task_type", "trainable_token_indices", "use_dora", "use_rslora"),
]
# as JSON's text, since some have no other form
LITERALS = [
    *("null", "true", "false", "0", "-0.0", "1", "-1", "1.5", "7", "1e308", "1e999", "-1e-400"),
    *("NaN", "Infinity", "-Infinity", "9" * 400, "9" * 5000, "18446744073709551616"),
    *('""', '"x"', '"LORA"', '"\\ud800"', '"\\u0000"', '"\\n\\u001b[31m"', '"ä€𝄞"', '"org/name"'),
    *('"' + "y" * 5000 + '"', '"../../x"', '"hf://a/b"', '"0.21.2"', '"999999999999.0"'),
    *("[]", "[1]", "[-1]", "[7, 8]", '["q_proj"]', "[null]", "[[]]", "[true]", "[1e999]", "{}"),
    *('{"": 1}', '{"q_proj": 1}', '{"q_proj": 4, "v_proj": -1}', '{"q_proj": "x"}', '{"q_(": 4}'),
    *('{"(a+)+$": 4}', '{"(.*)*x": 4}', '{"(a|a)*b": 4}', '{"((((.*)*)*)*)*z": 4}', '{".": 2}'),
    *('{"(?!x)y": 4}', '{"\\ud800": 4}', '{"\\n": 4}', '{"q_proj": 1e-300}', '{"q_proj": NaN}'),
    *('{"' + "(" * 3000 + '": 4}', '{"' + "[" * 3000 + '": 4}', '{"a{99999999999}": 4}'),
    *("[" * 500 + "]" * 500, '{"a":' * 500 + "1" + "}" * 500, "[" * 900 + "]" * 900),
    *("[" * 100_000, "[" + "1," * 50_000 + "1]", "tru", "'x'", "", "{"),
]


def test_any_literal_in_any_field(target: Target) -> None:
    fields = json.loads(target.config)
    rng = random.Random(10)
    for number, field in enumerate(FIELDS):
        others = {key: value for key, value in fields.items() if key != field}
        for literal in rng.sample(LITERALS, 18):
            text = f"{{{json.dumps(field)}: {literal}, {json.dumps(others)[1:]}"
            target.attempt((number, field, literal[:80]), config=text.encode("utf-8"))
    assert target.converted > 100
    assert target.refused > 100


def test_nesting_up_to_what_can_be_read(target: Target) -> None:
    """Read within the limit of recursion, shown in a message by a deeper call."""
    for depth in range(800, 1000):
        for field in ("peft_type", "use_dora", "rank_pattern", "r"):
            target.attempt(
                (depth, field), config=b'{"%s": %s}' % (field.encode(), b"[" * depth + b"]" * depth)
            )
    assert target.converted == 1


def test_configurations_with_several_things_wrong(target: Target) -> None:
    for number in range(250):
        rng = random.Random(1000 + number)
        fields = json.loads(target.config)
        for _ in range(rng.randrange(1, 4)):
            if fields and rng.random() < 0.3:
                del fields[rng.choice(sorted(fields))]
            else:
                fields[rng.choice(FIELDS)] = rng.choice(FIELDS)
        text = json.dumps(fields)
        for _ in range(rng.randrange(3)):
            text = text.replace(rng.choice(('"LORA"', ": 4", ": 8", "7, 8")), rng.choice(LITERALS))
        target.attempt(number, config=text.encode())
    assert target.refused > 100


def test_damaged_configurations(target: Target) -> None:
    for number in range(300):
        rng = random.Random(2000 + number)
        target.attempt(number, config=damaged(target.config, rng, len(target.config)))
    assert target.refused > 100


WHOLE = [
    *(b"", b" ", b"null", b"[]", b'"x"', b"{}", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"\0" * 64),
    *(b"{" * 100_000, b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b'{"r": 4, "r": 4}'),
    *(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", b"<html></html>"),
    *(b"GGUF" + b"\0" * 60, b"PK\x03\x04" + b"\0" * 60, b"x" * 20_000_000),
]


def test_other_files_in_every_place(target: Target) -> None:
    for number, data in enumerate(WHOLE):
        for name in ("config", "weights", "base"):
            replaced: dict[str, Any] = {name: data}
            message = target.attempt((number, name), **replaced)
            assert message, (number, name)


# ---- adapter_model.safetensors -------------------------------------------------------------------


def _split(weights: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", weights)
    return json.loads(weights[8 : 8 + length]), weights[8 + length :]


def _join(header: str, data: bytes) -> bytes:
    raw = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + data


def test_damaged_weights(target: Target) -> None:
    (length,) = struct.unpack_from("<Q", target.weights)
    for number in range(500):
        rng = random.Random(3000 + number)
        end = (8, 8 + length, len(target.weights))[number % 3]
        target.attempt(number, weights=damaged(target.weights, rng, end))
    assert target.refused > 200


NAMES = [
    *("", "x", "base_model.model.", "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"),
    *("base_model.model.model.layers.99999999999999999999.mlp.up_proj.lora_A.weight", "\ud800"),
    *("base_model.model.lm_head.lora_A.weight", "base_model.model.\x1b[31m.lora_A.weight"),
    *("base_model.model.model.layers.-1.mlp.up_proj.lora_B.weight", "a" * 5000, "__metadata__"),
    *("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", "ä.lora_A.weight"),
    *("base_model.model.model.embed_tokens.lora_embedding_A", "../../etc/passwd"),
    *("base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight", "\0"),
]
ENTRIES = [
    *("null", "{}", "[]", "1", '"x"', '{"dtype": "F32"}', "[" * 900 + "]" * 900, "9" * 4000),
    *('{"dtype": "F32", "shape": [], "data_offsets": [0, 4]}',),
    *('{"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}',),
    *('{"dtype": "F32", "shape": [NaN], "data_offsets": [0, NaN]}',),
    *('{"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}',),
    *('{"dtype": "F32", "shape": [0, 99999999999999999999], "data_offsets": [0, 0]}',),
    *('{"dtype": "BF16", "shape": [-1, -2], "data_offsets": [0, 4]}',),
    *('{"dtype": null, "shape": null, "data_offsets": null}',),
    *('{"dtype": "F32", "shape": ' + "[" * 900 + "]" * 900 + ', "data_offsets": [0, 4]}',),
]
VALUES: dict[str, list[Any]] = {
    "dtype": ["F32", "F16", "BF16", "F64", "I8", "U64", "F8_E4M3", "", None, 7, [], {}],
    "shape": [[], [4], [4, 16], [16, 4], [0, 4], [4, 0], [1, 4, 16], [64], None, "4", [4.0, 16]],
    "data_offsets": [[0, 256], [256, 0], [0, 0], [0], [], [0, 2**70], [-256, 0], None, [0.0, 256]],
}


def test_hostile_headers_of_weights(target: Target) -> None:
    table, data = _split(target.weights)
    for number in range(600):
        rng = random.Random(4000 + number)
        header = copy.deepcopy(table)
        names = sorted(name for name in header if name != "__metadata__")
        for _ in range(rng.choice((1, 1, 2, 3))):
            name, field = rng.choice(names), rng.choice(sorted(VALUES))
            kind = rng.randrange(4)
            if kind == 0 and name in header:
                header[rng.choice(NAMES)] = header.pop(name)
            elif kind == 1:
                header.pop(name, None)
            elif kind == 2 and name in header:
                header[name][field] = rng.choice(VALUES[field])
            else:
                header[name] = {"replace": "me"}
        text = json.dumps(header).replace('{"replace": "me"}', rng.choice(ENTRIES))
        target.attempt(number, weights=_join(text, data))
    assert target.refused > 400


# ---- the base's header ---------------------------------------------------------------------------


def test_damaged_bases(target: Target) -> None:
    end = read_header(target.folder / "base.gguf").data_offset
    for number in range(1000):
        rng = random.Random(5000 + number)
        target.attempt(number, base=damaged(target.base, rng, end if number % 3 else 400))
    assert target.refused > 700


# ---- the base's config.json ----------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}
OTHERS: dict[str, dict[str, Any]] = {
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 24,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_d_state": 16,
        "mamba_n_heads": 8,
    },
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
    },
    "gemma3_text": {"head_dim": 8, "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4},
    "gpt2": {"n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 4},
    "phi3": {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("kind", ["llama", *OTHERS])
def test_any_literal_in_a_model_directory(target: Target, kind: str) -> None:
    model = target.folder / "base.gguf"
    model.unlink()
    model.mkdir()
    fields: dict[str, Any] = {**LLAMA, **OTHERS.get(kind, {}), "model_type": kind}
    rng = random.Random(6000)
    message = target.attempt("sound", model={"config.json": json.dumps(fields).encode()})
    assert (message == "") == (kind == "llama")  # the adapter is for that one
    for number, field in enumerate([*fields, "tie_word_embeddings", "head_dim", "text_config"]):
        others = {key: value for key, value in fields.items() if key != field}
        for literal in rng.sample(LITERALS, 20):
            text = f"{{{json.dumps(field)}: {literal}, {json.dumps(others)[1:]}".encode()
            target.attempt((kind, number, field, literal[:80]), model={"config.json": text})
    assert target.refused > 100
