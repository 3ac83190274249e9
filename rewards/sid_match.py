"""1 if the semantic ID is that of the item that came next, else 0 (the rule reward of MiniOneRec and V-STAR).

A hit on a semantic ID that several items share counts as a hit.
"""

from __future__ import annotations

from rlkit.errors import RewardError
from rlkit.records import Task, Trajectory
from rlkit.reward import contract

__all__ = ["sid_match"]


@contract(needs_answers=True, bounds=(0, 1))
def sid_match(task: Task, trajectory: Trajectory) -> float:
    """1.0 if the answer is an accepted semantic ID, else 0.0; no answer, or no semantic ID, is 0."""
    if not task.answers:
        raise RewardError(f"task {task.id} has no accepted answers to compare with")
    return float(trajectory.answer in task.answers)
