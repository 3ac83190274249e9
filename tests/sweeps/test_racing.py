"""Racing: Student's interval by hand, who is dropped, and how much a race saves against a fixed grid."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlkit.sweeps.racing import Race, difference, over_seeds, pair_level, student_cdf, student_quantile


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
    assert (found.mean, found.n, found.unequal) == (0.5, 4, 2)
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
    alone = difference({"a": 1.0}, {"a": 0.0}, 0.05)
    assert alone.low == -math.inf and str(alone) == "+1.000 [too few prompts: 1]"


def scores(mean: float, n: int = 40, seed: int = 0) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {str(i): float(mean + 0.1 * rng.standard_normal()) for i in range(n)}


def test_a_beaten_arm_is_dropped_once_and_the_leader_never() -> None:
    race = Race(arms=3, looks=2, alpha=0.05)
    assert race.level == pytest.approx(0.05 / (2 * 3))  # two looks at three pairs
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


def test_seeds_are_averaged_because_two_seeds_of_one_prompt_are_not_two_prompts() -> None:
    assert over_seeds([{"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 0.0}]) == {"a": 0.5, "b": 0.0}
    race = Race(arms=2, looks=1, seeds=2)
    for seed in (0, 1):  # 5 prompts differ alike: 2^-4 is not below 0.05, and counting each of them twice would be
        race.report("good", seed, 1, {str(i): 1.0 for i in range(5)})
        race.report("bad", seed, 1, {str(i): 0.1 * i * (1 + seed) for i in range(5)})
    assert not race.dropped


def test_few_unequal_prompts_do_not_decide_whatever_student_says() -> None:
    # 5 of 40 prompts fell: Student's upper end is -0.125 + 2.023 · 0.3349 / sqrt(40) = -0.018, but 2^-4 > 0.05
    def fallen(count: int) -> dict[str, float]:
        return {str(i): float(i >= count) for i in range(40)}

    assert difference(fallen(5), fallen(0), 0.05).high == pytest.approx(-0.018, abs=1e-3)
    for count, dropped in ((5, {}), (8, {"bad": 1})):
        race = Race(arms=2, looks=1, alpha=0.05)
        race.report("good", 0, 1, fallen(0))
        race.report("bad", 0, 1, fallen(count))
        assert race.dropped == dropped


ARMS, RUNGS, PROMPTS = 12, 8, 160
TRAINED, EVALUATED = 3200, 4 * PROMPTS
"""Trajectories of an arm: trained on from one rung to the next, and sampled for one evaluation."""
ALPHA = 0.05


def evaluations(seed: int, best: float) -> list[dict[str, dict[str, float]]]:
    """Per rung: arm -> prompt -> mean of four answers that are right or wrong, prompts of different difficulty.

    Success rates rise as 1 - 2^(-rung/2) towards 0.35 to 0.5, those of arm 3 towards `best` above that.
    """
    rng = np.random.default_rng(seed)
    final = {f"arm{i}": 0.35 + 0.15 * float(rng.random()) for i in range(ARMS)}
    final["arm3"] = 0.5 + best
    difficulty = rng.normal(0, 0.2, PROMPTS)
    rungs = []
    for rung in range(1, RUNGS + 1):
        here = {}
        for arm, rate in final.items():
            right = rng.binomial(4, np.clip(rate * (1 - 0.5 ** (rung / 2)) + difficulty, 0.02, 0.98)) / 4
            here[arm] = {str(i): float(score) for i, score in enumerate(right)}
        rungs.append(here)
    return rungs


def raced(rungs: list[dict[str, dict[str, float]]]) -> tuple[bool, int]:
    """(arm 3 beat all others, trajectories); whoever is in the race trains on, the winner to its end."""
    race, used = Race(arms=ARMS, looks=RUNGS, alpha=ALPHA, first=1), 0
    for rung, here in enumerate(rungs, start=1):
        running = sorted(here.keys() - race.dropped.keys())
        used += len(running) * (TRAINED + EVALUATED)
        for arm in running:
            race.report(arm, 0, rung, here[arm])
    return here.keys() - race.dropped.keys() == {"arm3"}, used


def fixed(rungs: list[dict[str, dict[str, float]]], length: int) -> tuple[bool, int]:
    """The same of a grid: every arm for `length` rungs, one evaluation at the end, the same alpha for one look."""
    here, level = rungs[length - 1], pair_level(ALPHA, ARMS)
    beaten = [difference(scores, here["arm3"], level).high < 0 for arm, scores in here.items() if arm != "arm3"]
    return all(beaten), ARMS * (length * TRAINED + EVALUATED)


def test_a_planted_better_arm_is_found_with_clearly_fewer_samples_than_a_fixed_grid_of_the_same_confidence() -> None:
    """The grid may even choose its length in hindsight: the shortest that finds the arm as often as the race does."""
    seeds = [evaluations(seed, best=0.15) for seed in range(30)]
    races = [raced(rungs) for rungs in seeds]
    found, used = (sum(column) / len(seeds) for column in zip(*races, strict=True))
    assert found >= 0.9
    lengths = [length for length in range(1, RUNGS + 1) if np.mean([fixed(r, length)[0] for r in seeds]) >= found]
    whole = fixed(seeds[0], min(lengths, default=RUNGS))[1]
    assert used <= 0.55 * whole


@pytest.mark.parametrize("success", [0.4, 0.05])
def test_where_no_arm_is_better_hardly_any_is_dropped_however_often_one_looks(success: float) -> None:
    """Six equal arms, eight looks with fresh noise each, one answer a prompt: alpha bounds a drop of any of them."""
    raced_wrongly = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rates = np.clip(success + rng.normal(0, 0.2, 60), 0.01, 0.99)
        race = Race(arms=6, looks=8, alpha=0.05, first=1)
        for look in range(1, 9):
            for arm in range(6):
                race.report(str(arm), 0, look, {str(i): float(x) for i, x in enumerate(rng.random(60) < rates)})
        raced_wrongly += bool(race.dropped)
    assert raced_wrongly <= 9  # of 100 at 0.05: more has probability 0.03
