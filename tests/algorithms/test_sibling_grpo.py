"""Sibling-GRPO against the worked oracle of papers/v_star_paper.md section 8."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlkit.algorithms.sibling_grpo import ALGORITHM, SiblingGrpoConfig, sibling_advantages
from rlkit.errors import LearnerError
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


def test_a_leaf_that_was_drawn_twice_is_one_node_and_two_candidates() -> None:
    tree, at = trie_tree(["a1 b1 c1", "a1 b1 c1", "a1 b1 c2", "a2 b2 c3"])
    assert len(tree.nodes) == 1 + 7
    advantages, count, _ = sibling_advantages(tree, np.array([1.0, 1, 0, 0]), SiblingGrpoConfig())
    assert (count[at["a1"]], count[at["a1 b1 c1"]]) == (3, 2)
    # R of a1 is 2/3, of a2 0: two siblings, so ±1 up to ε; c1 against c2 as well, however often c1 was drawn.
    assert advantages[[at["a1"], at["a2"]]] == pytest.approx([0.9997, -0.9997], abs=1e-5)
    assert advantages[at["a1 b1 c1"]] == pytest.approx(0.9998, abs=1e-6)
    config = SiblingGrpoConfig(global_coef=0)
    credited = ALGORITHM.credit([scored(tree, ("hit", 1.0, [1.0, 1, 0, 0]))], config, None)[0]
    assert credited.c_pos[tree.offsets[at["a1 b1 c1"]]] == pytest.approx(0.9998 / 4)  # |C| counts draws


def test_siblings_may_be_compared_by_one_reward_only() -> None:
    tree, at = trie_tree(CANDIDATES)
    ranked = [reward - hit for reward, hit in zip(RANKED, HIT, strict=True)]
    group = [scored(tree, ("sid_match", 1.0, HIT), ("rank_penalty", 1.0, ranked))]

    def at_leaf(**settings: object) -> float:
        credited = ALGORITHM.credit(group, SiblingGrpoConfig(global_coef=0, **settings), None)[0]  # type: ignore[arg-type]
        return float((credited.c_pos + credited.c_neg)[tree.offsets[at["a2 b3 c5"]]])

    assert at_leaf() == pytest.approx(0.985142 / 6, abs=1e-4)  # a wrong item praised for its position
    assert at_leaf(sibling_reward="sid_match") == 0
    with pytest.raises(LearnerError, match="did you mean 'sid_match'"):
        at_leaf(sibling_reward="sid_mach")


def test_decisions_between_wrong_siblings_are_counted() -> None:
    tree, _ = trie_tree(CANDIDATES)
    ranked = [scored(tree, ("reward", 1.0, RANKED))]
    found = ALGORITHM.describe(ALGORITHM.credit(ranked, SiblingGrpoConfig(), None))
    # Credit at the root, a1, a1 b1 and a2 b3; only the last has no hit below it.
    assert found["sibling/parents"] == (4.0, 1.0)
    assert found["sibling/no_hit"] == (1.0, 4.0)


WORKED = ["a1 b1 c1", "a1 b1 c2", "a1 b2 c1", "a2 b1 c1", "a2 b1 c2", "a3 b1 c1"]
WORKED_REWARDS = [1.0, 0.0, 0.5, 0.0, 0.0, 0.3]


@pytest.mark.parametrize(
    ("weight", "root", "deep"),
    [("node", [0.189166, -0.216190, 0.027024], 0.166633), ("candidate", [0.425624, -0.324285, 0.020268], 0.124975)],
)
def test_both_ways_to_count_give_the_coefficients_worked_from_the_authors_code(
    weight: str, root: list[float], deep: float
) -> None:
    """v_star.md section 9.2. A second request beside it changes nothing but the mean over requests (9.3)."""
    tree, at = trie_tree(WORKED)
    other, _ = trie_tree(["a1 b1 c1", "a1 b1 c2", "a2 b1 c1"])
    config = SiblingGrpoConfig(global_coef=0, sibling_weight=weight)  # type: ignore[arg-type]
    for beside in ([], [scored(other, ("r", 1.0, [0.0, 0, 1]))]):
        credited = ALGORITHM.credit([scored(tree, ("r", 1.0, WORKED_REWARDS)), *beside], config, None)[0]
        values = (credited.c_pos + credited.c_neg) * (1 + len(beside))
        assert [values[tree.offsets[at[p]]] for p in ("a1", "a2", "a3")] == pytest.approx(root, abs=1e-6)
        assert values[tree.offsets[at["a1 b1 c1"]]] == pytest.approx(deep, abs=1e-6)
        assert values[tree.offsets[at["a1 b1 c2"]]] == pytest.approx(-deep, abs=1e-6)


@pytest.mark.parametrize(("weight", "unvisited"), [("node", 0.0), ("candidate", -0.121607)])
def test_counting_nodes_once_leaves_tokens_that_were_not_visited_alone(weight: str, unvisited: float) -> None:
    """v_star.md section 9.4: d/dz_u of Σ_v a_v·ln π_v = a_u·1[u visited] - π_u·Σ_v a_v."""
    tree, at = trie_tree(WORKED)
    config = SiblingGrpoConfig(global_coef=0, sibling_weight=weight)  # type: ignore[arg-type]
    credited = ALGORITHM.credit([scored(tree, ("r", 1.0, WORKED_REWARDS))], config, None)[0]
    values = credited.c_pos + credited.c_neg
    logits = torch.linspace(-1, 1, 6, dtype=torch.float64, requires_grad=True)  # codes 1, 2, 3 were visited
    logprobs = logits.log_softmax(-1)
    sum(values[tree.offsets[at[f"a{code}"]]] * logprobs[code] for code in (1, 2, 3)).backward()
    expected = [unvisited * logprobs[code].exp().item() for code in (0, 4, 5)]
    assert logits.grad is not None
    assert logits.grad[[0, 4, 5]].tolist() == pytest.approx(expected, abs=1e-6)
