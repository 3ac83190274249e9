"""Asks the judge of search paths for the rewards that rest on its six numbers: search_p1, path_centric, soft_outcome.

One request per different trajectory of a group, side by side, and none where no verdict can change the reward. What
the judge reads has one line per node, so that nothing that the policy wrote can pose as an observation, and other
white space is no other trajectory.

Without a judge the rules of `rlkit.search.scores` say the numbers. Where a judge gives no verdict, `on_failure: rules`
(the default, search_p1 §5.4) lets them stand in for that trajectory, which puts two scales into one group: look at
`judge_failed`. `fail` leaves the trajectory out of its group's statistics instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rlkit.errors import RewardError
from rlkit.judging import Endpoint, Question, shared
from rlkit.judging.path import PATH_JUDGE
from rlkit.records import Trajectory
from rlkit.search.scores import Case, PathScores, rule_scores

__all__ = ["Judged", "OnFailure", "attempt", "path_scores"]

OnFailure = Literal["fail", "rules"]
Judged = tuple[PathScores, dict[str, float]]
"""The six numbers, and the judge's counters; empty where it was not asked."""


def path_scores(
    cases: Sequence[Case],
    trajectories: Sequence[Trajectory],
    ask: Sequence[bool],
    *,
    judge: Endpoint | None = None,
    on_failure: OnFailure = "rules",
    max_plan: int = 4,
) -> list[Judged | RewardError]:
    """One result per trajectory; where `ask` is False, and everywhere without a judge, that of the rules."""
    scores: list[Judged | RewardError] = [(rule_scores(case, max_plan=max_plan), {}) for case in cases]
    places = [place for place, wanted in enumerate(ask) if wanted and judge is not None]
    if judge is None or not places:
        return scores
    verdicts = shared(judge, PATH_JUDGE).ask([_question(cases[place], trajectories[place]) for place in places])
    for place, verdict in zip(places, verdicts, strict=True):
        if verdict.value is not None:
            scores[place] = verdict.value.clamped(cases[place]), verdict.measured
        elif on_failure == "rules":
            scores[place] = rule_scores(cases[place], max_plan=max_plan), verdict.measured
        else:
            scores[place] = RewardError(verdict.error)
    return scores


def attempt(trajectory: Trajectory) -> str:
    """A trajectory as the judge reads it: `AGENT:` what the policy wrote, `SEARCH ENGINE:` what came back."""
    speaker = {"policy": "AGENT", "environment": "SEARCH ENGINE"}
    lines = [(speaker[n.author], " ".join(n.text.split())) for n in trajectory.nodes if n.author != "prompt"]
    return "\n".join(f"{author}: {text}" for author, text in lines)


def _question(case: Case, trajectory: Trajectory) -> Question:
    reference, text = case.reference, attempt(trajectory)
    steps = reference.steps if reference else ()
    slots = {
        "question": case.task.question,
        "golden_answers": "\n".join(sorted(case.task.answers)),
        "ref_planner": (reference.planner if reference else "") or "none",
        "ref_reasoning_path": "\n".join(f"{n}. {step}" for n, step in enumerate(steps, start=1)) or "none",
        "trajectory": text,
    }
    return Question(id=case.task.id, trajectory=text, slots=slots)
