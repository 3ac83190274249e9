"""Dr. GRPO: GRPO without its two biases: no division by the standard deviation, no division by the own length.

Liu et al. 2025 (arXiv:2503.20783), section 3.2. `constant_tokens` should be the recipe's completion budget; it only
scales the learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkit.algorithms.base import Aggregation, Algorithm, AlgorithmConfig, Floats
from rlkit.algorithms.credit import centered, relative_advantages, trajectory_credit
from rlkit.algorithms.surrogate import clipped_surrogate
from rlkit.records import CreditedTree, ScoredTree

__all__ = ["ALGORITHM", "DrGrpoConfig"]


@dataclass(frozen=True, kw_only=True)
class DrGrpoConfig(AlgorithmConfig):
    """Constant denominator, centred rewards."""

    aggregation: Aggregation = "constant"
    constant_tokens: int = 1024


def credit(scored: Sequence[ScoredTree], config: DrGrpoConfig, kl: Sequence[Floats] | None) -> list[CreditedTree]:
    """A = R - mean of the group, the same on every token of a trajectory."""
    return trajectory_credit(scored, relative_advantages(scored, config, kl, centered), config)


ALGORITHM = Algorithm(config=DrGrpoConfig, credit=credit, loss=clipped_surrogate)
