"""Turn GRPO: GRPO on the reward that is still to come, where a reward speaks of turns; an advantage rule of our own.

A reward that returns a `Score` with `turns` says what each turn earned (`RewardTerm.node_values`). A turn cannot change
what was earned before it, so leaf l is credited at turn t with

    remaining(l, t) = R(l) - sum over its turns s < t of the weighted values of turn s
    A(l, t) = (remaining(l, t) - mean) / (std + eps)         over the valid leaves of the group

A leaf that has ended keeps what remained after its last turn, so every turn is compared with the whole group. What is
subtracted depends on the past only, so the policy gradient stays that of R. At the first turn, and everywhere if no
reward speaks of turns, this is GRPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlkit.algorithms.base import Algorithm, AlgorithmConfig, Floats
from rlkit.algorithms.credit import group_rewards, standardized, trajectory_credit
from rlkit.algorithms.surrogate import clipped_surrogate
from rlkit.records import CreditedTree, ScoredTree

__all__ = ["ALGORITHM", "TurnGrpoConfig", "remaining_rewards"]


@dataclass(frozen=True, kw_only=True)
class TurnGrpoConfig(AlgorithmConfig):
    """Defaults of GRPO."""

    def __post_init__(self) -> None:
        AlgorithmConfig.__post_init__(self)
        if self.normalize != "together":
            raise ValueError("normalize: 'apart' is not defined for turn_grpo; use 'together'")


def remaining_rewards(scored: ScoredTree, rewards: Floats) -> Floats:
    """[L, S] what was still to come at each turn, S the most turns of the tree plus one; `rewards` [L], NaN: not valid.

    A node's value belongs to its turn. Where several leaves share the node, they share the value.
    """
    tree = scored.tree
    values = np.zeros(len(tree.nodes))
    for term in scored.terms:
        if term.node_values is not None and term.weight != 0:
            values += term.weight * np.nan_to_num(term.node_values)
    num_turns = 1 + max((node.turn for node in tree.nodes), default=0)
    earned = np.zeros((len(tree.leaves), num_turns + 1))
    for index, leaf in enumerate(tree.leaves):
        for node in tree.path(leaf.node):
            if tree.nodes[node].author == "policy":
                earned[index, tree.nodes[node].turn + 1 :] += values[node]
    return rewards[:, None] - earned


def credit(scored: Sequence[ScoredTree], config: TurnGrpoConfig, kl: Sequence[Floats] | None) -> list[CreditedTree]:
    """One path per valid leaf; its advantage changes from turn to turn."""
    advantages = []
    for index, tree in enumerate(scored):
        remaining = remaining_rewards(tree, group_rewards(tree, config, kl[index] if kl else None))
        by_turn = np.stack([standardized(column, config) for column in remaining.T], axis=1)  # [L, S]
        turns = [_turns(tree, leaf) for leaf in range(len(tree.tree.leaves))]
        advantages.append([by_turn[leaf][turn] for leaf, turn in enumerate(turns)])
    return trajectory_credit(scored, advantages, config)


def _turns(scored: ScoredTree, leaf: int) -> np.ndarray:
    """[R] the turn of each policy token of the leaf."""
    tree = scored.tree
    nodes = [tree.nodes[index] for index in tree.path(tree.leaves[leaf].node)]
    turns = [np.full(len(node.token_ids), node.turn) for node in nodes if node.author == "policy"]
    return np.concatenate([*turns, np.zeros(0, dtype=int)]).astype(int)


ALGORITHM = Algorithm(config=TurnGrpoConfig, credit=credit, loss=clipped_surrogate)
