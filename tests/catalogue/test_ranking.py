"""Ranked lists worked by hand: three leaves, of which the second is shared by two items."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlkit.catalogue.ranking import (
    coverage,
    diversity,
    gains,
    hits,
    long_tail,
    places,
    places_of_scores,
    rank_penalties,
)
from rlkit.catalogue.trie import ABSENT, Trie

TRIE = Trie.of(np.array([[1, 3], [1, 4], [2, 3], [1, 4]]))  # leaves 3, 4 (two items) and 5
ORDER = np.array([[5, 4, 3]])


def log2(number: float) -> float:
    return 1 / math.log2(number)


def test_a_shared_semantic_id_counts_as_its_items_in_random_order() -> None:
    before, size = places(ORDER, np.array([4]), TRIE)
    assert (before.tolist(), size.tolist()) == ([1], [2])  # one item before, ranks 2 and 3
    assert [float(hits(before, size, k)[0]) for k in (1, 2, 3, 10)] == [0.0, 0.5, 1.0, 1.0]
    assert gains(before, size, 2)[0] == pytest.approx(log2(3) / 2)
    assert gains(before, size, 3)[0] == pytest.approx((log2(3) + log2(4)) / 2)


def test_what_stands_before_a_target_are_items_not_semantic_ids() -> None:
    before, size = places(ORDER, np.array([3]), TRIE)
    assert (before.tolist(), size.tolist()) == ([3], [1])
    assert hits(before, size, 3)[0] == 0.0 and hits(before, size, 4)[0] == 1.0


def test_counted_as_published_a_semantic_id_is_one_item() -> None:
    before, size = places(ORDER, np.array([3]), TRIE, "sid")
    assert (before.tolist(), size.tolist()) == ([2], [1])
    before, size = places(ORDER, np.array([4]), TRIE, "sid")
    assert hits(before, size, 2)[0] == 1.0 and gains(before, size, 2)[0] == pytest.approx(log2(3))


def test_a_target_that_was_not_ranked_is_worth_nothing() -> None:
    ranked = np.array([[5, ABSENT], [3, ABSENT]])
    before, size = places(ranked, np.array([4, 3]), TRIE)
    assert hits(before, size, 5).tolist() == [0.0, 1.0]
    assert gains(before, size, 5).tolist() == [0.0, 1.0]


def test_items_of_equal_score_are_ties_too() -> None:
    before, size = places_of_scores(np.array([[3.0, 1.0, 1.0, 2.0]]), np.array([1]))
    assert (before.tolist(), size.tolist()) == ([2], [2])
    assert [float(hits(before, size, k)[0]) for k in (2, 3, 4)] == [0.0, 0.5, 1.0]


def test_the_expected_hit_rate_never_exceeds_that_of_semantic_ids() -> None:
    rng = np.random.default_rng(0)
    ranked = np.array([rng.permutation([3, 4, 5]) for _ in range(50)])
    targets = rng.integers(3, 6, 50)
    for k in (1, 2, 3):
        fair, published = (hits(*places(ranked, targets, TRIE, ties), k) for ties in ("expected", "sid"))
        assert (fair <= published).all()


def test_coverage_counts_the_items_that_anyone_was_shown() -> None:
    assert coverage(np.array([[5, 4], [5, ABSENT]]), TRIE, 1) == 0.25
    assert coverage(np.array([[5, 4], [5, ABSENT]]), TRIE, 2) == 0.75


def test_diversity_is_the_published_worked_example() -> None:
    six = ["a1b1c1", "a1b1c2", "a1b2c3", "a2b3c4", "a2b3c5", "a3b4c6"]
    sids = [[name[i : i + 2] for i in (0, 2, 4)] for name in six]
    assert diversity(sids) == pytest.approx(0.866667, abs=1e-6)
    assert diversity([sids[0], sids[0]]) == 0.0
    assert math.isnan(diversity(sids[:1]))


def test_the_long_tail_is_what_is_not_among_the_most_popular() -> None:
    assert long_tail(np.array([5, 0, 9, 9, 1]), head=0.4).tolist() == [True, True, False, False, True]


def test_rank_penalties_are_the_published_ones() -> None:
    assert rank_penalties(4).round(6).tolist() == [0.39038, 0.246302, 0.19519, 0.168128]
    assert rank_penalties(16)[[0, 15]].round(4).tolist() == [0.1638, 0.0401]
