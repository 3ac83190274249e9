"""The dense reward of V-STAR: one number per level, by how near the items below a prefix are to the target.

    r_l = w_l                                  if the first l tokens are those of the target
        = -w_l · (1 - cos(ē(prefix), e(y*)))   otherwise

e are frozen text embeddings, ē(prefix) is the mean over the candidates of the group that share the prefix (V-STAR
section 2). It trains the value head only: give it weight 0. Our choices: a candidate counts once however often it was
drawn, and the embedding of a semantic ID that several items share is the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkit.catalogue.items import split_sid
from rlkit.catalogue.vectors import sid_vectors
from rlkit.errors import RewardError
from rlkit.records import Task, Trajectory
from rlkit.reward import contract

__all__ = ["level_rewards", "sid_prefix"]

Floats = NDArray[np.float64]
WEIGHTS = [0.3, 0.5, 1.0]
"""V-STAR's, for three levels."""


def level_rewards(
    candidates: Sequence[Sequence[object]],
    target: Sequence[object],
    vectors: Floats,
    target_vector: Floats,
    weights: Sequence[float],
) -> Floats:
    """[C, L] rewards of distinct candidates with L levels; `vectors` [C, D] are their embeddings, in the same order.

    A zero vector has cosine 0 with everything.
    """
    out = np.empty((len(candidates), len(weights)))
    goal = target_vector / max(float(np.linalg.norm(target_vector)), 1e-12)
    for level, weight in enumerate(weights, start=1):
        buckets: dict[tuple[object, ...], list[int]] = {}
        for index, sid in enumerate(candidates):
            buckets.setdefault(tuple(sid[:level]), []).append(index)
        for prefix, inside in buckets.items():
            mean = vectors[inside].mean(0)
            cosine = float(mean @ goal) / max(float(np.linalg.norm(mean)), 1e-12)
            miss = -weight * (1 - min(1.0, max(-1.0, cosine)))
            out[inside, level - 1] = weight if prefix == tuple(target[:level]) else miss
    return out


def _bounds(**settings: Any) -> tuple[float, float]:
    most = max(settings.get("weights", WEIGHTS), default=0.0)
    return -2 * most, most


@contract(per_group=True, needs_answers=True, bounds=_bounds, invariant=("group_order",))
def sid_prefix(
    task: Task, trajectories: Sequence[Trajectory], *, vectors: str, weights: list[float] = WEIGHTS
) -> list[dict[str, float] | RewardError]:
    """`level_1` .. `level_L` of every trajectory; its weight belongs to be 0.

    `vectors` is a file of `python -m rlkit.launch.sid embed`; `weights` has one number per level. A trajectory without
    a valid semantic ID is a failure of this reward, not a number: it has no place among the items.
    """
    target = split_sid(task.answers[0]) if task.answers else ()
    if len(target) != len(weights):
        raise RewardError(f"weights: {len(weights)} numbers for a target of {len(target)} levels ({task.answers[:1]})")
    table = _table(vectors)
    if "".join(target) not in table:
        raise RewardError(
            f"vectors: {vectors} has none for the target {''.join(target)}; those made before the semantic IDs are "
            "written again under them by: python -m rlkit.launch.sid tokenize ... --vectors-out FILE"
        )
    answers = list(dict.fromkeys(t.answer for t in trajectories if t.answer is not None and t.answer in table))
    rewards = level_rewards(
        [split_sid(answer) for answer in answers],
        target,
        np.array([table[answer] for answer in answers]),
        table["".join(target)],
        weights,
    )
    rows = dict(zip(answers, rewards, strict=True))
    return [
        {f"level_{level}": float(value) for level, value in enumerate(rows[t.answer], start=1)}
        if t.answer in rows
        else RewardError(f"{t.answer!r} is no semantic ID of {vectors}")
        for t in trajectories
    ]


@cache
def _table(file: str) -> dict[str, Floats]:
    return sid_vectors(Path(file).expanduser())
