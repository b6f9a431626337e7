"""Which open conversation's cells a new one shares: those of the one that has most of its text."""

from __future__ import annotations

import alora_gguf as ag
from alora_gguf import demo


def test_the_open_one_that_has_most_in_common_is_shared() -> None:
    with ag.Model(demo.base_path(), n_ctx=512, n_threads=1) as model:
        start = model.tokenize("The river workshop is on 8 May. " * 6)
        ends = [model.tokenize(f" It begins at {n}." * 3) for n in (7, 8, 9)]
        sessions = [model.session() for _ in range(4)]
        for session, end in zip(sessions, ends, strict=False):
            session.sync([*start, *end])
        for end in ends:
            timings = sessions[3].sync([*start, *end, *start[:2]])
            assert timings.reused >= len(start) + len(end) - 1
            sessions[3].close()
            sessions[3] = model.session()
