"""Supervised warm start in the same loop: maximise log π of demonstrated completions.

The trees come from a demonstration engine; every leaf that ended by itself has advantage 1, and the loss is the token
cross-entropy of its policy tokens. `min_reward` keeps only demonstrations that the rewards accept (rejection sampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlkit.algorithms.base import Aggregation, Algorithm, AlgorithmConfig, Floats, LossInputs, LossOutput
from rlkit.algorithms.credit import trajectory_credit
from rlkit.algorithms.surrogate import assemble_loss
from rlkit.records import CreditedTree, ScoredTree

__all__ = ["ALGORITHM", "SftConfig", "loss"]


@dataclass(frozen=True, kw_only=True)
class SftConfig(AlgorithmConfig):
    """Mean over all demonstrated tokens of the batch."""

    aggregation: Aggregation = "token_mean"
    min_reward: float | None = None
    """Train only on trajectories whose total reward reaches this; None: on all that did not fail."""
    dropout: float = 0.0
    """Share of units dropped in embeddings and in each layer's attention and MLP while training, in [0, 1): for small
    data that are read many times."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")


def credit(scored: Sequence[ScoredTree], config: SftConfig, kl: Sequence[Floats] | None) -> list[CreditedTree]:
    """Advantage 1 on every demonstrated token."""
    masks = [
        np.array([leaf.status == "done" for leaf in s.tree.leaves])
        & (True if config.min_reward is None else np.nan_to_num(s.rewards, nan=-np.inf) >= config.min_reward)
        for s in scored
    ]
    return trajectory_credit(scored, [np.ones(len(s.tree.leaves)) for s in scored], config, masks)


def loss(inputs: LossInputs, config: SftConfig) -> LossOutput:
    """-Σ_t Σw·log π_t, the cross-entropy in nats per token."""
    total = -(inputs.weight * inputs.logprobs).sum()
    ones = inputs.logprobs.detach() * 0 + 1
    return assemble_loss(inputs, config, total, ratio=ones, clipped=ones < 0)


ALGORITHM = Algorithm(config=SftConfig, credit=credit, loss=loss, min_group_size=1)
