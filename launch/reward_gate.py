"""`rlkit check-reward`, and the gate that a recipe with `reward_gate: true` has to pass before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkit.errors import DataError, RecipeError
from rlkit.gate import check_rewards
from rlkit.layers import Layer, override
from rlkit.plugins import PluginSection, config_of, load_object, resolve
from rlkit.recipe import Recipe, RewardCommon
from rlkit.recorder import rollout_files
from rlkit.records import Task, Tree
from rlkit.reward import contract_of
from rlkit.rollout.build import reward_specs
from rlkit.rollout.judge import RewardSpec
from rlkit.settings import build
from rlkit.store import read_trees
from rlkit.tags import Tags

__all__ = ["check_reward", "require"]

MAX_STORED = 8
"""Trees of a run that a reward is tried on."""


def check_reward(kind: str, settings: Sequence[str], run: Path | None, allow: Sequence[str]) -> int:
    """Try one reward, with `key=value` settings, also on trees of a run; prints the findings. 1: it is refused."""
    values = override(Layer(), settings).values
    common = {field.name: values.pop(field.name) for field in dataclasses.fields(RewardCommon) if field.name in values}
    spec = resolve("rewards", kind, ["."], path="reward")
    function = load_object(spec, path="reward")
    own: Any = build(config_of(function, path="reward"), {**contract_of(function).settings, **values}, "")
    section = PluginSection(family="rewards", kind=kind, spec=spec, folder=".", settings=own)
    checked = build(RewardCommon, {"name": kind.rpartition(":")[2], **common}, "")
    reward = RewardSpec(name=checked.name, spec=spec, deadline_s=checked.deadline_s, settings=section.keywords)
    (report,) = check_rewards([reward], stored=_stored(run) if run else (), allow=allow)
    print(report)
    return 1 if report.refuted else 0


def require(recipe: Recipe, tasks: Sequence[Task] = ()) -> None:
    """Raise `RecipeError` with the failing example for the first reward of the recipe that the gate refuses."""
    tags = getattr(recipe.env.settings, "tags", None)
    reports = check_rewards(
        reward_specs(recipe),
        tags=tags if isinstance(tags, Tags) else None,
        tasks=tasks,
        allow=recipe.network.allow,
    )
    for index, report in enumerate(reports):
        if report.refuted:
            raise RecipeError(f"rewards[{index}]", f"{report.name} is {report.line}")


def _stored(run: Path) -> list[Tree]:
    """Trees of a run, from its last steps backwards."""
    files = [file for phase in ("train", "eval") for file in reversed(rollout_files(run, phase).values())]
    trees: list[Tree] = []
    for file in files:
        trees += [stored.tree for stored in read_trees(file)]
        if len(trees) >= MAX_STORED:
            break
    if not trees:
        raise DataError(f"{run}: holds no rollouts; a run stores them in {run / 'rollouts'}")
    return trees[:MAX_STORED]
