"""A group of learner ranks that behaves like one learner.

Batches travel through Ray's object store once for all ranks. Weights leave from rank 0 (`rlkit/cluster/weights.py`).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from numpy.typing import NDArray

from rlkit.cluster.runtime import actor_options
from rlkit.cluster.weights import Parcel
from rlkit.data.packing import Batch
from rlkit.errors import RlkitError, SyncError
from rlkit.learner.learner import UpdateReport
from rlkit.packages import installed, refuse_others
from rlkit.recipe import Recipe
from rlkit.sync.arrays import to_array
from rlkit.sync.broadcast import Backend, BroadcastGroup, packed
from rlkit.sync.buckets import Described, described, planned
from rlkit.sync.delta import changed
from rlkit.sync.fingerprint import combined, digests
from rlkit.sync.link import copy_speed, probe
from rlkit.sync.segment import Segment, Slot, placed

__all__ = ["LearnerGroup", "LearnerRank"]

log = logging.getLogger(__name__)
Packing = tuple[dict[str, Described], list[list[str]]]


class LearnerRank:
    """One process of the group."""

    def __init__(self) -> None:
        self._outgoing: dict[str, Any] = {}
        self._plan: list[list[str]] = []
        self._prints: list[Future[dict[str, str]]] = []
        self._sent_bytes = 0
        self._before: dict[str, NDArray[Any]] = {}
        self._hashing = ThreadPoolExecutor(1)
        self._group: BroadcastGroup | None = None
        self._segment: Segment | None = None
        self._slot = 0
        self._lying: dict[str, NDArray[Any]] = {}

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

    def pack(self, bucket_bytes: int) -> tuple[Packing, int]:
        """Get the weights ready to leave, and say how they will: their description, and the version. Collective."""
        self._outgoing = self.learner.weights()
        tensors = described(self._outgoing)
        self._plan, self._prints, self._sent_bytes = planned(tensors, bucket_bytes), [], 0
        return (tensors, self._plan), self.learner.version

    def bucket(self, index: int, changes: bool, whole: bool, keep: bool = False) -> dict[str, Any]:
        """One bucket: arrays, or under `changes` and not `whole` what changed since it was sent before.

        A copy is kept under `changes`, and under `keep`.
        """
        arrays = {name: to_array(self._outgoing[name]) for name in self._plan[index]}
        # Beside the copy into the object store: both only read.
        self._prints.append(self._hashing.submit(digests, arrays))
        leaving: dict[str, Any] = dict(arrays)
        if changes or keep:
            for name, array in arrays.items():
                before = self._before.get(name)
                change = None if before is None or whole or not changes else changed(array, before)
                if change is not None:
                    leaving[name] = change
                self._before[name] = np.array(array)
        self._sent_bytes += sum(value.nbytes for value in leaving.values())
        return leaving

    def slot(self, tensors: Mapping[str, Described]) -> Slot:
        """Where the packed weights will lie in shared memory: in the slot that nobody runs."""
        if self._segment is None:
            self._segment = Segment.create(placed(tensors)[1])
        self._slot = 1 - self._slot
        found = self._segment.slot(self._slot)
        self._lying = self._segment.arrays(found, tensors)
        return found

    def write(self, index: int) -> None:
        """Copy one bucket there."""
        arrays = {name: to_array(self._outgoing[name]) for name in self._plan[index]}
        self._prints.append(self._hashing.submit(digests, arrays))
        for name, array in arrays.items():
            np.copyto(self._lying[name], array)
            self._sent_bytes += array.nbytes

    def copy_speed(self, num_bytes: int) -> float:
        """Bytes/s of a copy in this process's memory."""
        source = probe(num_bytes)
        return copy_speed(lambda: source, num_bytes)

    def found(self, meeting: str, size: int, backend: Backend, timeout_s: float) -> None:
        """Take rank 0's seat in a broadcast."""
        host, port = meeting.removeprefix("tcp://").rsplit(":", 1)
        self._group = BroadcastGroup(host, int(port), 0, size, backend=backend, timeout_s=timeout_s)

    def broadcast(self, changes: bool, whole: bool) -> None:
        """All buckets, one after another. Where the group breaks the rest is only kept: workers ask for it again."""
        for index in range(len(self._plan)):
            bucket = self.bucket(index, changes, whole, keep=True)
            if self._group is not None:
                try:
                    self._group.send(packed(bucket))
                except SyncError as error:
                    log.warning("%s", error)
                    self._group = None

    def kept(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """These tensors as they were sent last, whatever the learner did since."""
        sent = self._lying or self._before
        return {name: sent[name] for name in names}

    def send_probe(self, num_bytes: int) -> None:
        """Bytes to measure the broadcast with."""
        if self._group is not None:
            self._group.send_probe(num_bytes)

    def packed(self) -> tuple[str, int]:
        """Fingerprint of what left, and how many bytes that was; the weights may change after it."""
        found: dict[str, str] = {}
        for future in self._prints:
            found |= future.result()
        self._outgoing = {}
        return combined(found), self._sent_bytes

    def digests(self) -> dict[str, str]:
        """Tensor -> digest of what would leave; rank 0's are meant. Collective."""
        return digests(self.learner.weights())

    def probe(self, num_bytes: int) -> NDArray[np.uint8]:
        """Bytes to measure the way to a worker with."""
        return probe(num_bytes)


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

    def send(self, bucket_bytes: int, *, changes: bool, whole: bool, broadcast: bool = False) -> tuple[Parcel, Any]:
        """The weights on their way, and a reference to the fingerprint and size of what left."""
        packings = ray.get([rank.pack.remote(bucket_bytes) for rank in self.ranks])
        (tensors, plan), version = packings[0]
        first = self.ranks[0]
        buckets: list[Any] = []
        if broadcast:
            first.broadcast.remote(changes, whole)
        else:
            buckets = [first.bucket.remote(index, changes, whole) for index in range(len(plan))]
        parcel = Parcel(
            version=version, tensors=tensors, plan=plan, buckets=buckets, changes=changes, broadcast=broadcast
        )
        return parcel, first.packed.remote()

    def share(self, bucket_bytes: int) -> tuple[Parcel, Any]:
        """The weights on their way into shared memory, and a reference as `send` has it."""
        packings = ray.get([rank.pack.remote(bucket_bytes) for rank in self.ranks])
        (tensors, plan), version = packings[0]
        first = self.ranks[0]
        slot: Slot = ray.get(first.slot.remote(tensors))
        buckets = [first.write.remote(index) for index in range(len(plan))]
        parcel = Parcel(version=version, tensors=tensors, plan=plan, buckets=buckets, changes=False, slot=slot)
        return parcel, first.packed.remote()

    def copy_speed(self, num_bytes: int) -> float:
        """Bytes/s of a copy in rank 0's memory."""
        found: float = ray.get(self.ranks[0].copy_speed.remote(num_bytes))
        return found

    def resend(self, parcel: Parcel) -> Parcel:
        """What was broadcast or shared last, through the object store."""
        buckets = [self.ranks[0].kept.remote(names) for names in parcel.plan]
        return replace(parcel, buckets=buckets, broadcast=False, slot=None)

    def found(self, size: int, backend: Backend, timeout_s: float) -> tuple[str, Any]:
        """Where a broadcast of `size` meets, and a reference that is ready when rank 0 has met all others."""
        first = self.ranks[0]
        meeting: str = ray.get(first.rendezvous.remote())
        return meeting, first.found.remote(meeting, size, backend, timeout_s)

    def send_probe(self, num_bytes: int) -> Any:
        """Bytes over the broadcast."""
        return self.ranks[0].send_probe.remote(num_bytes)

    def digests(self) -> dict[str, str]:
        """Tensor -> digest of the weights as they would be sent."""
        found: dict[str, str] = ray.get([rank.digests.remote() for rank in self.ranks])[0]
        return found

    def probe(self, num_bytes: int) -> Any:
        """A reference to bytes in rank 0's object store."""
        reference = self.ranks[0].probe.remote(num_bytes)
        ray.wait([reference], fetch_local=False)
        return reference

    def _all(self, method: str, *args: Any) -> list[Any]:
        """Call every rank at once: most methods are collective."""
        try:
            return ray.get([rank.call.remote(method, *args) for rank in self.ranks])
        except ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, RlkitError):  # the user's error, without Ray's traceback around it
                raise cause from error
            raise
