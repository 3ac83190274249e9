"""VED on the trie of papers/v_star_paper.md section 9, traversal by traversal, and on random tries."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.catalogue.trie import Trie
from rlkit.policy.search_tree import Search, SearchTree
from rlkit.policy.ved import VedSettings, _Ved, ved

LETTERS = "ABCabcdef123456789"
PATHS = ["Aa1", "Aa2", "Ab3", "Ab4", "Bc5", "Bc6", "Bd7", "Ce8", "Cf9"]
TRIE = Trie.of(np.array([[LETTERS.index(letter) for letter in path] for path in PATHS]))
POLICY: dict[str, dict[str, float]] = {
    "": {"A": 0.7, "B": 0.2, "C": 0.1}, "A": {"a": 0.6, "b": 0.4}, "B": {"c": 0.9, "d": 0.1},
    "C": {"e": 0.5, "f": 0.5}, "Aa": {"1": 0.8, "2": 0.2}, "Ab": {"3": 0.6, "4": 0.4}, "Bc": {"5": 0.6, "6": 0.4},
    "Bd": {"7": 1.0}, "Ce": {"8": 1.0}, "Cf": {"9": 1.0},
}  # fmt: skip
VALUES = {
    "": 0.30, "A": 0.25, "B": 0.40, "C": 0.55, "Aa": 0.20, "Ab": 0.30, "Bc": 0.35, "Bd": 0.70, "Ce": 0.50, "Cf": 0.60,
    "Aa1": 0.10, "Aa2": 0.15, "Ab3": 0.45, "Ab4": 0.05, "Bc5": 0.30, "Bc6": 0.20, "Bd7": 0.90, "Ce8": 0.50, "Cf9": 0.60,
}  # fmt: skip


def name(tree: SearchTree, node: int) -> str:
    return "".join(LETTERS[tree.token(step)] for step in tree.path(node))


def run(search: Search, tree: SearchTree, values: Mapping[str, float] = VALUES) -> tuple[list[str], list[str]]:
    """Answer a search from the tables; the nodes it asked for, in order, and its candidates."""
    asked: list[str] = []
    try:
        while True:
            for node in next(search):
                path = name(tree, node)
                asked.append(path)
                policy = POLICY.get(path)
                logprobs = None if policy is None else np.log([policy[token] for token in sorted(policy)])
                tree.evaluated(node, value=values[path], logprobs=logprobs)
    except StopIteration as end:
        return asked, [name(tree, node) for node in end.value]


def likeliest(logprobs: np.ndarray) -> int:
    return int(np.argmax(logprobs))


def search(count: int = 16, budget: int = 12, **options: object) -> tuple[SearchTree, list[str], list[str]]:
    tree = SearchTree(TRIE)
    ask = VedSettings(beam=2, **options)  # type: ignore[arg-type]
    asked, found = run(ved(tree, ask, count, budget, likeliest), tree)
    return tree, asked, found


INITIAL = ["", "A", "B", "Aa", "Ab", "Aa1", "Ab3"]


def test_every_node_on_the_path_is_gated_and_expanded_as_worked_by_hand() -> None:
    tree, asked, found = search(4, order="value")
    assert asked == [*INITIAL, "C", "Ce", "Cf", "Ce8", "Cf9"]  # cost 7, then one token each
    assert tree.num_charged == tree.num_evaluated == 12
    assert tree.num_evaluated_leaves == 4  # Aa1, Ab3, Ce8, Cf9: charged, though a beam would not have needed them
    assert found == ["Cf9", "Ce8", "Ab3", "Aa1"]
    # B never passes its gate, so the best item, Bd7 at .9, is never reached.
    visits = {name(tree, node): tree.visits[node] for node in range(len(tree))}
    assert (visits[""], visits["A"], visits["B"], visits["C"]) == (5, 1, 1, 3)


def test_expanding_the_end_of_the_path_only_stalls_with_budget_unspent() -> None:
    tree, asked, found = search(3, scope="end", order="value")
    assert asked == [*INITIAL, "Bc", "Bc5"]
    assert tree.num_charged == 9
    assert found == ["Ab3", "Bc5", "Aa1"]


def test_the_gate_inside_the_selection_never_stalls() -> None:
    tree, asked, _ = search(scope="live")
    assert asked[:7] == INITIAL and tree.num_charged == 12


def test_priorities_are_those_of_the_table() -> None:
    tree, _, _ = search()
    priority = {
        name(tree, node): tree.value[node] + 0.1 * tree.entropy[node]
        for node in range(len(tree))
        if tree.child_logprobs[node] is not None
    }
    for path, expected in {"": 0.3802, "A": 0.3173, "B": 0.4325, "C": 0.6193, "Aa": 0.2500, "Ab": 0.3673}.items():
        assert priority[path] == pytest.approx(expected, abs=5e-5), path
    assert priority["Ce"] == 0.50  # one child: nothing is uncertain


def test_too_few_leaves_are_completed_from_known_distributions_without_a_forward() -> None:
    tree, asked, found = search(7, order="value")
    # Only Aa and Ab have children that were never added: their likeliest, the better prefix Ab first.
    assert found == ["Cf9", "Ce8", "Ab3", "Aa1", "Ab4", "Aa2"]
    assert tree.num_evaluated == 12 and "Ab4" not in asked


def test_candidates_are_numbered_by_likelihood_so_that_positions_mean_something() -> None:
    _, _, found = search(4)
    assert found == ["Aa1", "Ab3", "Ce8", "Cf9"]  # .336, .168, .05, .05


def test_leaves_that_inherit_their_prefix_value_are_ranked_by_likelihood_and_free_in_the_beam() -> None:
    tree, asked, found = search(2, budget=5, leaf_values="parent", order="value")
    assert asked == INITIAL[:5] and tree.num_charged == 5
    assert found == ["Ab3", "Aa1"]  # V(Ab) .30 is above V(Aa) .20


def test_the_paper_counts_33_tokens_for_a_beam_of_16_and_multiples_above() -> None:
    assert [VedSettings(budget_multiple=m).tokens(16, 3) for m in (1, 2, 3, 4)] == [33, 65, 97, 129]


def test_upper_confidence_bounds_pick_as_in_the_three_worked_steps() -> None:
    """v_star.md 9.5: a has two children, b one, c four, all even."""
    shape = ((0.50, 2), (0.55, 1), (0.20, 4))
    tree = SearchTree(
        Trie.of(np.array([[node, child] for node, (_, size) in enumerate(shape) for child in range(size)]))
    )
    tree.evaluated(0, value=0.0, logprobs=np.log(np.full(3, 1 / 3)))
    nodes = [tree.add(0, child) for child in range(3)]
    for node, (value, size) in zip(nodes, shape, strict=True):
        tree.evaluated(node, value=value, logprobs=np.log(np.full(size, 1 / size)))
    search = _Ved(tree, VedSettings(scope="live"))
    assert [search.priority[node] for node in nodes] == pytest.approx([0.569315, 0.55, 0.338629], abs=1e-6)
    assert [search.may_expand(node) for node in nodes] == [True, True, False]  # the mean of their depth is .485981
    tree.visits[nodes[0]] = 2
    for expected in (1, 0, 1):  # N_root 5, 6, 7
        chosen = search._best(nodes)
        assert chosen == nodes[expected]
        search.visit([0, chosen])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30),
    scope=st.sampled_from(["path", "end", "live"]),
    leaf_values=st.sampled_from(["own", "parent"]),
    extra=st.integers(0, 20),
    seed=st.integers(0, 99),
)
def test_on_any_trie_candidates_are_distinct_legal_and_within_budget(
    rows: list[tuple[int, int, int]], scope: str, leaf_values: str, extra: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    trie = Trie.of(np.array(rows))
    tree = SearchTree(trie)
    budget = 1 + 3 * 2 + extra
    options = VedSettings(beam=2, scope=scope, leaf_values=leaf_values)  # type: ignore[arg-type]
    growing = ved(tree, options, 8, budget, lambda logprobs: int(rng.integers(len(logprobs))))
    try:
        while True:
            for node in next(growing):
                size = tree.num_valid(node)
                logprobs = np.log(rng.dirichlet(np.ones(size))) if size else None
                tree.evaluated(node, value=float(rng.normal()), logprobs=logprobs)
    except StopIteration as end:
        found = end.value
    assert 1 <= len(found) <= 8 and len(set(found)) == len(found)
    assert all(tree.is_leaf(node) for node in found)
    assert {tuple(tree.token(step) for step in tree.path(node)) for node in found} <= set(rows)
    assert tree.num_charged <= budget
    if scope == "live" and tree.num_charged < budget:  # nothing was left that any gate lets through
        legal = sum(len({row[:level] for row in rows}) for level in range(4))
        assert len(tree) <= legal
