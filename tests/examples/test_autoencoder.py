"""The example's autoencoder finds features that are known, and those that are moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alora_gguf.analyse.dumping import write_states
from examples.autoencoder.__main__ import explained, explained_change, main, moved, train

N, WIDTH, FEATURES, ACTIVE, MOVED = 1600, 24, 12, 3, 5


def known(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Directions [FEATURES, WIDTH], states that are put together of three of them each, and a
    change along the one of number MOVED.
    """
    rng = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(WIDTH, FEATURES, generator=rng))[0].T
    chosen = torch.rand(N, FEATURES - 1, generator=rng).topk(ACTIVE, dim=1).indices
    chosen += chosen >= MOVED  # without an adapter that one is not there
    sizes = 0.5 + torch.rand(N, ACTIVE, generator=rng)
    features = torch.zeros(N, FEATURES).scatter(1, chosen, sizes)
    delta = torch.rand(N, 1, generator=rng).add(0.5) * directions[MOVED]
    h = features @ directions
    size = (h - h.mean(0)).square().sum(1).mean().sqrt()
    return directions, h / size, delta / size


def test_it_puts_states_together_again_and_finds_what_is_moved() -> None:
    directions, h, delta = known()
    model = train(h[:1200], delta[:1200], n_features=24, n_active=4, n_steps=1000)
    h, delta = h[1200:], delta[1200:]
    assert explained(model, h) > 0.9
    assert explained(model, h + delta) > 0.9
    assert explained_change(model, h, delta) > 0.9
    found = moved(model, h, delta)
    i = int(found.shift.abs().argmax())
    assert float(model.written[i].detach() @ directions[MOVED]) > 0.95
    assert float(found.with_it[i]) > float(found.without[i]) + 0.3
    # and all that is moved adds up to the change: features may share a direction
    whole = (found.shift @ model.written).detach()
    assert float(whole @ directions[MOVED]) == pytest.approx(
        float(delta.norm(dim=1).mean()), rel=0.1
    )
    assert float(whole @ directions[MOVED] / whole.norm()) > 0.95


def test_before_training_it_does_not() -> None:
    _, h, delta = known()
    model = train(h, delta, n_features=24, n_active=4, n_steps=1)
    assert explained(model, h) < 0.7
    assert explained_change(model, h, delta) < 0.7


def test_it_reads_a_dump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, h, delta = known()
    path, count = tmp_path / "states.safetensors", np.arange(N, dtype=np.int32)
    states = {"h.3": h.numpy(), "h_delta.3": delta.numpy(), "text": count // 100}
    write_states(path, {**states, "token": count % 7, "position": count}, {})
    sizes = ["--features", "24", "--active", "4", "--steps", "1000", "--top", "2"]
    assert main([str(path), "--layer", "3", *sizes]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2600 states to train on, 300 tokens held out; explained:"
    assert all(float(each.rstrip("%")) > 90 for each in lines[1].split() if each.endswith("%"))
    words = lines[2].replace(",", "").split()
    assert float(words[2]) > 3 * float(words[-1])
    assert lines[4].split()[1].startswith("+")
    with pytest.raises(SystemExit):
        main([str(path), "--layer", "9"])
    assert "has the layers 3 to 3" in capsys.readouterr().err
