"""Search-P1's path reward: did the trajectory carry out its own plan, and did it cover the steps an expert needs.

Xia et al. 2026 (arXiv:2602.22576), eq. 6 and 7; numbers and gaps: search_p1 §2.3, §5.3, §6.

    S_self = r_planner · (n_exec / n_plan) · (n_exec / n_actions)
    S_ref  = (n_covered / |R_ref|) · (n_covered / n_actions)             R_path = max of both, never their sum

The last factor stops padding with redundant searches. The paper's own Algorithm 3 leaves it out: `path_mode: alg3` is
that other reward. Without a reference S_ref is 0 and `ref_available` says so.

`turn_credit` lets the reward speak of turns: each search gets what it added to R_path, so a search that covers a new
step earns, a repeated or fruitless one pays its share of the efficiency ratio, and the turns add up to R_path as the
rules count it. What is said of a turn depends on nothing that comes after it, neither on the gate nor on a judge, who
reads the end: else credit that leaves out what was earned before a turn would bias the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

from rlkit.errors import RewardError
from rlkit.judging import Endpoint
from rlkit.records import Task, Trajectory
from rlkit.reward import Score, contract
from rlkit.rewards.path_judge import OnFailure, path_scores
from rlkit.search.path import PlanSource
from rlkit.search.scores import Case, PathScores, efficient, read_case, rule_scores
from rlkit.tags import SEARCH_R1_TAGS, Tags
from rlkit.text import normalize

__all__ = ["PathMode", "PathReward", "Tracks", "measure", "path_centric", "path_reward", "turn_gains"]

PathMode = Literal["eq", "alg3"]
Combine = Literal["max", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracks:
    """Which tracks count, and how; the switches of search_p1 §3 and §5.4 that concern the path."""

    path_mode: PathMode = "eq"
    """`eq`: eq. 6 and 7, with the efficiency ratio; `alg3`: Algorithm 3, without."""
    self_track: bool = True
    """Track A; off is the ablation "no self"."""
    reference_track: bool = True
    """Track B; off is the ablation "no reference"."""
    combine: Combine = "max"
    """`max`: the paper; `mean` of the tracks that count: an ablation of ours."""
    clip_path: bool = False
    """Cut R_path at 1; an excellent plan is worth up to 1.2 otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathReward:
    """R_path and what it is made of."""

    s_self: float
    s_ref: float
    value: float
    """R_path."""


def path_reward(scores: PathScores, *, num_actions: int, num_reference: int, tracks: Tracks) -> PathReward:
    """R_path of clamped scores. No plan, no actions or no reference give that track 0, never a division."""
    plan, done = scores.model_plan_steps, scores.effective_steps_self
    if tracks.path_mode == "eq":
        own = efficient(done, plan, num_actions)
        reference = efficient(scores.effective_steps_ref, num_reference, num_actions)
    else:  # a step cannot be done without an action, so no actions give 0 here too
        own = _share(done, plan) if num_actions else 0.0
        reference = _share(scores.effective_steps_ref, num_reference) if num_actions else 0.0
    s_self, s_ref = scores.planner_score * own, reference
    counted = [s for s, on in ((s_self, tracks.self_track), (s_ref, tracks.reference_track)) if on]
    value = 0.0
    if counted:
        value = max(counted) if tracks.combine == "max" else math.fsum(counted) / len(counted)
    return PathReward(s_self=s_self, s_ref=s_ref, value=min(value, 1.0) if tracks.clip_path else value)


def turn_gains(case: Case, tracks: Tracks, num_turns: int, *, max_plan: int = 4) -> tuple[float, ...]:
    """What each turn added to R_path by the rules, whatever follows it; NaN for a turn without a search."""
    rules, path = rule_scores(case, max_plan=max_plan), case.path
    gains, before = [math.nan] * num_turns, 0.0
    counts = zip(accumulate(case.new_own), accumulate(case.new_reference), strict=True)
    for count, (search, (own, covered)) in enumerate(zip(path.searches, counts, strict=True), start=1):
        planned = search.turn >= path.plan_turn  # a plan that is written later counts from there on
        so_far = replace(
            rules,
            model_plan_steps=rules.model_plan_steps if planned else 0,
            effective_steps_self=own if planned else 0,
            effective_steps_ref=covered,
        )
        now = path_reward(so_far, num_actions=count, num_reference=case.num_reference, tracks=tracks).value
        gains[search.turn], before = now - before, now
    return tuple(gains)


def measure(case: Case, scores: PathScores, reward: PathReward) -> dict[str, float]:
    """What is logged of a path, whatever its format: counts, both tracks, and which one won."""
    new = [own or ref for own, ref in zip(case.new_own, case.new_reference, strict=True)]
    distinct = len({normalize(search.query) for search in case.path.searches})
    return {
        "n_plan": scores.model_plan_steps,
        "n_actions": case.num_actions,
        "n_exec": scores.effective_steps_self,
        "n_covered": scores.effective_steps_ref,
        "n_fruitless": len(new) - sum(new),
        "n_repeated": case.num_actions - distinct,
        "one_step_plan": float(scores.model_plan_steps == 1),
        "planner_score": scores.planner_score,
        "ref_available": float(case.reference is not None),
        "ref_steps": float(case.num_reference) if case.reference else math.nan,
        "s_self": reward.s_self,
        "s_ref": reward.s_ref,
        "self_won": float(reward.s_self > reward.s_ref),
    }


def _bounds(**settings: Any) -> tuple[float, float]:
    return 0.0, 1.0 if settings.get("clip_path") else 1.2


@contract(per_group=True, bounds=_bounds, invariant=("answer_order", "whitespace", "group_order"), fallback=True)
def path_centric(
    task: Task,
    trajectories: Sequence[Trajectory],
    *,
    path_mode: PathMode = "eq",
    self_track: bool = True,
    reference_track: bool = True,
    combine: Combine = "max",
    clip_path: bool = False,
    plan_source: PlanSource = "first_reasoning",
    max_plan: int = 4,
    allow_no_search: bool = False,
    gate: bool = True,
    turn_credit: bool = False,
    judge: Endpoint | None = None,
    on_failure: OnFailure = "rules",
    tags: Tags = SEARCH_R1_TAGS,
) -> list[Score | RewardError]:
    """R_path of Search-P1, by the rules or by `judge`: own plan carried out, or reference steps covered.

    0 without an answer or a real search while `gate` is on (Algorithm 3).
    `max_plan` is the search budget B, above which a plan is average; `tags` are the environment's. `on_failure`: what
    stands in for a judge without a verdict.
    """
    tracks = Tracks(
        path_mode=path_mode,
        self_track=self_track,
        reference_track=reference_track,
        combine=combine,
        clip_path=clip_path,
    )
    cases = [
        read_case(task, trajectory, tags, plan_source=plan_source, allow_no_search=allow_no_search)
        for trajectory in trajectories
    ]
    paid = [not gate or case.path.grade != "invalid" for case in cases]
    found = path_scores(cases, trajectories, paid, judge=judge, on_failure=on_failure, max_plan=max_plan)
    results: list[Score | RewardError] = []
    for case, trajectory, pays, said in zip(cases, trajectories, paid, found, strict=True):
        if isinstance(said, RewardError):
            results.append(said)
            continue
        scores, counters = said
        reward = path_reward(scores, num_actions=case.num_actions, num_reference=case.num_reference, tracks=tracks)
        turns = turn_gains(case, tracks, len(trajectory.turns), max_plan=max_plan) if turn_credit else None
        measured = measure(case, scores, reward) | counters
        results.append(Score(value=reward.value if pays else 0.0, turns=turns, measured=measured))
    return results


def _share(done: int, wanted: int) -> float:
    return min(1.0, done / wanted) if wanted > 0 else 0.0
