"""One call of one reward function: what is asked, what may come back, and how that is read.

Nothing here raises for what a reward does. A result that is no finite number, and an exception, become an
`Outcome` with an error.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from rlkit.errors import RewardError
from rlkit.plugins import load_object
from rlkit.records import Trajectory, Tree
from rlkit.reward import Score, contract_of

__all__ = ["GROUP", "Call", "Outcome", "RewardSpec", "judge", "load", "plan", "spoken"]

GROUP = -1
"""In place of a leaf: the call is about all leaves at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """A reward function, and what is done with its value."""

    name: str
    """Name of its term; of several terms `name/key`."""
    spec: str
    """`package.module:function`, or `/folder/file.py:function`."""
    weight: float = 1.0
    """Factor in the total; 0 logs without training."""
    deadline_s: float = 5.0
    """Seconds for one call."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One question to one reward."""

    reward: int
    """Index of its spec."""
    leaf: int
    """Leaf of the tree, or `GROUP`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one reward says about one leaf. Plain values: it travels as JSON."""

    values: Mapping[str, float] = field(default_factory=dict)
    """Finite values by key; the key of an unnamed value is empty."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Why a key has no value; under the empty key alone: why there is no result at all."""
    measured: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers by key that are only logged."""
    turns: Sequence[float] | None = None
    """A value per turn, NaN where it is silent; None: it does not speak of turns."""

    @classmethod
    def failed(cls, why: str) -> Outcome:
        """No result; `why` is shortened to one line."""
        return cls(errors={"": " ".join(why.split())[:300]})

    def plain(self) -> dict[str, Any]:
        """Arguments that make an equal outcome."""
        return asdict(self)


def load(spec: RewardSpec, *, path: str = "kind") -> tuple[Callable[..., Any], bool]:
    """The function with its settings bound, and whether it judges the group at once.

    Raises `RecipeError` naming `path` if it cannot be imported.
    """
    function = load_object(spec.spec, path=path)
    return partial(function, **spec.settings), contract_of(function).per_group


def spoken(tree: Tree) -> list[int]:
    """Leaves that rewards are asked about: those whose rollout did not fail."""
    return [index for index, leaf in enumerate(tree.leaves) if leaf.status != "failed"]


def plan(tree: Tree, per_group: Sequence[bool]) -> list[Call]:
    """All calls for a tree, reward by reward."""
    leaves = spoken(tree)
    return [
        Call(reward=reward, leaf=leaf)
        for reward, whole in enumerate(per_group)
        for leaf in (([GROUP] if leaves else []) if whole else leaves)
    ]


def judge(function: Callable[..., Any], tree: Tree, leaf: int) -> list[Outcome]:
    """Ask once: one outcome for a leaf; for `GROUP` one per leaf of `spoken(tree)`."""
    trajectories = [tree.trajectory(index) for index in (spoken(tree) if leaf == GROUP else [leaf])]
    try:
        if leaf != GROUP:
            return [_read(function(tree.task, trajectories[0]), trajectories[0])]
        results = list(function(tree.task, trajectories))
        if len(results) != len(trajectories):
            raise ValueError(f"{len(results)} results for {len(trajectories)} trajectories")
        return [_read(result, trajectory) for result, trajectory in zip(results, trajectories, strict=True)]
    except (Exception, SystemExit) as error:  # a reward is other people's code, and its failures are data
        return [Outcome.failed(f"{type(error).__name__}: {error}")] * len(trajectories)


def _read(result: Any, trajectory: Trajectory) -> Outcome:
    """A `RewardResult` as an outcome."""
    if isinstance(result, RewardError):  # of a group, one trajectory that could not be judged
        return Outcome.failed(f"{type(result).__name__}: {result}")
    measured: Mapping[str, float] = {}
    values: Mapping[str, Any]
    turns: tuple[float, ...] | None = None
    if isinstance(result, Score):
        values = {"": result.value}
        measured = {str(key): float(value) for key, value in result.measured.items() if math.isfinite(value)}
        if result.turns is not None:
            if len(result.turns) != (num_turns := len(trajectory.turns)):
                return Outcome.failed(f"a Score of {len(result.turns)} turns for a trajectory of {num_turns}")
            turns = tuple(float(turn) for turn in result.turns)
            if any(math.isinf(turn) for turn in turns):
                return Outcome.failed(f"the Score of a turn is infinite: {turns}")
    elif isinstance(result, Mapping):
        if not result:
            return Outcome.failed("returned an empty mapping")
        values = {str(key): value for key, value in result.items()}
    else:
        values = {"": result}
    errors = {key: fault for key, value in values.items() if (fault := _fault(value))}
    kept = {key: float(value) for key, value in values.items() if key not in errors}
    if errors:
        return Outcome(values=kept, errors=errors)
    return Outcome(values=kept, measured=measured, turns=turns)


def _fault(value: Any) -> str:
    """Why `value` is no reward, or nothing."""
    if not isinstance(value, numbers.Real | np.bool_):
        return f"returned {type(value).__name__} instead of a number, a mapping of numbers or a Score"
    return "" if math.isfinite(value) else f"returned {float(value)}"
