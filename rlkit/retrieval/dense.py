"""Nearest passages by the cosine of unit vectors: an exact FAISS index, memory-mapped from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DenseIndex"]


class DenseIndex:
    """Vectors [N, dim] under FAISS's inner product."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: NDArray[np.float32]) -> DenseIndex:
        """An index of these rows."""
        import faiss

        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))
        return cls(index)

    @classmethod
    def open(cls, file: Path) -> DenseIndex:
        """A saved index; pages are read when they are needed."""
        import faiss

        return cls(faiss.read_index(str(file), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY))

    def save(self, file: Path) -> None:
        """Write it."""
        import faiss

        faiss.write_index(self._index, str(file))

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[int, float]]]:
        """(row, cosine) of the k nearest of each query, best first; those without any likeness are left out."""
        if not len(queries) or not self._index.ntotal:
            return [[] for _ in queries]
        scores, rows = self._index.search(np.ascontiguousarray(queries), min(k, self._index.ntotal))
        return [
            [(int(row), float(score)) for row, score in zip(*pair, strict=True) if row >= 0 and score > 0]
            for pair in zip(rows, scores, strict=True)
        ]

    def scores(self, query: NDArray[np.float32], rows: Sequence[int]) -> NDArray[np.float32]:
        """[len(rows)] cosines of one query [dim] with chosen rows."""
        if not len(rows):
            return np.zeros(0, np.float32)
        vectors: NDArray[np.float32] = self._index.reconstruct_batch(np.asarray(rows, np.int64))
        return vectors @ query
