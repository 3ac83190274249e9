"""How good a ranked list of recommendations is: hit rate, NDCG, coverage, diversity. Pure numpy.

Every list ranks the whole catalogue; nothing is sampled. Items that share a semantic ID cannot be told apart by a
model of semantic IDs, so a list of leaves is a list of items with ties. `ties` says what a tie counts:

    expected    the m items of a leaf stand in random order, and the number is the mean over all orders: a hit on the
                leaf that holds ranks s+1..s+m counts clip((k - s) / m, 0, 1) at cut-off k (default: comparable with
                models that rank items, as SASRec)
    sid         the leaf is the item: what MiniOneRec and V-STAR report; never below `expected`

    U users · K places of a list · L levels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlkit.catalogue.trie import ABSENT, Trie

__all__ = [
    "NO_ITEM",
    "Ties",
    "coverage",
    "diversity",
    "gains",
    "hits",
    "long_tail",
    "places",
    "places_of_scores",
    "rank_penalties",
]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Ties = Literal["expected", "sid"]
NO_ITEM = 0
"""Size of a tie that the target is not in: it was not ranked."""


def places(ranked: Ints, targets: Ints, trie: Trie, ties: Ties = "expected") -> tuple[Ints, Ints]:
    """(items ranked before the target's leaf [U], items that share that leaf [U]).

    `ranked` [U, K] are distinct leaves, best first, `ABSENT` where a list is shorter; `targets` [U] are leaves. A
    target that was not ranked has the tie size `NO_ITEM`.
    """
    sizes = np.where(ranked == ABSENT, 0, trie.num_below(np.maximum(ranked, 0)) if ties == "expected" else 1)
    found = (ranked == targets[:, None]) & (ranked != ABSENT)
    where = found.argmax(1)
    before = np.cumsum(sizes, 1) - sizes
    users = np.arange(len(targets))
    return before[users, where], np.where(found.any(1), sizes[users, where], NO_ITEM)


def places_of_scores(scores: NDArray[np.floating], targets: Ints) -> tuple[Ints, Ints]:
    """As `places`, for a model that scores every item: `scores` [U, I], `targets` [U] item rows; equal scores tie."""
    own = scores[np.arange(len(targets)), targets][:, None]
    return (scores > own).sum(1), (scores == own).sum(1)


def hits(before: Ints, size: Ints, k: int) -> Floats:
    """HR@k [U]: the chance that the target is among the first k, over all orders of its tie. In [0, 1]."""
    return np.where(size > NO_ITEM, np.clip((k - before) / np.maximum(size, 1), 0.0, 1.0), 0.0)


def gains(before: Ints, size: Ints, k: int) -> Floats:
    """NDCG@k [U]: the mean of 1 / log2(rank + 1) over the ranks of the target's tie, 0 beyond k. In [0, 1].

    One relevant item, so the ideal gain is 1.
    """
    gain = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])  # gain[r]: of ranks 1..r
    total = gain[np.clip(before + size, 0, k)] - gain[np.clip(before, 0, k)]
    return np.where(size > NO_ITEM, total / np.maximum(size, 1), 0.0)


def coverage(ranked: Ints, trie: Trie, k: int) -> float:
    """Share of the catalogue's items that are among the first k leaves of anyone's list."""
    shown = np.unique(ranked[:, :k])
    return float(trie.num_below(shown[shown != ABSENT]).sum()) / trie.num_items


def diversity(sids: Sequence[Sequence[object]] | NDArray[np.integer]) -> float:
    """Mean over pairs of 1 - (common prefix) / L of semantic IDs [C, L] (V-STAR section 6); NaN for fewer than two."""
    rows = np.unique(np.asarray(sids).ravel(), return_inverse=True)[1].reshape(len(sids), -1)
    if len(rows) < 2:
        return float("nan")
    first, second = np.triu_indices(len(rows), 1)
    common = np.cumprod(rows[first] == rows[second], axis=1).sum(1)
    return float(1 - common.mean() / rows.shape[1])


def long_tail(counts: NDArray[np.integer], head: float = 0.2) -> NDArray[np.bool_]:
    """[I] True for items outside of the `head` share of items with most training interactions, ties by row."""
    order = np.argsort(-counts, kind="stable")
    tail = np.ones(len(counts), bool)
    tail[order[: round(head * len(counts))]] = False
    return tail


def rank_penalties(num: int) -> Floats:
    """q [G]: 1 / log2(i + 2) for places i = 0..G-1, normalised to sum 1 (MiniOneRec, V-STAR section 5)."""
    raw = 1 / np.log2(np.arange(num) + 2)
    return raw / raw.sum()
