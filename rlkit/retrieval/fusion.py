"""Ranked lists of several channels and queries become one (Cormack, Clarke and Büttcher 2009)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from rlkit.retriever import Passage
from rlkit.text import normalize

__all__ = ["different", "reciprocal_rank_fusion"]

RRF_K = 60
"""The constant of the original paper: how slowly lower ranks lose weight."""


def reciprocal_rank_fusion(lists: Iterable[Sequence[int]], k: int = RRF_K) -> list[tuple[int, float]]:
    """(item, Σ 1/(k + rank)) over all lists, ranks from 1, best first; equal scores by item."""
    scores: dict[int, float] = {}
    for ranked in lists:
        for rank, item in enumerate(dict.fromkeys(ranked), start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (k + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def different(items: Iterable[int], passages: Sequence[Passage]) -> list[int]:
    """`items` in order without those whose text says the same as an earlier one's."""
    seen: set[bytes] = set()
    kept = []
    for item in items:
        digest = hashlib.blake2b(normalize(passages[item].text).encode("utf-8", "replace"), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(item)
    return kept
