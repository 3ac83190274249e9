"""Advantages and weights with numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rlkit.algorithms import dapo, dr_grpo, grpo, reinforce_pp, rloo, sft
from rlkit.algorithms.base import AlgorithmConfig
from rlkit.algorithms.credit import centered, leaf_weights, relative_advantages, standardized, whiten
from rlkit.algorithms.dapo import DapoConfig, overlong_penalty
from rlkit.algorithms.rloo import leave_one_out
from rlkit.records import Leaf, Node, SamplingState, Task, Tree
from tests.forest import scored

NAN = float("nan")


def flat_tree(lengths: list[int], status: str = "done") -> Tree:
    """A root with one policy child per length."""
    nodes = [Node(parent=-1, author="prompt", token_ids=np.array([1, 2], np.int32))]
    for length in lengths:
        nodes.append(
            Node(
                parent=0,
                author="policy",
                token_ids=np.arange(length, dtype=np.int32),
                behavior_logprobs=np.zeros(length, np.float32),
                sampling=SamplingState(),
            )
        )
    leaves = tuple(Leaf(node=i + 1, sample_index=i, status=status) for i in range(len(lengths)))  # type: ignore[arg-type]
    return Tree(task=Task(id="t", question="?"), nodes=tuple(nodes), leaves=leaves)


def test_grpo_advantages_match_the_paper_spec() -> None:
    # search_p1.md section 6: sample standard deviation, eps 1e-6.
    rewards = np.array([1.0, 0.85, 0.636, 0.235])
    assert standardized(rewards, AlgorithmConfig()) == pytest.approx(
        [0.962243, 0.510839, -0.133164, -1.339918], abs=1e-6
    )
    assert standardized(rewards, AlgorithmConfig(std_ddof=0)) == pytest.approx(
        [1.111102, 0.589866, -0.153765, -1.547203], abs=1e-6
    )
    hits = np.array([1.0, 0, 0, 0, 0])
    assert standardized(hits, AlgorithmConfig()) == pytest.approx([1.788850, *[-0.447213] * 4], abs=1e-6)


def test_equal_rewards_and_groups_of_one_give_no_advantage() -> None:
    assert standardized(np.full(4, 0.7), AlgorithmConfig()).tolist() == [0, 0, 0, 0]
    # 0.1 + 0.2 is not 0.3: a spread of rounding is no signal.
    assert standardized(np.array([0.3, 0.1 + 0.2]), AlgorithmConfig()).tolist() == [0, 0]
    assert standardized(np.array([0.4, NAN]), AlgorithmConfig())[0] == 0
    assert leave_one_out(np.array([0.4]), AlgorithmConfig()).tolist() == [0]


def test_a_failed_reward_leaves_the_statistics_of_its_group() -> None:
    values = standardized(np.array([1.0, NAN, 0.0]), AlgorithmConfig(eps=0))
    # Over {1, 0}: mean 0.5, sample deviation 0.7071.
    assert values[[0, 2]] == pytest.approx([0.707107, -0.707107], abs=1e-6)
    assert np.isnan(values[1])
    tree = scored(flat_tree([2, 2, 2]), ("hit", 1.0, [1.0, NAN, 0.0]))
    credited = grpo.ALGORITHM.credit([tree], grpo.GrpoConfig(eps=0), None)[0]
    assert [p.leaf for p in credited.paths] == [0, 2]
    # Two trained leaves of two tokens: each token weighs 1 / (2 * 2).
    assert credited.paths[0].weights == pytest.approx([0.25, 0.25])


def test_dr_grpo_only_centres_and_divides_by_a_constant() -> None:
    tree = scored(flat_tree([1, 3]), ("hit", 1.0, [1.0, 0.0]))
    paths = dr_grpo.ALGORITHM.credit([tree], dr_grpo.DrGrpoConfig(constant_tokens=10), None)[0].paths
    assert [p.advantages[0] for p in paths] == [0.5, -0.5]
    assert [p.weights[0] for p in paths] == pytest.approx([1 / 20, 1 / 20])


def test_rloo_compares_with_the_mean_of_the_others() -> None:
    # 3 - (1 + 2) / 2 = 1.5, 1 - 2.5 = -1.5, 2 - 2 = 0.
    assert leave_one_out(np.array([3.0, 1.0, 2.0]), AlgorithmConfig()) == pytest.approx([1.5, -1.5, 0.0])
    tree = scored(flat_tree([1, 3]), ("hit", 1.0, [1.0, 0.0]))
    paths = rloo.ALGORITHM.credit([tree], rloo.RlooConfig(), None)[0].paths
    assert [p.weights.tolist() for p in paths] == [[0.5], [0.5] * 3]


def test_aggregations_weigh_tokens_as_named() -> None:
    # Two groups: lengths 1 and 3, and a single leaf of 4.
    lengths = [[1, 3], [4]]

    def weights(kind: str) -> list[list[float]]:
        return leaf_weights(lengths, AlgorithmConfig(aggregation=kind, constant_tokens=5))  # type: ignore[arg-type]

    assert weights("sequence_mean") == [[1 / 3, 1 / 9], [1 / 12]]
    assert weights("sequence_sum") == [[1 / 3, 1 / 3], [1 / 3]]
    assert weights("token_mean") == [[1 / 8, 1 / 8], [1 / 8]]
    assert weights("group_token_mean") == [[1 / 8, 1 / 8], [1 / 8]]
    assert weights("constant") == [[1 / 15, 1 / 15], [1 / 15]]


def test_overlong_penalty_is_linear_over_the_buffer() -> None:
    config = DapoConfig(overlong_tokens=10, overlong_buffer=4)
    # Up to 6 free; 8 is half way; 10 and beyond cost the whole point.
    assert [overlong_penalty(n, config) for n in (6, 7, 8, 10, 12)] == [0, -0.25, -0.5, -1, -1]
    tree = scored(flat_tree([6, 10]), ("hit", 1.0, [1.0, 1.0]))
    paths = dapo.ALGORITHM.credit([tree], config, None)[0].paths
    # Rewards 1 and 0: mean 0.5, sample deviation 0.7071.
    assert [p.advantages[0] for p in paths] == pytest.approx([0.707106, -0.707106], abs=1e-5)


def test_dapo_leaves_out_groups_with_one_reward_and_truncated_leaves_if_asked() -> None:
    equal = scored(flat_tree([2, 2]), ("hit", 1.0, [1.0, 1.0]))
    mixed = scored(flat_tree([2, 2]), ("hit", 1.0, [1.0, 0.0]))
    assert dapo.ALGORITHM.drop(equal, DapoConfig()) == "equal_rewards"
    assert dapo.ALGORITHM.drop(mixed, DapoConfig()) is None
    assert dapo.ALGORITHM.drop(equal, DapoConfig(dynamic_sampling=False)) is None
    cut = scored(flat_tree([2, 2], status="truncated"), ("hit", 1.0, [1.0, 0.0]))
    assert dapo.ALGORITHM.credit([cut], DapoConfig(overlong_filter=True), None)[0].paths == ()


def test_rewards_normalised_apart_keep_a_small_term_alive() -> None:
    # Together: 10·hit + style, style drowns. Apart: both terms have the same spread before the weights.
    tree = scored(flat_tree([1] * 4), ("hit", 1.0, [10, 10, 0, 0]), ("style", 1.0, [0.1, 0, 0.1, 0]))
    config = AlgorithmConfig(normalize="apart", eps=0)
    (apart,) = relative_advantages([tree], config, None, standardized)
    # Each term is ±sqrt(3)/2, sums ±sqrt(3) and 0; whitened by the population deviation sqrt(6)/2: ±sqrt(2), 0.
    assert apart == pytest.approx([2**0.5, 0, 0, -(2**0.5)], abs=1e-9)
    (together,) = relative_advantages([tree], AlgorithmConfig(eps=0), None, standardized)
    assert abs(together[0] - together[1]) < 0.02


def test_kl_in_the_reward_is_a_cost_per_trajectory() -> None:
    tree = scored(flat_tree([1, 2]), ("hit", 1.0, [1.0, 1.0]))
    kl = [np.array([9, 9, 0.5, 0.25, 0.25])]  # two prompt tokens, then one and two policy tokens
    config = dr_grpo.DrGrpoConfig(kl_coef=1.0, kl_in="reward")
    paths = dr_grpo.ALGORITHM.credit([tree], config, kl)[0].paths
    assert [p.advantages[0] for p in paths] == [0.0, 0.0]  # both paid 0.5
    kl = [np.array([9, 9, 0.5, 0.0, 0.25])]
    paths = dr_grpo.ALGORITHM.credit([tree], config, kl)[0].paths
    assert [p.advantages[0] for p in paths] == [-0.125, 0.125]


def test_reinforce_pp_pays_the_kl_to_go_and_whitens_over_tokens() -> None:
    tree = scored(flat_tree([1, 2]), ("hit", 1.0, [1.0, 0.0]))
    kl = [np.array([0, 0, 0.0, 0.2, 0.3])]
    config = reinforce_pp.ReinforcePpConfig(kl_coef=1.0, eps=0)
    paths = reinforce_pp.ALGORITHM.credit([tree], config, kl)[0].paths
    # Returns: [1], [0 - 0.5, 0 - 0.3]; mean 0.2/3, population deviation of {1, -0.5, -0.3} is 0.664998.
    flat = np.array([1, -0.5, -0.3])
    expected = (flat - flat.mean()) / flat.std()
    assert np.concatenate([p.advantages for p in paths]) == pytest.approx(expected)
    # With the group baseline rewards are ±0.5 first.
    config = reinforce_pp.ReinforcePpConfig(baseline="group", eps=0)
    paths = reinforce_pp.ALGORITHM.credit([tree], config, None)[0].paths
    flat = np.array([0.5, -0.5, -0.5])
    assert np.concatenate([p.advantages for p in paths]) == pytest.approx((flat - flat.mean()) / flat.std())


def test_supervised_credit_takes_finished_demonstrations_that_reach_the_bar() -> None:
    tree = scored(flat_tree([1, 2, 1]), ("hit", 1.0, [1.0, 0.0, NAN]))
    paths = sft.ALGORITHM.credit([tree], sft.SftConfig(min_reward=0.5), None)[0].paths
    assert [p.leaf for p in paths] == [0]
    paths = sft.ALGORITHM.credit([tree], sft.SftConfig(), None)[0].paths
    assert [p.leaf for p in paths] == [0, 1]
    assert paths[0].weights == pytest.approx([1 / 3])


def test_whitening_ignores_what_is_not_finite_and_survives_equal_values() -> None:
    a, b = whiten([np.array([1.0, NAN]), np.array([3.0])], eps=0)
    assert a[0] == -1 and np.isnan(a[1]) and b[0] == 1
    assert whiten([np.array([2.0, 2.0])], eps=0)[0].tolist() == [0, 0]
    assert centered(np.array([1.0, NAN, 0.0]), AlgorithmConfig())[[0, 2]].tolist() == [0.5, -0.5]


def test_bad_settings_name_themselves() -> None:
    with pytest.raises(ValueError, match=r"clip_low: -0.1 is below 0"):
        grpo.GrpoConfig(clip_low=-0.1)
    with pytest.raises(ValueError, match=r"overlong_buffer: 12 is not in 1..overlong_tokens \(10\)"):
        DapoConfig(overlong_tokens=10, overlong_buffer=12)
    with pytest.raises(ValueError, match=r"normalize: 'apart' is not defined for reinforce_pp"):
        reinforce_pp.ReinforcePpConfig(normalize="apart")
