"""A fingerprint of weights: equal exactly when every tensor has the same name, shape, dtype and bytes.

Learner and engine compute it on their own copy. One changed element, a skipped tensor, two swapped tensors or a cast on
the way give another value. Every byte is hashed, with XXH3: about as fast as reading them; its 128 bits are against
accidents, not against somebody who looks for a collision.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

__all__ = ["combined", "digests", "fingerprint"]

_THREADS = 4  # hashing releases the interpreter lock


def fingerprint(weights: Mapping[str, Any]) -> str:
    """32 hex digits for name -> numpy array or torch tensor; the order of the mapping does not matter."""
    return combined(digests(weights))


def combined(found: Mapping[str, str]) -> str:
    """The fingerprint of weights whose tensors have these digests."""
    lines = [f"{name} {digest}" for name, digest in found.items()]
    return xxhash.xxh3_128("\n".join(sorted(lines)).encode()).hexdigest()


def digests(weights: Mapping[str, Any]) -> dict[str, str]:
    """The same for each tensor: name -> 32 hex digits."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(weights, pool.map(_digest, weights.values()), strict=True))


def _digest(value: Any) -> str:
    """Of dtype, shape and bytes; the same for an array and for a tensor of the same numbers."""
    dtype = str(value.dtype).removeprefix("torch.")
    content = xxhash.xxh3_128(f"{dtype}{tuple(value.shape)}".encode())
    content.update(_bytes(value))
    return content.hexdigest()


def _bytes(value: Any) -> memoryview:
    if isinstance(value, Tensor):  # bfloat16 has no numpy dtype, so hand over bytes
        return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
