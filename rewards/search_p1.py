"""Search-P1: path, outcome and format in one reward, which is 0 for a trajectory without answer or real search.

Xia et al. 2026 (arXiv:2602.22576), eq. 4 and Algorithm 3; search_p1 §2.2:

    R = 0.3·R_path + 0.6·R_outcome + 0.1·R_format            from 0.05 to 1.06, or exactly 0

The three terms are rewards of their own (`path_centric`, `soft_outcome`, `search_format`), each with the same gate, so
a recipe may also list them one by one. Where the paper contradicts itself, a setting decides, and its default is the
main text: `path_mode`, `format_scale`, `plan_source` and the others below.

With `judge`, a language model says the six numbers that the terms rest on (`path_judge`), once for each different
trajectory that is not gated; otherwise, and where it fails, the rules do.

Beside its value the reward measures, as terms of weight 0: `path`, `outcome` and `format` as they enter the sum (0
where gated), the counts and tracks of `path_centric.measure`, the shares `full`, `partial`, `invalid`, `path_em` (do
better paths of a group have the right answers?), and the judge's counters (`rlkit.judging.Verdict.measured`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlkit import text
from rlkit.errors import RewardError
from rlkit.judging import Endpoint
from rlkit.records import Task, Trajectory
from rlkit.reward import Score, contract
from rlkit.rewards.path_centric import Combine, PathMode, Tracks, measure, path_reward, turn_gains
from rlkit.rewards.path_judge import OnFailure, path_scores
from rlkit.rewards.search_format import FormatMode, FormatScale, format_value, grades, is_gated
from rlkit.rewards.soft_outcome import outcome_reward
from rlkit.search.path import PlanSource
from rlkit.search.scores import PLANNER, Case, PathScores, read_case
from rlkit.settings import at_least
from rlkit.tags import Tags

__all__ = ["SearchP1", "search_p1", "total_reward"]


@dataclass(frozen=True, kw_only=True)
class SearchP1:
    """Settings of `search_p1`; the defaults are the paper's main text."""

    lambda_p: float = 0.3
    """Weight of the path."""
    lambda_a: float = 0.6
    """Weight of the outcome; λo in the paper's figure."""
    lambda_f: float = 0.1
    """Weight of the format."""
    path_mode: PathMode = "eq"
    """`eq`: with the efficiency ratio of eq. 6 and 7; `alg3`: Algorithm 3, without."""
    format_scale: FormatScale = "once"
    """`once`: 1 or 0.5 times `lambda_f`; `literal`: 0.1 or 0.05 times `lambda_f`."""
    format_mode: FormatMode = "soft"
    """`soft`: partial counts half; `strict`: anything but full earns nothing; `none`: no format term."""
    plan_source: PlanSource = "first_reasoning"
    """Where the plan stands: in the first reasoning (the paper), or in a tag of its own (small models)."""
    alpha: float = 0.8
    """Share of r_acc in the outcome of a wrong answer."""
    soft_outcome: bool = True
    """Partial credit for wrong answers; off is the ablation "binary outcome"."""
    self_track: bool = True
    """Track A; off is the ablation "no self"."""
    reference_track: bool = True
    """Track B; off is the ablation "no reference"."""
    combine: Combine = "max"
    """How the tracks make one number; `mean` is an ablation of ours."""
    clip_path: bool = False
    """Cut R_path at 1."""
    allow_no_search: bool = False
    """Pay for a right answer without a search."""
    max_plan: int = 4
    """B, the search budget: the rules call a longer plan average."""
    turn_credit: bool = False
    """Speak of turns too: what each search added, in units of the total (`path_centric`)."""
    judge: Endpoint | None = None
    """Endpoint of a language model that scores the paths; null: the rules do."""
    on_failure: OnFailure = "rules"
    """Where the judge gives no verdict: `rules` lets the rules stand in (search_p1 §5.4), `fail` is a failed reward."""
    tags: Tags = field(default_factory=Tags)
    """Names of the tags; `${env.tags}` in a recipe."""

    def __post_init__(self) -> None:
        at_least(self, 0, "lambda_p", "lambda_a", "lambda_f", "alpha")
        at_least(self, 1, "max_plan")
        if self.alpha > 1:
            raise ValueError(f"alpha: {self.alpha} is not in [0, 1]")

    @property
    def tracks(self) -> Tracks:
        """The settings that concern the path."""
        return Tracks(
            path_mode=self.path_mode,
            self_track=self.self_track,
            reference_track=self.reference_track,
            combine=self.combine,
            clip_path=self.clip_path,
        )

    def read(self, task: Task, trajectory: Trajectory) -> Case:
        """The trajectory, parsed."""
        return read_case(
            task,
            trajectory,
            self.tags,
            plan_source=self.plan_source,
            allow_no_search=self.allow_no_search,
        )

    def gated(self, case: Case) -> bool:
        """True where the total is 0 at once; no judge is asked then."""
        return is_gated(case.path, self.format_mode)


def total_reward(case: Case, scores: PathScores, settings: SearchP1, *, num_turns: int) -> Score:
    """The reward of a parsed trajectory, given the clamped scores of the rules or of a judge."""
    tracks, path = settings.tracks, case.path
    paths = path_reward(scores, num_actions=case.num_actions, num_reference=case.num_reference, tracks=tracks)
    outcome = outcome_reward(path.answer, case.task.answers, scores, alpha=settings.alpha, soft=settings.soft_outcome)
    form = format_value(path.grade, format_mode=settings.format_mode, format_scale=settings.format_scale)
    parts = {"path": paths.value, "outcome": outcome, "format": form}
    if settings.gated(case):
        parts = dict.fromkeys(parts, 0.0)
    weighted = (settings.lambda_p * parts["path"], settings.lambda_a * parts["outcome"])
    total = math.fsum((*weighted, settings.lambda_f * parts["format"]))
    turns = None
    if settings.turn_credit:
        gains = turn_gains(case, tracks, num_turns, max_plan=settings.max_plan)
        turns = tuple(settings.lambda_p * gain for gain in gains)
    return Score(value=total, turns=turns, measured=parts | measure(case, scores, paths) | grades(path))


def correlation(values: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's r of two columns; NaN where one of them does not differ, which says nothing."""
    if any(max(column, default=0.0) - min(column, default=0.0) < 1e-9 for column in (values, right)):
        return math.nan
    return statistics.correlation(values, right)


def _bounds(**settings: Any) -> tuple[float, float]:
    made = SearchP1(**settings)
    most_path = 1.0 if made.clip_path or not made.self_track else PLANNER[-1]
    most_format = format_value("full", format_mode=made.format_mode, format_scale=made.format_scale)
    return 0.0, made.lambda_p * most_path + made.lambda_a + made.lambda_f * most_format


@contract(
    per_group=True,
    bounds=_bounds,
    needs_answers=True,
    invariant=("answer_order", "whitespace", "group_order"),
    monotone={"answer": "up"},
    fallback=True,
)
def search_p1(task: Task, trajectories: Sequence[Trajectory], **settings: Any) -> list[Score | RewardError]:
    """Search-P1's total reward by the rules or by a judge; its settings are those of `SearchP1`."""
    if not task.answers:
        raise RewardError(f"task {task.id} has no accepted answers to compare with")
    made = SearchP1(**settings)
    cases = [made.read(task, trajectory) for trajectory in trajectories]
    found = path_scores(
        cases,
        trajectories,
        [not made.gated(case) for case in cases],
        judge=made.judge,
        on_failure=made.on_failure,
        max_plan=made.max_plan,
    )
    totals: list[Score | RewardError] = []
    for case, trajectory, said in zip(cases, trajectories, found, strict=True):
        if isinstance(said, RewardError):
            totals.append(said)
            continue
        scores, counters = said
        score = total_reward(case, scores, made, num_turns=len(trajectory.turns))
        totals.append(replace(score, measured={**score.measured, **counters}))
    judged = [(place, total) for place, total in enumerate(totals) if isinstance(total, Score)]
    right = [text.best(text.exact, cases[place].path.answer or "", task.answers) for place, _ in judged]
    path_em = correlation([total.measured["path"] for _, total in judged], right)
    for place, total in judged:
        totals[place] = replace(total, measured={**total.measured, "path_em": path_em})
    return totals


search_p1.Config = SearchP1  # type: ignore[attr-defined]
