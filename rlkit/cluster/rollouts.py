"""K rollout workers, and the retriever that they share.

A worker is one process with an engine, environments and rewards (`rlkit.rollout.build`). Draws go to the worker with
the fewest trees on its hands, results come back in the order of the draws, and since every random draw has an address
it does not matter which worker made which tree. A worker that dies or stands still is replaced and its trees are rolled
out again; groups that go a round at a time are built up again from what was drawn for them, on whichever worker has
least to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, WorkerCrashedError

from rlkit.cluster.index import RayIndex
from rlkit.cluster.runtime import actor_options
from rlkit.cluster.weights import Parcel, Unpacker
from rlkit.errors import EngineError, SyncError
from rlkit.packages import installed, refuse_others
from rlkit.recipe import Recipe
from rlkit.records import ScoredTree, Task
from rlkit.retriever import Retrieval
from rlkit.rollout.background import Background
from rlkit.rollout.build import build_retriever, build_rollouts, build_source, tasks_of
from rlkit.rollout.ledger import Draw
from rlkit.rollout.loop import Progress, RolloutSettings
from rlkit.rollout.pace import Past
from rlkit.rollout.probe import Question, Shown
from rlkit.sync.broadcast import Backend, BroadcastGroup
from rlkit.sync.link import copy_speed
from rlkit.sync.segment import Place, Segment

__all__ = ["RayRetriever", "RayRollouts", "RetrieverActor", "RolloutWorker", "retriever_actor"]

log = logging.getLogger(__name__)
MAX_REPLACEMENTS = 20
"""Workers replaced in one run before it gives up: a worker that always dies is a bug, not an accident."""
SILENT = "stands still: no answer"
DIED = (ActorDiedError, ActorUnavailableError, WorkerCrashedError)


class RetrieverActor:
    """One corpus index for all workers; batching and admission control are the retriever's own."""

    def __init__(self, recipe: Recipe) -> None:
        self.retriever = build_retriever(recipe, build_source(recipe))
        self.born = uuid4().hex

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        """See `rlkit.retriever.Retriever`."""
        assert self.retriever is not None
        return await self.retriever.search(queries, top_k)

    async def ask(self, method: str, *arguments: Any, **settings: Any) -> Any:
        """Call a method of `rlkit.retriever.Refreshable`; `born`: which of the actors in this place it is."""
        return self.born if method == "born" else getattr(self.retriever, method)(*arguments, **settings)


def retriever_actor(recipe: Recipe, *, restarts: int) -> Any:
    """Start it. One that dies is built anew from the recipe, `restarts` times, and asked again what it was asked.

    Where the index follows the run it does not answer as before until `RayIndex` has brought it back.
    """
    options = actor_options(threads=1, cpus=0) | {"max_concurrency": 1000}
    again = {"max_restarts": restarts, "max_task_retries": -1 if restarts else 0}
    return ray.remote(RetrieverActor).options(**options, **again).remote(recipe)


class RayRetriever:
    """The worker's end of `RetrieverActor`: a retriever like any other, failures are statuses."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        """Ask the actor; a dead one is a failed retrieval, not a failed worker."""
        try:
            found: Sequence[Retrieval] = await self.actor.search.remote(list(queries), top_k)
            return found
        except ray.exceptions.RayError as error:
            return [Retrieval(status=f"failed: {type(error).__name__}")] * len(queries)


def _got(answers: Sequence[Any], expected: tuple[type[Exception], ...] = DIED) -> list[Any]:
    """Each answer, or the expected error in its place. One call for all: with many workers the calls are what costs."""
    try:
        found: list[Any] = ray.get(list(answers))
        return found
    except Exception:  # which of them failed is found one by one, and what nobody expects is raised there
        return [_one(answer, expected) for answer in answers]


def _one(answer: Any, expected: tuple[type[Exception], ...]) -> Any:
    try:
        return ray.get(answer)
    except expected as error:
        return error


class RolloutWorker:
    """One process that samples."""

    def __init__(self, recipe: Recipe, model_dir: Path, retriever: Any) -> None:
        shared = RayRetriever(retriever) if retriever is not None else None
        source = build_source(recipe)
        needs_tasks = getattr(recipe.engine.load(), "needs_tasks", False)
        tasks = tasks_of(recipe, source, "train") if needs_tasks else []
        self.rollouts = build_rollouts(recipe, model_dir=model_dir, retriever=shared, tasks=tasks)
        self._under_way: dict[int, tuple[Draw, RolloutSettings, Past]] = {}
        self._unpacker = Unpacker()

    async def alive(self) -> None:
        """Answer. The engine computes in a thread, so a worker that has much to do does as well."""

    async def packages(self) -> tuple[str, dict[str, str]]:
        """The machine it runs on, and its packages."""
        return ray.util.get_node_ip_address(), installed()

    async def tree(self, draw: Task | Draw, settings: RolloutSettings) -> ScoredTree:
        """Roll out and score one task."""
        return (await self.rollouts.run([draw], settings))[0]

    async def advance(self, number: int, begin: tuple[Draw, RolloutSettings, Past] | None) -> Progress:
        """One more round of a group; `begin` comes with the first that this worker sees of it."""
        draw, settings, past = self._under_way.setdefault(number, begin) if begin else self._under_way[number]
        progress = await self.rollouts.advance(draw, settings, past)
        if progress.scored is not None:
            del self._under_way[number]
        return progress

    async def abandon(self, number: int) -> None:
        """Give up a group."""
        if number in self._under_way:
            await self.rollouts.abandon(self._under_way.pop(number)[0])

    async def show(self, question: Question) -> Shown:
        """What it runs; see `rlkit.rollout.probe.show`."""
        return await self.rollouts.show(question)

    async def load_weights(self, parcels: Sequence[Parcel]) -> str:
        """Run the weights of the last parcel; returns the fingerprint of what runs."""

        def load() -> str:
            return self.rollouts.engine.load_weights(self._unpacker.open(parcels), parcels[-1].version)

        return await asyncio.to_thread(load)  # it waits for buckets

    async def near(self, place: Place) -> bool:
        """Share the learner's memory; False where it cannot be reached from here."""
        try:
            self._unpacker.segment = Segment.open(place)
        except SyncError as error:
            log.info("%s", error)
            return False
        return True

    async def join(self, meeting: str, rank: int, size: int, backend: Backend, timeout_s: float) -> None:
        """Take a seat in the broadcast of weights."""
        host, port = meeting.removeprefix("tcp://").rsplit(":", 1)

        def seat() -> BroadcastGroup:
            return BroadcastGroup(host, int(port), rank, size, backend=backend, timeout_s=timeout_s)

        self._unpacker.group = None
        self._unpacker.group = await asyncio.to_thread(seat)

    async def group_speed(self) -> float:
        """Bytes/s at which a broadcast arrives."""
        assert self._unpacker.group is not None
        return await asyncio.to_thread(self._unpacker.group.speed)

    async def link(self, probe: Sequence[Any], num_bytes: int) -> float:
        """Bytes/s at which the bytes behind the one reference get here and are copied."""
        return await asyncio.to_thread(copy_speed, lambda: ray.get(probe[0]), num_bytes)


class RayRollouts:
    """`Collector` over K workers."""

    def __init__(self, recipe: Recipe, model_dir: Path) -> None:
        cluster = recipe.cluster
        retriever, follows = None, False
        if recipe.retriever is not None:
            follows = hasattr(recipe.retriever.load(), "restore_index")
            # A stream of rounds cannot sample a step again, so there an index that follows the run dies for good.
            retriever = retriever_actor(recipe, restarts=0 if follows and recipe.rollout.streams else MAX_REPLACEMENTS)
        self._make = lambda: (
            ray.remote(RolloutWorker)
            .options(**actor_options(cluster.threads_per_worker, cluster.gpus_per_rollout_worker), max_concurrency=1000)
            .remote(recipe, model_dir, retriever)
        )
        self.workers = [self._make() for _ in range(cluster.rollout_workers)]
        for index, (address, theirs) in enumerate(ray.get([worker.packages.remote() for worker in self.workers])):
            refuse_others(f"rollout worker {index} on {address}", theirs, installed())
        self.index = RayIndex(retriever) if follows else None
        """The shared retriever, where its index may follow the run."""
        self._parcels: Callable[[], Sequence[Parcel]] | None = None
        """Makes what a new worker must be told."""
        self._owners: dict[int, Any] = {}
        self._sync_timeout_s = cluster.sync_timeout_s
        self._ping_timeout_s = cluster.ping_timeout_s
        self.background = Background()
        self.num_replaced = 0

    def load_weights(
        self,
        parcels: Sequence[Parcel],
        again: Callable[[], Sequence[Parcel]] | None = None,
        near: Sequence[bool] | None = None,
    ) -> tuple[list[str], bool]:
        """Have every worker run the last parcel's weights; their fingerprints, and whether a broadcast broke.

        Earlier parcels are for a worker that is replaced: the others have them. `again` makes parcels for workers
        that a broadcast did not reach, and for those that are not `near`.
        """
        self._parcels = again or (lambda: parcels)
        broken = False
        close = near or [True] * len(self.workers)
        far = again() if again is not None and not all(close) else ()
        confirmed = [
            worker.load_weights.remote(parcels[-1:] if here else far)
            for worker, here in zip(self.workers, close, strict=True)
        ]
        self._end_late(confirmed, self._sync_timeout_s, "runs no new weights")
        out = []
        for index, found in enumerate(_got(confirmed, (*DIED, SyncError))):
            if isinstance(found, DIED):
                broken = True
                out.append(self._replace(index, found))
            elif isinstance(found, SyncError):
                if again is None:
                    raise found
                broken = True
                out.append(ray.get(self.workers[index].load_weights.remote(again())))
            else:
                out.append(found)
        return out, broken

    def _end_late(self, answers: Sequence[Any], timeout_s: float, fault: str) -> None:
        """Kill workers that do not answer in time, one answer each: what they then answer is that they died."""
        late = ray.wait(list(answers), num_returns=len(answers), timeout=timeout_s)[1]
        for worker, answer in zip(list(self.workers), answers, strict=True):
            if answer in late:
                self._end(worker, f"{fault} after {timeout_s:g} s")

    def _end(self, worker: Any, fault: str) -> None:
        if worker in self.workers:
            log.warning("rollout worker %d %s", self.workers.index(worker), fault)
            ray.kill(worker)

    def _ended(self, answers: list[Any]) -> list[Any]:
        """At least one, and all that are there by then: with many workers asking for one at a time is what costs."""
        while not ray.wait(answers, num_returns=1, timeout=self._ping_timeout_s)[0]:
            self._end_late([worker.alive.remote() for worker in self.workers], self._ping_timeout_s, SILENT)
        ready: list[Any] = ray.wait(answers, num_returns=len(answers), timeout=0)[0]
        return ready

    def near(self, place: Place) -> list[bool]:
        """Which workers share the learner's memory now; one that died is replaced, and does not."""
        found = []
        for index, answer in enumerate(_got([worker.near.remote(place) for worker in self.workers])):
            if isinstance(answer, DIED):
                self._replace(index, answer)
            found.append(answer is True)
        return found

    def revive(self) -> None:
        """Replace workers that died."""
        for index, answer in enumerate(_got([worker.packages.remote() for worker in self.workers])):
            if isinstance(answer, DIED):
                self._replace(index, answer)

    def join(self, meeting: str, backend: Backend, timeout_s: float) -> None:
        """Seat every worker in the broadcast, after the sender."""
        size = 1 + len(self.workers)
        ray.get([w.join.remote(meeting, 1 + i, size, backend, timeout_s) for i, w in enumerate(self.workers)])

    def group_speed(self) -> float:
        """Bytes/s of the broadcast at the slowest worker."""
        return min(ray.get([worker.group_speed.remote() for worker in self.workers]))

    def link(self, probe: Any, num_bytes: int) -> float:
        """Bytes/s from the learner to the slowest worker."""
        return min(ray.get([worker.link.remote([probe], num_bytes) for worker in self.workers]))

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """One scored tree per task, in order."""
        while True:
            found = self._spread(tasks, settings)
            if self.index is None or self.index.unbroken():
                return found
            log.warning("the retriever died and was brought back: %d groups are sampled again", len(tasks))

    def _spread(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        waiting = deque(range(len(tasks)))
        results: dict[int, ScoredTree] = {}
        running: dict[Any, tuple[int, int]] = {}
        while waiting or running:
            load = [0] * len(self.workers)
            for worker, _ in running.values():
                load[worker] += 1
            while waiting and min(load) < settings.max_concurrent_groups:
                worker = load.index(min(load))
                task = waiting.popleft()
                running[self.workers[worker].tree.remote(tasks[task], settings)] = worker, task
                load[worker] += 1
            ended = self._ended(list(running))
            for answer, found in zip(ended, _got(ended), strict=True):
                if answer not in running:  # its worker died before it was read, and it is rolled out again
                    continue
                worker, task = running.pop(answer)
                if isinstance(found, DIED):
                    lost = [ref for ref, (owner, _) in running.items() if owner == worker]
                    waiting.extendleft(sorted([task, *(running.pop(ref)[1] for ref in lost)], reverse=True))
                    self._replace(worker, found)
                else:
                    results[task] = found
        return [results[index] for index in range(len(tasks))]

    async def advance(self, draw: Draw, settings: RolloutSettings, past: Past) -> Progress:
        """One more round of a group, on the worker that has it."""
        number = draw.number
        while True:
            worker, begin = self._owners.get(number), None
            if worker is None or worker not in self.workers:
                load = [sum(owner is one for owner in self._owners.values()) for one in self.workers]
                worker, begin = self.workers[load.index(min(load))], (draw, settings, past)
                self._owners[number] = worker
            try:
                progress: Progress = await self._answer(worker, worker.advance.remote(number, begin))
            except DIED as error:
                if worker in self.workers:  # the first of its groups to notice
                    self._replace(self.workers.index(worker), error)
                continue
            if progress.scored is not None:
                del self._owners[number]
            return progress

    async def _answer(self, worker: Any, call: Any) -> Any:
        """Of a call to a worker, which is killed if it stands still."""
        answer = asyncio.wrap_future(call.future())
        while not (await asyncio.wait({answer}, timeout=self._ping_timeout_s))[0]:
            ping = asyncio.wrap_future(worker.alive.remote().future())
            if not (await asyncio.wait({ping}, timeout=self._ping_timeout_s))[0]:
                self._end(worker, f"{SILENT} after {self._ping_timeout_s:g} s")
        return await answer

    def look(self, question: Question) -> list[Shown]:
        """What every worker runs; one that died shows nothing, and is replaced when its work is missed."""
        found = _got([worker.show.remote(question) for worker in self.workers])
        return [Shown() if isinstance(shown, DIED) else shown for shown in found]

    async def abandon(self, draw: Draw) -> None:
        """Give up a group."""
        worker = self._owners.pop(draw.number, None)
        if worker in self.workers:
            await worker.abandon.remote(draw.number)

    def _replace(self, index: int, error: Exception) -> str:
        """Start a new worker in place of a dead one, with the current weights."""
        while True:
            self.num_replaced += 1
            if self.num_replaced > MAX_REPLACEMENTS:
                raise EngineError(f"rollout worker {index} died again, {self.num_replaced} times in all: {error}")
            log.warning("rollout worker %d died and is replaced: %s", index, str(error).splitlines()[0])
            self.workers[index] = self._make()
            new = self.workers[index]
            try:
                ray.get(new.alive.remote())  # started: nobody takes one that is loading for one that stands still
                if self._parcels is None:
                    return ""
                found: str = ray.get(new.load_weights.remote(self._parcels()))
                return found
            except DIED as again:  # its node died too, or was dead already and nobody knew
                error = again
