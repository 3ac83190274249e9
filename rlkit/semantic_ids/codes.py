"""What a tokenizer of items makes: one code per level for every item, and how well the codes are used.

I items · L levels · S codes of a codebook
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Statistics", "made_unique", "sid_tokens", "statistics"]

Ints = NDArray[np.int64]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of codes [I, L]."""

    num_items: int
    num_sids: int
    """Distinct semantic IDs."""
    num_colliding: int
    """Items that share their semantic ID with another."""
    largest: int
    """Items on the fullest semantic ID."""
    used: tuple[float, ...]
    """[L] share of each codebook that any item has."""
    perplexity: tuple[float, ...]
    """[L] exp of the entropy of code frequencies: how many codes are in even use, at most the codebook's size."""
    error: tuple[float, ...] = ()
    """[L] mean squared distance left after each level, relative to that of the mean vector; empty: not known."""

    @property
    def collision_rate(self) -> float:
        """Share of items that share their semantic ID."""
        return self.num_colliding / self.num_items

    def __str__(self) -> str:
        def listed(values: tuple[float, ...], form: str) -> str:
            return ", ".join(format(value, form) for value in values)

        lines = [
            f"{self.num_items} items on {self.num_sids} semantic IDs; {self.num_colliding} items "
            f"({100 * self.collision_rate:.2f} %) share one, at most {self.largest}",
            f"codebook use by level: {listed(self.used, '.3f')}",
            f"perplexity by level: {listed(self.perplexity, '.1f')}",
        ]
        if self.error:
            lines.append(f"error left by level: {listed(self.error, '.3f')}")
        return "\n".join(lines)


def statistics(codes: Ints, size: int, error: tuple[float, ...] = ()) -> Statistics:
    """Collisions and codebook use of codes [I, L] in 0..S-1, S = `size`."""
    _, counts = np.unique(codes, axis=0, return_counts=True)
    used, perplexity = [], []
    for level in codes.T:
        share = np.bincount(level, minlength=size) / len(level)
        used.append(float((share > 0).mean()))
        perplexity.append(float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum())))
    return Statistics(
        num_items=len(codes),
        num_sids=len(counts),
        num_colliding=int(counts[counts > 1].sum()),
        largest=int(counts.max()),
        used=tuple(used),
        perplexity=tuple(perplexity),
        error=error,
    )


def made_unique(codes: Ints) -> Ints:
    """[I, L + 1]: one more level that counts the items on a semantic ID, in their order (TIGER, Rajput et al. 2023)."""
    last = np.zeros(len(codes), np.int64)
    seen: dict[bytes, int] = {}
    for index, row in enumerate(np.ascontiguousarray(codes, np.int64)):
        key = row.tobytes()
        last[index] = seen[key] = seen.get(key, -1) + 1
    return np.column_stack([codes, last])


def sid_tokens(codes: Ints) -> list[tuple[str, ...]]:
    """Codes as tokens: `(183, 70)` is `("<a_183>", "<b_70>")`."""
    return [tuple(f"<{LETTERS[level]}_{code}>" for level, code in enumerate(row)) for row in codes.tolist()]
