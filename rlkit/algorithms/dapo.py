"""DAPO: clip-higher, dynamic sampling, token-level loss, overlong reward shaping.

Yu et al. 2025 (arXiv:2503.14476), eq. 8 to 13. Departure: eq. 8 averages tokens within a group before the mean over
groups; the released code averages over the batch, and so does the default here (`group_token_mean` is the formula).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlkit.algorithms.base import Aggregation, Algorithm, AlgorithmConfig, Floats
from rlkit.algorithms.credit import ZERO_STD, relative_advantages, standardized, trajectory_credit
from rlkit.algorithms.surrogate import clipped_surrogate
from rlkit.records import CreditedTree, RewardTerm, ScoredTree

__all__ = ["ALGORITHM", "DapoConfig", "overlong_penalty"]


@dataclass(frozen=True, kw_only=True)
class DapoConfig(AlgorithmConfig):
    """Defaults of the paper: ε_low 0.2, ε_high 0.28, no KL."""

    aggregation: Aggregation = "token_mean"
    clip_high: float = 0.28
    dynamic_sampling: bool = True
    """Leave out groups whose rewards are all equal and draw others (eq. 11)."""
    overlong_tokens: int = 0
    """L_max, the longest completion in policy tokens; 0 turns the shaping off."""
    overlong_buffer: int = 0
    """L_cache: the penalty grows from 0 to -1 over the last so many tokens."""
    overlong_filter: bool = False
    """Do not train on truncated trajectories (section 3.4)."""

    def __post_init__(self) -> None:
        AlgorithmConfig.__post_init__(self)
        if self.overlong_tokens and not 0 < self.overlong_buffer <= self.overlong_tokens:
            raise ValueError(
                f"overlong_buffer: {self.overlong_buffer} is not in 1..overlong_tokens ({self.overlong_tokens})"
            )


def overlong_penalty(length: int, config: DapoConfig) -> float:
    """Eq. 13: 0 up to L_max - L_cache tokens, then linear, -1 beyond L_max."""
    if not config.overlong_tokens:
        return 0.0
    return -float(np.clip((length - config.overlong_tokens + config.overlong_buffer) / config.overlong_buffer, 0, 1))


def _shaped(scored: ScoredTree, config: DapoConfig) -> ScoredTree:
    if not config.overlong_tokens:
        return scored
    lengths = [t.num_policy_tokens for t in scored.tree.trajectories()]
    penalty = np.array([overlong_penalty(length, config) for length in lengths])
    term = RewardTerm(name="overlong", weight=1.0, values=penalty, status=("ok",) * len(lengths))
    return replace(scored, terms=(*scored.terms, term))


def credit(scored: Sequence[ScoredTree], config: DapoConfig, kl: Sequence[Floats] | None) -> list[CreditedTree]:
    """GRPO's advantages on rewards with the overlong penalty added."""
    scored = [_shaped(tree, config) for tree in scored]
    masks = None
    if config.overlong_filter:
        masks = [np.array([leaf.status == "done" for leaf in s.tree.leaves]) for s in scored]
    return trajectory_credit(scored, relative_advantages(scored, config, kl, standardized), config, masks)


def drop(scored: ScoredTree, config: DapoConfig) -> str | None:
    """Dynamic sampling: a group with a single reward value has no gradient."""
    rewards = _shaped(scored, config).rewards
    rewards = rewards[np.isfinite(rewards)]
    return "equal_rewards" if config.dynamic_sampling and rewards.std() <= ZERO_STD else None


ALGORITHM = Algorithm(config=DapoConfig, credit=credit, loss=clipped_surrogate, drop=drop)
