"""Every formula of the dictionary against numbers worked by hand, on two small trees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rlkit.errors import RlkitError
from rlkit.metrics import (
    METRICS,
    bootstrap_mean,
    credit_metrics,
    documentation,
    finalise,
    held_out_metrics,
    merge,
    metric,
    rollout_metrics,
    wilson,
)
from rlkit.records import (
    CreditedTree,
    CreditPath,
    Leaf,
    LeafStatus,
    Node,
    RewardTerm,
    SamplingState,
    ScoredTree,
    Task,
    Tree,
)

NAN = math.nan


def run_of(size: int, parent: int, author: str, *, version: int = -1, turn: int = 0) -> Node:
    if author != "policy":
        return Node(parent=parent, author=author, token_ids=np.arange(size, dtype=np.int32), turn=turn)  # type: ignore[arg-type]
    return Node(
        parent=parent,
        author="policy",
        token_ids=np.arange(size, dtype=np.int32),
        behavior_logprobs=np.full(size, -1.0, np.float32),
        policy_version=version,
        sampling=SamplingState(),
        turn=turn,
    )


def leaf(node: int, sample: int, status: LeafStatus = "done", **signals: float) -> Leaf:
    return Leaf(node=node, sample_index=sample, status=status, signals=signals)


def term(name: str, weight: float, values: Sequence[float], status: Sequence[str]) -> RewardTerm:
    return RewardTerm(name=name, weight=weight, values=np.array(values, dtype=np.float64), status=tuple(status))


@pytest.fixture
def branching() -> ScoredTree:
    """4 prompt tokens; leaf 0 searches (2 + 2 + 1 tokens), leaf 1 answers (3), leaf 2 failed at once."""
    nodes = (
        run_of(4, -1, "prompt"),
        run_of(2, 0, "policy", version=3),
        run_of(2, 1, "environment"),
        run_of(1, 2, "policy", version=4, turn=1),
        run_of(3, 0, "policy", version=4),
    )
    leaves = (
        leaf(3, 0, searches=2.0),
        leaf(4, 1, "truncated", searches=0.0),
        leaf(0, 2, "failed", searches=9.0),
    )
    tree = Tree(task=Task(id="a", question="?"), nodes=nodes, leaves=leaves)
    return ScoredTree(
        tree=tree,
        terms=(
            term("em", 1.0, [1, 0, NAN], ["ok", "ok", "skipped: failed"]),
            term("format", 0.5, [1, NAN, NAN], ["ok", "failed: deadline", "skipped: failed"]),
        ),
    )


@pytest.fixture
def flat() -> ScoredTree:
    """3 prompt tokens and two answers of 2 tokens."""
    nodes = (run_of(3, -1, "prompt"), run_of(2, 0, "policy", version=5), run_of(2, 0, "policy", version=5))
    tree = Tree(task=Task(id="b", question="?"), nodes=nodes, leaves=(leaf(1, 0), leaf(2, 1)))
    terms = (term("em", 1.0, [1, 0], ["ok", "ok"]), term("format", 0.5, [0, 0], ["ok", "ok"]))
    return ScoredTree(tree=tree, terms=terms)


# Totals: in tree a only leaf 0 is valid (leaf 1's weighted format failed): 1 + 0.5 = 1.5; tree b: 1 and 0.
EXPECTED = {
    "reward/mean": (1.5 + 1 + 0) / 3,
    "reward/best": (1.5 + 1) / 2,
    "reward/em/mean": (1 + 0 + 1 + 0) / 4,
    "reward/em/best": (1 + 1) / 2,
    "reward/em/failed": 0.0,
    "reward/format/mean": (1 + 0 + 0) / 3,
    "reward/format/best": (1 + 0) / 2,
    "reward/format/failed": 1 / 4,  # the skipped leaf was never asked
    "groups/effective": 1 / 2,  # tree a has one valid leaf: nothing to compare
    "groups/all_failed": 0.0,
    "groups/reward_std": (0 + 0.5) / 2,
    "rollout/done": 3 / 5,
    "rollout/truncated": 1 / 5,
    "rollout/failed": 1 / 5,
    "rollout/turns": (2 + 1 + 1 + 1) / 4,
    "rollout/completion_tokens": (3 + 3 + 2 + 2) / 4,
    "signals/searches": (2 + 0) / 2,  # the failed leaf's count is left out
    "tokens/unique": 12 + 7,
    "tokens/flat": (9 + 7 + 4) + (5 + 5),
    "tokens/sharing": 30 / 19,
    "staleness/mean": (2 * 2 + 1 * 1 + 1 * 3 + 0 * 4) / 10,  # learner at version 5
    "staleness/max": 2,
}


def test_every_rollout_metric_has_its_hand_worked_value(branching, flat):
    assert finalise(rollout_metrics([branching, flat], learner_version=5)) == pytest.approx(EXPECTED)


def test_merging_the_pairs_of_two_workers_equals_measuring_at_once(branching, flat):
    apart = merge(rollout_metrics([tree], learner_version=5) for tree in (branching, flat))
    assert finalise(apart) == pytest.approx(EXPECTED)


def test_a_group_without_a_valid_leaf_is_counted_and_has_no_reward(branching):
    lost = ScoredTree(tree=branching.tree, terms=(term("em", 1.0, [NAN] * 3, ["failed: x"] * 3),))
    found = finalise(rollout_metrics([lost], learner_version=5))
    assert found["groups/all_failed"] == 1.0
    assert found["groups/effective"] == 0.0
    assert found["reward/em/failed"] == 1.0
    assert "reward/mean" not in found  # no measurement is not a measurement of 0


def test_no_trees_give_no_means():
    found = finalise(rollout_metrics([], learner_version=0))
    assert found == {"tokens/unique": 0.0, "tokens/flat": 0.0}


def test_credit_metrics_are_taken_over_paths_and_unique_policy_tokens(branching):
    def path(leaf: int, tokens: Sequence[int], advantage: float) -> CreditPath:
        size = len(tokens)
        return CreditPath(
            leaf=leaf,
            tokens=np.array(tokens, dtype=np.int32),
            advantages=np.full(size, advantage),
            weights=np.full(size, 0.5),
        )

    # Token 4 is praised and blamed, 5 and 8 praised, 9 to 11 carry an advantage of 0: 6 policy tokens.
    credited = CreditedTree(scored=branching, paths=(path(0, [4, 5, 8], 2), path(-1, [4], -1), path(1, [9, 10, 11], 0)))
    assert finalise(credit_metrics([credited])) == pytest.approx(
        {
            "advantage/mean": 1 / 3,
            "advantage/std": math.sqrt((4 + 1 + 0) / 3 - 1 / 9),
            "credit/nonzero": 3 / 6,
            "credit/conflict": 1 / 6,
        }
    )


def test_reductions_follow_the_dictionary():
    parts = [
        {"memory/peak_mib": (3.0, 1), "timing/learn_s": (2.0, 1), "entropy": (4.0, 8), "loss": (1.0, 1)},
        {"memory/peak_mib": (2.0, 1), "timing/learn_s": (5.0, 1), "entropy": (1.0, 2), "unheard/of": (1.0, 4)},
    ]
    assert finalise(merge(parts)) == {
        "memory/peak_mib": 3.0,
        "timing/learn_s": 7.0,
        "entropy": 0.5,
        "loss": 1.0,
        "unheard/of": 0.25,
    }


def test_held_out_metrics_carry_an_interval_and_n_for_every_reward(branching, flat):
    found = held_out_metrics([branching, flat], learner_version=5)
    assert found["reward/n"] == found["reward/em/n"] == 2
    # Task means of em are 0.5 and 0.5: the bootstrap has nothing to vary.
    assert (found["reward/em/low"], found["reward/em/high"]) == (0.5, 0.5)
    # One ok leaf in tree a with 1, two in tree b with 0: task means 1 and 0, not single 0/1 values.
    assert (found["reward/format/low"], found["reward/format/high"]) == (0.0, 1.0)


def test_one_attempt_at_a_yes_or_no_question_gets_the_wilson_interval():
    trees = []
    for index in range(10):
        tree = Tree(
            task=Task(id=str(index), question="?"),
            nodes=(run_of(1, -1, "prompt"), run_of(1, 0, "policy", version=0)),
            leaves=(leaf(1, 0),),
        )
        trees.append(ScoredTree(tree=tree, terms=(term("em", 1.0, [float(index < 8)], ["ok"]),)))
    found = held_out_metrics(trees, learner_version=0)
    assert (found["reward/em/low"], found["reward/em/high"]) == wilson(8, 10)
    assert found["reward/em/n"] == 10


def test_wilson_known_answers():
    # 8 of 10, z = 1.96: centre (0.8 + 0.19208) / 1.38416, half width 1.96·sqrt(0.016 + 0.009604) / 1.38416.
    assert wilson(8, 10) == pytest.approx((0.716733 - 0.226578, 0.716733 + 0.226578), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 3.8416 / 13.8416))  # z² / (n + z²)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson(11, 10)


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    values = [0.0, 1.0] * 200
    low, high = bootstrap_mean(values, seed=3)
    assert (low, high) == bootstrap_mean(values, seed=3)
    assert (low, high) != bootstrap_mean(values, seed=4)
    # Standard error 0.5 / sqrt(400) = 0.025, times 1.96.
    assert (low, high) == pytest.approx((0.5 - 0.049, 0.5 + 0.049), abs=0.006)
    assert bootstrap_mean([2.0] * 5) == (2.0, 2.0)
    assert all(map(math.isnan, bootstrap_mean([])))


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("loss", "objective"),
        ("reward/mean", "reward"),
        ("reward/f1/mean", "as the term"),
        ("dropped/too stale", "tasks"),
    ],
)
def test_logged_names_are_found_directly_or_through_their_pattern(name, unit):
    assert metric(name).unit == unit


def test_an_undocumented_name_is_refused_with_the_nearest_documented_one():
    with pytest.raises(RlkitError, match=r"'grad_nrm'.*did you mean 'grad_norm'"):
        metric("grad_nrm")
    with pytest.raises(RlkitError):
        metric("reward/<term>/mean")


def test_everything_computed_here_is_documented(branching, flat):
    names = {*rollout_metrics([branching], learner_version=5), *held_out_metrics([flat], learner_version=5)}
    for name in names | {*credit_metrics([])}:
        assert metric(name)


def test_the_page_of_metrics_is_the_dictionary():
    page = Path(__file__).parents[1] / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == documentation(), "run: python -m rlkit.metrics > docs/metrics.md"
    assert all(f"`{name}`" in documentation() for name in METRICS)
