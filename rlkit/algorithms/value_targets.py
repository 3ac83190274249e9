"""What a value head learns from a scored tree: temporal-difference or Monte-Carlo targets on every level of candidates.

V-STAR (arXiv:2602.10699), section 2 of papers/v_star_paper.md, whose oracle (c) is the test:

    target_l = r_l + d·V(s_{l+1})  for l < L,  target_L = r_L         td: no gradient through V(s_{l+1})
    target_l = Σ_{k >= l} d^(k-l)·r_k                                 monte_carlo: known exactly, a cheap control

d is the discount; s_l is the path up to and including the l-th token, so V(s_l) includes r_l. The squared error is a
mean over candidates and levels of a request, then over requests. A level whose reward failed is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import LearnerError
from rlkit.recipe import ValueSettings
from rlkit.records import CreditedTree, CreditPath, ScoredTree, ValueEdges

__all__ = ["calibration", "level_rewards", "returns", "value_edges", "with_values"]

Floats = NDArray[np.float64]


def level_rewards(scored: ScoredTree, reward: str) -> Floats:
    """[leaves, L] of the terms `reward/level_1`, `reward/level_2`, ...; NaN where they failed. L = 0: no such terms."""
    terms = {term.name: term.values for term in scored.terms}
    levels: list[Floats] = []
    while (name := f"{reward}/level_{len(levels) + 1}") in terms:
        levels.append(terms[name])
    return np.stack(levels, 1) if levels else np.zeros((len(scored.tree.leaves), 0))


def returns(rewards: Floats, discount: float) -> Floats:
    """[leaves, L] discounted sums of each row from every level on."""
    out = rewards.copy()
    for level in range(rewards.shape[1] - 2, -1, -1):
        out[:, level] += discount * out[:, level + 1]
    return out


def value_edges(scored: Sequence[ScoredTree], settings: ValueSettings) -> list[ValueEdges]:
    """One edge per valid candidate and level. Raises `LearnerError` if no tree has terms of that reward."""
    assert settings.reward is not None, "a recipe with a head names its reward"
    rows: list[list[tuple[int, int, float]]] = []
    for tree in scored:
        rewards = level_rewards(tree, settings.reward)
        if settings.target == "monte_carlo":
            rewards = returns(rewards, settings.discount)
        found: list[tuple[int, int, float]] = []
        for leaf in map(int, np.flatnonzero(tree.valid)):
            path = [n for n in tree.tree.path(tree.tree.leaves[leaf].node) if tree.tree.nodes[n].author == "policy"]
            for level, (node, reward) in enumerate(zip(path, rewards[leaf], strict=False)):
                last = level + 1 == len(path) or settings.target == "monte_carlo"
                if np.isfinite(reward):
                    found.append((node, -1 if last else path[level + 1], float(reward)))
        rows.append(found)
    num_trees = sum(map(bool, rows))
    if scored and not num_trees:
        terms = sorted({term.name for tree in scored for term in tree.terms})
        raise LearnerError(
            f"value.reward: no finite terms '{settings.reward}/level_1', ... in this batch, only {', '.join(terms)}"
        )
    return [_edges(found, settings, num_trees) for found in rows]


def _edges(found: Sequence[tuple[int, int, float]], settings: ValueSettings, num_trees: int) -> ValueEdges:
    nodes, following, rewards = zip(*found, strict=True) if found else ((), (), ())
    return ValueEdges(
        node=np.array(nodes, np.int32),
        next=np.array(following, np.int32),
        reward=np.array(rewards, np.float64),
        weight=np.full(len(found), settings.coef / max(1, len(found) * num_trees)),
        discount=settings.discount,
    )


def with_values(
    credited: Sequence[CreditedTree], settings: ValueSettings, *, policy_learns: bool = True
) -> list[CreditedTree]:
    """Credited trees with what the value head learns from them.

    Every node with an edge is packed: a candidate without credit gets a path of weight 0. Without `policy_learns`
    (the value's warm-up) all paths have weight 0.
    """
    out = []
    for tree, edges in zip(credited, value_edges([tree.scored for tree in credited], settings), strict=True):
        covered = {path.leaf for path in tree.paths}
        silent = [_silent(tree, leaf) for leaf in map(int, np.flatnonzero(tree.scored.valid)) if leaf not in covered]
        paths = [*tree.paths, *silent]
        if not policy_learns:
            paths = [replace(path, weights=np.zeros_like(path.weights)) for path in paths]
        out.append(replace(tree, paths=tuple(paths), values=edges))
    return out


def calibration(scored: Sequence[ScoredTree], settings: ValueSettings) -> dict[str, tuple[float, float]]:
    """How the values that a search went by compare with the returns that followed, as (sum, count) pairs.

    Bias and squared error are over candidates and levels; the rank correlation is Spearman's over the prefixes of one
    level of one tree, a prefix having the mean return of the candidates below it.
    """
    assert settings.reward is not None, "a recipe with a head names its reward"
    errors: list[float] = []
    spreads: list[float] = []
    correlations: list[float] = []
    for tree in scored:
        told = returns(level_rewards(tree, settings.reward), settings.discount)
        levels: list[dict[int, list[float]]] = [{} for _ in range(told.shape[1])]
        for leaf in map(int, np.flatnonzero(tree.valid)):
            path = [n for n in tree.tree.path(tree.tree.leaves[leaf].node) if tree.tree.nodes[n].author == "policy"]
            for level, (node, value) in enumerate(zip(path, told[leaf], strict=False)):
                known = tree.tree.nodes[node].search
                if known is not None and np.isfinite(known.value) and np.isfinite(value):
                    errors.append(known.value - float(value))
                    levels[level].setdefault(node, []).append(float(value))
        for found in levels:
            flat = np.array([value for values in found.values() for value in values])
            spreads += list((flat - flat.mean()) ** 2) if len(flat) else []
            means = np.array([np.mean(values) for values in found.values()])
            values = np.array([known.value for n in found if (known := tree.tree.nodes[n].search) is not None])
            if len(means) >= 3 and np.ptp(means) > 0 and np.ptp(values) > 0:
                correlations.append(float(np.corrcoef(_ranks(means), _ranks(values))[0, 1]))
    count = float(len(errors))
    return {
        "value/bias": (float(np.sum(errors)), count),
        "value/squared_error": (float(np.sum(np.square(errors))), count),
        "value/spread": (float(np.sum(spreads)), count),
        "value/rank_correlation": (float(np.sum(correlations)), float(len(correlations))),
    }


def _ranks(values: Floats) -> Floats:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[group]


def _silent(tree: CreditedTree, leaf: int) -> CreditPath:
    tokens = tree.tree.policy_tokens(leaf)
    return CreditPath(leaf=leaf, tokens=tokens, advantages=np.zeros(len(tokens)), weights=np.zeros(len(tokens)))
