"""What a retriever is: batched queries in, ranked passages out; a slow or failing call is data with a status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Passage", "Retrieval", "Retriever"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One retrievable text."""

    id: str
    title: str
    text: str
    url: str = ""
    """Where it is published; empty: it cannot be cited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """The answer to one query."""

    passages: tuple[Passage, ...] = ()
    """Best first; at most `top_k`."""
    scores: tuple[float, ...] = ()
    """One per passage, on the retriever's own scale."""
    status: str = "ok"
    """`ok`, `failed: why`, `timeout: N s` or `refused: queue full`; passages are empty unless `ok`."""


class Retriever(Protocol):
    """Serves many environments at once."""

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        """One `Retrieval` per query, in order. Never raises for a bad query: see `Retrieval.status`."""
        ...
