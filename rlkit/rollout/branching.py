"""Rollouts that branch: samples of a group share their first turns, then go their own ways.

    group_size 4, branches 2, fork_turn 1:      prompt ── turn 0 of sample 0 ──┬─ sample 0
                                                       │                       └─ sample 1
                                                       └─ turn 0 of sample 2 ──┬─ sample 2
                                                                               └─ sample 3

Siblings differ by what follows the fork only, so sibling credit can tell one decision from another, and what they
share is computed and trained on once. The draws of a shared turn are those of the first sample of its trunk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlkit.rollout.episode import Episode

__all__ = ["Branching", "play", "with_trunks"]

Together = Callable[[Iterable[Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branching:
    """Where samples split; the default is independent samples."""

    branches: int = 1
    """Samples that share a trunk; 1: none do."""
    fork_turn: int = 1
    """Turns of the trunk, its observation included: 1 splits after the first search."""
    max_unique_tokens: int | None = None
    """Once the tree holds so many tokens, no further branch is begun and the group stays smaller; the first branch of
    every trunk is always begun."""

    def trunk(self, sample_index: int) -> int:
        """The sample whose first turns it shares."""
        return sample_index - sample_index % self.branches


def with_trunks(indices: Iterable[int], branching: Branching) -> list[int]:
    """The samples that have to be begun so that these can be: a branch alone needs its trunk too."""
    wanted = set(indices)
    return sorted(wanted | {branching.trunk(index) for index in wanted})


async def play(episodes: Sequence[Episode], branching: Branching, together: Together) -> list[Episode]:
    """Run episodes that were opened; returns those that were begun, all of them ended.

    A trunk that ends before the fork has nothing to share: its branches are then samples of their own. With a budget,
    branches are begun in waves, one of each trunk, so the result does not depend on the order of arrival.
    """
    if branching.branches == 1:
        await together(episode.run() for episode in episodes)
        return list(episodes)
    by_index = {episode.sample_index: episode for episode in episodes}
    trunks = [episode for index, episode in by_index.items() if branching.trunk(index) == index]
    await together(trunk.run(before=branching.fork_turn) for trunk in trunks)
    split = {trunk.sample_index for trunk in trunks if trunk.leaf is None}
    waves: list[list[Episode]] = [[] for _ in range(branching.branches)]
    for index, episode in by_index.items():
        place = index - branching.trunk(index)
        waves[place].append(episode)
        if place and episode.leaf is None and branching.trunk(index) in split:
            await episode.follow(by_index[branching.trunk(index)])
    if branching.max_unique_tokens is None:
        await together(episode.run() for wave in waves for episode in wave)
        return list(episodes)
    begun: list[Episode] = []
    for number, wave in enumerate(waves):
        nodes = episodes[0].group.nodes.values()
        if number > 1 and sum(len(node.token_ids) for node in nodes) >= branching.max_unique_tokens:
            break
        await together(episode.run() for episode in wave)
        begun += wave
    return begun
