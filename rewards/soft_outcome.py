"""Search-P1's outcome: 1 for a right answer, else partial credit for a nearly right one and for its reasoning.

Xia et al. 2026 (arXiv:2602.22576), eq. 8: 1 if the answer matches exactly, else 0.8·r_acc + 0.2·r_reason, where 0.8 is
the setting `alpha`. "Right" is exact match; containment, which the paper reports, is another reward (`containment`).
The rules' r_acc is 1 for containment and 0.5 from a word F1 of 0.5, r_reason grades S_ref (search_p1 §5.3). The 0.5 of
the paper's appendix is the middle level of r_acc and is not applied a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit import text
from rlkit.errors import RewardError
from rlkit.records import Task, Trajectory
from rlkit.reward import contract
from rlkit.search.path import PlanSource
from rlkit.search.scores import PathScores, read_case, rule_scores
from rlkit.tags import SEARCH_R1_TAGS, Tags

__all__ = ["outcome_reward", "soft_outcome"]


def outcome_reward(
    answer: str | None, golds: Sequence[str], scores: PathScores, *, alpha: float = 0.8, soft: bool = True
) -> float:
    """R_outcome in [0, 1]; without `soft` it is exact match alone (the ablation, and Search-R1)."""
    if text.best(text.exact, answer or "", golds):
        return 1.0
    if not soft:
        return 0.0
    return alpha * scores.outcome_accuracy_score + (1 - alpha) * scores.outcome_reasoning_score


@contract(bounds=(0.0, 1.0), needs_answers=True, invariant=("answer_order", "whitespace"), monotone={"answer": "up"})
def soft_outcome(
    task: Task,
    trajectory: Trajectory,
    *,
    alpha: float = 0.8,
    soft: bool = True,
    plan_source: PlanSource = "first_reasoning",
    allow_no_search: bool = False,
    gate: bool = True,
    tags: Tags = SEARCH_R1_TAGS,
) -> float:
    """R_outcome by the rules; 0 for a trajectory without answer or real search while `gate` is on (Algorithm 3)."""
    if not task.answers:
        raise RewardError(f"task {task.id} has no accepted answers to compare with")
    if not 0 <= alpha <= 1:
        raise RewardError(f"alpha: {alpha} is not in [0, 1]")
    case = read_case(task, trajectory, tags, plan_source=plan_source, allow_no_search=allow_no_search)
    if gate and case.path.grade == "invalid":
        return 0.0
    return outcome_reward(case.path.answer, task.answers, rule_scores(case), alpha=alpha, soft=soft)
