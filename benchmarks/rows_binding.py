"""The row about Python: Session.invoke_many against the same batches by hand at the C API."""

from __future__ import annotations

from contextlib import ExitStack

from .bench import N_ADAPTERS, ROOM, Bench
from .measure import Result, Side, alternate, timed
from .rows_intrinsics import GENERATED, at_once

_CACHED = 256  # what the binding adds does not depend on it


def binding(bench: Bench) -> list[Result]:
    """Eight intrinsics by Session.invoke_many against the C API, and whether they say the same."""
    from alora_gguf import Invocation, Model

    targets, conversation = "attention-only", bench.tokens(_CACHED)
    paths = {str(i): path for i, path in enumerate(bench.adapters(targets))}
    questions = [Invocation(name, max_tokens=GENERATED) for name in paths]
    answers: dict[str, list[list[int]]] = {}
    with ExitStack() as stack:
        model = stack.enter_context(
            Model(
                bench.path,
                adapters=paths,
                n_ctx=_CACHED + ROOM,
                n_seq_max=N_ADAPTERS + 1,
                n_threads=bench.settings.n_threads,
            )
        )
        session = stack.enter_context(model.session())
        session.append(conversation)
        raw = stack.enter_context(bench.context(_CACHED + ROOM, N_ADAPTERS + 1))
        raw.prefill(conversation)
        slots = raw.add(bench.adapters(targets))

        def by_binding() -> None:
            answers["ours"] = [list(v.tokens) for v in session.invoke_many(questions)]

        def by_hand() -> None:
            answers["other"] = at_once(raw, slots, _CACHED)

        samples = alternate(
            {"ours": lambda: timed(by_binding), "other": lambda: timed(by_hand)},
            bench.settings.rounds(10),
        )
    different = sum(a != b for a, b in zip(answers["ours"], answers["other"], strict=True))
    return [
        Result("Python, 8 intrinsics", f"{targets} at {_CACHED}",
               Side("Session.invoke_many", samples["ours"]), Side("C API", samples["other"])),
        Result("Python, different answers", f"{targets} at {_CACHED}", Side("", [different], ""),
               None, kind="value", floor=0, goal="0"),
    ]  # fmt: skip
