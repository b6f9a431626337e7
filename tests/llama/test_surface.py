"""Everything the stock class offers is offered under the same name with the same parameters; what
is not is listed here with the reason.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from alora_gguf.llama import Llama

ADDED_NAMES = {"adapters", "load_adapter", "load_contract", "unload_adapter", "last_timings"}
# instance attributes of stock that are properties here
PROPERTIES = {"context_params"}

ADDED_PARAMETERS = {
    "generate": {"adapter", "adapter_scale"},
    "create_completion": {"adapter", "adapter_scale", "intrinsic", "intrinsic_arguments"},
    "__call__": {"adapter", "adapter_scale", "intrinsic", "intrinsic_arguments"},
    "create_chat_completion": {
        "adapter", "adapter_scale", "documents", "chat_template_kwargs", "intrinsic",
        "intrinsic_arguments",
    },
}  # fmt: skip


def stock() -> Any:
    from llama_cpp import Llama as Stock  # bound to our library, which is all the same here

    return Stock


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_it_is_a_llama(paths: dict[str, Path]) -> None:
    """Programs that ask, and LlamaIndex, which reads context_params."""
    assert issubclass(Llama, stock())
    with Llama(paths["tiny"], n_ctx=512, n_batch=64, verbose=False, n_threads=1) as llm:
        assert isinstance(llm, stock())
        assert (llm.context_params.n_ctx, llm.context_params.n_batch) == (512, 64)
        assert llm.model_params.n_gpu_layers == 0
        assert llm._chat_handlers == {}


class Logged(Llama):
    """Says which of its methods are asked."""

    calls: tuple[str, ...] = ()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in ASKED:
            self.calls = (*self.calls, name)
        return value


MESSAGES = [{"role": "user", "content": "a"}]
ASKED = ("tokenize", "detokenize", "create_completion", "generate", "eval", "sample", "embed")


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        (lambda llm: llm("a", max_tokens=2), ASKED[:-1]),
        (lambda llm: llm.create_completion("a", max_tokens=2), ASKED[:-1]),
        (
            lambda llm: llm.create_chat_completion(
                [{"role": "user", "content": "a"}], max_tokens=2
            ),
            ASKED[:-1],
        ),
        (lambda llm: llm.create_embedding("a"), ("embed",)),
    ],
)
def test_what_a_subclass_overrides_is_asked(
    call: Any, asked: tuple[str, ...], paths: dict[str, Path]
) -> None:
    with Logged(paths["tiny"], n_ctx=64, verbose=False, n_threads=1) as llm:
        llm.calls = ()
        call(llm)
        assert set(llm.calls) >= set(asked)


def test_names() -> None:
    assert public(Llama) - public(stock()) == ADDED_NAMES | PROPERTIES
    assert public(stock()) <= public(Llama)


METHODS = sorted(
    name
    for name, value in vars(stock()).items()
    if inspect.isfunction(value) and (not name.startswith("_") or name == "__call__")
)


@pytest.mark.parametrize("name", METHODS)
def test_parameters(name: str) -> None:
    ours = inspect.signature(getattr(Llama, name)).parameters
    theirs = inspect.signature(getattr(stock(), name)).parameters
    added, kept = ADDED_PARAMETERS.get(name, set()), list(theirs)
    assert [p for p in ours if p not in added] == kept  # in the same order
    assert added <= set(ours)
    for parameter in kept:
        one, other = ours[parameter], theirs[parameter]
        assert one.kind == other.kind, parameter
        assert value_of(one.default) == value_of(other.default), parameter
    assert all(ours[p].kind is inspect.Parameter.KEYWORD_ONLY for p in added)


def value_of(default: Any) -> Any:
    """Stock has a list as a default, we an empty tuple: they mean the same."""
    return [] if default == () else default


@pytest.mark.parametrize("name", ["from_pretrained", "logits_to_logprobs", "longest_token_prefix"])
def test_other_parameters(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (Llama, stock()))
    assert {n: p.kind for n, p in ours.parameters.items()} == {
        n: p.kind for n, p in theirs.parameters.items()
    } or name == "from_pretrained"
    assert list(ours.parameters)[:6] == list(theirs.parameters)[:6]


def test_attributes(paths: dict[str, Path]) -> None:
    def attributes(kind: Any) -> set[str]:
        llm = kind(str(paths["tiny"]), n_ctx=64, verbose=False, n_threads=1)
        try:
            return {name for name in vars(llm) if not name.startswith("_")} | public(kind)
        finally:
            llm.close()

    ours, theirs = attributes(Llama), attributes(stock())
    assert theirs <= ours
    assert ours - theirs == ADDED_NAMES


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda llm: llm("x", temprature=1.0), "'temprature'; did you mean 'temperature'?"),
        (lambda llm: llm.create_completion("x", maxtokens=1), "did you mean 'max_tokens'?"),
        (lambda llm: llm.create_chat_completion([], top_logprob=1), "'top_logprobs'?"),
        (lambda llm: llm.sample(temperature=0), "'temperature'"),
        (lambda llm: llm.generate([1], xyzzy=0), "unexpected keyword argument 'xyzzy'"),
        (lambda llm: type(llm)(llm.model_path, nctx=64), "'nctx'; did you mean 'n_ctx'?"),
    ],
)
def test_unknown_keywords_are_refused(call: Any, near: str, paths: dict[str, Path]) -> None:
    with (
        Llama(paths["tiny"], n_ctx=64, verbose=False, n_threads=1) as llm,
        pytest.raises(TypeError) as caught,
    ):
        call(llm)
    assert near in str(caught.value)


def test_help_shows_the_parameters() -> None:
    assert "repeat_penalty: 'float' = 1.0" in str(inspect.signature(Llama.create_completion))
    assert "adapter" in (Llama.create_completion.__doc__ or "")
