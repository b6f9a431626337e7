"""A sparse autoencoder on the states that `alora-gguf analyse --dump` wrote, and which of its
features an adapter moves.

    alora-gguf analyse ADAPTER --base BASE --text TEXT --max-tokens 4096 --dump states.safetensors
    python -m examples.autoencoder states.safetensors --layer 20 --base BASE

The autoencoder is a TopK one (Gao et al. 2024, arXiv 2406.04093): of each state the K features that
answer most are kept, and the state is put together of their directions. It is trained on states
without and with the adapter. What holds of texts that it was not trained on is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from alora_gguf import Model, Store


class Autoencoder(nn.Module):
    """States [n, d], to `n_features` numbers of which `n_active` are not 0, and back. `mean` [d] is
    the state of a token that has none of the features, to begin with.
    """

    def __init__(self, mean: Tensor, n_features: int, n_active: int) -> None:
        super().__init__()
        self.n_active = n_active
        self.mean = nn.Parameter(mean)
        directions = nn.functional.normalize(torch.randn(n_features, len(mean)), dim=1)
        self.read, self.written = nn.Parameter(directions.clone()), nn.Parameter(directions)

    def features(self, states: Tensor) -> Tensor:
        """[n, n_features], at least 0."""
        answers = torch.relu((states - self.mean) @ self.read.T)
        kept = answers.topk(self.n_active, dim=1)
        return torch.zeros_like(answers).scatter(1, kept.indices, kept.values)

    def states(self, features: Tensor) -> Tensor:
        return self.mean + features @ self.written

    @torch.no_grad()
    def normalise(self) -> None:
        """A feature's size is that of what it adds: directions have norm 1."""
        self.written.copy_(nn.functional.normalize(self.written, dim=1))


def train(
    h: Tensor, delta: Tensor, *, n_features: int, n_active: int, n_steps: int, batch: int = 256
) -> Autoencoder:
    """On states [n, d] without and with an adapter; the squared distance of `h` from its mean is 1
    on average.
    """
    torch.manual_seed(0)
    # what the adapter adds is to be a feature, and so is not in the mean
    model, states = Autoencoder(h.mean(0), n_features, n_active), torch.cat([h, h + delta])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, n_steps)
    for _ in range(n_steps):
        some = states[torch.randint(len(states), (batch,))]
        loss = (model.states(model.features(some)) - some).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        model.normalise()
    return model


@dataclass
class Moved:
    """What an adapter does to features [n_features]: by how much each is larger with it, the mean
    over tokens, and the part of tokens in which it is active without and with it.
    """

    shift: Tensor
    without: Tensor
    with_it: Tensor


@torch.no_grad()
def moved(model: Autoencoder, h: Tensor, delta: Tensor) -> Moved:
    before, after = model.features(h), model.features(h + delta)
    active = [(features > 0).float().mean(0) for features in (before, after)]
    return Moved((after - before).mean(0), *active)


@torch.no_grad()
def explained(model: Autoencoder, states: Tensor) -> float:
    """The part of the variance that is put together again."""
    left = (model.states(model.features(states)) - states).square().sum()
    return 1 - float(left / (states - states.mean(0)).square().sum())


@torch.no_grad()
def explained_change(model: Autoencoder, h: Tensor, delta: Tensor) -> float:
    """The part of |delta|^2 that is in what the features change."""
    change = model.states(model.features(h + delta)) - model.states(model.features(h))
    return 1 - float((change - delta).square().sum() / delta.square().sum())


def random_like(delta: Tensor) -> Tensor:
    """One random direction for all tokens, as long as delta is in each."""
    direction = torch.randn(delta.shape[1], generator=torch.Generator().manual_seed(1))
    return delta.norm(dim=1, keepdim=True) * nn.functional.normalize(direction, dim=0)


def report(model: Autoencoder, found: Moved, tokens: Sequence[str], h: Tensor, top: int) -> None:
    """The features that are moved most, and the tokens after which each is largest without."""
    with torch.no_grad():
        features = model.features(h)
    print("  feature   shift  active without  with  largest at")
    for i in found.shift.abs().argsort(descending=True)[:top].tolist():
        best = features[:, i].argsort(descending=True)[:40].tolist()
        words = list(dict.fromkeys(tokens[j] for j in best if features[j, i] > 0))[:6]
        shares = f"{found.without[i]:>14.0%}  {found.with_it[i]:>4.0%}"
        print(f"  {i:>7}  {found.shift[i]:>+6.3f}  {shares}  {' '.join(map(repr, words))}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.autoencoder", description=__doc__)
    parser.add_argument("dump", type=Path, help="what `alora-gguf analyse --dump` wrote")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--base", help="to show tokens as text: a GGUF, a name, or smollm2")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--active", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--top", type=int, default=8)
    chosen = parser.parse_args(arguments)
    dump = load_file(chosen.dump)
    if f"h.{chosen.layer}" not in dump:
        layers = sorted(int(name[2:]) for name in dump if name.startswith("h."))
        parser.error(f"{chosen.dump} has the layers {layers[0]} to {layers[-1]}")
    h, delta = (dump[f"{name}.{chosen.layer}"] for name in ("h", "h_delta"))
    size = (h - h.mean(0)).square().sum(1).mean().sqrt()
    h, delta = h / size, delta / size
    held_out = dump["text"] >= 0.8 * (int(dump["text"].max()) + 1)  # whole texts
    if held_out.all() or not held_out.any():
        parser.error(f"{chosen.dump} has one text, and needs two at least: some are held out")
    sizes = {"n_features": chosen.features, "n_active": chosen.active, "n_steps": chosen.steps}
    model = train(h[~held_out], delta[~held_out], **sizes)
    h, delta = h[held_out], delta[held_out]
    found, chance = moved(model, h, delta), moved(model, h, random_like(delta))
    print(f"{2 * int((~held_out).sum())} states to train on, {len(h)} tokens held out; explained:")
    parts = explained(model, h), explained(model, h + delta), explained_change(model, h, delta)
    texts = ("of the variance", "of it with the adapter", "of the change")
    print("  " + ", ".join(f"{x:.1%} {text}" for x, text in zip(parts, texts, strict=True)))
    largest, by_chance = (each.shift.abs().max() for each in (found, chance))
    print(f"largest shift {largest:.3f}, of a random change as large {by_chance:.3f}")
    ids = dump["token"][held_out].tolist()
    names = [str(each) for each in ids]
    if chosen.base is not None:
        with Model(Store().resolve(chosen.base, "base"), n_ctx=256) as runtime:
            names = [runtime.detokenize([each], special=True) for each in ids]
    report(model, found, names, h, chosen.top)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
