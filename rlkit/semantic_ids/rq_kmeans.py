"""Residual quantisation by k-means: each level clusters what the levels before it left over.

    r_0 = x     code_l = argmin_s ||r_l - c_l,s||     r_{l+1} = r_l - c_l,code

Nothing is trained by gradients, so it is fast, repeatable and hard to collapse. Lloyd's algorithm from k-means++ seeds
(Arthur and Vassilvitskii 2007); a cluster that loses all its points moves to the point that is served worst.

    I items · D dimensions · S codes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["kmeans", "nearest_code", "residuals", "rq_kmeans"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def rq_kmeans(vectors: Floats, *, levels: int, size: int, seed: int = 0, iterations: int = 30) -> tuple[Ints, Floats]:
    """(codes [I, levels], codebooks [levels, size, D]). Raises `ValueError` for fewer items than codes."""
    rng = np.random.default_rng(seed)
    left = np.asarray(vectors, np.float32)
    codes, books = [], []
    for _ in range(levels):
        book = kmeans(left, size, rng, iterations)
        code, _ = nearest_code(left, book)
        left = left - book[code]
        codes.append(code)
        books.append(book)
    return np.stack(codes, axis=1), np.stack(books)


def kmeans(points: Floats, size: int, rng: np.random.Generator, iterations: int = 30) -> Floats:
    """Centres [size, D] of points [I, D]."""
    if len(points) < size:
        raise ValueError(f"size: {size} codes for {len(points)} items; a codebook needs at least one item each")
    centres = _seeds(points, size, rng)
    for _ in range(iterations):
        code, distance = nearest_code(points, centres)
        counts = np.bincount(code, minlength=size)
        sums = np.zeros_like(centres)
        np.add.at(sums, code, points)
        moved = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        moved[empty] = points[np.argsort(-distance, kind="stable")[: len(empty)]]
        if np.allclose(moved, centres, atol=1e-7):
            break
        centres = moved
    return centres


def nearest_code(points: Floats, centres: Floats) -> tuple[Ints, Floats]:
    """(nearest centre [I], squared distance [I]); ties to the lower code."""
    squared = (points**2).sum(1)[:, None] - 2 * points @ centres.T + (centres**2).sum(1)
    code = squared.argmin(1).astype(np.int64)
    return code, np.maximum(squared[np.arange(len(points)), code], 0)


def residuals(vectors: Floats, codes: Ints, books: Floats) -> tuple[float, ...]:
    """[L] mean squared distance left after each level, divided by that of the mean vector."""
    left = np.asarray(vectors, np.float32)
    whole = float(((left - left.mean(0)) ** 2).sum(1).mean())
    out = []
    for level in range(codes.shape[1]):
        left = left - books[level][codes[:, level]]
        out.append(float((left**2).sum(1).mean()) / max(whole, 1e-12))
    return tuple(out)


def _seeds(points: Floats, size: int, rng: np.random.Generator) -> Floats:
    """k-means++: each seed is drawn by its squared distance to the seeds so far."""
    chosen = [int(rng.integers(len(points)))]
    distance = ((points - points[chosen[0]]) ** 2).sum(1)
    for _ in range(size - 1):
        total = float(distance.sum())
        shares = distance / total if total > 0 else np.full(len(points), 1 / len(points))
        chosen.append(int(rng.choice(len(points), p=shares / shares.sum(dtype=np.float64))))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(1))
    return points[chosen].copy()
