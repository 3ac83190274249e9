"""The tabular worlds in which estimators are compared: their gradient, and what siblings are credited in them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.estimators import Candidates, World, candidate_tree, choose, sibling_credit, world
from rlkit.algorithms.sibling_grpo import SiblingGrpoConfig


def expected_reward(known: World, node: int, shift: float) -> float:
    """E_π[R] with the logit of one node moved."""
    trie, logprob = known.trie, known.logprob.copy()
    siblings = slice(trie.first_child[trie.parent[node]], trie.first_child[trie.parent[node] + 1])
    logprob[node] += shift
    logprob[siblings] -= np.log(np.exp(logprob[siblings]).sum())
    return float(np.exp(logprob[known.steps].sum(1)) @ known.reward)


def test_the_exact_gradient_is_the_derivative_of_the_expected_reward() -> None:
    known = world(np.random.default_rng(3))
    on_the_way = known.steps[np.flatnonzero(known.reward)[0]]
    for node in [*on_the_way.tolist(), 1, 2, 9, 100]:
        slope = (expected_reward(known, node, 1e-5) - expected_reward(known, node, -1e-5)) / 2e-5
        assert known.exact[node] == pytest.approx(slope, abs=1e-9)


def test_siblings_are_credited_where_their_means_differ_and_a_parent_gets_nothing_in_sum() -> None:
    known = world(np.random.default_rng(3))
    [target] = np.flatnonzero(known.reward)
    others = np.flatnonzero(known.steps[:, 0] != known.steps[target, 0])[:2]
    found = Candidates(leaves=np.array([target, *others]), inclusion=None)
    credit = sibling_credit(known, found, known.reward[found.leaves], SiblingGrpoConfig())
    first, other = known.steps[target, 0], known.steps[others[0], 0]
    assert known.steps[others[1], 0] == other  # neighbours, so the root has two children: ±1 but for ε, over three
    assert credit[[first, other]] == pytest.approx([0.9998 / 3, -0.9998 / 3], abs=1e-6)
    assert np.count_nonzero(credit) == 2


def test_candidates_as_a_record_share_their_prefixes() -> None:
    tree, steps = candidate_tree(np.array([[2, 7, 30], [1, 5, 20], [2, 7, 31]]))
    assert steps == [0, 1, 5, 20, 2, 7, 30, 31]
    assert [node.parent for node in tree.nodes] == [-1, 0, 1, 2, 0, 4, 5, 5]
    assert [leaf.node for leaf in tree.leaves] == [6, 3, 7]


@pytest.mark.parametrize(("sampler", "size"), [("beam", 8), ("ved", 8), ("without_replacement", 8), ("iid", 8)])
def test_every_sampler_finds_items_of_the_world(sampler: str, size: int) -> None:
    known = world(np.random.default_rng(4))
    found = choose(known, sampler, size, np.random.default_rng(5))
    assert 1 <= len(found.leaves) <= size and found.leaves.min() >= 0 and found.leaves.max() < len(known.reward)
    assert (found.inclusion is not None) == (sampler == "without_replacement")
