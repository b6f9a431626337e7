"""Which steering vectors act on replies, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping

from alora_gguf.cli.options import read_scale
from alora_gguf.cli.render import printable

import alora_gguf as ag

OFF = "off"


def vectors_of(model: ag.Model) -> list[str]:
    """The loaded adapters that are steering vectors."""
    return [name for name, file in model.adapters.items() if is_vector(file)]


def is_vector(file: object) -> bool:
    """Whether an adapter is one."""
    return isinstance(file, ag.VectorFile)


def changed(model: ag.Model, before: Mapping[str, float], text: str) -> dict[str, float]:
    """The vectors and scales after "NAME [SCALE]", "NAME off" or "off". Raises InputError,
    UnknownAdapterError.
    """
    if text == OFF:
        return {}
    name, *rest = text.split()
    if name == OFF and len(rest) == 1 and rest[0] in model.adapters:
        raise ag.InputError(
            f"/steer {OFF} ends all steering; /steer {rest[0]} {OFF} ends that of '{rest[0]}' alone"
        )
    if len(rest) > 1:
        raise ag.InputError(f"/steer takes a vector and a scale, found '{text}'")
    check(model, name)
    scale = 0.0 if rest == [OFF] else read_scale(rest[0] if rest else "1", f"/steer {name}")
    after = {each: at for each, at in before.items() if each != name}
    return {**after, name: scale} if scale else after


def check(model: ag.Model, name: str) -> None:
    """Raises UnknownAdapterError, and InputError for an adapter that is no vector."""
    if not is_vector(model.adapter(name)):
        there = ", ".join(vectors_of(model)) or "none"
        raise ag.InputError(
            f"'{name}' is an adapter with weights, not a steering vector (there are: {there}); "
            f"/set adapter {name} has it reply"
        )


def check_asked(model: ag.Model, name: str) -> None:
    """Raises InputError for a vector, which answers nothing."""
    if is_vector(model.adapter(name)):
        raise ag.InputError(
            f"'{name}' is a steering vector, which is not asked anything; /steer {name} 1 has it "
            "act on replies"
        )


def in_words(steering: Mapping[str, float]) -> str:
    """For people."""
    if not steering:
        return "replies are not steered"
    return f"replies are steered by {shown(steering)}"


def shown(steering: Mapping[str, float]) -> str:
    """Names and scales."""
    return " + ".join(f"{printable(name)} at {scale:g}" for name, scale in steering.items())
