"""`python native/upstream-prs/lora-precision/check.py BASE.gguf LORA.gguf`: in which precision the
products of a GLM 4's wo and ffn_down are added up, without the LoRA and with it.

LLAMA_CPP_LIB_PATH names the folder of the libllama that is asked. No GPU is needed: it reads what
the graph says, not what came of it.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter

import llama_cpp.llama_cpp as llama

# whose products they are
WEIGHTS = ("attn_output.weight", "ffn_down.weight")
# bytes before them in a tensor, as this version of ggml.h has it
OP_PARAMS, SOURCES, NAME = 84, 152, 256
MAX_NAME = 64
F32 = 10


def precisions(model: object, adapter: object | None) -> Counter[str]:
    """How many of these products ask for F32, and how many do not."""
    found: Counter[str] = Counter()

    def look(tensor: int, ask: bool, _: object) -> bool:
        weight = ctypes.c_void_p.from_address(tensor + SOURCES).value
        name = ctypes.string_at(weight + NAME, MAX_NAME).split(b"\0")[0].decode() if weight else ""
        if ask and name.endswith(WEIGHTS):
            precision = ctypes.c_int32.from_address(tensor + OP_PARAMS).value
            found["F32" if precision == F32 else "default"] += 1
        return False  # nothing of it is wanted when it is computed

    parameters = llama.llama_context_default_params()
    parameters.n_ctx = 64
    callback = llama.ggml_backend_sched_eval_callback(look)
    parameters.cb_eval = callback
    context = llama.llama_init_from_model(model, parameters)
    found.clear()  # of what it tries before
    if adapter is not None:
        scales = (ctypes.c_float * 1)(1.0)
        adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        llama.llama_set_adapters_lora(context, adapters, 1, scales)
    tokens = (llama.llama_token * 4)(5, 6, 7, 8)
    if llama.llama_decode(context, llama.llama_batch_get_one(tokens, 4)):
        raise SystemExit("the base does not decode")
    llama.llama_free(context)
    return found


def main(arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise SystemExit("expected two files: a GLM 4 and a LoRA on its linear layers, as GGUFs")
    base, lora = arguments
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(base.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"{base}: cannot be loaded, expected a model's GGUF; check the path")
    adapter = llama.llama_adapter_lora_init(model, lora.encode())
    if not adapter:
        raise SystemExit(f"{lora}: cannot be loaded, expected a LoRA's GGUF for this model")
    for name, each in (("without", None), ("with", adapter)):
        found = precisions(model, each)
        if not found:
            raise SystemExit(f"{base}: has no {' and no '.join(WEIGHTS)}, expected a GLM 4")
        print(f"{name} the LoRA: {found['F32']} in F32, {found['default']} as the backend likes")


if __name__ == "__main__":
    main(sys.argv[1:])
