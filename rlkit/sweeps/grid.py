"""The file of a sweep: `rlkit sweep RECIPE grid.yaml`.

vary:                                   # every combination of lists is an arm
  optim.lr: [1.0e-6, 1.0e-5]
  rollout.group_size: [4, 8]
seeds: [0, 1]                           # every arm runs with each: same prompts, same order
stop: race                              # race | asha | none
search: grid                            # or optuna, with ranges: {low: 1.0e-6, high: 1.0e-4, log: true}
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlkit.errors import RecipeError
from rlkit.layers import read
from rlkit.settings import above, at_least, build, join
from rlkit.sweeps.racing import Race

__all__ = ["Arm", "Grid", "Range", "arms", "load_grid", "num_arms", "probes", "race", "ranges"]

SHARED = ("eval", "task", "seed", "out", "name", "log", "cluster", "base")
"""Sections that all arms have in common, or they could not be compared prompt by prompt."""
FIXED = ("train.steps", "train.eval_every")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What the file says."""

    vary: dict[str, Any] = field(default_factory=dict)
    """Setting of the recipe -> list of values, or {low, high, log} for optuna."""
    seeds: tuple[int, ...] = (0,)
    """Each arm runs once with each."""
    reward: str | None = None
    """Reward that arms are compared by; null: the weighted total."""
    search: Literal["grid", "optuna"] = "grid"
    """All combinations, or as many as `samples` that Optuna proposes."""
    samples: int = 16
    """Arms that Optuna proposes."""
    stop: Literal["race", "asha", "none"] = "race"
    """What ends an arm early: being beaten prompt by prompt, its rank, or nothing."""
    alpha: float = 0.05
    """race: chance that any arm is dropped for one that is not better, over all looks and pairs."""
    grace: int = 1
    """Evaluations after the first one before an arm may be stopped."""
    reduction: int = 3
    """asha: one of so many arms goes on from each rung."""

    def __post_init__(self) -> None:
        above(self, 0, "alpha")
        at_least(self, 1, "samples", "grace")
        at_least(self, 2, "reduction")
        if self.alpha >= 1:
            raise ValueError(f"alpha: {self.alpha} is not below 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} is not a list of different seeds")
        if not self.vary:
            raise ValueError("vary: missing; write vary: {optim.lr: [1.0e-6, 1.0e-5]}")
        if self.search == "optuna" and len(self.seeds) > 1:
            raise ValueError(
                f"seeds: {list(self.seeds)} with search=optuna, which learns from one result an arm; name one"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One combination."""

    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`lr=1e-05,group_size=4`, fit for a folder."""
        text = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.settings.items())
        return re.sub(r"[^\w.,=+-]", "_", text)

    @property
    def overrides(self) -> list[str]:
        """As the command line would say it."""
        return [f"{key}={_yaml(value)}" for key, value in self.settings.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A continuous setting."""

    low: float
    high: float
    log: bool = False
    """Drawn by its logarithm."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"high: {self.high} is not above low={self.low}")
        if self.log and self.low <= 0:
            raise ValueError(f"low: {self.low} has no logarithm")


def load_grid(file: Path) -> Grid:
    """Read and check the file. Raises `RecipeError` with the path of what is wrong."""
    layer = read(file)
    grid = build(Grid, layer.values, "")
    for key, value in grid.vary.items():
        path = f"vary.{key}"
        if not re.fullmatch(r"\w+(\.\w+)*", key):
            raise RecipeError(path, "is not a setting's path, such as optim.lr or rewards.0.weight")
        if key.partition(".")[0] in SHARED or key in FIXED:
            raise RecipeError(path, "all arms share it, or they could not be compared prompt by prompt")
        if isinstance(value, list):
            if not value or len({repr(item) for item in value}) < len(value):
                raise RecipeError(path, f"{value!r} is not a list of different values")
        elif grid.search == "grid" or not isinstance(value, dict):
            raise RecipeError(
                path, f"{value!r} is not a list of values" + "; ranges need search=optuna" * isinstance(value, dict)
            )
    ranges(grid)
    return grid


def ranges(grid: Grid) -> dict[str, Range | list[Any]]:
    """What Optuna draws from."""
    return {
        key: build(Range, value, join("vary", key)) if isinstance(value, dict) else list(value)
        for key, value in grid.vary.items()
    }


def arms(grid: Grid) -> list[Arm]:
    """Every combination, the last setting varying fastest."""
    return [
        Arm(settings=dict(zip(grid.vary, values, strict=True))) for values in itertools.product(*grid.vary.values())
    ]


def num_arms(grid: Grid) -> int:
    """Arms that the sweep will have had when it ends."""
    return grid.samples if grid.search == "optuna" else len(arms(grid))


def probes(grid: Grid) -> list[Arm]:
    """Arms that are tried before anything starts: all, or where Optuna proposes every value and both ends of ranges."""
    if grid.search == "grid":
        return arms(grid)
    choices = {key: [v.low, v.high] if isinstance(v, Range) else v for key, v in ranges(grid).items()}
    return [
        Arm(settings={key: values[min(index, len(values) - 1)] for key, values in choices.items()})
        for index in range(max(map(len, choices.values())))
    ]


def race(grid: Grid, *, steps: int, every: int) -> Race:
    """An empty race; `steps` and `every`: training steps of a trial, and between its evaluations."""
    looks = math.ceil(steps / every) - grid.grace + 1  # the last step is always evaluated
    return Race(
        arms=num_arms(grid), looks=max(looks, 1), seeds=len(grid.seeds), alpha=grid.alpha, first=grid.grace * every
    )


def _yaml(value: Any) -> str:
    """One line that `key=value` reads back as the same value."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")
