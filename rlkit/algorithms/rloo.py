"""RLOO: REINFORCE with the mean of the other rollouts as baseline, whole sequences.

Ahmadian et al. 2024 (arXiv:2402.14740), section 3.3. The paper is on-policy without a ratio; here the token ratio is
clipped as in GRPO, which is the same gradient at the first update of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlkit.algorithms.base import Aggregation, Algorithm, AlgorithmConfig, Floats
from rlkit.algorithms.credit import relative_advantages, trajectory_credit
from rlkit.algorithms.surrogate import clipped_surrogate
from rlkit.records import CreditedTree, ScoredTree

__all__ = ["ALGORITHM", "RlooConfig", "leave_one_out"]


@dataclass(frozen=True, kw_only=True)
class RlooConfig(AlgorithmConfig):
    """Sum of a sequence's tokens, mean over sequences: log π of a whole completion."""

    aggregation: Aggregation = "sequence_sum"


def leave_one_out(rewards: Floats, config: AlgorithmConfig) -> Floats:
    """A_i = R_i - mean of the others = (R_i - mean)·n/(n-1) over the finite entries; 0 for a group of one."""
    valid = np.isfinite(rewards)
    n = int(valid.sum())
    if n < 2:
        return np.where(valid, 0.0, np.nan)
    return np.where(valid, (rewards - rewards[valid].mean()) * n / (n - 1), np.nan)


def credit(scored: Sequence[ScoredTree], config: RlooConfig, kl: Sequence[Floats] | None) -> list[CreditedTree]:
    """Leave-one-out advantages, the same on every token of a trajectory."""
    return trajectory_credit(scored, relative_advantages(scored, config, kl, leave_one_out), config)


ALGORITHM = Algorithm(config=RlooConfig, credit=credit, loss=clipped_surrogate)
