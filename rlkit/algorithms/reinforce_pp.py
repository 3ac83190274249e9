"""REINFORCE++: token-level KL in the reward, advantages normalised over the whole batch; optional group baseline.

Hu et al. 2025 (arXiv:2501.03262): A_t = R - β·Σ_{j>=t} KL_j, whitened over the batch's tokens. `baseline: group`
(REINFORCE++-baseline) subtracts the group's mean reward first and moves the KL to the loss if `kl_in` says so.
On a tree A depends on leaf and token; C⁺ and C⁻ carry it exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlkit.algorithms.base import Aggregation, Algorithm, AlgorithmConfig, Floats
from rlkit.algorithms.credit import centered, trajectory_credit, whiten
from rlkit.algorithms.surrogate import clipped_surrogate
from rlkit.ops.ratios import KlEstimator
from rlkit.records import CreditedTree, ScoredTree

__all__ = ["ALGORITHM", "ReinforcePpConfig"]


@dataclass(frozen=True, kw_only=True)
class ReinforcePpConfig(AlgorithmConfig):
    """KL as a token reward (k1), token mean."""

    aggregation: Aggregation = "token_mean"
    kl_in: Literal["loss", "reward"] = "reward"
    kl_estimator: KlEstimator = "k1"
    baseline: Literal["none", "group"] = "none"
    """`group`: subtract the mean reward of the group before the batch is whitened."""

    def __post_init__(self) -> None:
        AlgorithmConfig.__post_init__(self)
        if self.normalize != "together":
            raise ValueError(f"normalize: '{self.normalize}' is not defined for reinforce_pp; use 'together'")


def credit(scored: Sequence[ScoredTree], config: ReinforcePpConfig, kl: Sequence[Floats] | None) -> list[CreditedTree]:
    """Reward-to-go of the final reward and the token KL, whitened over all (leaf, token) pairs of the batch."""
    returns: list[Floats] = []
    sizes: list[list[int]] = []
    for index, tree in enumerate(scored):
        rewards = centered(tree.rewards, config) if config.baseline == "group" else tree.rewards
        sizes.append([])
        for leaf, reward in enumerate(rewards):
            tokens = tree.tree.policy_tokens(leaf)
            cost = np.zeros(len(tokens))
            if kl is not None and config.kl_in == "reward" and np.isfinite(reward):
                cost = config.kl_coef * np.cumsum(kl[index][tokens][::-1])[::-1]
            returns.append(reward - cost)
            sizes[-1].append(len(tokens))
    values = iter(whiten(returns, config.eps))
    advantages = [[next(values) for _ in tree] for tree in sizes]
    return trajectory_credit(scored, advantages, config)


ALGORITHM = Algorithm(config=ReinforcePpConfig, credit=credit, loss=clipped_surrogate, min_group_size=1)
