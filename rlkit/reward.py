"""What a reward is: a plain function of a task and a trajectory. Keyword-only parameters are its recipe settings.

    def brevity(task: Task, trajectory: Trajectory, *, limit: int = 200) -> float:
        return float(len(trajectory.completion) <= limit)

It may also return `dict[str, float]` (several named terms) or `Score` (a value, and what it says of single turns or
only measured). A function marked `@per_group` receives all trajectories of a task at once and returns one result for
each. What a reward promises about its values stands in its `Contract`; `rlkit check-reward` tries to refute it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from rlkit.errors import RewardError
from rlkit.records import Task, Trajectory, Tree

__all__ = [
    "Bounds",
    "Contract",
    "GroupReward",
    "Invariance",
    "Reward",
    "RewardResult",
    "Score",
    "Task",
    "Trajectory",
    "contract",
    "contract_of",
    "needs_answers",
    "per_group",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward that says more than its value."""

    value: float
    """Reward of the whole trajectory."""
    turns: tuple[float, ...] | None = None
    """One value per turn (see `Trajectory.turns`), for credit at decisions; NaN where the reward is silent. A value may
    depend on its turn and what came before, on nothing after it: else `turn_grpo` is biased (gate: `hindsight`)."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Named numbers that are logged as terms of weight 0, never trained on; NaN where nothing was measured."""


RewardResult = float | Mapping[str, float] | Score | RewardError
"""In place of a value, a `RewardError` says why there is none; a reward of one trajectory may as well raise it."""
Reward = Callable[..., RewardResult]
"""`(task, trajectory, **settings) -> RewardResult`."""
GroupReward = Callable[..., Sequence[RewardResult]]
"""`(task, trajectories, **settings) -> one RewardResult per trajectory`."""

F = TypeVar("F", bound=Callable[..., Any])
Bounds = tuple[float, float]
Invariance = Literal["whitespace", "answer_order", "group_order", "turn_order"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What a reward promises. Finite, repeatable values, and no pay for text it must not trust, are promised always."""

    per_group: bool = False
    """It is called once per group with `(task, trajectories)`: rankings, diversity, comparisons."""
    needs_answers: bool = False
    """It reads `task.answers`, so tasks without answers are refused before a run starts."""
    bounds: Bounds | Callable[..., Bounds] | None = None
    """Least and greatest value, or a function `(**settings)` of them; a mapping's terms obey each. None: no promise."""
    invariant: tuple[Invariance, ...] = ()
    """What changes no value: white space around words of completions, the order of accepted answers, of the turns
    before the last, or of the group (not of one that ranks candidates by their place)."""
    monotone: Mapping[str, Literal["up", "down"]] = field(default_factory=dict)
    """Signal of the environment -> direction: raising the signal by 1 never lowers (`up`) or never raises (`down`) the
    value. `answer: up`: an accepted answer in place of a wrong one never lowers it."""
    fallback: bool = False
    """A service that fails may be replaced by another way to judge; otherwise failing is the only honest result."""
    exempt: Mapping[str, str] = field(default_factory=dict)
    """Check of the gate -> why it does not apply, e.g. `length: brevity is what it measures`. Shown in the verdict."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings to check it with where nothing else is said; for those without a default."""
    probes: Callable[[], Sequence[Tree]] | None = None
    """Groups of its own domain to check it on, beside the gate's (`rlkit.transcript` writes them from text)."""


def contract_of(function: Callable[..., Any]) -> Contract:
    """The contract of a reward; one that declares nothing promises only what all do."""
    found = getattr(function, "contract", None)
    return found if isinstance(found, Contract) else Contract()


def contract(**promises: Any) -> Callable[[F], F]:
    """Declare fields of the reward's `Contract`: `@contract(bounds=(0, 1), invariant=("whitespace",))`."""

    def declare(function: F) -> F:
        function.contract = replace(contract_of(function), **promises)  # type: ignore[attr-defined]
        return function

    return declare


def per_group(function: F) -> F:
    """`@contract(per_group=True)`."""
    return contract(per_group=True)(function)


def needs_answers(function: F) -> F:
    """`@contract(needs_answers=True)`."""
    return contract(needs_answers=True)(function)
