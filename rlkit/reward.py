"""What a reward is: a plain function of a task and a trajectory. Keyword-only parameters are its recipe settings.

    def brevity(task: Task, trajectory: Trajectory, *, limit: int = 200) -> float:
        return float(len(trajectory.completion) <= limit)

It may also return `dict[str, float]` (several named terms) or `Score` (a value and one per turn). A function marked
`@per_group` receives all trajectories of a task at once and returns one result for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlkit.records import Task, Trajectory

__all__ = [
    "GroupReward",
    "Reward",
    "RewardResult",
    "Score",
    "Task",
    "Trajectory",
    "is_per_group",
    "needs_answers",
    "per_group",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward that also speaks of single turns, for credit at decisions."""

    value: float
    """Reward of the whole trajectory."""
    turns: tuple[float, ...]
    """One value per turn (see `Trajectory.turns`); NaN where the reward is silent."""


RewardResult = float | Mapping[str, float] | Score
Reward = Callable[..., RewardResult]
"""`(task, trajectory, **settings) -> RewardResult`."""
GroupReward = Callable[..., Sequence[RewardResult]]
"""`(task, trajectories, **settings) -> one RewardResult per trajectory`."""

F = TypeVar("F", bound=Callable[..., Any])


def per_group(function: F) -> F:
    """Mark a reward that is called once per group with `(task, trajectories)`: rankings, diversity, comparisons."""
    function.per_group = True  # type: ignore[attr-defined]
    return function


def is_per_group(function: Callable[..., Any]) -> bool:
    """True if the reward was marked with `per_group`."""
    return bool(getattr(function, "per_group", False))


def needs_answers(function: F) -> F:
    """Mark a reward that reads `task.answers`, so that tasks without answers are refused before a run starts."""
    function.needs_answers = True  # type: ignore[attr-defined]
    return function
