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
from rlkit.rollout.assemble import Path, assemble
from rlkit.rollout.branching import Branching, play, with_trunks
from rlkit.rollout.episode import Episode, Group
from rlkit.rollout.ledger import Draw

__all__ = ["RolloutSettings", "Rollouts", "TreeScorer", "rollout_tree"]

T = TypeVar("T")
INDEPENDENT = Branching()


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
) -> Tree:
    """Sample one tree. What fails in an environment or engine is a leaf's status, never an exception.

    `max_path_tokens` is the context: no path is longer, prompt included. `sample_indices` replays some of the
    group's samples, alone but with the same draws. `address` stands for `task.id` in the address of those
    draws, where a task is rolled out more than once (see `Draw`). `env_deadline_s` is for one call of an
    environment. `branching` lets samples share their first turns.
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


class Rollouts:
    """Environments, engine, renderer and rewards put together: tasks in, scored trees out."""

    def __init__(self, *, envs: EnvFactory, engine: Engine, renderer: Renderer, scorer: TreeScorer) -> None:
        self.envs = envs
        self.engine = engine
        self.renderer = renderer
        self.scorer = scorer
        # One event loop for all of `collect`: locks of an engine belong to the loop they first ran in.
        self._runner = asyncio.Runner()

    async def run(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """One scored tree per task, in order; a bare task stands for its first draw."""
        places = asyncio.Semaphore(settings.max_concurrent_groups)
        draws = [task if isinstance(task, Draw) else Draw(task=task) for task in tasks]
        return await _together(self._tree(draw, settings, places) for draw in draws)

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """`run`, for a caller without an event loop."""
        return self._runner.run(self.run(tasks, settings))

    def close(self) -> None:
        """End the reward processes and the event loop; the engine belongs to the caller."""
        self.scorer.close()
        self._runner.close()

    async def _tree(self, draw: Draw, settings: RolloutSettings, places: asyncio.Semaphore) -> ScoredTree:
        async with places:
            tree = await rollout_tree(
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
            )
        return await self.scorer.score(tree)  # outside: the next tree is sampled meanwhile


async def _together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run calls concurrently. The first exception cancels the others, waits for them, and goes on."""
    try:
        async with asyncio.TaskGroup() as running:
            tasks = [running.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
