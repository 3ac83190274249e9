"""BM25 over titles and texts: no weights, no service, exact names found at once.

Robertson and Zaragoza 2009 in the sparse-matrix form of bm25s (Lù 2024, arXiv:2407.03618): all scores are
computed at indexing time, so a query sums a few columns. English stop words are dropped; there is no
stemming.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import bm25s
import numpy as np
from numpy.typing import NDArray

from rlkit.envs.batching import BatchedRetriever, Batching
from rlkit.errors import DataError
from rlkit.retriever import Passage, Retrieval

__all__ = ["Bm25"]


class Bm25:
    """A lexical retriever in this process; calls from many trajectories share one batched search."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the retriever kind `bm25`."""

        k1: float = 1.5
        """Saturation of repeated words."""
        b: float = 0.75
        """How much long passages are discounted, 0 to 1."""
        cache_dir: str | None = None
        """Folder of built indexes, one per corpus fingerprint, opened memory-mapped; null: build in memory.
        """
        progress: bool = False
        """Show a progress bar while indexing."""
        batching: Batching = field(default_factory=Batching)
        """Batch size, queue and deadline."""

        def __post_init__(self) -> None:
            if self.k1 < 0:
                raise ValueError(f"k1: {self.k1} is below 0")
            if not 0 <= self.b <= 1:
                raise ValueError(f"b: {self.b} is not in [0, 1]")

    def __init__(self, config: Config, passages: Sequence[Passage]) -> None:
        if not passages:
            raise DataError("retriever bm25: the corpus is empty; the task source came without passages")
        self.config = config
        self.passages = tuple(passages)
        self._index = self._open() if config.cache_dir else self._build()
        self._batched = BatchedRetriever(_Blocking(self), config.batching)

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        """One `Retrieval` per query, in order; passages that share no word with the query are left out."""
        return await self._batched.search(queries, top_k)

    def search_now(self, queries: Sequence[str], top_k: int) -> list[Retrieval]:
        """The same without queue and deadline, in the calling thread."""
        if not queries or top_k < 1:
            return [Retrieval() for _ in queries]
        words = bm25s.tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
        k = min(top_k, len(self.passages))
        found, scores = self._index.retrieve(words, k=k, show_progress=False, backend_selection="numpy")
        return [self._retrieval(row, row_scores) for row, row_scores in zip(found, scores, strict=True)]

    def scores(self, query: str) -> NDArray[np.float32]:
        """[passages] BM25 of every passage, in their order; 0 where no word is shared."""
        [words] = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)
        if not words:
            return np.zeros(len(self.passages), np.float32)
        return np.asarray(self._index.get_scores(words), dtype=np.float32)

    def _retrieval(self, found: Sequence[int], scores: Sequence[float]) -> Retrieval:
        hits = [(self.passages[i], float(s)) for i, s in zip(found, scores, strict=True) if s > 0]
        return Retrieval(passages=tuple(p for p, _ in hits), scores=tuple(s for _, s in hits))

    def _build(self) -> bm25s.BM25:
        texts = [f"{passage.title} {passage.text}" for passage in self.passages]
        words = bm25s.tokenize(texts, stopwords="en", show_progress=self.config.progress)
        index = bm25s.BM25(k1=self.config.k1, b=self.config.b)
        index.index(words, show_progress=self.config.progress)
        return index

    def _open(self) -> bm25s.BM25:
        """The cached index of this corpus; built first where there is none. Safe with several processes."""
        folder = Path(self.config.cache_dir or "").expanduser() / f"bm25-{self._fingerprint()}"
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
                draft = Path(scratch, "index")
                self._build().save(draft, show_progress=False)
                try:
                    draft.rename(folder)  # appears complete or not at all
                except OSError:
                    if not folder.is_dir():  # else another process was faster
                        raise
        try:
            return bm25s.BM25.load(folder, mmap=True, show_progress=False)
        except (OSError, ValueError, KeyError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise DataError(f"{folder}: the cached index is broken and was removed; run again ({error})") from error

    def _fingerprint(self) -> str:
        """Of the corpus and of everything that shapes the index."""
        digest = hashlib.blake2b(f"{bm25s.__version__}|{self.config.k1}|{self.config.b}".encode(), digest_size=12)
        for passage in self.passages:
            digest.update(f"\0{passage.id}\0{passage.title}\0{passage.text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


class _Blocking:
    """The index as a retriever that blocks while it computes; `BatchedRetriever` runs it in a thread."""

    def __init__(self, bm25: Bm25) -> None:
        self._bm25 = bm25

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        return self._bm25.search_now(queries, top_k)
