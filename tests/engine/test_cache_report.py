"""What the cache holds and why."""

from __future__ import annotations

from dataclasses import replace

import alora_gguf as ag
from tests.support.files import EXACT, Files

LONG = [(7 * i) % 250 for i in range(120)]


def test_an_empty_cache(files: Files) -> None:
    with files.model(n_ctx=512) as model:
        report = model.cache_report()
        assert (report.used, report.promised, report.free) == (0, 0, 512)
        assert (report.n_sequences, report.free_sequences) == (17, 17)
        assert report.holders == ()
        assert str(report) == "0 of 512 cells used, 512 free; 0 of 17 sequences"


def test_open_and_closed_conversations_and_what_they_share(files: Files) -> None:
    with files.model(n_ctx=512, options=replace(EXACT, n_pooled=2)) as model:
        with model.session() as over:
            over.sync([9, *LONG])
        first = model.session()
        first.sync([*LONG, *files.invocation, 3, 4], adapter="sure", scale=0.5)
        n = len(LONG) + len(files.invocation) + 2
        second = first.fork()
        second.append([5])
        report = model.cache_report()
        assert report.used == 121 + n + (n + 1 - 120)  # the fork reads the adapter's part again
        by_cells = sorted(report.holders, key=lambda holder: holder.cells)
        assert [holder.kind for holder in by_cells] == ["closed", "session", "session"]
        closed, one, other = by_cells
        assert (closed.cells, closed.alone) == (121, 121)
        assert "kept for others" in closed.why
        assert one.spans == (
            ag.CacheSpan(0, 120, None, 1.0),
            ag.CacheSpan(120, n, "sure", 0.5),
        )
        assert (one.cells, one.alone) == (n, n - 120)
        assert other.spans == (ag.CacheSpan(0, n + 1, None, 1.0),)
        assert other.alone == n + 1 - 120
        text = str(report)
        assert f"{report.used} of 512 cells used, {report.free} free; 3 of 17 sequences" in text
        assert f"120 to {n}: sure at 0.5" in text
        assert "121 cells (121 its own): a closed one, kept for others" in text

        model.unload_adapter("sure")
        (gone,) = {s.adapter for h in model.cache_report().holders for s in h.spans or ()} - {None}
        assert gone is not None
        assert len(gone) == 12  # the hash of its weights
        for session in (first, second):
            session.close()
        assert {h.kind for h in model.cache_report().holders} == {"closed"}


def test_a_call_under_way_and_what_it_was_promised(files: Files) -> None:
    seen: list[ag.CacheReport] = []
    with files.model(n_ctx=512) as model, model.session() as session:
        session.sync(LONG)
        session.invoke(
            ag.Invocation("sure", [1, 2], max_tokens=40),
            on_text=lambda *_: seen.append(model.cache_report()),
        )
        report = seen[0]
        (call,) = [holder for holder in report.holders if holder.kind == "call"]
        assert call.cells >= 120 + 2 + len(files.invocation)
        assert call.promised == report.promised > 0
        assert call.cells + call.promised == 120 + 2 + len(files.invocation) + 39
        assert call.spans is None
        assert report.used + report.promised + report.free == 512
        assert "promised" in str(report)
        assert "an invocation or a call under way" in str(report)
        assert model.cache_report().promised == 0
