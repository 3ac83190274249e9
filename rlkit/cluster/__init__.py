"""Ray: placement, workers and their lifecycle. No other folder imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.exceptions import RayActorError

from rlkit.cluster.learners import LearnerGroup
from rlkit.cluster.rollouts import RayRollouts
from rlkit.cluster.runtime import connected, reserved
from rlkit.cluster.weights import RaySync
from rlkit.errors import LearnerError
from rlkit.recipe import Recipe

__all__ = ["ray_workers"]


@contextmanager
def ray_workers(
    recipe: Recipe, model_dir: Path, init_dir: Path, total_updates: int
) -> Iterator[tuple[RayRollouts, LearnerGroup, RaySync]]:
    """Rollout workers that load `model_dir`, and learner ranks that start from the weights in `init_dir`.

    Raises `LearnerError` where a process dies that is not replaced while the run goes on: a learner rank.
    """
    with connected(recipe.cluster), reserved(recipe.cluster):
        # Ranks have seats by number, so they sit down first; what room is left in the bundles is the workers'.
        learner = LearnerGroup(recipe, init_dir, total_updates)
        rollouts = RayRollouts(recipe, model_dir)
        try:
            yield rollouts, learner, RaySync(rollouts, recipe.cluster)
        except RayActorError as error:
            raise LearnerError(
                f"a process of the run died, or its node ({str(error).strip().splitlines()[0]}); give the same command "
                "again: a run goes on from its newest checkpoint"
            ) from error
