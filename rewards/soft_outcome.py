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
from rlkit.judging import Endpoint
from rlkit.records import Task, Trajectory
from rlkit.reward import Score, contract
from rlkit.rewards.path_judge import OnFailure, path_scores
from rlkit.search.path import PlanSource
from rlkit.search.scores import PathScores, read_case
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


@contract(
    per_group=True,
    bounds=(0.0, 1.0),
    needs_answers=True,
    invariant=("answer_order", "whitespace", "group_order"),
    monotone={"answer": "up"},
    fallback=True,
)
def soft_outcome(
    task: Task,
    trajectories: Sequence[Trajectory],
    *,
    alpha: float = 0.8,
    soft: bool = True,
    plan_source: PlanSource = "first_reasoning",
    allow_no_search: bool = False,
    gate: bool = True,
    judge: Endpoint | None = None,
    on_failure: OnFailure = "rules",
    tags: Tags = SEARCH_R1_TAGS,
) -> list[Score | RewardError]:
    """R_outcome of Search-P1, by the rules or by `judge`: 1 for a right answer, less for a nearly right one.

    0 without an answer or a real search while `gate` is on (Algorithm 3).
    The judge is asked about wrong answers only: a right one is worth 1 whatever it says. `on_failure`: what stands in
    for a judge without a verdict.
    """
    if not task.answers:
        raise RewardError(f"task {task.id} has no accepted answers to compare with")
    if not 0 <= alpha <= 1:
        raise RewardError(f"alpha: {alpha} is not in [0, 1]")
    cases = [
        read_case(task, trajectory, tags, plan_source=plan_source, allow_no_search=allow_no_search)
        for trajectory in trajectories
    ]
    paid = [not gate or case.path.grade != "invalid" for case in cases]
    right = [text.best(text.exact, case.path.answer or "", task.answers) > 0 for case in cases]
    ask = [soft and pays and not exact for pays, exact in zip(paid, right, strict=True)]
    found = path_scores(cases, trajectories, ask, judge=judge, on_failure=on_failure)
    results: list[Score | RewardError] = []
    for case, pays, said in zip(cases, paid, found, strict=True):
        if isinstance(said, RewardError):
            results.append(said)
            continue
        scores, counters = said
        value = outcome_reward(case.path.answer, task.answers, scores, alpha=alpha, soft=soft) if pays else 0.0
        results.append(Score(value=value, measured=counters))
    return results
