"""GRPO: advantages relative to the group, clipped surrogate averaged per sequence.

Shao et al. 2024 (arXiv:2402.03300), eq. 3 and 4. Departures, each a setting: the KL is off by default
(`kl_coef: 0.001` with `kl_estimator: k3` is the paper's form), the standard deviation is the sample one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkit.algorithms.base import Algorithm, AlgorithmConfig, Floats
from rlkit.algorithms.credit import relative_advantages, standardized, trajectory_credit
from rlkit.algorithms.surrogate import clipped_surrogate
from rlkit.records import CreditedTree, ScoredTree

__all__ = ["ALGORITHM", "GrpoConfig"]


@dataclass(frozen=True, kw_only=True)
class GrpoConfig(AlgorithmConfig):
    """Defaults of the paper: ε = 0.2 on both sides, mean over sequences of token means."""


def credit(scored: Sequence[ScoredTree], config: GrpoConfig, kl: Sequence[Floats] | None) -> list[CreditedTree]:
    """A = (R - mean) / (std + eps) within the group, the same on every token of a trajectory (eq. 4)."""
    return trajectory_credit(scored, relative_advantages(scored, config, kl, standardized), config)


ALGORITHM = Algorithm(config=GrpoConfig, credit=credit, loss=clipped_surrogate)
