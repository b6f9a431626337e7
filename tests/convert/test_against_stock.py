"""Stock llama.cpp loads every file we write; and where its converter is wrong, ours is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import convert_adapter

import alora_gguf as ag
from tests.parity.checks import TOLERANCE, error
from tests.parity.sides import open_model, read, words
from tests.stock import stock_library_dir
from tests.support.peft_oracle import has_experts, make_adapter, reference_logits
from tests.support.stock_convert import Request, stock_convert
from tests.support.tiny_families import ALL_FAMILIES
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.stock

# loads base and adapter pairs with the library that LLAMA_CPP_LIB_PATH names; prints, for each
# adapter, the invocation that it found, or null if it refused the file
LOAD = """
import ctypes, json, sys
import llama_cpp.llama_cpp as llama
quiet = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(quiet, None)
llama.llama_backend_init()
params = llama.llama_model_default_params()
params.n_gpu_layers = 0
out = {}
for base, adapters in json.loads(sys.argv[1]).items():
    model = llama.llama_model_load_from_file(base.encode(), params)
    for path in adapters:
        adapter = llama.llama_adapter_lora_init(model, path.encode())
        if not adapter:
            out[path] = None
            continue
        n = llama.llama_adapter_get_alora_n_invocation_tokens(adapter)
        ids = llama.llama_adapter_get_alora_invocation_tokens(adapter)
        out[path] = [ids[i] for i in range(n)]
    llama.llama_model_free(model)
print(json.dumps(out))
"""


def test_stock_loads_every_file(tmp_path: Path) -> None:
    pairs: dict[str, list[str]] = {}
    expected: dict[str, list[int]] = {}
    for family in ALL_FAMILIES:
        model = tiny_model(family)
        sets = ["attention", "all-linear", *(["experts"] if has_experts(family) else [])]
        for i, targets in enumerate(sets):
            name = f"{family}-{targets}"
            adapter = make_adapter(model, tmp_path / name, targets=targets, rank=32)
            describe(adapter.directory)
            out = tmp_path / f"{name}.gguf"
            invocation = [3, 1, 4] if i % 2 else None
            outtype = ("f32", "q8_0", "bf16")[i]
            convert_adapter(
                adapter.directory, model.gguf, out, outtype=outtype, invocation=invocation
            )
            pairs.setdefault(str(model.gguf), []).append(str(out))
            expected[str(out)] = invocation or []
    run = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(pairs)],
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(stock_library_dir())},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected


def describe(directory: Path) -> None:
    """Gives an adapter all that ends up in metadata of our own."""
    (directory / "io.yaml").write_text("model: ~\nresponse_format: ~\ntransformations: ~\n")
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "rsLoRA": ("llama", {"use_rslora": True}),
    "alpha_pattern": ("llama", {"alpha_pattern": {"v_proj": 2, "q_proj": 40}}),
    # transformers 5 calls its layers otherwise than upstream's converter knows, which then leaves
    # the order of the heads as it is
    "hybrid's heads": ("granitemoehybrid", {}),
    # GPT-2's weights are stored transposed, LoRA's are not
    "transposed weights": ("gpt2", {}),
}


@pytest.mark.parametrize("name", WRONG)
def test_where_upstreams_converter_is_wrong(tmp_path: Path, name: str) -> None:
    family, options = WRONG[name]
    model, tokens = tiny_model(family), words(24, 5)
    adapter = make_adapter(model, tmp_path / "adapter", seed=3, **options)
    files = {"ours": tmp_path / "ours.gguf", "stock": tmp_path / "stock.gguf"}
    convert_adapter(adapter.directory, model.gguf, files["ours"], outtype="f32")
    stock_convert([Request(adapter.directory, model.directory, files["stock"], "f32")])
    peft = reference_logits(model, adapter, tokens)
    with open_model(model, {"ours": files["ours"]}) as opened:
        assert error(read(opened, tokens, "ours"), peft) < TOLERANCE
        if name == "transposed weights":
            with pytest.raises(ag.AdapterMismatchError, match="wants A"):
                opened.load_adapter("stock", files["stock"])
        else:
            opened.load_adapter("stock", files["stock"])
            assert error(read(opened, tokens, "stock"), peft) > 10 * TOLERANCE


def test_what_upstreams_converter_cannot_map(tmp_path: Path) -> None:
    """Adapters of parameters that hold all experts; ours are in tests/parity."""
    model = tiny_model("gpt-oss")
    adapter = make_adapter(model, tmp_path / "adapter", targets="experts")
    request = Request(adapter.directory, model.directory, tmp_path / "stock.gguf", "f32")
    with pytest.raises(RuntimeError, match=r"Can not map tensor .*experts\.base_layer"):
        stock_convert([request])
