"""What a group of candidates is worth as a ranked list: HR@k and NDCG@k, and the rank-shaped reward of MiniOneRec.

Candidates are ranked by the log-probability of their tokens, best first, ties in the order of sampling: a search by
value hands them over in another order, in which positions would be arbitrary (V-STAR section 5). A semantic ID that was
drawn twice stands once in the list of `ranking`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.ranking import NO_ITEM, gains, hits, rank_penalties
from rlkit.errors import RewardError
from rlkit.records import Task, Trajectory
from rlkit.reward import contract

__all__ = ["rank_penalty", "ranking"]

CUTOFFS = [1, 3, 5, 10]


@contract(per_group=True, needs_answers=True, bounds=(0, 1))
def ranking(
    task: Task, trajectories: Sequence[Trajectory], *, cutoffs: list[int] = CUTOFFS, items: str | None = None
) -> list[dict[str, float]]:
    """`hr_k` and `ndcg_k` of the group's list for every cut-off, the same for each of its trajectories.

    Weight 0 measures. `items` is an items file: with it, items that share a semantic ID are ties in random order and
    the numbers are means over all orders (`rlkit.catalogue.ranking`); without, a semantic ID counts as one item.
    """
    if min(cutoffs, default=0) < 1:
        raise RewardError(f"cutoffs: {cutoffs} is not a list of whole numbers from 1")
    targets = _targets(task)
    sizes = _sizes(items) if items else {}
    order = _by_logprob(trajectories)
    ranked = list(dict.fromkeys(a for a in (trajectories[i].answer for i in order) if a is not None))
    places = [place for place, answer in enumerate(ranked) if answer in targets]
    before = sum(sizes.get(answer, 1) for answer in ranked[: places[0]]) if places else 0
    size = sizes.get(ranked[places[0]], 1) if places else NO_ITEM
    place, tie = np.array([before]), np.array([size])
    found = {f"hr_{k}": float(hits(place, tie, k)[0]) for k in cutoffs}
    found |= {f"ndcg_{k}": float(gains(place, tie, k)[0]) for k in cutoffs}
    return [found for _ in trajectories]


@contract(per_group=True, needs_answers=True, bounds=(-1, 0))
def rank_penalty(
    task: Task, trajectories: Sequence[Trajectory], *, order: Literal["logprob", "sample"] = "logprob"
) -> list[float]:
    """-q_i for a miss at place i of a group with a hit, 0 for the hit; 0 for all where nothing hit.

    q_i = (1 / log2(i + 2)) / Σ_j 1 / log2(j + 2): a miss costs more the likelier it was thought. `order: sample` takes
    the order in which the engine returned the candidates, as the published code does.
    """
    targets = _targets(task)
    hit = np.array([trajectory.answer in targets for trajectory in trajectories], bool)
    out = np.zeros(len(trajectories))
    if hit.any():
        ranked = _by_logprob(trajectories) if order == "logprob" else np.arange(len(trajectories))
        out[ranked] = -rank_penalties(len(trajectories))
        out[hit] = 0.0
    return [float(value) for value in out]


def _targets(task: Task) -> tuple[str, ...]:
    if not task.answers:
        raise RewardError(f"task {task.id} has no accepted answers to compare with")
    return task.answers


def _by_logprob(trajectories: Sequence[Trajectory]) -> NDArray[np.int64]:
    """[G] indices, likeliest first."""
    totals = [
        sum(float(node.behavior_logprobs.sum()) for node in t.nodes if node.behavior_logprobs is not None)
        for t in trajectories
    ]
    return np.argsort(-np.array(totals), kind="stable")


@cache
def _sizes(items: str) -> dict[str, int]:
    """Semantic ID -> how many items have it."""
    catalogue = Catalogue.read(Path(items).expanduser())
    return {sid: len(rows) for sid, rows in catalogue.rows_of_sid.items()}
