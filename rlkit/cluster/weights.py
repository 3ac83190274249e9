"""Weights on their way from rank 0 to every rollout worker.

    LearnerGroup ── Parcel: references to buckets ──> RayRollouts ──> RolloutWorker.load_weights ──> its engine

Rank 0 puts one bucket after another into Ray's object store. A worker on its machine reads them there in shared memory;
to other machines Ray carries each bucket once, the next while one is copied. Workers confirm by fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from rlkit.recipe import Cluster
from rlkit.sync.base import SyncReport
from rlkit.sync.buckets import Buckets, Described
from rlkit.sync.delta import Changed, applied
from rlkit.sync.local import confirm

if TYPE_CHECKING:
    from rlkit.cluster.learners import LearnerGroup
    from rlkit.cluster.rollouts import RayRollouts

__all__ = ["Parcel", "RaySync", "Unpacker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One version of the weights."""

    version: int
    tensors: Mapping[str, Described]
    plan: Sequence[Sequence[str]]
    """Names by bucket."""
    buckets: Sequence[Any]
    """References; each is a mapping of name -> array or `Changed`."""
    changes: bool
    """Whether receivers keep what arrives, because later parcels may hold changes only."""

    @property
    def num_bytes(self) -> int:
        """Size of the weights."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Unpacker:
    """A worker's end."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}

    def open(self, parcels: Sequence[Parcel]) -> Mapping[str, Any]:
        """Weights of the last parcel; those before it are what its changes build on."""
        last = parcels[-1]
        if not last.changes:
            return Buckets(last.tensors, last.plan, lambda index: _fetched(last, index))
        for parcel in parcels:
            for index in range(len(parcel.plan)):
                for name, value in _fetched(parcel, index).items():
                    if isinstance(value, Changed):
                        applied(self._held[name], value)
                    else:
                        self._held[name] = np.array(value)
        return self._held


def _fetched(parcel: Parcel, index: int) -> Mapping[str, Any]:
    if index + 1 < len(parcel.buckets):  # begins to travel while this one is copied
        ray.wait([parcel.buckets[index + 1]], timeout=0, fetch_local=True)
    bucket: Mapping[str, Any] = ray.get(parcel.buckets[index])
    return bucket


class RaySync:
    """Sends, and has every worker confirm. With `cluster.sync_changes` whole weights go again when the changes since
    then have grown as large: what a worker that is replaced must be told stays bounded."""

    def __init__(self, rollouts: RayRollouts, cluster: Cluster) -> None:
        self.rollouts = rollouts
        self._bucket_bytes, self._changes = round(cluster.sync_bucket_mb * 1e6), cluster.sync_changes
        self._chain: list[Parcel] = []
        self._chain_bytes = 0
        self._link = 0.0

    def push(self, learner: LearnerGroup) -> SyncReport:
        """Load the group's weights into every worker's engine. Raises `SyncError` on any difference."""
        whole = not self._chain or self._chain_bytes >= self._chain[0].num_bytes
        parcel, leaving = learner.send(self._bucket_bytes, changes=self._changes, whole=whole)
        if whole or not self._changes:
            self._chain, self._chain_bytes = [], 0
        self._chain.append(parcel)
        confirmed = self.rollouts.load_weights(self._chain)
        fingerprint, sent_bytes = ray.get(leaving)
        confirm(fingerprint, confirmed, parcel.version)
        self._chain_bytes += 0 if whole else sent_bytes
        if not self._link:
            self._link = self.rollouts.link(learner.probe(parcel.num_bytes), parcel.num_bytes)
        return SyncReport(
            version=parcel.version,
            num_bytes=parcel.num_bytes,
            sent_bytes=sent_bytes,
            link_bytes_per_s=self._link,
            fingerprint=fingerprint,
        )

    def digests(self, learner: LearnerGroup) -> dict[str, str]:
        """Tensor -> digest of what `push` would send."""
        return learner.digests()
