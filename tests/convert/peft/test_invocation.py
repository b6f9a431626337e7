"""What switches an adapter on: ids and texts of the configuration and of the caller, compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from alora_gguf.convert.base.gguf import GGUFBase
from alora_gguf.convert.base.hf import HFBase
from alora_gguf.convert.base.model import BaseModel
from alora_gguf.convert.peft.config import PeftConfig, read_config
from alora_gguf.convert.peft.invocation import Invocation, find_invocation

from alora_gguf.errors import (
    AdapterMismatchError,
    AloraError,
    FileFormatError,
    InputError,
    UnsupportedAdapterError,
)
from alora_gguf.gguf.header import read_header
from tests.support.gguf_bytes import tensor_array
from tests.support.peft_files import Case
from tests.support.vocabularies import Vocabulary, byte_level, sentence_piece, write_gguf

BPE = byte_level()
START, END, TOOL, THE, SPACE_THE, IN = map(
    BPE.id_of, ("<|start_of_role|>", "<|end_of_role|>", "<tool>", "the", "Ġthe", "in")
)
ROLE = "<|start_of_role|>the<|end_of_role|>"
ROLE_IDS = (START, THE, END)
AS_NUMPY: Any = np.array(ROLE_IDS, np.int32)
LT_C, N = BPE.id_of("<c"), len(BPE.tokens)


@pytest.fixture
def config(tmp_path: Path) -> PeftConfig:
    path = tmp_path / "adapter_config.json"
    path.write_text('{"peft_type": "LORA"}')
    return read_config(path)


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return gguf_base(tmp_path, BPE)


def gguf_base(folder: Path, vocabulary: Vocabulary | None, **options: Any) -> BaseModel:
    return GGUFBase(read_header(write_gguf(folder / "base.gguf", vocabulary, **options)))


def hf_base(folder: Path, vocabulary: Vocabulary, **parts: Any) -> BaseModel:
    fields = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(vocabulary.tokens),
    }
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "tokenizer.json").write_text(vocabulary.tokenizer_json(**parts))
    return HFBase(folder)


# What is found -----------------------------------------------------------------------------------


def test_a_plain_lora_has_none(config: PeftConfig, base: BaseModel) -> None:
    assert find_invocation(config, None, base) == Invocation((), None)


def test_ids_of_the_configuration_and_their_text(config: PeftConfig, base: BaseModel) -> None:
    config = replace(config, invocation=ROLE_IDS)
    expected = Invocation(ROLE_IDS, ROLE)
    assert find_invocation(config, None, base) == expected
    assert find_invocation(config, list(ROLE_IDS), base) == expected
    assert find_invocation(config, AS_NUMPY, base) == expected
    assert find_invocation(config, ROLE, base) == expected


def test_given_where_the_configuration_has_none(config: PeftConfig, base: BaseModel) -> None:
    for given in (ROLE, ROLE_IDS, list(ROLE_IDS), AS_NUMPY):
        found = find_invocation(config, given, base)
        assert (found.tokens, found.text) == (ROLE_IDS, ROLE)
        assert all(type(number) is int for number in found.tokens)
        assert found.warnings == (
            "adapter_config.json names no invocation; converted as an aLoRA because one was given",
        )


def test_both_kinds_of_base_find_the_same(config: PeftConfig, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    bases = (gguf_base(tmp_path, BPE), hf_base(tmp_path, BPE))
    for given in (ROLE, ROLE_IDS, "<certainty> in", [LT_C], [THE, END]):
        found = [find_invocation(config, given, base) for base in bases]
        assert found[0] == found[1]


def test_without_a_vocabulary_ids_are_enough(config: PeftConfig, tmp_path: Path) -> None:
    base = gguf_base(tmp_path, None)
    config = replace(config, invocation=(7, 8))
    assert find_invocation(config, None, base) == Invocation((7, 8), None)
    with pytest.raises(AloraError, match=r"has no vocabulary .* --invocation-tokens"):
        find_invocation(config, "the", base)


def test_ids_that_are_no_text(config: PeftConfig, base: BaseModel) -> None:
    """Half a character is a token as good as any other; there is just no text to show for it."""
    half = BPE.id_of("Ã")
    found = find_invocation(replace(config, invocation=(START, half, END)), None, base)
    assert found == Invocation((START, half, END), None)


# What is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"the invocation tokens are empty; leave it out for a plain LoRA"),
        ((), r"the invocation tokens are empty"),
        (np.array([], np.int64), r"the invocation tokens are empty"),
        ("", r"the invocation text is empty; leave it out for a plain LoRA"),
        (b"the", r"the invocation is bytes, expected text or a list of token ids"),
        ([7, -1], r"the invocation tokens hold -1, expected token ids from 0 on"),
        ([True], r"the invocation tokens hold True, expected"),
        ([7.0], r"the invocation tokens hold 7\.0, expected"),
        (["7"], r"the invocation tokens hold '7', expected"),
        ([None], r"the invocation tokens hold None, expected"),
        ("a\ud800", r"the invocation 'a\\ud800' is not valid text \(UTF-8\)"),
    ],
)
def test_refuses_what_is_no_invocation(
    given: Any, message: str, config: PeftConfig, base: BaseModel
) -> None:
    for stated in (config, replace(config, invocation=ROLE_IDS)):
        with pytest.raises(InputError, match=message):
            find_invocation(stated, given, base)


def test_refuses_text_without_tokens(config: PeftConfig, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    with pytest.raises(InputError, match="has no tokens for the invocation '  '"):
        find_invocation(config, "  ", hf_base(tmp_path, BPE, normalizer=strip))


@pytest.mark.parametrize("number", [N, 2**31, 2**64, 10**30])
def test_refuses_ids_outside_the_vocabulary(
    number: int, config: PeftConfig, base: BaseModel
) -> None:
    message = rf"base\.gguf: has the token ids 0 to {N - 1}, but the invocation \[7, {number}\]"
    with pytest.raises(AdapterMismatchError, match=message):
        find_invocation(config, [7, number], base)
    with pytest.raises(AdapterMismatchError, match=message):
        find_invocation(replace(config, invocation=(7, number)), None, base)


def test_refuses_what_contradicts_the_ids(config: PeftConfig, base: BaseModel) -> None:
    config = replace(config, invocation=ROLE_IDS)
    stated = rf"adapter_config\.json: alora_invocation_tokens = \[{START}, {THE}, {END}\] differs"
    message = rf"{stated} from the given invocation \[7\]; leave it out to use the file's"
    with pytest.raises(InputError, match=message):
        find_invocation(config, [7], base)
    with pytest.raises(InputError, match=rf"{stated} from the given invocation 'in' = \[{IN}\]"):
        find_invocation(config, "in", base)


# The older invocation_string ---------------------------------------------------------------------


def test_a_string_alone_loses_its_first_token(config: PeftConfig, base: BaseModel) -> None:
    config = replace(config, invocation_text=ROLE)
    found = find_invocation(config, None, base)
    assert (found.tokens, found.text) == ((THE, END), "the<|end_of_role|>")
    assert found.warnings[0] == (
        f"adapter_config.json has the older invocation_string '{ROLE}', with which the adapter is "
        "on from the string's second token; so the invocation is 'the<|end_of_role|>' = "
        f"[{THE}, {END}]"
    )
    assert "begins in ordinary text" in found.warnings[1]
    assert len(found.warnings) == 2


def test_a_string_is_tokenized_without_a_start_token(config: PeftConfig, tmp_path: Path) -> None:
    spm = sentence_piece()
    base = gguf_base(tmp_path, spm, changes={"tokenizer.ggml.add_bos_token": True})
    found = find_invocation(replace(config, invocation_text="<|user|>the"), None, base)
    assert found.tokens == (spm.id_of("▁the"),)


def test_a_given_invocation_beside_a_string(config: PeftConfig, base: BaseModel) -> None:
    config = replace(config, invocation_text=ROLE)
    for given in ([THE, END], "the<|end_of_role|>"):
        found = find_invocation(config, given, base)
        assert (found.tokens, found.text) == ((THE, END), "the<|end_of_role|>")
        assert len(found.warnings) == 1  # of its end alone: it is what the caller wants
    for given in (ROLE, list(ROLE_IDS), [THE]):
        message = rf"makes the invocation \[{THE}, {END}\] \(its tokens without the first\), but"
        with pytest.raises(InputError, match=message):
            find_invocation(config, given, base)


def test_a_string_of_one_token_leaves_nothing(config: PeftConfig, base: BaseModel) -> None:
    message = rf"invocation_string '<tool>' is one token, \[{TOOL}\], for .*base\.gguf; in this old"
    with pytest.raises(UnsupportedAdapterError, match=message):
        find_invocation(replace(config, invocation_text="<tool>"), None, base)


def test_a_string_without_a_vocabulary(config: PeftConfig, tmp_path: Path) -> None:
    base = gguf_base(tmp_path, None)
    config = replace(config, invocation_text="<|start_of_role|>the")
    message = "which has to be tokenized: .*no vocabulary.*tokens, leaving out its first token"
    with pytest.raises(UnsupportedAdapterError, match=message):
        find_invocation(config, None, base)
    assert find_invocation(config, [7], base) == Invocation((7,), None)


@pytest.mark.parametrize("text", [ROLE, f"<tool>{ROLE}", f"a{ROLE}"])
def test_string_and_ids_that_agree(text: str, config: PeftConfig, base: BaseModel) -> None:
    """Wholly, or with one more token before them as in the older format; PEFT goes by the ids."""
    config = replace(config, invocation=ROLE_IDS, invocation_text=text)
    assert find_invocation(config, None, base) == Invocation(ROLE_IDS, ROLE)


@pytest.mark.parametrize("text", ["the<|end_of_role|>", "in", f"the{ROLE}<tool>", f"a a{ROLE}"])
def test_string_and_ids_that_do_not(text: str, config: PeftConfig, base: BaseModel) -> None:
    config = replace(config, invocation=ROLE_IDS, invocation_text=text)
    message = r"but invocation_string '.*' is \[.*\] for .*base\.gguf; remove the one that the ada"
    with pytest.raises(FileFormatError, match=message):
        find_invocation(config, None, base)


def test_string_and_ids_that_cannot_be_compared(config: PeftConfig, tmp_path: Path) -> None:
    base = gguf_base(tmp_path, None)
    config = replace(config, invocation=(7, 8), invocation_text="whatever")
    assert find_invocation(config, None, base) == Invocation((7, 8), None)


# Ordinary ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((START, THE, END), None),
        ((TOOL,), None),
        ((TOOL, THE), "= {ids} ends in ordinary text, .*: end the prompt with it or let a special"),
        ((THE, TOOL), "'the<tool>' = {ids} begins in ordinary text, .*: begin a line with it, or"),
        ((LT_C, THE), "begins and ends in ordinary text, .*: begin a line with it and end the pro"),
        ((THE,), "begins and ends in ordinary text"),
        ((BPE.id_of("Ã"), END), r"the invocation {ids} begins in ordinary text"),
    ],
)
def test_ends_that_can_merge(
    ids: tuple[int, ...], message: str | None, config: PeftConfig, base: BaseModel
) -> None:
    found = find_invocation(replace(config, invocation=ids), None, base)
    if message is None:
        assert found.warnings == ()
        return
    (warning,) = found.warnings
    shown = re.escape(str(list(ids)))
    assert re.search(message.format(ids=shown), warning)
    assert "or give its ids in place of text" in warning


def test_the_ends_that_are_warned_of_do_merge(base: BaseModel) -> None:
    """After other text "the" is another token, so that its own does not occur."""
    assert base.tokenizer.tokenize("the") == [THE]
    assert THE not in base.tokenizer.tokenize("in the")
    assert THE in base.tokenizer.tokenize("in\nthe")


# A whole conversion ------------------------------------------------------------------------------


def test_a_conversion_writes_ids_and_text(case: Case) -> None:
    case.base = _with_vocabulary(case)
    case.config["invocation_string"] = "Ab"
    with pytest.raises(
        FileFormatError, match=r"= \[7, 8\], but invocation_string 'Ab' is \[27, 2\]"
    ):
        case.convert()
    del case.config["alora_invocation_tokens"]
    report = case.convert()
    header = read_header(report.out)
    assert (report.kind, report.invocation, report.invocation_text) == ("alora", (2,), "b")
    assert list(header.array("adapter.alora.invocation_tokens")) == [2]
    assert header.string("alora.invocation_text") == "b"
    assert "older invocation_string 'Ab'" in report.warnings[0]


def test_ids_alone_need_no_native_library(case: Case) -> None:
    base = _with_vocabulary(case)
    case.config["alora_invocation_tokens"] = [3, 4]
    case.write()
    program = (
        "import sys\n"
        "from alora_gguf.convert import convert_adapter\n"
        "report = convert_adapter(*sys.argv[1:])\n"
        "print(report.invocation_text)\n"
        "print([n for n in sys.modules if n.startswith('llama_cpp') or '_native' in n])\n"
    )
    command = [sys.executable, "-c", program, str(case.source), str(base), str(case.out)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "cd\n[]\n"


def _with_vocabulary(case: Case) -> Path:
    """The case's base again, with its 40 tokens named."""
    old, path = read_header(case.base), case.folder / "with-text.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "attention.head_count", "attention.head_count_kv"):
        writer.add_uint32(f"llama.{key}", int(str(old.metadata[f"llama.{key}"])))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*"0abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLM"])
    writer.add_token_merges(["x x"])
    for name in old.tensors:
        writer.add_tensor(name, tensor_array(old, name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
