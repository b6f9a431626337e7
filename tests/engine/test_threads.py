"""One model, several threads: calls take turns, and answers are those of a single thread."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

import alora_gguf as ag
from tests.support import inside
from tests.support.batches import slow_batches
from tests.support.files import Files

GREEDY = ag.Sampling(temperature=0.0)


def work(model: ag.Model, seed: int) -> tuple[object, ...]:
    """A mixed job: reads, generates, invokes, rewinds."""
    with model.session() as session:
        session.append([(seed * 31 + i) % 250 for i in range(30 + seed)])
        reply = session.generate(max_tokens=5, sampling=GREEDY)
        text = reply.read()
        names = ("sure", "other", "lora", None)
        verdicts = session.invoke_many(
            [ag.Invocation(names[(seed + k) % 4], [k], max_tokens=4) for k in range(3)]
        )
        session.rewind(20)
        session.append([seed])
        last = session.generate(max_tokens=3, sampling=GREEDY, adapter="lora")
        last.read()
        return text, [v.tokens for v in verdicts], last.tokens


def test_eight_threads_get_what_one_would(files: Files) -> None:
    jobs = [i % 10 for i in range(40)]
    with files.model() as model:
        alone = [work(model, seed) for seed in range(10)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda seed: work(model, seed), jobs))
        assert together == [alone[seed] for seed in jobs]
        assert inside.cells(model).used() == 0
        inside.engine(model).collect()
        assert inside.cells(model).free_sequences == inside.cells(model).n_seqs


@pytest.mark.slow
def test_two_hundred_requests_some_of_them_cancelled(files: Files) -> None:
    """Those that were left alone get what one thread would, and nothing is left behind."""
    rng = random.Random(5)
    jobs = [(i % 10, rng.random() * 0.05 if i % 3 == 0 else None) for i in range(200)]

    def job(seed: int, delay: float | None) -> tuple[object, ...] | None:
        if delay is None:
            return work(model, seed)
        token = ag.CancelToken()
        timer = threading.Timer(delay, token.cancel)
        timer.start()
        try:
            with model.session() as session:
                session.append([seed] * 150, cancel=token)
                reply = session.generate(max_tokens=10, sampling=GREEDY, cancel=token)
                reply.read()
                session.invoke(ag.Invocation("sure", max_tokens=20), cancel=token)
                assert session.tokens == [seed] * 150 + reply.tokens
        except ag.CancelledError:
            pass
        finally:
            timer.cancel()
        return None

    with files.model() as model:
        alone = [work(model, seed) for seed in range(10)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda each: job(*each), jobs))
        for (seed, delay), result in zip(jobs, together, strict=True):
            assert result == (alone[seed] if delay is None else None)
        inside.engine(model).collect()
        cells = inside.cells(model)
        assert (cells.used(), cells.promised()) == (0, 0)
        assert cells.free_sequences == cells.n_seqs


@pytest.mark.slow
def test_a_thousand_invocations_take_no_memory(files: Files) -> None:
    schema = {"type": "boolean"}
    with files.model() as model, model.session() as session:
        session.append(list(range(100)))
        process, before = psutil.Process(), 0
        for i in range(1200):
            session.invoke(ag.Invocation("sure", max_tokens=8, schema=schema, logprobs=3))
            if i == 200:
                before = process.memory_info().rss
        assert process.memory_info().rss < 1.01 * before


def test_closing_while_others_work_is_a_clean_end_for_them(files: Files) -> None:
    model = files.model()

    def until_closed() -> str:
        try:
            while True:
                work(model, 3)
        except ag.ClosedError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(until_closed) for _ in range(4)]
        inside.engine(model).lock.acquire()
        inside.engine(model).lock.release()
        model.close()
        assert all("closed" in each.result(timeout=60) for each in running)


def test_closing_amid_a_long_reading_is_one_too(files: Files) -> None:
    with ThreadPoolExecutor(1) as pool, slow_batches(0.05):
        for _ in range(3):
            model = files.model(options=ag.ContextOptions(n_batch=32, n_ubatch=32))
            session, begun = model.session(), threading.Event()
            reading = pool.submit(
                session.append, [1] * 1000, progress=lambda *_, begun=begun: begun.set()
            )
            assert begun.wait(timeout=60)
            model.close()
            with pytest.raises(ag.ClosedError):
                reading.result(timeout=60)
            assert session.tokens == []
