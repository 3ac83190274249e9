"""Racing: Student's interval by hand, who is dropped, and how much a race saves against a fixed grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlkit.sweeps.racing import Race, difference, student_cdf, student_quantile


def test_students_distribution_is_the_one_of_the_tables() -> None:
    # one degree: Cauchy, P(T <= 1) = 3/4; two degrees: 1/2 + t / (2·sqrt(2 + t²)) = 0.5 + 2 / (2·sqrt 6) at t = 2
    assert student_cdf(1, 1) == pytest.approx(0.75, abs=1e-12)
    assert student_cdf(2, 2) == pytest.approx(0.5 + 1 / math.sqrt(6), abs=1e-12)
    assert student_cdf(-2, 2) == pytest.approx(0.5 - 1 / math.sqrt(6), abs=1e-12)
    # printed tables
    assert student_quantile(0.975, 4) == pytest.approx(2.776, abs=5e-4)
    assert student_quantile(0.995, 10) == pytest.approx(3.169, abs=5e-4)
    assert student_quantile(0.025, 4) == pytest.approx(-2.776, abs=5e-4)


def test_students_distribution_is_that_of_scipy_far_out() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 3, 7, 47, 199):
        for probability in (0.6, 0.9, 0.999, 1 - 1e-6):
            assert student_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-7)


def test_the_interval_of_paired_differences_by_hand() -> None:
    # differences 1, 0, 0, 1, and prompt e is not shared: mean 1/2, spread sqrt(1/3), t(0.975, 3) = 3.1824
    one = {"a": 1.0, "b": 0.0, "c": 1.0, "d": 1.0}
    other = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 0.0, "e": 1.0}
    found = difference(one, other, 0.05)
    assert (found.mean, found.n) == (0.5, 4)
    assert found.high - found.mean == pytest.approx(3.1824 * math.sqrt(1 / 3) / 2, rel=1e-4)
    assert found.low == pytest.approx(1 - found.high)


def test_pairing_finds_what_prompts_of_different_difficulty_would_hide() -> None:
    hard = {str(i): float(i % 10) for i in range(20)}
    better = {prompt: score + 0.1 + 0.01 * (int(prompt) % 2) for prompt, score in hard.items()}
    assert difference(better, hard, 0.01).low > 0  # although scores spread over 9 and differ by 0.1


def test_equal_differences_wait_for_the_sign_test() -> None:
    # 5 equal signs: 2^-4 = 0.0625 > 0.05; 6: 2^-5 = 0.03125
    for n, decided in ((5, False), (6, True)):
        found = difference({str(i): 0.0 for i in range(n)}, {str(i): 1.0 for i in range(n)}, 0.05)
        assert (found.high < 0) == decided
    assert difference({"a": 1.0}, {"a": 0.0}, 0.05).low == -math.inf


def scores(mean: float, n: int = 40, seed: int = 0) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {str(i): float(mean + 0.1 * rng.standard_normal()) for i in range(n)}


def test_a_beaten_arm_is_dropped_once_and_the_leader_never() -> None:
    race = Race(arms=3, looks=2, alpha=0.05)
    assert race.level == pytest.approx(0.05 / 4)
    assert race.report("good", 0, 10, scores(0.8)) == set()
    assert race.report("bad", 0, 10, scores(0.2, seed=1)) == {"bad"}
    assert race.report("alike", 0, 10, scores(0.8, seed=2)) == {"bad"}
    assert race.leader(10) in ("good", "alike") and race.dropped == {"bad": 10}
    assert race.report("better", 0, 20, scores(0.9)) == {"bad"}  # nobody else is at step 20 yet


def test_an_arm_is_judged_when_all_its_seeds_are_there_and_not_before_the_first_look() -> None:
    race = Race(arms=2, looks=1, seeds=2, first=10)
    for seed in (0, 1):
        race.report("good", seed, 0, scores(0.9))
        race.report("bad", seed, 0, scores(0.1))
        race.report("good", seed, 10, scores(0.9))
    assert race.report("bad", 0, 10, scores(0.1)) == set()
    assert race.report("bad", 1, 10, scores(0.1)) == {"bad"}


def planted(seed: int, arms: int = 12, rungs: int = 8, prompts: int = 48, gap: float = 0.12) -> tuple[str, int, str]:
    """A race of learning curves, one planted better arm: (winner, rungs run, what a fixed grid of that size picks).

    Score of a prompt: 0/1 with the arm's success rate, prompts of different difficulty shared by all arms.
    """
    rng = np.random.default_rng(seed)
    final = {f"arm{i}": 0.45 + 0.05 * float(rng.random()) for i in range(arms)}
    final["arm3"] = 0.5 + gap
    difficulty = rng.normal(0, 0.25, prompts)

    def evaluation(arm: str, rung: int) -> dict[str, float]:
        rate = final[arm] * (1 - 0.5 ** (2 * rung)) + difficulty
        draws = rng.random((prompts, 4)) < np.clip(rate, 0.02, 0.98)[:, None]  # four samples of each prompt
        return {str(i): float(score) for i, score in enumerate(draws.mean(axis=1))}

    race, run = Race(arms=arms, looks=rungs, alpha=0.1, first=1), 0
    for rung in range(1, rungs + 1):
        for arm in final:
            if arm not in race.dropped:
                run += 1
                race.report(arm, 0, rung, evaluation(arm, rung))
    winner = race.leader(rungs)
    assert winner is not None
    # a grid with the same samples: every arm trains for the same, smaller number of rungs
    short = max(run // arms, 1)
    means = {arm: float(np.mean(list(evaluation(arm, short).values()))) for arm in final}
    return winner, run, max(means, key=lambda arm: means[arm])


def test_a_planted_better_arm_is_found_with_clearly_fewer_samples_than_a_fixed_grid() -> None:
    trials = [planted(seed) for seed in range(40)]
    found = sum(winner == "arm3" for winner, _, _ in trials)
    used = sum(run for _, run, _ in trials) / (40 * 12 * 8)
    assert found >= 36
    assert used <= 0.75  # of the grid that runs every arm to its end


def test_equal_arms_are_rarely_dropped() -> None:
    """The best of equal arms is any of them: each is dropped at most as often as alpha allows."""
    dropped = 0
    for seed in range(100):
        race = Race(arms=4, looks=1, alpha=0.05)
        for arm in range(4):
            race.report(str(arm), 0, 1, scores(0.5, n=30, seed=1000 * seed + arm))
        dropped += "0" in race.dropped
    assert dropped <= 8
