"""A group of learner ranks that behaves like one learner, and the way its weights take to the engines.

Batches travel through Ray's object store once for all ranks; weights once from rank 0 for all workers. Both are numpy
arrays, so a worker on the same machine reads them in shared memory without a copy.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from numpy.typing import NDArray

from rlkit.cluster.rollouts import RayRollouts
from rlkit.cluster.runtime import actor_options
from rlkit.data.packing import Batch
from rlkit.errors import RlkitError
from rlkit.learner.learner import UpdateReport
from rlkit.packages import installed, refuse_others
from rlkit.recipe import Recipe
from rlkit.sync.arrays import to_array
from rlkit.sync.base import SyncReport
from rlkit.sync.fingerprint import digests, fingerprint
from rlkit.sync.local import confirm

__all__ = ["LearnerGroup", "LearnerRank", "RaySync"]


class LearnerRank:
    """One process of the group."""

    def rendezvous(self) -> str:
        """An address on this rank's machine at which the group can meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def packages(self) -> tuple[str, dict[str, str]]:
        """The machine it runs on, and its packages."""
        return ray.util.get_node_ip_address(), installed()

    def start(self, recipe: Recipe, model_dir: Path, total_updates: int, rank: int, size: int, meeting: str) -> None:
        """Load the model and join the group."""
        from rlkit.learner.build import build_learner

        self.learner = build_learner(
            recipe.model,
            recipe.learner,
            recipe.optim,
            recipe.algorithm.load(),
            recipe.algorithm.settings,
            model_dir=model_dir,
            total_updates=total_updates,
            value=recipe.value,
            rank=rank,
            size=size,
            rendezvous=meeting if size > 1 else None,
        )

    def call(self, method: str, *args: Any) -> Any:
        """Forward a call to the learner; collective methods are called on all ranks at once."""
        return getattr(self.learner, method)(*args)

    def version(self) -> int:
        """Version of the weights."""
        return self.learner.version

    def weights(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Weights as arrays, and their fingerprint, size and version; rank 0's are meant."""
        weights = {name: to_array(tensor) for name, tensor in self.learner.weights().items()}
        facts = {
            "fingerprint": fingerprint(weights),
            "num_bytes": sum(array.nbytes for array in weights.values()),
            "version": self.learner.version,
        }
        return weights, facts


class LearnerGroup:
    """`Trainee` over N ranks."""

    def __init__(self, recipe: Recipe, model_dir: Path, total_updates: int) -> None:
        cluster = recipe.cluster
        threads, gpus, size = cluster.threads_per_worker, cluster.gpus_per_learner_rank, cluster.learner_ranks
        options = [actor_options(threads, gpus, bundle=rank) for rank in range(size)]
        self.ranks = [ray.remote(LearnerRank).options(**seat).remote() for seat in options]
        for index, (address, theirs) in enumerate(ray.get([rank.packages.remote() for rank in self.ranks])):
            refuse_others(f"learner rank {index} on {address}", theirs, installed())
        meeting = ray.get(self.ranks[0].rendezvous.remote())
        ray.get([r.start.remote(recipe, model_dir, total_updates, i, size, meeting) for i, r in enumerate(self.ranks)])

    @property
    def version(self) -> int:
        """Version of the weights."""
        found: int = ray.get(self.ranks[0].version.remote())
        return found

    def score(
        self, batch: Batch, sizes: Sequence[int], which: Literal["policy", "reference"]
    ) -> list[NDArray[np.float64]]:
        """Log-probs per tree [T]; see `Learner.score`."""
        scores: list[NDArray[np.float64]] = self._all("score", ray.put(batch), list(sizes), which)[0]
        return scores

    def update(self, minibatches: Sequence[Batch]) -> UpdateReport:
        """One optimizer update per minibatch; see `Learner.update`."""
        report: UpdateReport = self._all("update", ray.put(list(minibatches)))[0]
        return report

    def save(self, folder: Path) -> None:
        """Weights and optimizer states; the folder must be on storage that all ranks share."""
        self._all("save", folder)

    def load(self, folder: Path, counters: Mapping[str, int]) -> None:
        """Continue from them."""
        self._all("load", folder, dict(counters))

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps besides arrays."""
        counters: dict[str, int] = self._all("counters")[0]
        return counters

    def weights(self) -> tuple[Any, dict[str, Any]]:
        """A reference to the weights in the object store, and facts about them."""
        refs = [rank.weights.options(num_returns=2).remote() for rank in self.ranks]
        facts = ray.get([fact for _, fact in refs])
        return refs[0][0], facts[0]

    def _all(self, method: str, *args: Any) -> list[Any]:
        """Call every rank at once: most methods are collective."""
        try:
            return ray.get([rank.call.remote(method, *args) for rank in self.ranks])
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, RlkitError):  # the user's error, without Ray's traceback around it
                raise cause from error
            raise


class RaySync:
    """One put by rank 0, one read by each worker, fingerprints compared."""

    def __init__(self, rollouts: RayRollouts) -> None:
        self.rollouts = rollouts

    def push(self, learner: LearnerGroup) -> SyncReport:
        """Load the group's weights into every worker's engine. Raises `SyncError` on any difference."""
        weights, facts = learner.weights()
        confirmed = self.rollouts.load_weights(weights, facts["version"])
        confirm(facts["fingerprint"], confirmed, facts["version"])
        return SyncReport(**facts)

    def digests(self, learner: LearnerGroup) -> dict[str, str]:
        """Tensor -> digest of what `push` would send."""
        return digests(ray.get(learner.weights()[0]))
