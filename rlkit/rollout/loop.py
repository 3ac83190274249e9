"""The rollout: one task, G samples side by side, one prefix tree; and many tasks, a bounded number at a time.

start every environment ─> one prompt node (and what they prefill)
    each sample, on its own:  sample a completion ─> ask its environment ─> add the observation ─> ...
    or after turns that several samples share (rlkit/rollout/branching.py)
    (an engine that grows trees chooses the completions of all samples together, before that)
release the engine's cache, close every environment, assemble the tree ─> score it
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from rlkit.env import EnvFactory
from rlkit.policy.base import Engine, Sampling
from rlkit.records import ScoredTree, Task, Tree
from rlkit.render import Renderer
from rlkit.retriever import Refreshable
from rlkit.rollout.assemble import Path, assemble
from rlkit.rollout.background import Background
from rlkit.rollout.branching import Branching, play, with_trunks
from rlkit.rollout.episode import Episode, Group
from rlkit.rollout.ledger import Draw
from rlkit.rollout.pace import Flight, Pace, Past, Segment
from rlkit.rollout.probe import Question, Shown, show

__all__ = ["Progress", "RolloutSettings", "Rollouts", "TreeScorer", "rollout_tree"]

T = TypeVar("T")
INDEPENDENT = Branching()
BEGINNING = Past()


async def rollout_tree(
    task: Task,
    *,
    envs: EnvFactory,
    engine: Engine,
    renderer: Renderer,
    sampling: Sampling,
    group_size: int,
    max_completion_tokens: int,
    max_path_tokens: int,
    sample_indices: Sequence[int] | None = None,
    address: str | None = None,
    env_deadline_s: float = 300.0,
    branching: Branching = INDEPENDENT,
    pace: Pace | None = None,
) -> Tree:
    """Sample one tree. What fails in an environment or engine is a leaf's status, never an exception.

    `max_path_tokens` is the context: no path is longer, prompt included. `sample_indices` replays some of the
    group's samples, alone but with the same draws. `address` stands for `task.id` in the address of those
    draws, where a task is rolled out more than once (see `Draw`). `env_deadline_s` is for one call of an
    environment. `branching` lets samples share their first turns. `pace` makes them wait between rounds.
    """
    group = Group(
        task=task,
        address=task.id if address is None else address,
        engine=engine,
        renderer=renderer,
        sampling=sampling,
        max_completion_tokens=max_completion_tokens,
        max_path_tokens=max_path_tokens,
        env_deadline_s=env_deadline_s,
        pace=pace,
    )
    indices = range(group_size) if sample_indices is None else sample_indices
    episodes = [Episode(group=group, sample_index=index) for index in with_trunks(indices, branching)]
    begun: list[Episode] = []
    try:
        await _together(episode.start(envs) for episode in episodes)
        group.open(episodes)
        await group.grow(episodes, group_size)
        begun = await play(episodes, branching, _together)
    finally:
        engine.release(group.address)
        await _together(episode.close() for episode in episodes)
    paths = [
        Path(keys=tuple(episode.keys), leaf=episode.leaf)
        for episode in begun
        if episode.leaf is not None and episode.sample_index in indices
    ]
    return assemble(task, group.nodes, paths, None if group.growth is None else group.growth.search)


class TreeScorer(Protocol):
    """What judges a finished tree: `rlkit.rollout.scoring.Scorer`."""

    async def score(self, tree: Tree) -> ScoredTree:
        """The tree with its reward terms."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """How trees are sampled; the same for every task."""

    group_size: int
    """G, samples per task."""
    max_completion_tokens: int
    """Cap on one completion, unless the environment sets another."""
    max_path_tokens: int
    """Cap on a whole path, prompt included: the context of the model."""
    sampling: Sampling = field(default_factory=Sampling)
    """Distribution to draw from."""
    max_concurrent_groups: int = 8
    """Trees that are extended at the same time."""
    branching: Branching = INDEPENDENT
    """Which turns samples share."""
    round_tokens: int = 128
    """Tokens that a sample may draw in one round, where groups are advanced round by round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One round of one group."""

    segments: tuple[Segment, ...]
    """What was drawn in it."""
    scored: ScoredTree | None
    """The group, if it ended in this round."""


class Rollouts:
    """Environments, engine, renderer and rewards put together: tasks in, scored trees out."""

    def __init__(self, *, envs: EnvFactory, engine: Engine, renderer: Renderer, scorer: TreeScorer) -> None:
        self.envs = envs
        self.engine = engine
        self.renderer = renderer
        self.scorer = scorer
        self.index: Refreshable | None = None
        """The retriever of the environments, where its index may follow the run."""
        self.background = Background()
        self._flights: dict[int, Flight] = {}
        self._places: dict[int, asyncio.Semaphore] = {}

    async def run(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """One scored tree per task, in order; a bare task stands for its first draw."""
        places = asyncio.Semaphore(settings.max_concurrent_groups)
        draws = [task if isinstance(task, Draw) else Draw(task=task) for task in tasks]
        return await _together(self._scored(draw, settings, places) for draw in draws)

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """`run`, for a caller without an event loop."""
        return self.background.run(self.run(tasks, settings))

    async def advance(self, draw: Draw, settings: RolloutSettings, past: Past = BEGINNING) -> Progress:
        """One more round of a group; it begins with the first one, or where its `past` ended.

        Between two rounds of all its groups the engine is at rest and takes new weights.
        """
        places = self._places.setdefault(
            settings.max_concurrent_groups, asyncio.Semaphore(settings.max_concurrent_groups)
        )
        tree = None
        async with places:
            flight = self._flights.get(draw.number)
            if flight is None:
                pace = Pace(settings.round_tokens, past)
                flight = Flight(lambda pace: self._tree(draw, settings, pace), pace)
                self._flights[draw.number] = flight
                for _ in range(past.rounds):
                    tree = tree or await flight.round()
            tree = tree or await flight.round()
        if tree is None:
            return Progress(segments=flight.pace.take(), scored=None)
        del self._flights[draw.number]
        return Progress(segments=flight.pace.take(), scored=await self.scorer.score(tree))

    async def abandon(self, draw: Draw) -> None:
        """Give up a group that was begun."""
        if (flight := self._flights.pop(draw.number, None)) is not None:
            await flight.abandon()

    async def show(self, question: Question) -> Shown:
        """What this worker runs; see `rlkit.rollout.probe.show`."""
        return await show(self.engine, self.renderer, question)

    def look(self, question: Question) -> list[Shown]:
        """`show`, for a caller without an event loop and with any number of workers."""
        return [self.background.run(self.show(question))]

    def close(self) -> None:
        """End the reward processes and the event loop; the engine belongs to the caller."""
        self.scorer.close()
        self.background.close()

    async def _scored(self, draw: Draw, settings: RolloutSettings, places: asyncio.Semaphore) -> ScoredTree:
        async with places:
            tree = await self._tree(draw, settings)
        return await self.scorer.score(tree)  # outside: the next tree is sampled meanwhile

    async def _tree(self, draw: Draw, settings: RolloutSettings, pace: Pace | None = None) -> Tree:
        return await rollout_tree(
            draw.task,
            envs=self.envs,
            engine=self.engine,
            renderer=self.renderer,
            sampling=settings.sampling,
            group_size=settings.group_size,
            max_completion_tokens=settings.max_completion_tokens,
            max_path_tokens=settings.max_path_tokens,
            address=draw.address,
            branching=settings.branching,
            pace=pace,
        )


async def _together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run calls concurrently. The first exception cancels the others, waits for them, and goes on."""
    try:
        async with asyncio.TaskGroup() as running:
            tasks = [running.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
