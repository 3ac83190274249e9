"""What a retriever is: batched queries in, ranked passages out; a slow or failing call is data with a status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = ["IndexReport", "Passage", "Phase", "Refreshable", "Retrieval", "Retriever"]

Phase = Literal["train", "eval"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """What a refresh made of the index."""

    version: str
    """Fingerprint of what is searched now; equal versions answer alike."""
    num_passages: int
    """Passages that the refreshed part is built over."""
    num_kept: int
    """Of these, the ones that it was built over before."""


@runtime_checkable
class Refreshable(Protocol):
    """A retriever whose index follows what a run retrieves. The loop calls it only while nothing searches."""

    def index_version(self) -> str:
        """Fingerprint of what is searched now."""
        ...

    def enter(self, phase: Phase) -> None:
        """Searches from now on belong to this phase; only those of training shape the next index."""
        ...

    def refresh(self) -> IndexReport:
        """Build the index anew from what was retrieved in training so far."""
        ...

    def index_state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        ...

    def restore_index(self, state: Mapping[str, Any] | None, *, resume: bool = True) -> None:
        """Search what `state` searched; None: what a new run searches. With `resume` what was retrieved later is
        forgotten. Raises `DataError` if the corpus or what was retrieved is not what it was.
        """
        ...
