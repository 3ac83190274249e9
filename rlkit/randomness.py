"""Every random draw has an address, so a rollout is the same on any worker, in any order, and when replayed alone.

The address (run seed, policy version, task id, sample index, turn) selects a Philox stream, a counter-based generator
whose n-th number can be computed without the n-1 before it; the position within the turn is that counter. Two
different addresses share a stream with probability 2^-128, so siblings are never clones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

__all__ = ["Address", "drawn", "generator", "stream", "uniform"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where in a run a draw belongs."""

    seed: int
    """The recipe's `seed`."""
    version: int
    """Policy version that samples."""
    task_id: str
    sample_index: int
    turn: int

    def key(self) -> tuple[int, int]:
        """Two 64-bit words that select the Philox stream of this address."""
        name = f"{self.seed}|{self.version}|{self.sample_index}|{self.turn}|{self.task_id}"
        digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def stream(*parts: object) -> np.random.Generator:
    """A generator for everything that is not token sampling (shuffles, fault injection), named by its parts."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def drawn(items: Sequence[T], count: int | None, seed: int | None) -> Sequence[T]:
    """The first `count` items, all of them for None; with a seed, `count` at random, in the order of `items`.

    Data sets are seldom in random order, and their first items may be hard or easy ones.
    """
    if seed is None or count is None or count >= len(items):
        return items[:count]
    chosen = stream("drawn", seed).choice(len(items), count, replace=False)
    return [items[index] for index in np.sort(chosen)]


def generator(address: Address) -> np.random.Generator:
    """A generator for the draws of a search, which takes many at once."""
    return np.random.Generator(np.random.Philox(key=np.array(address.key(), dtype=np.uint64)))


def uniform(address: Address, position: int) -> float:
    """The draw in [0, 1) for the token at `position` (0-based) of the turn, with 53 random bits."""
    key = np.array(address.key(), dtype=np.uint64)
    # One Philox block gives four words; one block per position keeps positions independent of each other.
    bits = np.random.Philox(key=key, counter=[position, 0, 0, 0]).random_raw()
    return float(int(bits) >> 11) * 2.0**-53
