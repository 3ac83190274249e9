"""Sibling-GRPO: advantages among children of the same parent, added to GRPO; an advantage rule on any tree.

Jiang et al. 2026 (V-STAR, arXiv:2602.10699), eq. 15 to 19; numbers of papers/v_star_paper.md section 8 are the tests.
The children of a parent are its policy-authored nodes; R̄(h,v) is the mean reward of the valid leaves below v; mean and
standard deviation are over nodes, each once. A parent with one child, or children of equal score, gives no signal.

Departures and choices: the formula has no clip, here the config's clip applies (no effect at the first update). The
paper's nodes hold one token; a longer node shares its weight among its tokens (`node_tokens: mean`) or gives each the
full weight (`sum`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rlkit.algorithms.base import Algorithm, AlgorithmConfig, Floats
from rlkit.algorithms.credit import ZERO_STD, group_rewards, relative_advantages, standardized, trajectory_credit
from rlkit.algorithms.surrogate import clipped_surrogate
from rlkit.errors import LearnerError, nearest
from rlkit.records import CreditedTree, CreditPath, ScoredTree, Tree

__all__ = ["ALGORITHM", "SiblingGrpoConfig", "sibling_advantages"]


@dataclass(frozen=True, kw_only=True)
class SiblingGrpoConfig(AlgorithmConfig):
    """Defaults of the released settings: ε 1e-4, both terms with weight 1, population deviation among siblings."""

    eps: float = 1e-4
    global_coef: float = 1.0
    """Weight of the GRPO term; 0 trains on siblings only."""
    sibling_coef: float = 1.0
    """Weight of the sibling term."""
    sibling_weight: Literal["node", "candidate"] = "node"
    """`node`: eq. 19, a node counts once with 1/|C|. `candidate`: the authors' code, a node counts once per candidate
    through it, divided by the number of (candidate, depth) entries with a signal."""
    sibling_reward: str | None = None
    """Reward term by which siblings are compared, e.g. `sid_match`; null: the whole reward. Under a rank-shaped reward
    two wrong siblings differ by their positions only, and normalisation blows that up to ±1, praising the later one."""
    sibling_std_floor: float = 0.0
    """Lower bound of the deviation among siblings: two nearly equal ones are else blown up to ±1
    (v_star_paper.md section 4)."""
    node_tokens: Literal["mean", "sum"] = "mean"
    """Weight of a node of several tokens: shared among them, or given to each."""


def sibling_advantages(tree: Tree, rewards: Floats, config: SiblingGrpoConfig) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Advantages [N] of policy nodes among their siblings, candidates [N] through each, and signal mask [N].

    `rewards` [L], NaN where the leaf is not valid. Eq. 17 and 18.
    """
    num_nodes = len(tree.nodes)
    total, count = np.zeros(num_nodes), np.zeros(num_nodes, dtype=int)
    for leaf, reward in zip(tree.leaves, rewards, strict=True):
        if np.isfinite(reward):
            path = list(tree.path(leaf.node))
            total[path] += reward
            count[path] += 1
    advantages, signal = np.zeros(num_nodes), np.zeros(num_nodes, dtype=bool)
    children: dict[int, list[int]] = {}
    for index, node in enumerate(tree.nodes):
        if node.author == "policy" and count[index]:
            children.setdefault(node.parent, []).append(index)
    for siblings in children.values():
        scores = total[siblings] / count[siblings]
        std = scores.std()
        if len(siblings) >= 2 and std > ZERO_STD:
            spread = max(std, config.sibling_std_floor)
            advantages[siblings] = (scores - scores.mean()) / (spread + config.eps)
            signal[siblings] = True
    return advantages, count, signal


def _compared(scored: ScoredTree, rewards: Floats, config: SiblingGrpoConfig) -> Floats:
    """[L] what siblings are compared by; NaN where the leaf is not valid. Raises `LearnerError` for an unknown term."""
    if config.sibling_reward is None:
        return rewards
    for term in scored.terms:
        if term.name == config.sibling_reward:
            return np.where(scored.valid, term.values, np.nan)
    terms = [term.name for term in scored.terms]
    raise LearnerError(
        f"algorithm.sibling_reward: no term {config.sibling_reward!r}{nearest(config.sibling_reward, terms)}"
    )


def credit(scored: Sequence[ScoredTree], config: SiblingGrpoConfig, kl: Sequence[Floats] | None) -> list[CreditedTree]:
    """GRPO paths times `global_coef`, plus one path per policy node with sibling credit times `sibling_coef`.

    Both terms are means over the batch's groups, so a group weighs the same in each.
    """
    base = trajectory_credit(scored, relative_advantages(scored, config, kl, standardized), config)
    rewards = [group_rewards(s, config, kl[i] if kl else None) for i, s in enumerate(scored)]
    num_groups = sum(bool(s.valid.any()) for s in scored)
    out = []
    for tree, values, credited in zip(scored, rewards, base, strict=True):
        paths = [replace(p, weights=p.weights * config.global_coef) for p in credited.paths]
        advantages, count, signal = sibling_advantages(tree.tree, _compared(tree, values, config), config)
        entries = int(count[signal].sum())
        for node in np.flatnonzero(signal):
            tokens = np.arange(tree.tree.offsets[node], tree.tree.offsets[node + 1], dtype=np.int32)
            once = 1 / tree.valid.sum() if config.sibling_weight == "node" else count[node] / entries
            share = len(tokens) if config.node_tokens == "mean" else 1
            weight = config.sibling_coef * once / (num_groups * share)
            paths.append(
                CreditPath(
                    leaf=-1,
                    tokens=tokens,
                    advantages=np.full(len(tokens), advantages[node]),
                    weights=np.full(len(tokens), weight),
                )
            )
        out.append(CreditedTree(scored=tree, paths=tuple(p for p in paths if np.any(p.weights))))
    return out


def describe(trees: Sequence[CreditedTree]) -> dict[str, tuple[float, float]]:
    """How many decisions got sibling credit, and at how many of them all candidates were wrong (no reward above 0)."""
    parents: list[int] = []
    no_hit: list[bool] = []
    for credited in trees:
        tree, rewards = credited.tree, credited.scored.rewards
        starts = [int(path.tokens[0]) for path in credited.paths if path.leaf == -1]
        nodes = np.searchsorted(tree.offsets, starts, side="right") - 1
        found = {tree.nodes[int(node)].parent for node in nodes}
        parents.append(len(found))
        ends = np.array([leaf.node for leaf in tree.leaves])
        for parent in found:
            below = (ends >= parent) & (ends < tree.node_ends[parent]) & credited.scored.valid
            no_hit.append(not (rewards[below] > 0).any())
    return {
        "sibling/parents": (float(sum(parents)), float(len(parents))),
        "sibling/no_hit": (float(sum(no_hit)), float(len(no_hit))),
    }


ALGORITHM = Algorithm(config=SiblingGrpoConfig, credit=credit, loss=clipped_surrogate, describe=describe)
