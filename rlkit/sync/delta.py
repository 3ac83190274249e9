"""Only what changed: elements of a tensor whose bits are others than those sent before.

At the learning rates of RL an update moves most bfloat16 weights by less than their last bit, so that few change in a
step. What travels is the new bits themselves, not a difference: nothing is rounded, and a receiver holds the very bits
that the sender has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Changed", "applied", "changed"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Changed:
    """Elements of one tensor."""

    positions: NDArray[np.uint32]
    """Of the flat tensor, ascending [K]."""
    values: Array
    """Their new bits, as unsigned integers of the element's size [K]."""

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return int(self.positions.nbytes + self.values.nbytes)


def changed(new: Array, old: Array) -> Changed | None:
    """What to send so that `old` becomes `new`; None where the whole tensor is no larger, or too long for 32 bits.

    Both have one shape and dtype.
    """
    if new.size > np.iinfo(np.uint32).max:
        return None
    bits, before = _bits(new), _bits(old)
    positions = np.flatnonzero(bits != before)
    found = Changed(positions.astype(np.uint32), bits[positions])
    return found if found.nbytes < new.nbytes else None


def applied(base: Array, change: Changed) -> None:
    """Write the elements into a contiguous, writable `base`."""
    _bits(base)[change.positions] = change.values


def _bits(array: Array) -> Array:
    """Every element as an unsigned integer, flat, in place: NaN is equal to itself and -0 not to 0."""
    return array.reshape(-1).view(f"u{array.dtype.itemsize}")
