"""Turn GRPO with numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlkit.algorithms import grpo, turn_grpo
from rlkit.algorithms.turn_grpo import TurnGrpoConfig, remaining_rewards
from rlkit.records import Leaf, Node, SamplingState, ScoredTree, Task, Tree
from tests.forest import random_forest, scored

NAN = float("nan")


def policy(parent: int, turn: int, size: int = 1) -> Node:
    return Node(
        parent=parent,
        author="policy",
        token_ids=np.arange(size, dtype=np.int32),
        behavior_logprobs=np.zeros(size, np.float32),
        sampling=SamplingState(),
        turn=turn,
    )


def three_leaves() -> ScoredTree:
    """Two leaves that fork after a shared first turn, and one of a single turn; two tokens in each second turn."""
    nodes = (
        Node(parent=-1, author="prompt", token_ids=np.array([1], np.int32)),
        policy(0, 0),
        Node(parent=1, author="environment", token_ids=np.array([2], np.int32)),
        policy(2, 1, 2),
        policy(2, 1, 2),
        policy(0, 0),
    )
    leaves = tuple(Leaf(node=node, sample_index=i, status="done") for i, node in enumerate((3, 4, 5)))
    tree = Tree(task=Task(id="t", question="?"), nodes=nodes, leaves=leaves)
    bare = scored(tree, ("search", 2.0, [0.5, 0.2, 0.1]))
    spoken = np.array([NAN, 0.15, NAN, 0.1, -0.05, NAN])
    return ScoredTree(tree=tree, terms=(replace(bare.terms[0], node_values=spoken),))


def test_what_was_earned_before_a_turn_is_no_credit_of_it() -> None:
    tree = three_leaves()
    # Weight 2: rewards 1.0, 0.4, 0.2. The shared first turn earned 0.3, the second turns 0.2 and -0.1.
    assert remaining_rewards(tree, tree.rewards) == pytest.approx(
        np.array([[1.0, 0.7, 0.5], [0.4, 0.1, 0.2], [0.2, 0.2, 0.2]])
    )


def test_every_turn_is_compared_with_the_whole_group() -> None:
    config = TurnGrpoConfig(eps=0.0)
    [credited] = turn_grpo.ALGORITHM.credit([three_leaves()], config, None)
    # First turn: mean 1.6/3, deviation 0.416333. Second: of (0.7, 0.1, 0.2) mean 1/3, deviation 0.321455.
    first, second, third = (path.advantages for path in credited.paths)
    assert first == pytest.approx([1.120897, 1.140647, 1.140647], abs=1e-6)
    assert second == pytest.approx([-0.320256, -0.725866, -0.725866], abs=1e-6)
    assert third == pytest.approx([-0.800641], abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_words_about_turns_it_is_grpo(seed: int) -> None:
    forest = random_forest(seed)
    mine = turn_grpo.ALGORITHM.credit(forest, TurnGrpoConfig(), None)
    plain = grpo.ALGORITHM.credit(forest, grpo.GrpoConfig(), None)
    for one, other in zip(mine, plain, strict=True):
        assert one.c_pos == pytest.approx(other.c_pos) and one.c_neg == pytest.approx(other.c_neg)


def test_a_term_without_weight_moves_no_credit() -> None:
    tree = three_leaves()
    silent = replace(tree.terms[0], name="quiet", weight=0.0)
    assert remaining_rewards(ScoredTree(tree=tree.tree, terms=(*tree.terms, silent)), tree.rewards) == pytest.approx(
        remaining_rewards(tree, tree.rewards)
    )


def test_a_failed_leaf_takes_no_part() -> None:
    tree = three_leaves()
    values = np.array([0.5, NAN, 0.1])
    term = replace(tree.terms[0], values=values, status=("ok", "failed: planted", "ok"))
    [credited] = turn_grpo.ALGORITHM.credit([ScoredTree(tree=tree.tree, terms=(term,))], TurnGrpoConfig(), None)
    assert [path.leaf for path in credited.paths] == [0, 2]


def test_rewards_normalised_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="normalize: 'apart' is not defined for turn_grpo"):
        TurnGrpoConfig(normalize="apart")
