"""Weights that travel in buckets, so that one is copied while the next is made.

sender    described -> planned -> one bucket after another
receiver  `Buckets`, a mapping like any other that fetches a bucket when its first tensor is asked for
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Buckets", "Described", "described", "parts_of", "planned"]


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor that has not arrived yet."""

    shape: tuple[int, ...]
    dtype: str
    """As torch and numpy both call it: `float32`."""
    nbytes: int


def described(weights: Mapping[str, Any]) -> dict[str, Described]:
    """Name -> what a receiver must know before the first byte; arrays or tensors."""
    return {
        name: Described(tuple(value.shape), str(value.dtype).removeprefix("torch."), int(value.nbytes))
        for name, value in weights.items()
    }


def planned(tensors: Mapping[str, Described], bucket_bytes: int) -> list[list[str]]:
    """Names by bucket, in order; a bucket is full with the tensor that reaches `bucket_bytes`, and none is empty."""
    buckets: list[list[str]] = []
    room = 0
    for name, tensor in tensors.items():
        if room <= 0:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(name)
        room -= tensor.nbytes
    return buckets


class Buckets(Mapping[str, Any]):
    """Name -> array, bucket by bucket; only the one in use is held, so reading in order fetches each once."""

    def __init__(
        self,
        tensors: Mapping[str, Described],
        plan: Sequence[Sequence[str]],
        fetch: Callable[[int], Mapping[str, Any]],
        *,
        lasting: bool = False,
    ) -> None:
        self.described = tensors
        """Every tensor, before anything arrives."""
        self.lasting = lasting
        """Whether arrays keep their numbers until other weights have been loaded: an engine may run them in place."""
        self._plan, self._fetch = plan, fetch
        self._bucket = {name: index for index, names in enumerate(plan) for name in names}
        self._held: tuple[int, Mapping[str, Any]] = -1, {}

    def __getitem__(self, name: str) -> Any:
        index = self._bucket[name]
        if self._held[0] != index:
            self._held = -1, {}  # let go of it before the next comes
            self._held = index, self._fetch(index)
        return self._held[1][name]

    def __contains__(self, name: object) -> bool:
        return name in self._bucket

    def __iter__(self) -> Iterator[str]:
        return iter(self._bucket)

    def __len__(self) -> int:
        return len(self._bucket)

    def parts(self) -> Iterator[dict[str, Any]]:
        """One mapping for each bucket, in order."""
        for names in self._plan:
            yield {name: self[name] for name in names}


def parts_of(weights: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Buckets of weights that have some; else all of them at once."""
    return weights.parts() if isinstance(weights, Buckets) else iter([weights])
