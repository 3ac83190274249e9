"""Candidates by likelihood: beam search, i.i.d. sampling, sampling without replacement. Searches as in search_tree.py.

Each walks the trie level by level and evaluates every node of a level at once, so it needs as many forwards as a
semantic ID has tokens. Leaves are evaluated only where `evaluate_leaves` asks for their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlkit.policy.search_tree import Search, SearchTree

__all__ = ["beam", "inclusion_logprob", "sample", "without_replacement"]

Floats = NDArray[np.float64]


def beam(tree: SearchTree, width: int, *, evaluate_leaves: bool = False) -> Search:
    """The `width` likeliest leaves that a beam of that width finds, likeliest first. Ties: the smaller path."""
    frontier = [0]
    yield from _evaluate(tree, frontier)
    for level in range(tree.trie.levels):
        scores = _joined(tree, frontier, [tree.total[node] for node in frontier])
        chosen = np.argsort(-scores, kind="stable")[:width]
        frontier = _extended(tree, frontier, chosen, in_beam=True)
        if level + 1 < tree.trie.levels or evaluate_leaves:
            yield from _evaluate(tree, frontier)
    return frontier


def sample(
    tree: SearchTree, count: int, uniform: Callable[[int, int], float], *, evaluate_leaves: bool = False
) -> Search:
    """`count` independent draws of the policy; equal ones share their nodes and are listed as often as drawn.

    `uniform(sample, level)` is the point in [0, 1) of a draw, so sample i is the same however many others there are.
    """
    at = [0] * count
    yield from _evaluate(tree, [0])
    for level in range(tree.trie.levels):
        for index in range(count):
            logprobs = tree.child_logprobs[at[index]]
            assert logprobs is not None
            mass = np.cumsum(np.exp(logprobs))
            point = uniform(index, level) * mass[-1]
            child = int(min(np.searchsorted(mass, point, side="right"), np.searchsorted(mass, mass[-1])))
            at[index] = tree.add(at[index], child)
        if level + 1 < tree.trie.levels or evaluate_leaves:
            yield from _evaluate(tree, list(dict.fromkeys(at)))
    return at


def without_replacement(
    tree: SearchTree, count: int, noise: np.random.Generator, *, evaluate_leaves: bool = False
) -> Search:
    """`count` distinct leaves, as if drawn one after the other without replacement; in order of their perturbed scores.

    Stochastic beam search (Kool, van Hoof, Welling 2019, arXiv:1903.06059, algorithm 1): a beam over log-probabilities
    with Gumbel noise, where the noise of children is conditioned on their maximum being the parent's. One leaf more
    than asked for is searched: its score is the threshold κ of `inclusion_logprob`. It is left in the tree, after
    the leaves that are returned.
    """
    # Drawn, not 0 as in their listing: with the best score fixed, κ is not what draws in sequence leave, and weights by
    # inclusion are too small.
    frontier, perturbed = [0], noise.gumbel(size=1)
    yield from _evaluate(tree, frontier)
    for level in range(tree.trie.levels):
        starts = np.cumsum([0, *(tree.num_valid(node) for node in frontier[:-1])])
        sizes = np.diff([*starts, len(_joined(tree, frontier, [0.0] * len(frontier)))])
        totals = _joined(tree, frontier, [tree.total[node] for node in frontier])
        free = totals + noise.gumbel(size=len(totals))
        best = np.repeat(np.maximum.reduceat(free, starts), sizes)
        scores = _truncated(free, best, np.repeat(perturbed, sizes))
        chosen = np.argsort(-scores, kind="stable")[: count + 1]
        perturbed = scores[chosen]
        frontier = _extended(tree, frontier, chosen, in_beam=False)
        last = level + 1 == tree.trie.levels
        if not last or evaluate_leaves:
            yield from _evaluate(tree, frontier[:count] if last else frontier)
    tree.threshold = float(perturbed[count]) if len(perturbed) > count else -math.inf
    return frontier[:count]


def inclusion_logprob(total: Floats, threshold: float) -> Floats:
    """ln q, q = P(a leaf of log-probability `total` has a perturbed score above κ) = 1 - exp(-exp(total - κ)).

    Σ p/q·f over the leaves drawn is an unbiased estimate of E_π[f] (Kool et al. 2019, eq. 17 with priority sampling).
    κ = -inf, where every leaf was drawn: q = 1.
    """
    if math.isinf(threshold):
        return np.zeros_like(total)
    return np.log(-np.expm1(-np.exp(total - threshold)))


def _truncated(free: Floats, best: Floats, limit: Floats) -> Floats:
    """Gumbels `free` whose maximum is `best`, moved so that it becomes `limit` (Kool et al. 2019, appendix B.3)."""
    with np.errstate(divide="ignore"):  # the best itself: ln 0, which the next line turns into `limit`
        v = limit - free + np.log1p(-np.exp(free - best))
    return limit - np.maximum(v, 0) - np.log1p(np.exp(-np.abs(v)))


def _evaluate(tree: SearchTree, nodes: list[int]) -> Search:
    yield nodes
    tree.num_charged += len(nodes)
    return nodes


def _joined(tree: SearchTree, nodes: Sequence[int], offsets: Sequence[float]) -> Floats:
    """ln π of all valid children of `nodes`, one after the other, plus a number per node."""
    parts = []
    for node, offset in zip(nodes, offsets, strict=True):
        logprobs = tree.child_logprobs[node]
        assert logprobs is not None
        parts.append(logprobs + offset)
    return np.concatenate(parts)


def _extended(tree: SearchTree, nodes: Sequence[int], chosen: NDArray[np.intp], *, in_beam: bool) -> list[int]:
    """The children at places `chosen` of `_joined`, added to the tree."""
    ends = np.cumsum([tree.num_valid(node) for node in nodes])
    owners = np.searchsorted(ends, chosen, side="right")
    starts = ends - [tree.num_valid(node) for node in nodes]
    return [
        tree.add(nodes[owner], int(place - starts[owner]), in_beam=in_beam)
        for owner, place in zip(owners.tolist(), chosen.tolist(), strict=True)
    ]
