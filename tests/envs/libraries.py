"""Retrievers for tests: a shelf of passages, and ones that are slow, broken or dead."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

from rlkit.retriever import Passage, Retrieval

VELMORA = Passage(id="1", title="Velmora", text="Velmora is a town. Its mayor is Tarek Lundvig.")
OSSIN = Passage(id="2", title="Ossin", text="Ossin is a river.")


class Shelf:
    """Every query finds the same passages; remembers what it was asked."""

    def __init__(self, *passages: Passage, status: str = "ok") -> None:
        self.passages = passages
        self.status = status
        self.calls: list[list[str]] = []

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        self.calls.append(list(queries))
        return [Retrieval(passages=self.passages[:top_k], status=self.status) for _ in queries]


class Slow(Shelf):
    """Blocks its thread for a while, as a busy index does."""

    def __init__(self, seconds: float) -> None:
        super().__init__(VELMORA)
        self.seconds = seconds

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        time.sleep(self.seconds)
        return await super().search(queries, top_k)


class Hanging(Shelf):
    """Answers nothing until `release` is set."""

    def __init__(self) -> None:
        super().__init__(VELMORA)
        self.release = threading.Event()

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        self.release.wait(timeout=10)
        return await super().search(queries, top_k)


class Broken(Shelf):
    """Raises every time, or answers with the wrong number of results."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.error = error

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return [Retrieval()] * (len(queries) + 1)
