"""Credit at turns does not bias the policy gradient: every group of a small search world, by enumeration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.node_credit import ANSWER, ARMS, NEXT, STOP, Arm, World, draw, estimate, softmax, world

LEAVES, TURNS, SIBLINGS = (next(arm for arm in ARMS if arm.name == f"Search-P1, {n}") for n in
                           ("leaves", "turns", "forked siblings"))  # fmt: skip
EPS = 1e9
"""Of a deviation: A = (R - mean) / EPS, no division by what was sampled."""


def some_policy(there: World) -> np.ndarray:
    return softmax(np.random.default_rng(3).normal(size=(there.num_states, 5)))


def row(there: World, *taken: int, right: float = 1.0) -> int:
    found = (there.actions[:, : len(taken)] == taken).all(1) & (there.turns == len(taken)) & (there.right == right)
    [index] = np.flatnonzero(found)
    return int(index)


def test_the_world_is_whole_and_its_rewards_are_the_shipped_ones() -> None:
    there = world(2, 4)
    assert there.probability(some_policy(there)).sum() == pytest.approx(1.0)
    ideal, gated = row(there, NEXT, NEXT, ANSWER), row(there, NEXT, STOP, right=0.0)
    assert (there.rewards["search_p1"][ideal], there.rewards["search_p1"][gated]) == pytest.approx((1.0, 0.0))
    assert there.chance[ideal] == 0.9 and there.searches[ideal] == 2
    # One of two steps with one search, then both with two: 0.3·1/2, 0.3·(1 - 1/2); said before a gate as well.
    assert there.spoken["search_p1"][ideal][:2] == pytest.approx([0.15, 0.15])
    assert there.spoken["search_p1"][gated][0] == pytest.approx(0.15)


def test_the_gradient_is_the_slope_of_the_expected_reward() -> None:
    there = world(2, 2)
    logits, reward = np.random.default_rng(0).normal(size=(there.num_states, 5)), there.rewards["search_p1"]
    slope = np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        up, down = (there.probability(softmax(logits + sign * step)) @ reward for sign in (1, -1))
        slope[place] = (up - down) / 2e-5
    assert there.gradient(softmax(logits), reward) == pytest.approx(slope, abs=1e-9)


def expectation(there: World, policy: np.ndarray, arm: Arm) -> np.ndarray:
    """Of the estimate over all groups of two, times `EPS`."""
    plain = replace(arm, config=arm.algorithm.config(eps=EPS, aggregation="sequence_sum"))
    probability = there.probability(policy)
    total = np.zeros_like(policy)
    for pair in np.ndindex(len(probability), len(probability)):
        gradient, _ = estimate(there, policy, plain, [np.array(pair)])
        total += probability[list(pair)].prod() * gradient
    return total * EPS


@pytest.mark.parametrize("arm", [LEAVES, TURNS], ids=lambda arm: arm.name)
def test_leaves_and_turns_have_the_exact_gradient_as_their_expectation(arm: Arm) -> None:
    there = world(2, 2)
    policy = some_policy(there)
    # A group of two compares with a mean that holds the sample itself: 1 - 1/2 of the gradient.
    exact = 0.5 * there.gradient(policy, there.rewards[arm.reward])
    assert expectation(there, policy, arm) == pytest.approx(exact, abs=1e-9)


def test_turns_that_fall_silent_where_the_gate_closes_would_bias_it() -> None:
    there = world(2, 2)
    gated = (there.rewards["search_p1"] == 0)[:, None]
    silent = replace(there, spoken={"search_p1": np.where(gated, np.nan, there.spoken["search_p1"])})
    policy = some_policy(there)
    exact = 0.5 * there.gradient(policy, there.rewards["search_p1"])
    assert np.abs(expectation(silent, policy, TURNS) - exact).max() > 1e-3


def test_a_forked_group_shares_its_first_turns_and_samples_them_once() -> None:
    there = world(2, 4)
    policy, rng = some_policy(there), np.random.default_rng(0)
    for _ in range(20):
        group = draw(there, policy, SIBLINGS, rng)
        _, sampled = estimate(there, policy, SIBLINGS, [group])
        shared = sum(2 for trunk in (0, 3) if there.turns[group[trunk]] > 1)
        assert sampled == there.turns[group].sum() - shared
        for trunk in (0, 3):
            if there.turns[group[trunk]] > 1:
                assert len(set(there.actions[group[trunk : trunk + 3], 0])) == 1
