"""The constructor: what it refuses, and what it makes of the rest."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.llama_context import Logits as LogitsRow
from alora_gguf.llama import Llama
from tests.support.hub_server import HubServer, running


@pytest.mark.parametrize(
    ("keywords", "instead"),
    [
        ({"lora_path": "x.gguf"}, "adapters="),
        ({"lora_base": "x.gguf"}, "adapters="),
        ({"lora_scale": 0.5}, "adapter_scale="),
        ({"swa_full": False}, "sliding window"),
        ({"n_ctx": -1}, "n_ctx must be"),
        ({"n_batch": 0}, "n_batch must be"),
        ({"type_k": 999}, "type_k must be one of 0 (f32)"),
        ({"rope_freq_base": "high"}, "rope_freq_base must be"),
        ({"n_threads_batch": 513}, "n_threads_batch must be an integer in [-1, 512]"),
        ({"rope_scaling_type": 4}, "rope_scaling_type must be an integer in [-1, 3]"),
        ({"pooling_type": 5}, "pooling_type must be an integer in [-1, 4]"),
        ({"pooling_type": "mean"}, "pooling_type must be"),
        ({"split_mode": 2**40}, "split_mode must be an integer in [0, 3]"),
        ({"main_gpu": "cuda"}, "main_gpu must be"),
        ({"numa": 5}, "numa must be an integer in [0, 4]"),
        ({"yarn_orig_ctx": -1}, "yarn_orig_ctx must be"),
        ({"n_gpu_layers": 2**40}, "n_gpu_layers must be"),
        ({"seed": 2**70}, "seed must be"),
        ({"tensor_split": [0.5, "x"]}, "tensor_split[1] must be a finite number"),
    ],
)
def test_refused(keywords: dict[str, Any], instead: str, paths: dict[str, Path]) -> None:
    with pytest.raises(ag.InputError) as caught:
        Llama(paths["tiny"], verbose=False, n_threads=1, **keywords)
    assert instead in str(caught.value)
    assert next(iter(keywords)) in str(caught.value)


def test_ranks_are_no_embeddings(paths: dict[str, Path]) -> None:
    """Stock reads behind the one number that llama.cpp has for a text then."""
    with (
        Llama(paths["tiny"], n_ctx=64, verbose=False, n_threads=1, pooling_type=4) as llm,
        pytest.raises(ag.InputError, match="pools into ranks"),
    ):
        llm.embed("a b c")


@pytest.mark.parametrize(
    "keywords",
    [
        {"tensor_split": [1.0] * 4096},
        {"kv_overrides": {"a": None}},
        {"kv_overrides": {"a": "x" * 200}},
    ],
)
def test_refused_as_in_stock(keywords: dict[str, Any], paths: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"exceed maximum|Unknown value|too long"):
        Llama(paths["tiny"], verbose=False, n_threads=1, **keywords)


FORMER: dict[str, tuple[Any, Any]] = {
    "n_parts": (-1, 2),
    "f16_kv": (False, "q8_0"),  # LangChain: True, and False for embeddings
    "device": (None, "cuda"),
    "rpc_servers": (None, "host:1"),
    "mul_mat_q": (True, False),
    "low_vram": (False, True),
    "n_gqa": (None, 8),
    "rms_norm_eps": (None, 1e-5),
}


def test_former_keywords_are_accepted(paths: dict[str, Path]) -> None:
    """LangChain passes n_parts, f16_kv and device, llama_cpp.server rpc_servers and mul_mat_q."""
    quiet: dict[str, Any] = {"n_ctx": 64, "verbose": False, "n_threads": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Llama(paths["tiny"], **quiet, **{k: v for k, (v, _) in FORMER.items()}).close()
        Llama(paths["tiny"], **quiet, **dict.fromkeys(FORMER)).close()
    for name, (_, other) in FORMER.items():
        with pytest.warns(RuntimeWarning, match=f"^{name}=.* has no effect"):
            Llama(paths["tiny"], **quiet, **{name: other}).close()


def test_a_draft_model_is_warned_of(paths: dict[str, Path]) -> None:
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    draft: Any = LlamaPromptLookupDecoding(num_pred_tokens=2)
    with (
        pytest.warns(RuntimeWarning, match="draft_model has no effect"),
        Llama(paths["tiny"], n_ctx=64, verbose=False, n_threads=1, draft_model=draft) as llm,
    ):
        assert llm("a", max_tokens=2)["choices"]


def test_a_vocabulary_alone(paths: dict[str, Path]) -> None:
    with Llama(paths["tiny"], vocab_only=True, verbose=False) as llm:
        assert llm.detokenize(llm.tokenize(b"the rain")) == b"the rain"


def test_a_missing_file_is_a_value_error_as_in_stock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Model path does not exist"):
        Llama(tmp_path / "nothing.gguf")


def test_handlers_for_images_are_refused(paths: dict[str, Path]) -> None:
    from llama_cpp.llama_chat_format import MTMDChatHandler

    handler = MTMDChatHandler.__new__(MTMDChatHandler)
    with pytest.raises(ag.InputError, match="images"):
        Llama(paths["tiny"], chat_handler=handler, verbose=False, n_threads=1)


def test_the_settings_of_one_model_are_not_those_of_the_next(paths: dict[str, Path]) -> None:
    def logits(**settings: Any) -> LogitsRow:
        with Llama(
            paths["tiny"], n_ctx=64, verbose=False, n_threads=1, logits_all=True, **settings
        ) as llm:
            llm.eval([1, 2, 3, 4])
            return llm.scores

    plain = logits()
    assert np.abs(logits(rope_freq_base=5.0) - plain).max() > 1e-3
    with pytest.raises(ag.AloraError):
        Llama(__file__, rope_freq_base=5.0, verbose=False, n_threads=1)
    assert np.array_equal(logits(), plain)


def test_options_without_effect_are_warned_of(paths: dict[str, Path]) -> None:
    with Llama(paths["tiny"], n_ctx=64, verbose=False, n_threads=1) as llm:
        with pytest.warns(RuntimeWarning, match="tfs_z has no effect"):
            llm("a", max_tokens=1, tfs_z=0.5)
        llm.eval([1])
        with pytest.warns(RuntimeWarning, match="penalize_nl has no effect"):
            llm.sample(penalize_nl=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            llm("a", max_tokens=1)


def test_batch_threads(paths: dict[str, Path]) -> None:
    with Llama(paths["tiny"], n_ctx=64, n_threads=1, n_threads_batch=2, verbose=False) as llm:
        assert (llm.n_threads, llm.n_threads_batch) == (1, 2)


def test_pickling_takes_adapters_along(files: Any) -> None:
    with Llama(
        files.base, n_ctx=128, verbose=False, n_threads=1, adapters={"sure": files.alora}
    ) as llm:
        llm.load_adapter("other", files.other)
        llm.set_seed(9)
        with pickle.loads(pickle.dumps(llm)) as again:
            assert set(again.adapters) == {"sure", "other"}
            assert again._seed == 9


def test_closing(paths: dict[str, Path]) -> None:
    with Llama(paths["tiny"], n_ctx=64, verbose=False, n_threads=1) as llm:
        stream = llm("a", stream=True, max_tokens=9)
        next(iter(stream))
        llm.embed("text")
    llm.close()
    for call in (lambda: llm("a"), lambda: llm.embed("a"), lambda: llm.tokenize(b"xyz"), llm.reset):
        with pytest.raises(ag.ClosedError):
            call()


def test_openai_types_need_the_package(paths: dict[str, Path]) -> None:
    pytest.importorskip("llama_cpp")
    with Llama(paths["tiny"], n_ctx=64, verbose=False, n_threads=1) as llm:
        try:
            import openai  # noqa: F401
        except ImportError:
            with pytest.raises(ImportError, match="pip install openai"):
                llm.create_chat_completion_openai_v1([{"role": "user", "content": "a"}])
        else:
            answer = llm.create_chat_completion_openai_v1(
                [{"role": "user", "content": "a"}], max_tokens=2
            )
            assert answer.choices[0].message.role == "assistant"


# From the hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, paths: dict[str, Path]) -> Any:
    from huggingface_hub import constants

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    with running() as server:
        # HF_ENDPOINT is looked at only when the client is imported
        url = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        base = paths["tiny"].read_bytes()
        server.add("o/r", {"sub/tiny-q8.gguf": base, "sub/tiny-f16.gguf": b"x", "a.txt": b"y"})
        yield server


def test_from_pretrained(hub: HubServer, tmp_path: Path) -> None:
    options = {"n_ctx": 64, "verbose": False, "n_threads": 1, "cache_dir": tmp_path}
    with Llama.from_pretrained("o/r", "*q8.gguf", ["a.txt"], **options) as llm:
        assert Path(llm.model_path).name == "tiny-q8.gguf"
        assert llm.n_ctx() == 256  # llama.cpp's own rounding
        assert llm("a", max_tokens=1)["usage"]["prompt_tokens"] == 2
    assert hub.files_asked == ["sub/tiny-q8.gguf", "a.txt"]
    with Llama.from_pretrained(
        "o/r", "*q8.gguf", local_dir=tmp_path / "here", verbose=False
    ) as llm:
        assert llm.model_path == os.fspath(tmp_path / "here" / "sub" / "tiny-q8.gguf")


def test_from_pretrained_wants_one_file(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="several files match"):
        Llama.from_pretrained("o/r", "*.gguf", cache_dir=tmp_path)
    with pytest.raises(ag.InputError, match="no file matches"):
        Llama.from_pretrained("o/r", "*q4.gguf", cache_dir=tmp_path)
    with pytest.raises(ag.InputError, match="filename is missing"):
        Llama.from_pretrained("o/r", None)
    with pytest.raises(TypeError, match="did you mean 'n_ctx'"):
        Llama.from_pretrained("o/r", "*q8.gguf", cache_dir=tmp_path, nctx=64)
