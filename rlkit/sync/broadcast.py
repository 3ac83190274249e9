"""One rank sends, all others receive: buckets over gloo or NCCL, for workers that share no memory with the learner.

The group stands beside torch's default one, which the learner ranks have among themselves. A bucket goes as one blob in
the safetensors format, its length before it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from rlkit.errors import SyncError
from rlkit.sync.arrays import dtype_of
from rlkit.sync.buckets import Described
from rlkit.sync.delta import Changed
from rlkit.sync.link import probe

__all__ = ["Backend", "BroadcastGroup", "packed", "unpacked"]

Backend = Literal["gloo", "nccl"]
c10d: Any = dist  # what torch exports, and its stubs do not
POSITIONS, VALUES = "\npositions", "\nvalues"
"""After a tensor's name: the two halves of what changed in it."""


class BroadcastGroup:
    """A process's seat in a group whose rank 0 sends. Every method raises `SyncError` where another seat is empty."""

    def __init__(self, host: str, port: int, rank: int, size: int, *, backend: Backend, timeout_s: float) -> None:
        patience = timedelta(seconds=timeout_s)
        self._device = torch.device("cpu" if backend == "gloo" else "cuda")
        self._group: Any
        try:
            self._store = c10d.TCPStore(host, port, size, rank == 0, patience)
            if backend == "gloo":
                self._group = dist.ProcessGroupGloo(self._store, rank, size, patience)
            else:
                self._group = dist.ProcessGroupNCCL(self._store, rank, size, dist.ProcessGroupNCCL.Options())
        except RuntimeError as error:
            raise SyncError(f"rank {rank} of {size} met nobody at {host}:{port} within {timeout_s:g} s") from error

    def send(self, blob: bytes) -> None:
        """From rank 0 to all others."""
        self._broadcast(torch.tensor([len(blob)], device=self._device))
        self._broadcast(torch.frombuffer(bytearray(blob), dtype=torch.uint8).to(self._device))

    def receive(self) -> bytes:
        """What rank 0 sent."""
        length = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._broadcast(length)
        content = torch.empty(int(length), dtype=torch.uint8, device=self._device)
        self._broadcast(content)
        return content.cpu().numpy().tobytes()

    def send_probe(self, num_bytes: int) -> None:
        """The sender's half of `speed`."""
        self.send(b"!")
        self.send(probe(num_bytes).tobytes())

    def speed(self) -> float:
        """Bytes/s at which a probe arrives here."""
        self.receive()  # from here on both ends are ready
        start = time.perf_counter()
        return len(self.receive()) / max(time.perf_counter() - start, 1e-9)

    def _broadcast(self, tensor: Tensor) -> None:
        try:
            self._group.broadcast([tensor], dist.BroadcastOptions()).wait()
        except RuntimeError as error:
            raise SyncError(f"the broadcast of weights broke off: {error}") from error


def packed(bucket: Mapping[str, Any]) -> bytes:
    """Arrays and `Changed` as one blob; dtypes and shapes are known to the receiver."""
    parts: dict[str, NDArray[Any]] = {}
    for name, value in bucket.items():
        if isinstance(value, Changed):
            parts[name + POSITIONS], parts[name + VALUES] = value.positions, value.values
        else:
            parts[name] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return save(parts)


def unpacked(blob: bytes, tensors: Mapping[str, Described]) -> dict[str, Any]:
    """What was packed; the arrays are read-only."""
    parts = load(blob)
    found: dict[str, Any] = {}
    for key, value in parts.items():
        name = key.split("\n")[0]
        if key == name:
            found[name] = value.view(dtype_of(tensors[name].dtype)).reshape(tensors[name].shape)
        elif key == name + VALUES:
            found[name] = Changed(parts[name + POSITIONS], value)
    return found
