"""The tiny base of tests.support as plain numpy computes it, in float64: states and logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from tests.support.make_gguf import Array
from tests.support.tiny_base import N_EMBD, N_HEAD, N_HEAD_KV, N_LAYER

_HEAD = N_EMBD // N_HEAD


def run(
    base: Path, tokens: Sequence[int], dw: Mapping[str, Array] | None = None, first: int = 0
) -> tuple[list[Array], Array]:
    """The residual stream after each layer [n, n_embd], and logits [n, n_vocab]; from position
    `first` on weights are W + dW.
    """
    weights = {
        tensor.name: tensor.data.astype(np.float64).reshape(tensor.shape[::-1])
        for tensor in GGUFReader(base).tensors
    }
    added = np.arange(len(tokens)) >= first

    def linear(name: str, x: Array) -> Array:
        more = (dw or {}).get(name)
        y = x @ weights[name].T
        return y if more is None else y + added[:, None] * (x @ more.T)

    h, states = weights["token_embd.weight"][list(tokens)], []
    for i in range(N_LAYER):
        blk = f"blk.{i}."
        x = _norm(h) * weights[f"{blk}attn_norm.weight"]
        q, k, v = (linear(f"{blk}attn_{name}.weight", x) for name in "qkv")
        h = h + linear(f"{blk}attn_output.weight", _attention(_heads(q), _heads(k), v))
        x = _norm(h) * weights[f"{blk}ffn_norm.weight"]
        gate, up = (linear(f"{blk}ffn_{name}.weight", x) for name in ("gate", "up"))
        h = h + linear(f"{blk}ffn_down.weight", gate / (1 + np.exp(-gate)) * up)
        states.append(h)
    return states, _norm(h) * weights["output_norm.weight"] @ weights["output.weight"].T


def _norm(x: Array) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5)


def _heads(x: Array) -> Array:
    """[n, head, size], neighbouring values turned by their position."""
    n = len(x)
    x = x.reshape(n, -1, _HEAD // 2, 2)
    angle = np.arange(n)[:, None] * 10000.0 ** (-np.arange(0, _HEAD, 2) / _HEAD)
    turn = np.exp(1j * angle)[:, None]
    turned = (x[..., 0] + 1j * x[..., 1]) * turn
    return np.stack([turned.real, turned.imag], axis=-1).reshape(n, -1, _HEAD)


def _attention(q: Array, k: Array, v: Array) -> Array:
    n, v = len(q), v.reshape(len(v), N_HEAD_KV, _HEAD)
    k, v = (x.repeat(N_HEAD // N_HEAD_KV, axis=1) for x in (k, v))
    scores = np.einsum("ihd,jhd->hij", q, k) / _HEAD**0.5
    scores += np.where(np.tri(n, dtype=bool), 0.0, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", shares, v).reshape(n, -1)
