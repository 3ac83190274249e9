"""Weights in memory that the processes of one machine share: the learner writes them once, engines run them in place.

    learner   Segment.create(size)   slot 0 <- version 1, slot 1 <- version 2, slot 0 <- version 3 ...
    worker    Segment.open(place)    the same bytes; K engines of one machine hold one copy

Two slots take turns: while the learner writes one, engines run the other. The memory has no name in any file system, so
nothing is left behind however its processes end; it goes with the last of them that has it open.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import SyncError
from rlkit.sync.arrays import dtype_of
from rlkit.sync.buckets import Described

__all__ = ["Place", "Segment", "Slot", "placed"]

ALIGNMENT = 64
"""Bytes: where torch's own allocator puts tensors on a CPU, and where vector instructions like them."""
KEY_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to find a segment."""

    pid: int
    descriptor: int
    """Of that process."""
    num_bytes: int
    key: bytes
    """What the segment begins with: a process of the same number on another machine has none or another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The half of a segment that holds one version."""

    place: Place
    offset: int
    """Bytes before it."""


class Segment:
    """A view of the memory, to write or to read."""

    def __init__(self, memory: mmap.mmap, place: Place) -> None:
        self._memory = memory
        self.place = place

    @classmethod
    def create(cls, slot_bytes: int) -> Segment:
        """Room for two slots of so many bytes. Raises `SyncError` on systems without anonymous shared memory."""
        if not hasattr(os, "memfd_create"):
            raise SyncError("cluster.sync_over: memory needs Linux; use store")
        size, key = ALIGNMENT + 2 * slot_bytes, secrets.token_bytes(KEY_BYTES)
        descriptor = os.memfd_create("rlkit-weights", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
        memory[:KEY_BYTES] = key
        return cls(memory, Place(pid=os.getpid(), descriptor=descriptor, num_bytes=size, key=key))

    @classmethod
    def open(cls, place: Place) -> Segment:
        """The segment of another process. Raises `SyncError` where this one cannot reach it.

        What this process writes into it stays its own: a page that is written is copied first.
        """
        try:
            descriptor = os.open(f"/proc/{place.pid}/fd/{place.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SyncError(f"the learner's memory is not to be had on this machine: {error}") from error
        try:
            memory = mmap.mmap(
                descriptor, place.num_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        except (OSError, ValueError) as error:
            raise SyncError(f"process {place.pid} of this machine is not the learner: {error}") from error
        finally:
            os.close(descriptor)
        if memory[:KEY_BYTES] != place.key:
            raise SyncError(f"process {place.pid} of this machine is not the learner")
        return cls(memory, place)

    def slot(self, index: int) -> Slot:
        """Slot 0 or 1."""
        return Slot(place=self.place, offset=ALIGNMENT + index * (self.place.num_bytes - ALIGNMENT) // 2)

    def arrays(self, slot: Slot, tensors: Mapping[str, Described]) -> dict[str, NDArray[Any]]:
        """Name -> the tensor's numbers in that slot, without a copy; all alike laid out on both sides."""
        offsets, _ = placed(tensors)
        found = {}
        for name, tensor in tensors.items():
            dtype = dtype_of(tensor.dtype)
            count, at = tensor.nbytes // dtype.itemsize, slot.offset + offsets[name]
            found[name] = np.frombuffer(self._memory, dtype, count, at).reshape(tensor.shape)
        return found


def placed(tensors: Mapping[str, Described]) -> tuple[dict[str, int], int]:
    """Name -> bytes before it in a slot, each on a boundary of `ALIGNMENT`; and the size of the slot."""
    offsets, end = {}, 0
    for name, tensor in tensors.items():
        offsets[name] = end
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, end
