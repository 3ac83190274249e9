"""Sibling-GRPO against the worked oracle of papers/v_star_paper.md section 8."""

from __future__ import annotations

import numpy as np
import pytest

from rlkit.algorithms.sibling_grpo import ALGORITHM, SiblingGrpoConfig, sibling_advantages
from rlkit.records import Leaf, Node, SamplingState, Task, Tree
from tests.forest import scored

CANDIDATES = ["a1 b1 c1", "a1 b1 c2", "a1 b2 c3", "a2 b3 c4", "a2 b3 c5", "a3 b4 c6"]
HIT = [0.0, 1, 0, 0, 0, 0]
RANKED = [-0.302602, 1, -0.151301, -0.130324, -0.117063, -0.107789]


def trie_tree(candidates: list[str]) -> tuple[Tree, dict[str, int]]:
    """One policy node per code; returns the tree and the node of each prefix."""
    nodes = [Node(parent=-1, author="prompt", token_ids=np.array([99], np.int32))]
    at: dict[str, int] = {"": 0}
    leaves = []
    for index, candidate in enumerate(candidates):
        prefix = ""
        for code in candidate.split():
            parent, prefix = at[prefix], f"{prefix} {code}".strip()
            if prefix not in at:
                at[prefix] = len(nodes)
                nodes.append(
                    Node(
                        parent=parent,
                        author="policy",
                        token_ids=np.array([int(code[1:])], np.int32),
                        behavior_logprobs=np.zeros(1, np.float32),
                        sampling=SamplingState(),
                    )
                )
        leaves.append(Leaf(node=at[prefix], sample_index=index, status="done"))
    return Tree(task=Task(id="sid", question="?"), nodes=tuple(nodes), leaves=tuple(leaves)), at


def test_advantages_are_relative_to_siblings_each_counted_once() -> None:
    tree, at = trie_tree(CANDIDATES)
    advantages, count, signal = sibling_advantages(tree, np.array(HIT), SiblingGrpoConfig())
    expected = {
        "a1": 1.413314,
        "a2": -0.706657,
        "a3": -0.706657,
        "a1 b1": 0.999600,
        "a1 b2": -0.999600,
        "a1 b1 c1": -0.999800,
        "a1 b1 c2": 0.999800,
    }
    for prefix, value in expected.items():
        assert advantages[at[prefix]] == pytest.approx(value, abs=1e-6), prefix
    silent = set(at) - set(expected)
    assert not advantages[[at[p] for p in silent]].any()
    assert signal.sum() == len(expected)
    assert count[at["a1"]] == 3


def test_credit_of_each_node_is_the_sum_of_grpo_and_siblings() -> None:
    tree, at = trie_tree(CANDIDATES)
    group = [scored(tree, ("hit", 1.0, HIT))]

    def credit(**coefs: float) -> np.ndarray:
        credited = ALGORITHM.credit(group, SiblingGrpoConfig(**coefs), None)[0]  # type: ignore[arg-type]
        return credited.c_pos + credited.c_neg

    def at_nodes(values: np.ndarray) -> list[float]:
        return [values[tree.offsets[at[p]]] for p in ("a1", "a2", "a3", "a1 b1", "a1 b2")]

    siblings = [0.23555, -0.11778, -0.11778, 0.16660, -0.16660]
    grpo = [0.06802, -0.04535, -0.02267, 0.09070, -0.02267]
    both = [0.30358, -0.16313, -0.14045, 0.25730, -0.18927]
    assert at_nodes(credit(global_coef=0)) == pytest.approx(siblings, abs=1e-5)
    assert at_nodes(credit(sibling_coef=0)) == pytest.approx(grpo, abs=1e-5)
    assert at_nodes(credit()) == pytest.approx(both, abs=1e-5)


def test_a_shared_token_pulled_both_ways_by_grpo_is_pushed_up_by_siblings() -> None:
    tree, at = trie_tree(CANDIDATES)
    credited = ALGORITHM.credit([scored(tree, ("hit", 1.0, HIT))], SiblingGrpoConfig(sibling_coef=0), None)[0]
    token = tree.offsets[at["a1"]]
    # The hit pushes a1 up by 2.0407/18, two misses push it down by 0.4081/18 each.
    assert credited.c_pos[token] == pytest.approx(2.0407 / 18, abs=1e-5)
    assert credited.c_neg[token] == pytest.approx(-2 * 0.4081 / 18, abs=1e-5)


def test_the_rank_reward_blows_up_two_wrong_siblings_unless_the_spread_has_a_floor() -> None:
    tree, at = trie_tree(CANDIDATES)
    advantages, _, _ = sibling_advantages(tree, np.array(RANKED), SiblingGrpoConfig())
    assert advantages[at["a1"]] == pytest.approx(1.411699, abs=1e-5)
    assert advantages[at["a2"]] == pytest.approx(-0.762398, abs=1e-5)
    assert advantages[at["a2 b3 c4"]] == pytest.approx(-0.985142, abs=1e-4)
    assert advantages[at["a2 b3 c5"]] == pytest.approx(0.985142, abs=1e-4)
    floored, _, _ = sibling_advantages(tree, np.array(RANKED), SiblingGrpoConfig(sibling_std_floor=0.25))
    # 0.0066305 / (0.25 + 1e-4)
    assert floored[at["a2 b3 c5"]] == pytest.approx(0.02651, abs=1e-4)


def test_counting_a_node_per_candidate_is_the_authors_code() -> None:
    tree, at = trie_tree(CANDIDATES)
    config = SiblingGrpoConfig(global_coef=0, sibling_weight="candidate")
    credited = ALGORITHM.credit([scored(tree, ("hit", 1.0, HIT))], config, None)[0]
    # Entries with a signal: depth 1 six, depth 2 three (under a1), depth 3 two (under a1 b1): Z = 11.
    token = tree.offsets[at["a1"]]
    assert credited.c_pos[token] == pytest.approx(3 * 1.413314 / 11, abs=1e-5)


def test_a_failed_leaf_is_no_candidate() -> None:
    tree, at = trie_tree(CANDIDATES)
    rewards = np.array(HIT)
    rewards[2] = np.nan  # the only candidate through a1 b2: b1 is then an only child
    advantages, count, signal = sibling_advantages(tree, rewards, SiblingGrpoConfig())
    assert count[at["a1 b2"]] == 0
    assert not signal[at["a1 b1"]]
    # a1 now has the mean of {0, 1} = 0.5 against 0 and 0.
    assert advantages[at["a1"]] == pytest.approx(2**0.5, abs=1e-3)
