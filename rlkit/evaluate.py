"""Held-out evaluation: the same rollouts with the recipe's evaluation settings, no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlkit.metrics import held_out_metrics
from rlkit.policy.base import Sampling
from rlkit.recipe import Recipe
from rlkit.records import ScoredTree, Task
from rlkit.rollout.ledger import Draw
from rlkit.rollout.loop import RolloutSettings

__all__ = ["evaluate", "evaluation_settings"]


class Collector(Protocol):
    """Rollouts of many tasks."""

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """One scored tree per task, in order."""
        ...


def evaluation_settings(recipe: Recipe) -> RolloutSettings:
    """How evaluation trees are sampled."""
    cap = recipe.eval.max_completion_tokens or recipe.rollout.max_completion_tokens
    return RolloutSettings(
        group_size=recipe.eval.samples,
        max_completion_tokens=cap,
        max_path_tokens=recipe.model.max_context,
        sampling=Sampling(temperature=recipe.eval.temperature),
        # Groups are small here, so more of them fill the engine's slots.
        max_concurrent_groups=max(
            1, recipe.rollout.max_concurrent_groups * recipe.rollout.group_size // recipe.eval.samples
        ),
    )


def evaluate(
    recipe: Recipe, rollouts: Collector, tasks: Sequence[Task], *, version: int
) -> tuple[list[ScoredTree], dict[str, float]]:
    """Scored trees of the held-out tasks, and their numbers with 95 % intervals over tasks."""
    trees = rollouts.collect(list(tasks), evaluation_settings(recipe))
    return trees, held_out_metrics(trees, learner_version=version, seed=recipe.seed)
