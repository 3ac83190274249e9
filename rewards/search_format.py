"""Search-P1's format reward: full, partial, or a trajectory that earns nothing at all.

Xia et al. 2026 (arXiv:2602.22576), Algorithm 3 and fig. 3; grammar and cases F1 to F10: search_p1 §5.2.

    full     reasoning, then searches each answered by the environment, then one answer       1     literal 0.1
    partial  an answer and a real observation, but not full                                   0.5   literal 0.05
    invalid  no answer or no real search: the whole reward is 0                               0     0

The paper prints 0.1 and 0.05 and then multiplies by the weight 0.1 again; its figure adds them without a weight.
`format_scale: once` is the figure's (the weight is in the recipe), `literal` the algorithm's. `format_mode: strict`
accepts full only; `none` is worth nothing and keeps the gate for a missing answer only (both our reading of fig. 3).
"""

from __future__ import annotations

from typing import Any, Literal

from rlkit.records import Task, Trajectory
from rlkit.reward import Score, contract
from rlkit.search.path import Grade, PlanSource, SearchPath, parse_path
from rlkit.tags import SEARCH_R1_TAGS, Tags

__all__ = ["FormatMode", "FormatScale", "format_value", "is_gated", "search_format"]

FormatMode = Literal["soft", "strict", "none"]
FormatScale = Literal["once", "literal"]
VALUES: dict[FormatScale, dict[Grade, float]] = {
    "once": {"full": 1.0, "partial": 0.5, "invalid": 0.0},
    "literal": {"full": 0.1, "partial": 0.05, "invalid": 0.0},
}


def format_value(grade: Grade, *, format_mode: FormatMode = "soft", format_scale: FormatScale = "once") -> float:
    """R_format of a grade, before its weight."""
    if format_mode == "none" or (format_mode == "strict" and grade != "full"):
        return 0.0
    return VALUES[format_scale][grade]


def is_gated(path: SearchPath, format_mode: FormatMode = "soft") -> bool:
    """True where the whole reward is 0, whatever the other terms say."""
    match format_mode:
        case "soft":
            return path.grade == "invalid"
        case "strict":
            return path.grade != "full"
        case "none":
            return path.answer is None


def grades(path: SearchPath) -> dict[str, float]:
    """Shares of the three grades, for the log."""
    return {name: float(path.grade == name) for name in ("full", "partial", "invalid")}


def _bounds(**settings: Any) -> tuple[float, float]:
    scale: FormatScale = settings.get("format_scale", "once")
    return 0.0, VALUES[scale]["full"]


@contract(bounds=_bounds, invariant=("answer_order", "whitespace"))
def search_format(
    task: Task,
    trajectory: Trajectory,
    *,
    format_mode: FormatMode = "soft",
    format_scale: FormatScale = "once",
    plan_source: PlanSource = "first_reasoning",
    allow_no_search: bool = False,
    tags: Tags = SEARCH_R1_TAGS,
) -> Score:
    """R_format of Search-P1: 1 in the paper's form, 0.5 loosely, 0 without an answer or a real search.

    With `plan_source: plan_tag` a plan in its own tag stands before everything else.
    """
    path = parse_path(trajectory, tags, plan_source=plan_source, require_search=not allow_no_search)
    value = format_value(path.grade, format_mode=format_mode, format_scale=format_scale)
    return Score(value=value, measured=grades(path))
