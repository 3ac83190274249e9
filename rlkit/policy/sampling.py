"""From one row of logits to one token: what was kept, what was drawn, and how likely that was.

Everything is float64 numpy on one row [V], so a draw depends on its own logits and its own uniform number
only: not on the batch around it, the device or the number of threads.

    constraint -> / temperature -> top-k -> top-p -> renormalise -> inverse CDF over ascending token ids

V: vocabulary, K: kept tokens. Logits and log-probabilities are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import EngineError
from rlkit.policy.base import Sampling
from rlkit.records import SamplingState

__all__ = ["Draw", "draw", "kept_ids", "sampling_state"]

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One sampled token."""

    token_id: int
    logprob: float
    """Under the distribution that was drawn from: truncated and renormalised."""
    kept: Ids | None
    """[K] ids that could have been drawn, ascending; None: the whole vocabulary."""


def draw(
    logits: NDArray[np.floating], sampling: Sampling, point: float, allowed: NDArray[np.integer] | None = None
) -> Draw:
    """The token at `point` in [0, 1) of the cumulative distribution of `logits` [V], ids ascending.

    `allowed` [A] restricts the draw to these ids (a trie's continuations). At temperature 0 it is the
    likeliest token, of equals the lowest id, with its log-probability at temperature 1. Raises `EngineError`
    where the logits have a NaN or no finite maximum, or where `allowed` is empty.
    """
    kept = kept_ids(logits, sampling, allowed)
    row = logits if kept is None else logits[kept]  # [K]
    mass = _mass(row, sampling)
    np.cumsum(mass, out=mass)  # sequential, so no sum depends on how a library splits it
    total = mass[-1]
    if sampling.temperature == 0:
        index = int(row.argmax())
    else:
        # The first entry whose cumulative mass exceeds the point: one of mass 0 is never drawn, not even at point 0.
        # Rounding may carry `point * total` up to `total`, hence the bound: the last token that has any mass.
        index = int(min(np.searchsorted(mass, point * total, side="right"), np.searchsorted(mass, total)))
    scaled = (float(row[index]) - float(row.max())) / (sampling.temperature or 1.0)
    return Draw(token_id=index if kept is None else int(kept[index]), logprob=scaled - float(np.log(total)), kept=kept)


def kept_ids(
    logits: NDArray[np.floating], sampling: Sampling, allowed: NDArray[np.integer] | None = None
) -> Ids | None:
    """Ids [K] that constraint, top-k and top-p leave of `logits` [V], ascending; None if none is active.

    Ties go to the lower id. Greedy decoding ignores top-k and top-p, which never remove the likeliest token.
    """
    ids = None if allowed is None else np.unique(allowed).astype(np.int32)
    if ids is not None and not len(ids):
        raise EngineError("the constraint allows no token")
    if sampling.temperature == 0:
        return ids
    if sampling.top_k:
        ids = np.arange(len(logits), dtype=np.int32) if ids is None else ids
        ids = _top_k(logits, ids, sampling.top_k)
    if sampling.top_p < 1:
        ids = np.arange(len(logits), dtype=np.int32) if ids is None else ids
        ids = _top_p(logits[ids], sampling, ids)
    return ids


def sampling_state(sampling: Sampling, draws: Sequence[Draw], vocab_size: int) -> SamplingState:
    """The replayable form of a completion's distributions; among kept sets, no set means all V."""
    temperature = sampling.temperature or 1.0
    if all(d.kept is None for d in draws):
        return SamplingState(temperature=temperature)
    everything = np.arange(vocab_size, dtype=np.int32)
    sets = [everything if d.kept is None else d.kept for d in draws]
    offsets = np.concatenate([[0], np.cumsum([len(kept) for kept in sets])]).astype(np.int32)
    return SamplingState(temperature=temperature, support_offsets=offsets, support_ids=np.concatenate(sets))


def _mass(logits: NDArray[np.floating], sampling: Sampling) -> NDArray[np.float64]:
    """Unnormalised probabilities, 1 for the likeliest. One buffer: at V = 49,152 new memory costs more than `exp`."""
    peak = logits.max()
    if not np.isfinite(peak):  # NaN spreads through max
        raise EngineError(f"the largest logit is {peak}: the weights diverged, or the constraint forbids every token")
    mass = logits.astype(np.float64)
    mass -= peak
    if sampling.temperature not in (0, 1):
        mass /= sampling.temperature
    return np.exp(mass, out=mass)


def _top_k(logits: NDArray[np.floating], ids: Ids, k: int) -> Ids:
    if k >= len(ids):
        return ids
    values = logits[ids]
    cut = np.partition(values, len(ids) - k)[len(ids) - k]  # the k-th largest
    keep = values > cut
    ties = np.flatnonzero(values == cut)
    keep[ties[: k - int(keep.sum())]] = True
    return ids[keep]


def _top_p(logits: NDArray[np.floating], sampling: Sampling, ids: Ids) -> Ids:
    """The smallest set of likeliest `ids` that holds at least `top_p` of the mass of their `logits` [K]."""
    p, mass = sampling.top_p, _mass(logits, sampling)
    total = mass.sum()
    # All entries below this together hold less than 1 - p, so the set is complete without them: a far shorter sort.
    likely = np.flatnonzero(mass >= (1 - p) * total / len(mass))
    order = likely[np.argsort(-logits[likely], kind="stable")]  # stable: of equals the lower id first
    count = int(np.searchsorted(mass[order].cumsum(), p * total)) + 1
    return ids[np.sort(order[:count])]
