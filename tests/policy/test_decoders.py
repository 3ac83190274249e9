"""Beam search, i.i.d. sampling and sampling without replacement on random tries, without a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.catalogue.trie import Trie
from rlkit.policy.decoders import beam, inclusion_logprob, sample, without_replacement
from rlkit.policy.search_tree import Search, SearchTree

DECODERS = ("beam", "iid", "without_replacement")
Rows = list[tuple[int, int, int]]


def search(tree: SearchTree, decoder: str, count: int, rng: np.random.Generator) -> Search:
    if decoder == "beam":
        return beam(tree, count)
    if decoder == "iid":
        return sample(tree, count, lambda index, level: float(rng.random()))
    return without_replacement(tree, count, rng)


def run(tree: SearchTree, growing: Search, table: dict[int, np.ndarray]) -> list[int]:
    """Answer a search from the policy `table`: trie node -> ln π over its children."""
    try:
        while True:
            for node in next(growing):
                tree.evaluated(node, logprobs=table.get(tree.trie_node[node]))
    except StopIteration as end:
        return list(end.value)


def policy(trie: Trie, rng: np.random.Generator, spread: float = 3.0) -> dict[int, np.ndarray]:
    table = {}
    for node in range(trie.first_leaf):
        logits = rng.normal(0, spread, int(trie.first_child[node + 1] - trie.first_child[node]))
        table[node] = logits - np.log(np.exp(logits).sum())
    return table


def totals(trie: Trie, table: dict[int, np.ndarray]) -> dict[int, float]:
    """Trie leaf -> ln π."""
    found = {0: 0.0}
    for node in range(1, trie.num_nodes):
        parent = int(trie.parent[node])
        found[node] = found[parent] + float(table[parent][node - int(trie.first_child[parent])])
    return {leaf: found[leaf] for leaf in range(trie.first_leaf, trie.num_nodes)}


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30),
    decoder=st.sampled_from(DECODERS),
    count=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_no_decoder_can_name_an_item_that_is_not_in_the_catalogue(
    rows: Rows, decoder: str, count: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    trie = Trie.of(np.array(rows))
    tree, table = SearchTree(trie), policy(trie, rng)
    found = run(tree, search(tree, decoder, count, rng), table)
    exact = totals(trie, table)
    items = set(rows)
    assert {tuple(tree.token(step) for step in tree.path(leaf)) for leaf in found} <= items
    assert [tree.total[leaf] for leaf in found] == pytest.approx([exact[tree.trie_node[leaf]] for leaf in found])
    # Fewer children than beams, fewer items than candidates: what there is, once each. Independent draws may repeat.
    if decoder == "iid":
        assert len(found) == count
    else:
        assert len(set(found)) == len(found) == min(count, len(items))
    # No token is paid for twice, and none for the leaves, whose likelihood their parents tell.
    inner = {node for leaf in found for node in tree.path(leaf)[:-1]}
    assert 1 + len(inner) <= tree.num_charged <= 1 + (count + 1) * 2


def test_a_beam_loses_what_its_prefix_hides() -> None:
    # a .6 is even over three items (.2 each), b .4 has one item, the likeliest: a beam of one takes a.
    trie = Trie.of(np.array([[0, 0], [0, 1], [0, 2], [1, 3]]))
    table = {0: np.log([0.6, 0.4]), 1: np.log([1 / 3] * 3), 2: np.zeros(1)}
    for width, first in ((1, (0, 0)), (2, (1, 3))):
        tree = SearchTree(trie)
        [best, *_] = run(tree, beam(tree, width), table)
        assert tuple(tree.token(step) for step in tree.path(best)) == first
        assert tree.in_beam[best]


def test_draws_without_replacement_weighted_by_inclusion_sum_to_one() -> None:
    """Σ p/q over the leaves drawn estimates E_π[1] = 1, and each leaf's mean weight its probability."""
    rng = np.random.default_rng(0)
    trie = Trie.of(np.array([[a, b, c] for a in range(3) for b in range(2) for c in range(2)]))
    table = policy(trie, rng, spread=1.0)
    exact = totals(trie, table)
    weights = dict.fromkeys(exact, 0.0)
    sums, draws = [], 1500
    for _ in range(draws):
        tree = SearchTree(trie)
        found = run(tree, without_replacement(tree, 4, rng), table)
        total = np.array([tree.total[leaf] for leaf in found])
        drawn = np.exp(total - inclusion_logprob(total, tree.threshold))
        sums.append(float(drawn.sum()))
        for leaf, weight in zip(found, drawn, strict=True):
            weights[tree.trie_node[leaf]] += weight / draws
    assert abs(np.mean(sums) - 1) < 4 * np.std(sums) / math.sqrt(draws)
    assert [weights[leaf] for leaf in exact] == pytest.approx([math.exp(p) for p in exact.values()], abs=0.03)


def test_the_threshold_is_what_draws_in_sequence_leave() -> None:
    """As arrivals exp(-score), leaves come at rate p: of three with p = 1/3, the second at 3·(E/3 + E'/2)."""
    rng = np.random.default_rng(0)
    trie = Trie.of(np.array([[0], [1], [2]]))
    table = {0: np.log(np.full(3, 1 / 3))}
    arrivals = []
    for _ in range(2000):
        tree = SearchTree(trie)
        run(tree, without_replacement(tree, 1, rng), table)
        arrivals.append(math.exp(-tree.threshold))
    assert np.mean(arrivals) == pytest.approx(2.5, abs=0.15)
    assert np.std(arrivals) == pytest.approx(3 * math.sqrt(1 / 9 + 1 / 4), abs=0.15)  # 1.80; 1.5 with the first fixed


def test_draws_that_exhaust_the_catalogue_are_all_certain() -> None:
    trie = Trie.of(np.array([[0, 0], [0, 1], [1, 2]]))
    tree = SearchTree(trie)
    found = run(tree, without_replacement(tree, 5, np.random.default_rng(1)), policy(trie, np.random.default_rng(2)))
    assert len(found) == 3 and tree.threshold == -math.inf
    assert inclusion_logprob(np.array([tree.total[leaf] for leaf in found]), tree.threshold).tolist() == [0.0] * 3
