"""The planner `vote`: what do K rollouts that found the right answer by themselves have in common?

Xia et al. 2026 (arXiv:2602.22576), eq. 5: rollouts of a strong model that was not shown the answer, those with a
correct answer are kept, and a language model merges them into the fewest essential steps. The voting prompt is not in
the paper. Without a model, queries are clustered with the matcher of `rlkit.search.matching`, clusters that at least
half of the correct rollouts share are kept, and stand in the order of their mean position (search_p1 §7).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rlkit.judging import Judge
from rlkit.planning.direct import read_plan
from rlkit.records import Task, Tree
from rlkit.search.matching import Query, Step
from rlkit.search.path import parse_path
from rlkit.tags import Tags
from rlkit.text import best, exact, normalize

__all__ = ["MERGE", "common_steps", "correct_paths"]

TEMPLATE = """\
Several attempts at one question all found the right answer. Below are the search queries of each, in order. Merge them
into the smallest list of search steps that is essential to answer the question, in order. Leave out what only one
attempt needed, and write [what was found] where a step depends on an earlier one. No step may contain the answer, a
web address or a tag.
Write one JSON object of this form and nothing else:
{"correct_reasoning_path": ["first step", "second step"], "optimized_planner": "a short instruction in words"}

Question:
{question}
Attempts:
{paths}
{complaint}
"""
MERGE = Judge(name="vote planner", template=TEMPLATE, parse=read_plan)


def correct_paths(task: Task, trees: Iterable[Tree], tags: Tags, k: int) -> list[tuple[str, ...]]:
    """Queries that brought passages, of those of the first `k` rollouts that searched and were exactly right."""
    found = []
    attempts = [trajectory for tree in trees for trajectory in tree.trajectories()][:k]
    for trajectory in attempts:
        if trajectory.leaf.status == "failed":
            continue
        path = parse_path(trajectory, tags)
        right = best(exact, path.answer or "", task.answers)
        if right and path.grade != "invalid" and path.carried_out:
            found.append(tuple({normalize(query): query for query in path.carried_out}.values()))
    return found


@dataclass(kw_only=True)
class Cluster:
    """Queries that ask the same."""

    name: str
    """The first of them."""
    rollouts: set[int] = field(default_factory=set)
    positions: list[float] = field(default_factory=list)


def common_steps(paths: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The steps that at least half of the rollouts took, in the order of their mean position."""
    clusters: list[Cluster] = []
    for rollout, queries in enumerate(paths):
        for position, query in enumerate(queries):
            fits = (cluster for cluster in clusters if Query.of(query).carries_out(Step.of(cluster.name)))
            cluster = next(fits, None)
            if cluster is None:
                cluster = Cluster(name=query)
                clusters.append(cluster)
            cluster.rollouts.add(rollout)
            cluster.positions.append(position)
    kept = [cluster for cluster in clusters if 2 * len(cluster.rollouts) >= len(paths)]
    kept.sort(key=lambda cluster: sum(cluster.positions) / len(cluster.positions))
    return tuple(cluster.name for cluster in kept)
