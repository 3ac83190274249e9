"""From rewards to credit paths: what is relative to what, and how tokens are averaged. Pure numpy.

Only valid leaves take part: a failed rollout or a failed reward leaves the group's mean, its standard deviation and
every denominator (records.ScoredTree.valid). L: leaves of a tree, R: policy tokens of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rlkit.algorithms.base import AlgorithmConfig, Floats
from rlkit.records import CreditedTree, CreditPath, ScoredTree

__all__ = [
    "centered",
    "group_rewards",
    "leaf_weights",
    "relative_advantages",
    "standardized",
    "sum_of_normalized",
    "trajectory_credit",
    "whiten",
]

ZERO_STD = 1e-8
"""A spread below this is rounding: the group has one reward, and no signal."""

Normalizer = Callable[[Floats, AlgorithmConfig], Floats]


def standardized(rewards: Floats, config: AlgorithmConfig) -> Floats:
    """(R - mean) / (std + eps) over the finite entries; 0 where all are equal, or fewer than two; NaN stays NaN."""
    valid = np.isfinite(rewards)
    out = np.where(valid, 0.0, np.nan)
    if valid.sum() < 2:
        return out
    std = rewards[valid].std(ddof=config.std_ddof)
    if std > ZERO_STD:
        out[valid] = (rewards[valid] - rewards[valid].mean()) / (std + config.eps)
    return out


def centered(rewards: Floats, config: AlgorithmConfig) -> Floats:
    """R - mean over the finite entries, no division (Dr. GRPO); 0 for a group of one."""
    valid = np.isfinite(rewards)
    return np.where(valid, rewards - rewards[valid].mean(), np.nan) if valid.any() else rewards


def group_rewards(scored: ScoredTree, config: AlgorithmConfig, kl: Floats | None) -> Floats:
    """[L] weighted rewards, less β·Σ_t KL_t along each path where the KL is part of the reward; NaN: not valid."""
    rewards = scored.rewards.copy()
    if kl is not None and config.kl_in == "reward" and config.kl_coef:
        for index in map(int, np.flatnonzero(scored.valid)):
            rewards[index] -= config.kl_coef * kl[scored.tree.policy_tokens(index)].sum()
    return rewards


def relative_advantages(
    scored: Sequence[ScoredTree], config: AlgorithmConfig, kl: Sequence[Floats] | None, normalizer: Normalizer
) -> list[Floats]:
    """Advantages [L] of each tree, rewards normalised together or each apart.

    Apart (GDPO): every weighted term is normalised within its group, the weighted sum is then whitened over the whole
    batch so that its scale does not grow with the number of terms. The KL in the reward counts as one more term.
    `group_z` ends with the group's normaliser instead, so that no group depends on the others of its batch.
    """
    if config.normalize == "together":
        return [normalizer(group_rewards(s, config, kl[i] if kl else None), config) for i, s in enumerate(scored)]
    sums = [sum_of_normalized(tree, config, kl[i] if kl else None, normalizer) for i, tree in enumerate(scored)]
    if config.normalize == "group_z":
        return [normalizer(total, config) for total in sums]
    return whiten(sums, config.eps)


def sum_of_normalized(scored: ScoredTree, config: AlgorithmConfig, kl: Floats | None, normalizer: Normalizer) -> Floats:
    """[L] weighted sum of the terms, each normalised within the group; NaN: not valid."""
    total = np.where(scored.valid, 0.0, np.nan)
    for term in scored.terms:
        if term.weight != 0:
            total = total + term.weight * normalizer(np.where(scored.valid, term.values, np.nan), config)
    if kl is not None and config.kl_in == "reward" and config.kl_coef:
        cost = [kl[scored.tree.policy_tokens(leaf)].sum() for leaf in range(len(total))]
        total = total - config.kl_coef * np.array(cost)
    return total


def whiten(values: Sequence[Floats], eps: float) -> list[Floats]:
    """Mean 0 and standard deviation 1 over the finite entries of the whole batch; unchanged if they are all equal."""
    flat = np.concatenate([*values, np.zeros(0)])
    flat = flat[np.isfinite(flat)]
    if len(flat) < 2 or flat.std() <= ZERO_STD:
        return [value - (flat.mean() if len(flat) else 0.0) for value in values]
    return [(value - flat.mean()) / (flat.std() + eps) for value in values]


def leaf_weights(lengths: Sequence[Sequence[int]], config: AlgorithmConfig) -> list[list[float]]:
    """Weight w of each token of each trained leaf, from policy-token counts per tree and leaf; all sums are global."""
    num_leaves = sum(len(tree) for tree in lengths)
    num_tokens = sum(map(sum, lengths))
    num_groups = sum(1 for tree in lengths if sum(tree))

    def weight(length: int, group: int) -> float:
        if length == 0:
            return 0.0
        match config.aggregation:
            case "sequence_mean":
                return 1 / (num_leaves * length)
            case "sequence_sum":
                return 1 / num_leaves
            case "token_mean":
                return 1 / num_tokens
            case "group_token_mean":
                return 1 / (num_groups * group)
            case "constant":
                return 1 / (num_leaves * config.constant_tokens)

    return [[weight(length, sum(tree)) for length in tree] for tree in lengths]


def trajectory_credit(
    scored: Sequence[ScoredTree],
    advantages: Sequence[Floats | Sequence[Floats]],
    config: AlgorithmConfig,
    masks: Sequence[np.ndarray] | None = None,
) -> list[CreditedTree]:
    """One credit path per valid leaf. `advantages`: per tree, [L] or L arrays [R]; `masks`: leaves [L] to train."""
    trained = [
        [int(leaf) for leaf in np.flatnonzero(s.valid & (masks[i] if masks is not None else True))]
        for i, s in enumerate(scored)
    ]
    tokens = [[s.tree.policy_tokens(leaf) for leaf in leaves] for s, leaves in zip(scored, trained, strict=True)]
    weights = leaf_weights([[len(t) for t in tree] for tree in tokens], config)
    out = []
    for index, tree in enumerate(scored):
        paths = tuple(
            CreditPath(
                leaf=leaf,
                tokens=path,
                advantages=np.zeros(path.shape) + advantages[index][leaf],
                weights=np.full(path.shape, weight),
            )
            for leaf, path, weight in zip(trained[index], tokens[index], weights[index], strict=True)
        )
        out.append(CreditedTree(scored=tree, paths=paths))
    return out
