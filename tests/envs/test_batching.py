"""Queue, batches and deadlines, with retrievers that are slow, broken or dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from rlkit.envs.batching import BatchedRetriever, Batching
from rlkit.retriever import Retrieval, Retriever
from tests.envs.libraries import VELMORA, Broken, Hanging, Shelf, Slow


def batched(inner: Retriever, **bounds: float) -> BatchedRetriever:
    return BatchedRetriever(inner, Batching(**bounds))  # type: ignore[arg-type]


async def ask(retriever: BatchedRetriever, count: int, top_k: int = 1) -> list[Retrieval]:
    """`count` callers at the same time, one query each."""
    calls = [retriever.search([f"q{n}"], top_k) for n in range(count)]
    return [result for [result] in await asyncio.gather(*calls)]


def statuses(results: Sequence[Retrieval]) -> list[str]:
    return [result.status for result in results]


def test_concurrent_callers_share_batches() -> None:
    shelf = Shelf(VELMORA)
    results = asyncio.run(ask(batched(shelf, max_batch=4, max_wait_s=0.05), 10))
    assert statuses(results) == ["ok"] * 10
    assert sorted(map(len, shelf.calls)) == [2, 4, 4]
    assert sorted(query for call in shelf.calls for query in call) == [f"q{n}" for n in range(10)]


def test_each_caller_gets_the_answer_to_its_own_query() -> None:
    class Echo:
        async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
            return [Retrieval(passages=(VELMORA,) * top_k, scores=(float(query[1:]),) * top_k) for query in queries]

    async def run() -> None:
        retriever = batched(Echo(), max_wait_s=0.01)
        one, two = await asyncio.gather(ask(retriever, 5), ask(retriever, 3, top_k=2))
        assert [result.scores for result in one] == [(0.0,), (1.0,), (2.0,), (3.0,), (4.0,)]
        assert [len(result.passages) for result in two] == [2, 2, 2]

    asyncio.run(run())


def test_a_full_queue_refuses_at_once() -> None:
    async def run() -> tuple[list[Retrieval], float]:
        inner = Hanging()
        retriever = batched(inner, max_batch=1, max_queue=2, max_running=1, deadline_s=5.0)
        waiting = asyncio.create_task(ask(retriever, 3))  # one runs, two wait
        await asyncio.sleep(0.05)
        begin = time.monotonic()
        [refused] = await retriever.search(["late"], 1)
        took = time.monotonic() - begin
        inner.release.set()
        assert refused == Retrieval(status="refused: queue full")
        return await waiting, took

    results, took = asyncio.run(run())
    assert statuses(results) == ["ok"] * 3 and took < 0.05


def test_a_call_ends_at_its_deadline_even_when_the_retriever_hangs() -> None:
    async def run() -> tuple[list[Retrieval], list[Retrieval], float]:
        inner = Hanging()
        retriever = batched(inner, max_batch=2, max_running=2, deadline_s=0.1)
        begin = time.monotonic()
        dead = await ask(retriever, 6)
        took = time.monotonic() - begin
        inner.release.set()  # the retriever comes back
        await asyncio.sleep(0.05)
        alive = await ask(retriever, 2)
        return dead, alive, took

    dead, alive, took = asyncio.run(run())
    assert statuses(dead) == ["timeout: 0.1 s"] * 6 and took < 1.0
    assert statuses(alive) == ["ok"] * 2


def test_hanging_calls_do_not_pile_up_threads() -> None:
    async def run() -> int:
        inner = Hanging()
        retriever = batched(inner, max_batch=1, max_running=2, deadline_s=0.02)
        for _ in range(5):
            await ask(retriever, 4)
        inner.release.set()
        return retriever.counts["batches"]

    assert asyncio.run(run()) == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad index"), "failed: ValueError: bad index"),
        (TimeoutError(), "failed: TimeoutError"),
        (SystemExit(3), "failed: SystemExit: 3"),
        (None, "failed: 2 results for 1 queries"),
    ],
)
def test_whatever_a_retriever_raises_is_a_status(error: BaseException | None, status: str) -> None:
    retriever = batched(Broken(error))
    assert statuses(asyncio.run(ask(retriever, 1))) == [status]
    assert retriever.counts["failed"] == 1


def test_a_blocking_retriever_does_not_block_the_loop() -> None:
    async def run() -> int:
        search = asyncio.create_task(ask(batched(Slow(0.2)), 1))
        ticks = 0
        while not search.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks

    assert asyncio.run(run()) >= 5


def test_a_cancelled_caller_leaves_no_query_behind() -> None:
    async def run() -> list[list[str]]:
        shelf = Shelf(VELMORA)
        retriever = batched(shelf, max_wait_s=0.05)
        gone = asyncio.create_task(retriever.search(["gone"], 1))
        await asyncio.sleep(0.01)
        gone.cancel()
        await retriever.search(["here"], 1)
        return shelf.calls

    assert asyncio.run(run()) == [["here"]]


def test_it_serves_one_event_loop_after_another() -> None:
    retriever = batched(Shelf(VELMORA))
    for _ in range(2):
        assert statuses(asyncio.run(ask(retriever, 2))) == ["ok", "ok"]
    assert asyncio.run(retriever.search([], 3)) == []


@pytest.mark.parametrize("bounds", [{"max_batch": 0}, {"max_wait_s": -1}, {"deadline_s": 0}, {"max_queue": 0}])
def test_impossible_bounds_are_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bounds))):
        Batching(**bounds)  # type: ignore[arg-type]
