"""Admission control for retrievers: concurrent calls become batches, a slow or broken one becomes a status.

    search() -> waiting (at most max_queue) -> a batch (at most max_batch, or after max_wait_s) -> a thread

Thousands of trajectories ask at once; without a bound the last one waits for all others, and one hanging call
holds a whole training step. Here each call ends within `deadline_s`, whatever the retriever does.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlkit.retriever import Retrieval, Retriever

__all__ = ["BatchedRetriever", "Batching"]


@dataclass(frozen=True, kw_only=True)
class Batching:
    """Bounds on what a retriever is asked at a time, and on how long a caller waits."""

    max_batch: int = 64
    """Queries of one call to the retriever."""
    max_wait_s: float = 0.002
    """How long the first query of a batch waits for company, in seconds."""
    max_queue: int = 4096
    """Queries that may wait; a call that would exceed it is refused at once."""
    max_running: int = 2
    """Batches in flight. A thread that hangs keeps its place, so a dead retriever cannot pile up threads."""
    deadline_s: float = 30.0
    """Seconds from the call to its answer."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_running"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        if self.max_wait_s < 0:
            raise ValueError(f"max_wait_s: {self.max_wait_s} is below 0")
        if self.deadline_s <= 0:
            raise ValueError(f"deadline_s: {self.deadline_s} is not above 0")


@dataclass(slots=True, kw_only=True)
class _Call:
    """One waiting query."""

    query: str
    top_k: int
    done: asyncio.Future[Retrieval]


@dataclass(kw_only=True)
class _Loop:
    """What belongs to one event loop: futures and timers cannot cross loops."""

    loop: asyncio.AbstractEventLoop
    waiting: list[_Call] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    running: int = 0


class BatchedRetriever:
    """A `Retriever` that never raises and always answers in time. `inner` may block: it runs outside the
    loop.
    """

    def __init__(self, inner: Retriever, config: Batching | None = None) -> None:
        self.inner = inner
        self.config = config or Batching()
        self.counts: Counter[str] = Counter()
        """Queries by the first word of their status, and `batches`."""
        self._state: _Loop | None = None

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        """One `Retrieval` per query, in order."""
        state, config = self._loop_state(), self.config
        if len(state.waiting) + len(queries) > config.max_queue:
            return self._counted([Retrieval(status="refused: queue full")] * len(queries))
        calls = [_Call(query=query, top_k=top_k, done=state.loop.create_future()) for query in queries]
        state.waiting += calls
        self._schedule(state)
        try:
            if calls:
                await asyncio.wait([call.done for call in calls], timeout=config.deadline_s)
            late = Retrieval(status=f"timeout: {config.deadline_s:g} s")
            return self._counted([call.done.result() if call.done.done() else late for call in calls])
        finally:  # also when the caller was cancelled: nobody waits for these any more
            for call in calls:
                call.done.cancel()
            state.waiting[:] = [call for call in state.waiting if not call.done.done()]

    def _loop_state(self) -> _Loop:
        loop = asyncio.get_running_loop()
        if self._state is None or self._state.loop is not loop:
            self._state = _Loop(loop=loop)
        return self._state

    def _counted(self, results: list[Retrieval]) -> list[Retrieval]:
        self.counts.update(result.status.partition(":")[0] for result in results)
        return results

    def _schedule(self, state: _Loop) -> None:
        """Start a full batch now, a partial one when its first query has waited long enough."""
        while len(state.waiting) >= self.config.max_batch and state.running < self.config.max_running:
            self._start(state)
        if state.waiting and state.timer is None and state.running < self.config.max_running:
            state.timer = state.loop.call_later(self.config.max_wait_s, self._due, state)

    def _due(self, state: _Loop) -> None:
        state.timer = None
        if state.waiting and state.running < self.config.max_running:
            self._start(state)
        self._schedule(state)

    def _start(self, state: _Loop) -> None:
        """Hand the oldest calls of one `top_k` to a thread."""
        top_k = state.waiting[0].top_k
        batch = [call for call in state.waiting if call.top_k == top_k][: self.config.max_batch]
        taken = set(map(id, batch))
        state.waiting[:] = [call for call in state.waiting if id(call) not in taken]
        state.running += 1
        self.counts["batches"] += 1
        # A daemon thread of its own, not a pool: pools are joined at exit, and a hanging retriever never
        # joins.
        threading.Thread(target=self._run, args=(state, batch, top_k), daemon=True, name="retrieve").start()

    def _run(self, state: _Loop, batch: list[_Call], top_k: int) -> None:
        """In the thread: search in a loop of its own, then report to the callers' loop."""
        queries = [call.query for call in batch]
        try:
            results = list(asyncio.run(_search(self.inner, queries, top_k)))
            if len(results) != len(queries):
                results = [Retrieval(status=f"failed: {len(results)} results for {len(queries)} queries")] * len(
                    queries
                )
        except BaseException as error:  # whatever a retriever throws is data here, in a thread nobody watches
            why = f"{type(error).__name__}: {error}".removesuffix(": ")
            results = [Retrieval(status=f"failed: {why}")] * len(queries)
        try:
            state.loop.call_soon_threadsafe(self._finish, state, batch, results)
        except RuntimeError:  # the callers' loop is closed: they are gone
            return

    def _finish(self, state: _Loop, batch: list[_Call], results: list[Retrieval]) -> None:
        state.running -= 1
        for call, result in zip(batch, results, strict=True):
            if not call.done.done():
                call.done.set_result(result)
        self._schedule(state)


async def _search(inner: Retriever, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
    return await inner.search(queries, top_k)
