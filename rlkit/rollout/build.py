"""From a recipe to the parts of a rollout worker: the same in this process and inside a cluster's worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rlkit.data.base import TaskSource
from rlkit.env import EnvFactory
from rlkit.errors import DataError, RecipeError
from rlkit.plugins import PluginSection
from rlkit.policy.base import Engine, EngineContext
from rlkit.randomness import drawn
from rlkit.recipe import Recipe
from rlkit.records import Task
from rlkit.render import Renderer
from rlkit.retriever import Refreshable, Retriever
from rlkit.reward import contract_of
from rlkit.rollout.loop import Rollouts
from rlkit.rollout.scoring import RewardSpec, Scorer

__all__ = ["build_retriever", "build_rollouts", "build_source", "reward_specs", "tasks_of"]


def build_source(recipe: Recipe) -> TaskSource:
    """The recipe's task source. Raises `DataError` or `RecipeError` for data that are missing."""
    return cast(TaskSource, recipe.task.load()(recipe.task.settings))


def tasks_of(
    recipe: Recipe, source: TaskSource, split: str, limit: int | None = None, draw: int | None = None
) -> list[Task]:
    """Tasks of a split: all, the first `limit`, or as many drawn with the seed `draw`.

    Raises `DataError` where there are none, or one without an answer that a reward of the recipe reads.
    """
    tasks = list(drawn(source.tasks(split), limit, draw))
    if not tasks:
        raise DataError(f"task: '{recipe.task.kind}' has no tasks in split '{split}'")
    without = [task.id for task in tasks if not task.answers]
    readers = [f"rewards[{i}]" for i, r in enumerate(recipe.rewards) if contract_of(r.plugin.load()).needs_answers]
    if without and readers:
        raise DataError(
            f"task: {len(without)} of {len(tasks)} tasks of split '{split}' have no answers (first: {without[0]}), "
            f"but {', '.join(readers)} compares with them; remove these tasks or that reward"
        )
    return tasks


def build_retriever(recipe: Recipe, source: TaskSource) -> Retriever | None:
    """The recipe's retriever over the source's passages; None if the recipe has none."""
    if recipe.retriever is None:
        return None
    passages = source.passages()
    if not passages:
        raise DataError(f"retriever: task source '{recipe.task.kind}' has no passages, so there is nothing to search")
    return cast(Retriever, recipe.retriever.load()(recipe.retriever.settings, passages))


def reward_specs(recipe: Recipe) -> list[RewardSpec]:
    """The rewards as a reward process needs them: by name, not as objects."""
    return [
        RewardSpec(
            name=reward.name,
            weight=reward.weight,
            deadline_s=reward.deadline_s,
            spec=reward.plugin.spec,
            settings=reward.plugin.keywords,
        )
        for reward in recipe.rewards
    ]


def build_engine(section: PluginSection, context: EngineContext) -> Engine:
    """The recipe's engine. Raises `RecipeError` for a kind that cannot be built from a recipe."""
    kind: Any = section.load()
    if not hasattr(kind, "build"):
        raise RecipeError("engine.kind", f"'{section.kind}' has no build(config, context), so no recipe can start it")
    return cast(Engine, kind.build(section.settings, context))


def build_rollouts(
    recipe: Recipe, *, model_dir: Path, retriever: Retriever | None, tasks: Sequence[Task] = ()
) -> Rollouts:
    """Engine, environments, renderer and rewards of one worker. `tasks` serve engines that play an expert."""
    from transformers import AutoTokenizer

    context = EngineContext(
        model_dir=model_dir,
        seed=recipe.seed,
        dtype=recipe.model.dtype,
        lora=recipe.model.lora,
        value=recipe.value,
        tasks=tuple(tasks),
    )
    renderer = Renderer(AutoTokenizer.from_pretrained(model_dir, local_files_only=True))
    envs = cast(EnvFactory, recipe.env.load()(recipe.env.settings, retriever))
    rollouts = Rollouts(
        envs=envs,
        engine=build_engine(recipe.engine, context),
        renderer=renderer,
        scorer=Scorer(reward_specs(recipe), allow=recipe.network.allow),
    )
    rollouts.index = retriever if isinstance(retriever, Refreshable) else None
    return rollouts
