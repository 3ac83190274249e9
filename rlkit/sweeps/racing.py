"""Racing: arms are compared on the same prompts, and one is out when its deficit is no accident.

The unit is the prompt. Arm a and the leader answer the same prompts from the same seeds, so what differs between two
prompts cancels:  d_i = score_a(i) - score_leader(i),  scores averaged over seeds, and a is dropped when the upper end
of the interval of mean(d) is below 0. Maron and Moore 1997 (doi:10.1023/A:1006556606079) race with Hoeffding's bound on
each score; differences have a smaller spread, and Student's interval uses the spread that is there.

Any arm can be dropped for any other at any look, so each pair at each look gets alpha / (looks · arms·(arms - 1)/2)
(Bonferroni): with probability 1 - alpha no arm is ever dropped for one that is not better. Better is said of the
models as they are at that look, on prompts like these: an arm that starts slowly, or has bad luck with its seeds, stays
dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

__all__ = ["Interval", "Race", "difference", "over_seeds", "pair_level", "student_cdf", "student_quantile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Of a mean difference."""

    mean: float
    low: float
    high: float
    n: int
    """Prompts behind it."""
    unequal: int
    """Those of them whose difference is not 0."""

    def __str__(self) -> str:
        """`-0.142 [-0.244, -0.041]`, or that there are too few prompts for ends."""
        ends = f"[{self.low:+.3f}, {self.high:+.3f}]" if math.isfinite(self.low) else f"[too few prompts: {self.n}]"
        return f"{self.mean:+.3f} {ends}"


def difference(one: Mapping[str, float], other: Mapping[str, float], alpha: float) -> Interval:
    """Mean of one - other over the prompts that both have, with a two-sided Student interval of level 1 - alpha.

    Differences that are all equal have no spread to learn from: then the sign test decides, n equal signs having
    probability 2^(1-n), and until it does the interval reaches across 0.
    """
    values = [one[prompt] - other[prompt] for prompt in sorted(one.keys() & other.keys())]
    n, unequal = len(values), sum(value != 0 for value in values)
    if n < 2:
        return Interval(mean=values[0] if n else math.nan, low=-math.inf, high=math.inf, n=n, unequal=unequal)
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    if spread <= 1e-12 * max(abs(mean), 1.0):
        half = 0.0 if 2.0 ** (1 - n) <= alpha else math.inf
    else:
        half = student_quantile(1 - alpha / 2, n - 1) * spread / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, unequal=unequal)


def over_seeds(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every prompt that all seeds have scored: two seeds of one prompt are not two prompts."""
    shared = set.intersection(*(set(one) for one in scores)) if scores else set()
    return {prompt: math.fsum(one[prompt] for one in scores) / len(scores) for prompt in sorted(shared)}


def pair_level(alpha: float, arms: int, looks: int = 1) -> float:
    """Error that one pair may make at one look, so that all of them together make `alpha`."""
    return alpha / max(looks * arms * (arms - 1) // 2, 1)


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
    _reported: dict[tuple[str, int], dict[int, Mapping[str, float]]] = field(default_factory=dict)
    """(arm, step) -> seed -> prompt -> score."""
    _complete: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    """Step -> arm with all its seeds there -> prompt -> mean score."""

    @property
    def level(self) -> float:
        """Error that one comparison may make."""
        return pair_level(self.alpha, self.arms, self.looks)

    def report(self, arm: str, seed: int, step: int, scores: Mapping[str, float]) -> set[str]:
        """Take an evaluation; returns the arms that are beaten by now, newly or before."""
        by_seed = self._reported.setdefault((arm, step), {})
        by_seed[seed] = scores
        if len(by_seed) == self.seeds and (means := over_seeds(list(by_seed.values()))):
            self._complete.setdefault(step, {})[arm] = means
            self._judge(step)
        return set(self.dropped)

    def leader(self, step: int) -> str | None:
        """Best mean at this step among arms that are still in the race and have all their seeds there."""
        found = {arm: scores for arm, scores in self._complete.get(step, {}).items() if arm not in self.dropped}
        return max(found, key=lambda arm: math.fsum(found[arm].values()) / len(found[arm]), default=None)

    def _judge(self, step: int) -> None:
        """Everyone whose latest complete step this is, against whoever leads there.

        Student's tails are too thin where few differences are not 0, so these must also be enough to convince by their
        signs: k fair coins all fall alike with probability 2^(1-k).
        """
        leader = self.leader(step)
        if step < self.first or leader is None:
            return
        here = self._complete[step]
        for arm in here.keys() - self.dropped.keys() - {leader}:
            if any(later > step and arm in arms for later, arms in self._complete.items()):
                continue
            found = difference(here[arm], here[leader], self.level)
            if found.high < 0 and 2.0 ** (1 - found.unequal) <= self.level:
                self.dropped[arm] = step


def student_cdf(t: float, degrees: int) -> float:
    """P(T <= t), by the regularised incomplete beta function: 1 - I_x(degrees/2, 1/2)/2, x = degrees/(degrees+t²)."""
    tail = _incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


@lru_cache(maxsize=256)
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
