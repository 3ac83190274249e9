"""Rewards that compare the final answer with the accepted ones, best over all of them (`rlkit.text`).

Training on exact match and reporting containment is Search-P1's habit (search_p1 §2.4, §5): they are
different rewards and never one column of a table. No answer is 0; a task without accepted answers is an
error, not a 0.
"""

from __future__ import annotations

from rlkit import text
from rlkit.errors import RewardError
from rlkit.records import Task, Trajectory
from rlkit.reward import Invariance, contract

__all__ = ["containment", "exact_match", "f1"]

INVARIANT: tuple[Invariance, ...] = ("whitespace", "answer_order", "turn_order")


@contract(bounds=(0, 1), needs_answers=True, invariant=INVARIANT, monotone={"answer": "up"})
def exact_match(task: Task, trajectory: Trajectory) -> float:
    """1.0 if the answer equals an accepted one after normalisation, else 0.0 (Search-R1's reward)."""
    return text.best(text.exact, trajectory.answer or "", _accepted(task))


@contract(bounds=(0, 1), needs_answers=True, invariant=INVARIANT, monotone={"answer": "up"})
def containment(task: Task, trajectory: Trajectory, *, whole_words: bool = False) -> float:
    """1.0 if an accepted answer occurs in the answer, else 0.0; never below `exact_match`.

    `whole_words=False` is the benchmark's ACC, in which "Einsteinium" contains "Einstein".
    """
    metric = text.contains_words if whole_words else text.contains
    return text.best(metric, trajectory.answer or "", _accepted(task))


@contract(bounds=(0, 1), needs_answers=True, invariant=INVARIANT, monotone={"answer": "up"})
def f1(task: Task, trajectory: Trajectory) -> float:
    """Word F1 in [0, 1]: partial credit for a partly right answer, less for a wordy one."""
    return text.best(text.f1, trajectory.answer or "", _accepted(task))


def _accepted(task: Task) -> tuple[str, ...]:
    if not task.answers:
        raise RewardError(f"task {task.id} has no accepted answers to compare with")
    return task.answers
