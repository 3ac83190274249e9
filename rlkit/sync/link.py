"""How fast a link is, measured with bytes of the size that a sync sends: what a step's sync is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["PROBE_BYTES", "copy_speed", "probe"]

PROBE_BYTES = 64 << 20
"""Most bytes of one measurement."""
Bytes = NDArray[np.uint8]


def probe(num_bytes: int) -> Bytes:
    """Bytes to measure with, every page of them touched."""
    return np.ones(max(1, min(num_bytes, PROBE_BYTES)), np.uint8)


def copy_speed(source: Callable[[], Bytes], num_bytes: int) -> float:
    """Bytes/s from asking for the source to a copy of it in memory of one's own: the bound of a sync over this link."""
    target = probe(num_bytes)  # written before, so that the copy finds its pages
    start = time.perf_counter()
    np.copyto(target, source())
    return target.nbytes / max(time.perf_counter() - start, 1e-9)
