"""Arms are averaged over seeds before users are drawn, and differences are paired."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.recommend_arms import arms_of, difference, table

NAN = np.nan
KEPT = {
    "sft/HR@10": [0.0, 1.0, 0.0, 1.0],
    "sft/NDCG@10": [0.0, 0.5, 0.0, 1.0],
    "ved_sib_1/HR@10": [1.0, 1.0, 0.0, 1.0],
    "ved_sib_0/HR@10": [0.0, 1.0, 0.0, 1.0],
    "ved_sib_1/NDCG@10": [1.0, 1.0, NAN, 1.0],
    "ved_sib_0/NDCG@10": [0.0, 1.0, NAN, 0.0],
    "sasrec (seed 2)/HR@10": [0.0, 0.0, 0.0, 1.0],
    "sasrec (seed 2)/NDCG@10": [0.0, 0.0, 0.0, 1.0],
}


def test_a_number_after_the_name_is_a_seed_and_seeds_stand_in_order() -> None:
    arms = arms_of({key: np.array(values) for key, values in KEPT.items()})
    assert list(arms) == ["sft", "ved_sib", "sasrec"]
    assert arms["ved_sib"]["HR@10"].tolist() == [[0, 1, 0, 1], [1, 1, 0, 1]]


def test_a_difference_is_of_users_means_over_seeds_and_skips_users_without_the_measure() -> None:
    arms = arms_of({key: np.array(values) for key, values in KEPT.items()})
    # users' means of ved_sib: 0.5, 1, 0, 1; of sft: 0, 1, 0, 1 -> 0.5, 0, 0, 0
    mean, low, high = difference(arms, "ved_sib", "sft", "HR@10")
    assert mean == 0.125 and 0 <= low <= mean <= high <= 0.5
    # the third user has no NDCG under ved_sib: (0.5 - 0, 1 - 0.5, 0.5 - 1) -> 0.5 / 3
    assert difference(arms, "ved_sib", "sft", "NDCG@10")[0] == pytest.approx(0.5 / 3)


def test_the_table_gives_means_intervals_and_the_spread_of_seeds() -> None:
    arms = arms_of({key: np.array(values) for key, values in KEPT.items()})
    lines = table(arms, [("ved_sib", "sft")]).splitlines()
    assert lines[0] == "| arm | seeds | HR@10 | NDCG@10 |"
    # seeds 0.5 and 0.75: mean 0.625, deviation 0.25 / sqrt(2) = 0.1768
    assert lines[3].startswith("| ved_sib | 2 | 0.6250 [") and "± 0.1768" in lines[3]
    assert lines[-1].startswith("| ved_sib - sft | +0.1250 [")
