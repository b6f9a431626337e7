"""Every architecture of llama.cpp has its adapters converted and compared with PEFT, or a reason
why not: a newer llama.cpp's new ones make these tests fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from alora_gguf.convert.base.families import FAMILIES

from alora_gguf.gguf.header import read_header
from tests.support.tiny_families import ALL_FAMILIES, CONVERTED_FAMILIES
from tests.support.tiny_models import tiny_model
from tests.support.upstream import upstream_gguf, upstream_tree

# The reasons. Those of the first four groups are checked against transformers and llama.cpp.
NO_CLASS = frozenset(
    (
        "deci",
        "grok",
        "mpt",
        "baichuan",
        "refact",
        "neo-bert",
        "jina-bert-v2",
        "qwen",
        "phimoe",
        "plamo",
        "plamo2",
        "plamo3",
        "codeshell",
        "orion",
        "internlm2",
        "minicpm",
        "maple",
        "xverse",
        "openelm",
        "arctic",
        "deepseek",
        "jais",
        "nemotron_h_moe",
        "exaone",
        "rwkv6",
        "rwkv6qwen2",
        "rwkv7",
        "arwkv7",
        "graniteswitch",
        "wavtokenizer-dec",
        "plm",
        "bailingmoe",
        "bailingmoe2",
        "bailingmoe3",
        "dream",
        "smallthinker",
        "llada",
        "llada-moe",
        "grovemoe",
        "minimax-01",
        "cogvlm",
        "rnd1",
        "pangu-embedded",
        "spark2_5",
        "llama-embed",
        "maincoder",
        "kimi-k3",
        "talkie",
        "nanbeige",
        "qwen3tts",
    )
)
NOT_CAUSAL = frozenset(
    ("bert", "modern-bert", "eurobert", "t5", "t5encoder", "gemma-embedding", "pockettts")
)
MULTIMODAL = frozenset(
    (
        "qwen2vl",
        "qwen3vl",
        "qwen3vlmoe",
        "muse-glimmer",
        "chameleon",
        "hunyuan_vl",
        "minimax-m3",
        "paddleocr",
        "step35",
        "glm5-next",
    )
)
# most of whose layers llama.cpp multiplies without its LoRA builders, and the file that does
RAW = {
    "deepseek2": "deepseek2",
    "deepseek32": "deepseek32",
    "deepseek4": "deepseek4",
    "dots3note": "dots3note",
    "gemma3n": "gemma3n",
    "glm-dsa": "glm-dsa",
    "hy_v4": "hy-v4",
    "kimi-linear": "kimi-linear",
    "nemotron_h": "nemotron-h",
}
# no class of transformers is registered for these, as they are no model of their own
NO_MODEL = {
    "clip": "a name for llama-quantize",
    "(unknown)": "not an architecture",
    "gptj": "llama.cpp has its name, but no graph",
    "gemma4-assistant": "guesses ahead for another model",
    "eagle3": "guesses ahead for another model",
    "dflash": "guesses ahead for another model",
    "nomic-bert": "an encoder",
    "nomic-bert-moe": "an encoder",
    "jina-bert-v3": "an encoder",
    "deepseek2-ocr": "a part of a multimodal model",
    "mistral4": "a part of a multimodal model",
}
# transformers and llama.cpp have both, and nothing but the work is missing: a tiny model of which
# they compute the same, and a line of the table
NOT_YET = frozenset(
    (
        "falcon",
        "qwen4exp",
        "minicpm3",
        "mamba",
        "mamba2",
        "jamba",
        "falcon-h1",
        "cohere2moe",
        "dbrx",
        "bitnet",
        "exaone-moe",
        "dots1",
        "afmoe",
        "laguna",
        "hunyuan-moe",
        "hrm_text",
        "minimax-m2",
        "mimo2",
        "mellum",
        "mistral3",
    )
)
GROUPS = (NO_CLASS, NOT_CAUSAL, MULTIMODAL, RAW.keys(), NO_MODEL.keys(), NOT_YET)


def architectures() -> set[str]:
    source = (upstream_tree() / "src" / "llama-arch.cpp").read_text(encoding="utf-8")
    table = source.partition("LLM_ARCH_NAMES = {")[2].partition("};")[0]
    return set(re.findall(r'\{ LLM_ARCH_\w+,\s+"([^"]+)"', table))


@cache
def registered() -> dict[str, list[str]]:
    """The classes of transformers' that upstream's converter takes, by the architecture it makes
    of them.
    """
    gguf = upstream_gguf("constants")
    found: dict[str, list[str]] = {}
    for kind, names in _classes(upstream_tree() / "conversion"):
        found.setdefault(gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[kind]], []).extend(names)
    return found


def _classes(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for file in sorted(folder.glob("*.py")):
        for part in file.read_text(encoding="utf-8").split("@ModelBase.register(")[1:]:
            kind = re.search(r"model_arch\b[^=\n]*= gguf\.MODEL_ARCH\.(\w+)", part)
            if kind:
                yield kind[1], re.findall(r'"([^"]+)"', part.partition(")")[0])


def in_transformers(architecture: str) -> list[str]:
    import transformers

    return [name for name in registered().get(architecture, []) if hasattr(transformers, name)]


def test_every_architecture_has_an_answer() -> None:
    answers = [*FAMILIES, *(name for group in GROUPS for name in group)]
    assert sorted(answers) == sorted(architectures())


def test_every_family_is_compared_with_peft() -> None:
    pytest.importorskip("transformers")
    tiny = [tiny_model(name) for name in (*ALL_FAMILIES, *CONVERTED_FAMILIES)]
    assert {read_header(model.gguf).architecture for model in tiny} == FAMILIES.keys()


def test_the_reasons_hold() -> None:
    pytest.importorskip("transformers")
    for name in NO_CLASS | NO_MODEL.keys() - {"gemma4-assistant", "dflash"}:
        assert in_transformers(name) == [], name
    for name in MULTIMODAL:
        assert not any(each.endswith("ForCausalLM") for each in in_transformers(name)), name
    for name in NOT_YET | RAW.keys():
        assert in_transformers(name), name


@pytest.mark.parametrize("architecture", RAW)
def test_llama_cpp_multiplies_without_its_lora_builders(architecture: str) -> None:
    source = upstream_tree() / "src" / "models" / f"{RAW[architecture]}.cpp"
    raw = r"ggml_mul_mat\s*\(ctx0, (model\.|layer\.|proj_w)"
    assert re.search(raw, source.read_text(encoding="utf-8"))
