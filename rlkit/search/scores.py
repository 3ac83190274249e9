"""The six numbers that a path reward rests on: a judge gives them, or the rules below (search_p1 §4.5 and §5.3).

    case = read_case(task, trajectory, tags)
    scores = rule_scores(case)                            without a language model, and where one fails
    scores = verdict.clamped(case)                        of a judge (`rlkit.judging.path`)

The rules count with words (`rlkit.search.matching`), so they cannot see a wrong entity, and never give the planner more
than 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from rlkit import text
from rlkit.records import Task, Trajectory
from rlkit.search.matching import newly_covered
from rlkit.search.path import PlanSource, SearchPath, parse_path
from rlkit.search.references import Reference, reference_of
from rlkit.tags import Tags

__all__ = ["ACCURACY", "PLANNER", "REASONING", "Case", "PathScores", "efficient", "read_case", "rule_scores"]

PLANNER = (0.2, 0.6, 1.0, 1.2)
"""r_planner: bad, average, good, excellent."""
ACCURACY = (0.0, 0.5, 1.0)
"""r_acc: wrong, partial, correct."""
REASONING = (0.0, 0.5, 0.8, 1.0)
"""r_reason."""
NO_PLAN, AVERAGE, GOOD, _ = PLANNER


@dataclass(frozen=True, kw_only=True)
class Case:
    """One trajectory to score, with what it is measured against."""

    task: Task
    path: SearchPath
    reference: Reference | None
    """None: this task has none; the reference track is 0 then, and says so."""

    @property
    def num_actions(self) -> int:
        """n_actions: every closed call with a query, duplicates included."""
        return len(self.path.searches)

    @property
    def num_reference(self) -> int:
        """|R_ref|, 0 without a reference."""
        return len(self.reference.steps) if self.reference else 0

    @cached_property
    def new_own(self) -> tuple[bool, ...]:
        """For each search whether it carried out one more step of the own plan."""
        return self._new(self.path.plan)

    @cached_property
    def new_reference(self) -> tuple[bool, ...]:
        """For each search whether it covered one more reference step."""
        return self._new(self.reference.steps if self.reference else ())

    def _new(self, steps: tuple[str, ...]) -> tuple[bool, ...]:
        covered = iter(newly_covered(steps, self.path.carried_out))
        return tuple(search.found and next(covered) for search in self.path.searches)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathScores:
    """The keys of the judge's JSON, counts at least 0; n_actions is not among them, it is counted in code."""

    planner_score: float
    """r_planner, one of `PLANNER`."""
    model_plan_steps: int
    """n_plan."""
    effective_steps_self: int
    """n_exec_self, own steps that were carried out."""
    effective_steps_ref: int
    """n_covered, reference steps that were accomplished in any order."""
    outcome_accuracy_score: float
    """r_acc, one of `ACCURACY`."""
    outcome_reasoning_score: float
    """r_reason, one of `REASONING`."""

    def clamped(self, case: Case) -> PathScores:
        """With counts held to what the trajectory and the reference can have; a judge may count more.

        Without this, one broad query that covers two reference steps would be worth (2/2)·(2/1) = 2.
        """
        most = min(self.model_plan_steps, case.num_actions)
        return replace(
            self,
            effective_steps_self=min(self.effective_steps_self, most),
            effective_steps_ref=min(self.effective_steps_ref, case.num_reference),
        )


def read_case(
    task: Task,
    trajectory: Trajectory,
    tags: Tags,
    *,
    plan_source: PlanSource = "first_reasoning",
    allow_no_search: bool = False,
) -> Case:
    """Parse the trajectory and look its reference up."""
    path = parse_path(trajectory, tags, plan_source=plan_source, require_search=not allow_no_search)
    return Case(task=task, path=path, reference=reference_of(task))


def rule_scores(case: Case, *, max_plan: int = 4) -> PathScores:
    """The scores without a language model; `max_plan` is B, the search budget: a longer plan is average at best."""
    path, golds = case.path, case.task.answers
    num_plan, covered = len(path.plan), sum(case.new_reference)
    repeated = len({text.normalize(step) for step in path.plan}) < num_plan
    planner = NO_PLAN if not num_plan else AVERAGE if repeated or num_plan > max_plan else GOOD
    answer = path.answer or ""
    accuracy = 0.5 if text.best(text.f1, answer, golds) >= 0.5 else 0.0
    accuracy = 1.0 if text.best(text.contains, answer, golds) else accuracy
    reference = efficient(covered, case.num_reference, case.num_actions)
    reasoning = 1.0 if reference >= 0.75 else 0.8 if reference >= 0.5 else 0.5 if reference > 0 else 0.0
    return PathScores(
        planner_score=planner,
        model_plan_steps=num_plan,
        effective_steps_self=sum(case.new_own),
        effective_steps_ref=covered,
        outcome_accuracy_score=accuracy,
        outcome_reasoning_score=reasoning,
    )


def efficient(done: int, wanted: int, num_actions: int) -> float:
    """(done / wanted) · (done / n_actions), each ratio at most 1; 0 where nothing was wanted or nothing was done."""
    if wanted <= 0 or num_actions <= 0:
        return 0.0
    return min(1.0, done / wanted) * min(1.0, done / num_actions)
