"""Weights on their way from rank 0 to every rollout worker.

    LearnerGroup ── Parcel: references to buckets ──> RayRollouts ──> RolloutWorker.load_weights ──> its engine

memory       rank 0 copies them into memory that it shares with the workers of its machine, whose engines run them there
store        rank 0 puts one bucket after another into Ray's object store, which carries each to a machine once
gloo, nccl   rank 0 broadcasts them

That is `cluster.sync_over`. Workers check one bucket while the next is made, and confirm by fingerprint. The object
store also serves workers that the other ways do not reach: one on another machine, one that is replaced, one that a
broken broadcast left without weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray

from rlkit.errors import SyncError
from rlkit.recipe import Cluster
from rlkit.sync.base import SyncReport
from rlkit.sync.broadcast import BroadcastGroup, unpacked
from rlkit.sync.buckets import Buckets, Described
from rlkit.sync.delta import Changed, applied
from rlkit.sync.local import confirm
from rlkit.sync.segment import Segment, Slot

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
    broadcast: bool = False
    """Whether buckets come over the group instead; then there are no references."""
    slot: Slot | None = None
    """Where the buckets lie in shared memory; a reference then only says that its bucket is complete."""

    @property
    def num_bytes(self) -> int:
        """Size of the weights."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class Unpacker:
    """A worker's end."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[Any]] = {}
        self.group: BroadcastGroup | None = None
        """Its seat, where weights are broadcast."""
        self.segment: Segment | None = None
        """The memory that it shares with the learner."""

    def open(self, parcels: Sequence[Parcel]) -> Mapping[str, Any]:
        """Weights of the last parcel; those before it are what its changes build on."""
        last = parcels[-1]
        if last.slot is not None:
            return self._lying(last, last.slot)
        if not last.changes:
            if last.broadcast:  # all of it before the engine is asked, which may refuse: the sender does not wait
                return {name: array for i in range(len(last.plan)) for name, array in self._arriving(last, i).items()}
            return Buckets(last.tensors, last.plan, lambda index: _fetched(last, index))
        for parcel in parcels:
            for index in range(len(parcel.plan)):
                for name, value in self._arriving(parcel, index).items():
                    if isinstance(value, Changed):
                        applied(self._held[name], value)
                    else:
                        self._held[name] = np.array(value)
        return self._held

    def _lying(self, parcel: Parcel, slot: Slot) -> Buckets:
        if self.segment is None or self.segment.place != slot.place:
            raise SyncError("this worker shares no memory with the learner")
        arrays = self.segment.arrays(slot, parcel.tensors)

        def complete(index: int) -> Mapping[str, Any]:
            ray.get(parcel.buckets[index])
            return {name: arrays[name] for name in parcel.plan[index]}

        return Buckets(parcel.tensors, parcel.plan, complete, lasting=True)

    def _arriving(self, parcel: Parcel, index: int) -> Mapping[str, Any]:
        if not parcel.broadcast:
            return _fetched(parcel, index)
        if self.group is None:
            raise SyncError("this worker has not joined the broadcast")
        return unpacked(self.group.receive(), parcel.tensors)


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
        self._cluster = cluster
        self._bucket_bytes = round(cluster.sync_bucket_mb * 1e6)
        self._chain: list[Parcel] = []
        self._chain_bytes = 0
        self._link = 0.0
        self._seated: list[Any] = []
        """Workers that have a seat in the broadcast."""
        self._asked: list[Any] = []
        """Workers that were asked whether they can share the learner's memory, and their answers."""
        self._near: list[bool] = []

    def push(self, learner: LearnerGroup) -> SyncReport:
        """Load the group's weights into every worker's engine. Raises `SyncError` on any difference."""
        if self._cluster.sync_over == "memory":
            return self._share(learner)
        whole = not self._chain or self._chain_bytes >= self._chain[0].num_bytes
        over_group = self._cluster.sync_over in ("gloo", "nccl")
        if over_group and self._seated != self.rollouts.workers:
            self._join(learner)
            whole = True  # a worker that is new has nothing that changes could be made to
        changes = self._cluster.sync_changes
        parcel, leaving = learner.send(self._bucket_bytes, changes=changes, whole=whole, broadcast=over_group)
        if whole or not changes:
            self._chain, self._chain_bytes = [], 0
        self._chain.append(parcel)
        if over_group:
            confirmed, broken = self.rollouts.load_weights([parcel], again=lambda: [learner.resend(parcel)])
            self._seated = [] if broken else self._seated
        else:
            confirmed, _ = self.rollouts.load_weights(self._chain)
        report = self._report(learner, parcel, leaving, confirmed)
        self._chain_bytes += 0 if whole else report.sent_bytes
        return report

    def _share(self, learner: LearnerGroup) -> SyncReport:
        """Written once; workers of other machines get what was written through the object store."""
        parcel, leaving = learner.share(self._bucket_bytes)
        assert parcel.slot is not None
        if self._asked != self.rollouts.workers:
            self._near = self.rollouts.near(parcel.slot.place)
            self._asked = list(self.rollouts.workers)
        confirmed, _ = self.rollouts.load_weights([parcel], again=lambda: [learner.resend(parcel)], near=self._near)
        return self._report(learner, parcel, leaving, confirmed)

    def _report(self, learner: LearnerGroup, parcel: Parcel, leaving: Any, confirmed: Sequence[str]) -> SyncReport:
        """What the workers confirmed, compared with what left. Raises `SyncError`; measures the link once a run."""
        fingerprint, sent_bytes = ray.get(leaving)
        confirm(fingerprint, confirmed, parcel.version)
        if not self._link:
            self._link = self._measured(learner, parcel.num_bytes)
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

    def _join(self, learner: LearnerGroup) -> None:
        """A new group of rank 0 and every worker; those that died meanwhile are replaced first."""
        self.rollouts.revive()
        assert self._cluster.sync_over in ("gloo", "nccl")
        meeting, joining = learner.found(1 + len(self.rollouts.workers), self._cluster.sync_over, self._cluster.wait_s)
        self.rollouts.join(meeting, self._cluster.sync_over, self._cluster.wait_s)
        ray.get(joining)
        self._seated = list(self.rollouts.workers)

    def _measured(self, learner: LearnerGroup, num_bytes: int) -> float:
        if self._near and all(self._near):
            return learner.copy_speed(num_bytes)
        if not self._seated:
            return self.rollouts.link(learner.probe(num_bytes), num_bytes)
        sending = learner.send_probe(num_bytes)
        speed = self.rollouts.group_speed()
        ray.get(sending)
        return speed
