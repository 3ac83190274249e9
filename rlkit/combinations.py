"""Checks across sections: settings that are fine alone and wrong together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rlkit.errors import RecipeError
from rlkit.placement import bundles
from rlkit.recipe import Recipe

__all__ = ["check", "doubts"]


def check(recipe: Recipe) -> None:
    """Raise `RecipeError` for the first combination that cannot run."""
    for path, problem in (*_sampling(recipe), *_processes(recipe), *_files(recipe), *_rewards(recipe)):
        raise RecipeError(path, problem)


def doubts(recipe: Recipe) -> Iterator[str]:
    """Combinations that run, but slowly or to no effect."""
    cluster, cores = recipe.cluster, os.cpu_count() or 1
    # sampling and training take turns, so the cores are used by one or the other
    threads = max(cluster.rollout_workers, cluster.learner_ranks) * cluster.threads_per_worker
    if cluster.address is None and threads > cores:
        yield f"cluster.threads_per_worker: {threads} threads at a time share this machine's {cores} cores"
    if recipe.optim.warmup_steps > recipe.train.steps * recipe.optim.minibatches > 0:
        yield f"optim.warmup_steps: {recipe.optim.warmup_steps} outlasts the run: optim.lr is not reached"


Problems = Iterator[tuple[str, str]]


def _sampling(recipe: Recipe) -> Problems:
    rollout, model, algorithm = recipe.rollout, recipe.model, recipe.algorithm
    smallest = getattr(algorithm.load(), "min_group_size", 2)
    if rollout.group_size < smallest:
        yield (
            "rollout.group_size",
            f"{rollout.group_size} is below {smallest}: {algorithm.kind} compares the trajectories of a task",
        )
    if rollout.branches > 1 and not getattr(recipe.env.load(), "can_fork", False):
        yield "rollout.branches", f"{rollout.branches}: env '{recipe.env.kind}' cannot fork; use rollout.branches=1"
    if rollout.max_completion_tokens >= model.max_context:
        yield (
            "rollout.max_completion_tokens",
            f"{rollout.max_completion_tokens} fills model.max_context={model.max_context}: no prompt fits",
        )
    if recipe.learner.row_tokens < model.max_context:
        yield (
            "learner.row_tokens",
            f"{recipe.learner.row_tokens} is below model.max_context={model.max_context}: rows hold paths",
        )
    if recipe.optim.minibatches > rollout.groups_per_step:
        yield (
            "optim.minibatches",
            f"{recipe.optim.minibatches} is above rollout.groups_per_step={rollout.groups_per_step}: "
            "an update needs at least one group",
        )
    if model.attention == "flex" and model.dtype == "float64":
        yield "model.attention", "'flex' does not compute in float64; use model.attention=sdpa"
    if recipe.learner.kind.startswith("zero") and model.dtype == "float64":
        yield "model.dtype", f"'float64' is lost under learner.kind={recipe.learner.kind}; use fsdp2"
    refreshes = getattr(recipe.retriever and recipe.retriever.settings, "refresh_every", 0)
    if refreshes and rollout.streams:
        yield (
            "retriever.refresh_every",
            f"{refreshes} with rollouts that go on across steps, which would search two indexes; "
            "use rollout.max_staleness=0 and rollout.over_sampling=0",
        )
    if recipe.retriever is None and getattr(recipe.env.load(), "needs_retriever", False):
        yield "retriever", f"missing: env '{recipe.env.kind}' searches; write retriever: {{kind: bm25}}"


def _processes(recipe: Recipe) -> Problems:
    cluster, learner = recipe.cluster, recipe.learner
    if cluster.kind == "local":
        for name in ("rollout_workers", "learner_ranks"):
            if (count := getattr(cluster, name)) > 1:
                yield (
                    f"cluster.{name}",
                    f"{count} with cluster.kind=local, which is one process; use cluster.kind=ray",
                )
        if cluster.placement != "free":
            yield "cluster.placement", f"{cluster.placement!r} with cluster.kind=local; use cluster.kind=ray"
        if cluster.address is not None:
            yield "cluster.address", f"{cluster.address!r} with cluster.kind=local; use cluster.kind=ray"
    if cluster.learner_ranks > 1 and learner.kind == "single":
        ranks = f"cluster.learner_ranks={cluster.learner_ranks}"
        yield "learner.kind", f"'single' is one process, not {ranks}; use ddp, fsdp2 or zero1"
    bundles(cluster)  # raises where this placement cannot be


def _files(recipe: Recipe) -> Problems:
    out = Path(recipe.out).expanduser()
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            yield "out", f"'{recipe.out}' lies at or in the file '{place}'; name a folder"
    start = recipe.train.init_from
    if start is not None and not Path(start).expanduser().is_dir():
        yield "train.init_from", f"no folder '{start}'; name a run folder or one of its checkpoints"


def _rewards(recipe: Recipe) -> Problems:
    seen: set[str] = set()
    spoken = getattr(recipe.env.settings, "tags", None)
    for index, reward in enumerate(recipe.rewards):
        read = getattr(reward.plugin.settings, "tags", spoken)
        if spoken is not None and read != spoken:
            yield f"rewards[{index}].tags", 'other names than env.tags, so nothing would be read; write "${env.tags}"'
        if reward.name in seen:
            yield (
                f"rewards[{index}].name",
                f"{reward.name!r} is taken by an earlier reward; give it another name",
            )
        seen.add(reward.name)
    if not any(reward.weight for reward in recipe.rewards):
        yield "rewards", "every weight is 0, so there is nothing to learn from"
