"""`alora-gguf demo`, the main job from PEFT directories to verdicts, as a user runs it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alora_gguf import cli
from alora_gguf.demo import INTRINSICS


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr(
            "click.echo", lambda text, err=False: printed.append(text) if not err else None
        )
        assert cli.run(["demo", "--json", "--threads", "2"]) == 0
    parsed: dict[str, Any] = json.loads("".join(printed))
    return parsed


def test_the_conversation_is_long_and_untouched(results: dict[str, Any]) -> None:
    assert results["n_tokens"] > 2000
    assert results["base_untouched"] is True


def test_an_activated_adapter_reads_its_invocation_and_nothing_else(
    results: dict[str, Any],
) -> None:
    assert set(results["alora"]["timings"]) == set(INTRINSICS)
    for timings in results["alora"]["timings"].values():
        assert timings["reused"] == results["n_tokens"]
        assert timings["evaluated"] == 3
        assert timings["generated"] > 0


def test_a_plain_adapter_reads_everything(results: dict[str, Any]) -> None:
    for timings in results["lora"]["timings"].values():
        assert timings["reused"] == 0
        assert timings["evaluated"] == results["n_tokens"] + 3


def test_it_is_worth_it(results: dict[str, Any]) -> None:
    """Measured about 25 times as fast; far less would mean that something was read again."""
    assert results["lora"]["seconds"] > 4 * results["alora"]["seconds"]
