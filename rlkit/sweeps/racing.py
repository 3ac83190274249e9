"""Racing: arms are compared on the same prompts, and one is out when its deficit is no accident.

The unit is the prompt. Arm a and the leader answer the same prompts from the same seeds, so what differs between two
prompts cancels:  d_i = score_a(i) - score_leader(i),  and a is dropped when the upper end of the interval of mean(d)
is below 0. Maron and Moore 1997 (doi:10.1023/A:1006556606079) race with Hoeffding's bound on each score; differences
have a smaller spread, and Student's interval uses the spread that is there.

The best arm can be dropped by any other one at any look, so each comparison gets alpha / (looks · (arms - 1))
(Bonferroni): with probability 1 - alpha it is never dropped. That is about the arms as they are at each look; like
every early stopping it cannot know whether a slow starter would have overtaken later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Interval", "Race", "difference", "student_cdf", "student_quantile"]

MIN_PROMPTS = 5
"""Fewer differences decide nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Of a mean difference."""

    mean: float
    low: float
    high: float
    n: int
    """Prompts behind it."""


def difference(one: Mapping[str, float], other: Mapping[str, float], alpha: float) -> Interval:
    """Mean of one - other over the prompts that both have, with a two-sided Student interval of level 1 - alpha.

    Differences that are all equal have no spread to learn from: then the sign test decides, n equal signs having
    probability 2^(1-n), and until it does the interval reaches across 0.
    """
    shared = sorted(one.keys() & other.keys())
    values = [one[prompt] - other[prompt] for prompt in shared]
    n = len(values)
    if n < 2:
        return Interval(mean=values[0] if values else math.nan, low=-math.inf, high=math.inf, n=n)
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    if spread <= 1e-12 * max(abs(mean), 1.0):
        half = 0.0 if 2.0 ** (1 - n) <= alpha else math.inf
    else:
        half = student_quantile(1 - alpha / 2, n - 1) * spread / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n)


@dataclass(slots=True, kw_only=True)
class Race:
    """Who has reported what, and who is out."""

    arms: int
    """Arms of the sweep."""
    looks: int
    """Evaluations at which an arm may be dropped."""
    seeds: int = 1
    """Trials of an arm; a step is judged once all of them have reported it."""
    alpha: float = 0.05
    first: int = 0
    """Steps before this one are not judged."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Arm -> step at which it was beaten."""
    _scores: dict[str, dict[int, dict[int, Mapping[str, float]]]] = field(default_factory=dict)
    """Arm -> step -> seed -> prompt -> score."""

    @property
    def level(self) -> float:
        """Error that one comparison may make."""
        return self.alpha / max(self.looks * (self.arms - 1), 1)

    def report(self, arm: str, seed: int, step: int, scores: Mapping[str, float]) -> set[str]:
        """Take an evaluation; returns the arms that are beaten by now, newly or before."""
        self._scores.setdefault(arm, {}).setdefault(step, {})[seed] = scores
        for other in self._scores:
            if other not in self.dropped:
                self._judge(other)
        return set(self.dropped)

    def leader(self, step: int) -> str | None:
        """Best mean at this step among arms that are still in the race and have all their seeds there."""
        found = {arm: self._at(arm, step) for arm in self._scores if arm not in self.dropped}
        means = {arm: math.fsum(scores.values()) / len(scores) for arm, scores in found.items() if scores}
        return max(means, key=lambda arm: means[arm], default=None)

    def _at(self, arm: str, step: int) -> dict[str, float]:
        """Every seed's scores, prompts told apart by seed; empty until all seeds are there."""
        by_seed = self._scores[arm].get(step, {})
        if len(by_seed) < self.seeds:
            return {}
        return {f"{seed}:{prompt}": score for seed, scores in by_seed.items() for prompt, score in scores.items()}

    def _judge(self, arm: str) -> None:
        """At the latest complete step of the arm; whoever leads there is never judged against itself."""
        step = max((step for step in self._scores[arm] if step >= self.first and self._at(arm, step)), default=None)
        leader = self.leader(step) if step is not None else None
        if step is None or leader is None or leader == arm:
            return
        found = difference(self._at(arm, step), self._at(leader, step), self.level)
        if found.n >= MIN_PROMPTS and found.high < 0:
            self.dropped[arm] = step


def student_cdf(t: float, degrees: int) -> float:
    """P(T <= t), by the regularised incomplete beta function: 1 - I_x(degrees/2, 1/2)/2, x = degrees/(degrees+t²)."""
    tail = _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


def student_quantile(probability: float, degrees: int) -> float:
    """t with `student_cdf(t) = probability`, by bisection; `probability` in (0, 1)."""
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"student_quantile: probability {probability}, degrees {degrees}")
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b) by the continued fraction 8.17.22 of NIST's DLMF, evaluated with Lentz's method."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            c = 1 + term / c
            d = 1 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return front * value / a
