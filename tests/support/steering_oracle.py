"""PyTorch as the oracle of steering: what a vector does, as hooks on transformers' modules."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from alora_gguf.gguf.vector import Directions

from .peft_oracle import TinyAdapter, _base, _with_adapter, reference_logits
from .tiny_models import TinyModel

if TYPE_CHECKING:
    import torch

Part = tuple[Directions, float]  # and the scale that an activation gives it

_FFN = ("mlp", "block_sparse_moe", "shared_mlp")  # whichever a layer has


def random_part(
    layer: int, hook: str, operation: str, n_embd: int, *seed: int, scale: float = 1.0
) -> Directions:
    """Random directions: three to project out, or one to add, about as long as a third of a row."""
    rng = np.random.default_rng([23, layer, *seed])
    k = 3 if operation.startswith("project") else 1
    values = 0.4 * rng.standard_normal((k, n_embd))
    if k > 1:
        values = np.linalg.qr(values.T)[0].T
    return Directions(layer, hook, operation, scale, values.astype(np.float32))  # type: ignore[arg-type]


def steered_logits(
    model: TinyModel,
    parts: Sequence[Part],
    tokens: Sequence[int],
    *,
    first: int,
    adapter: TinyAdapter | None = None,
) -> NDArray[np.float32]:
    """Logits [n_tokens, n_vocab] with the parts, and an aLoRA, from `first` on."""
    torch_model = _base(model) if adapter is None else _with_adapter(adapter).get_base_model()
    with _hooked(torch_model, parts, first):
        return reference_logits(model, adapter, tokens, first=first)


def module_outputs(
    model: TinyModel, hook: str, tokens: Sequence[int]
) -> dict[int, NDArray[np.float32]]:
    """By layer what the module at a hook returns, [n_tokens, n_embd]; layers without it are left
    out.
    """
    torch_model, found = _base(model), dict[int, NDArray[np.float32]]()

    def keep(layer: int) -> Any:
        def seen(_module: Any, _inputs: Any, output: Any) -> None:
            stream = output[0] if isinstance(output, tuple) else output
            assert layer not in found  # one module at each
            found[layer] = stream.reshape(len(tokens), -1).numpy().copy()

        return seen

    handles = []
    try:
        for number, layer in enumerate(torch_model.model.layers):
            modules = _modules(layer, hook)
            handles += [each.register_forward_hook(keep(number)) for each in modules if each]
        reference_logits(model, None, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextlib.contextmanager
def _hooked(torch_model: Any, parts: Sequence[Part], first: int) -> Iterator[None]:
    places: dict[tuple[int, str], list[Part]] = defaultdict(list)
    for part, scale in parts:
        places[part.layer, part.hook].append((part, scale))
    handles = []
    try:
        for (layer, hook), here in places.items():
            modules = _modules(torch_model.model.layers[layer], hook)
            handles += [m.register_forward_hook(_edit(here, first)) for m in modules]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _modules(layer: Any, hook: str) -> list[Any]:
    if hook == "block":
        return [layer]
    if hook == "attention":
        return [getattr(layer, "self_attn", None)]  # a layer of another kind has none
    found = [getattr(layer, name, None) for name in _FFN]
    # Granite's hybrid without experts has the module all the same, and does not call it
    dense = not getattr(layer, "has_experts", True)
    return [m for n, m in zip(_FFN, found, strict=True) if m and not (dense and n == _FFN[1])]


def _edit(parts: Sequence[Part], first: int) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edited(output[0], parts, first), *output[1:])
        return edited(output, parts, first)

    return hook


def edited(stream: torch.Tensor, parts: Sequence[Part], first: int) -> torch.Tensor:
    """`stream` [1, n_tokens, n_embd] with all parts, which read the same rows, from `first` on."""
    import torch

    h = stream[:, first:].double()
    change = torch.zeros_like(h)
    keeps_norm = False
    for part, activation in parts:
        scale = part.scale * activation
        v = torch.from_numpy(np.array(part.values)).double()
        if part.operation == "project":
            change -= scale * (h @ v.T) @ v
        elif part.operation == "project_positive":
            change -= scale * torch.relu(h @ v.T) @ v
        else:
            change += scale * v[0]
            keeps_norm = keeps_norm or part.operation == "add_keep_norm"
    steered = h + change
    if keeps_norm:
        steered = steered * h.norm(dim=-1, keepdim=True) / steered.norm(dim=-1, keepdim=True)
    return torch.cat([stream[:, :first], steered.to(stream.dtype)], dim=1)
