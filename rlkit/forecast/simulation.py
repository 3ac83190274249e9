"""Events instead of averages: the tail of a batch, and sampling beside learning.

    decode    samples of different lengths in a bounded number of slots; a step costs what its batch costs
    overlap   groups are sampled while the learner trains; how old they are when it takes them

Deterministic: lengths are quantiles of their distribution, dealt out by a seeded permutation.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rlkit.randomness import stream

__all__ = ["Decoded", "Overlap", "decode", "lengths", "overlap"]


def lengths(count: int, *, mean: float, spread: float, cap: float, seed: int = 0) -> NDArray[np.float64]:
    """`count` lengths, log-normal with this mean and standard deviation / mean, cut at `cap`, at least 1 token.

    They are the quantiles (i + 1/2) / count in a random order, so a small batch has the distribution's tail too.
    """
    sigma = np.sqrt(np.log1p(spread**2))
    quantiles = np.array([NormalDist().inv_cdf((index + 0.5) / count) for index in range(count)])
    drawn = mean * np.exp(sigma * quantiles - sigma**2 / 2)
    return stream("forecast", seed).permutation(np.clip(drawn, 1, cap))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """What sampling a batch took on one engine."""

    seconds: float
    """Until the last sample was done."""
    tokens: float
    """Sampled."""
    finished_s: tuple[float, ...]
    """When each sample was done, in the order of the lengths."""


def decode(
    sizes: Sequence[float] | NDArray[np.float64],
    *,
    slots: int,
    prompt: float,
    step_s: Callable[[float, float], float],
    admit_s: float = 0.0,
) -> Decoded:
    """Sample every length with at most `slots` at a time; a slot is refilled as soon as it is free.

    `step_s(batch, context)` is one token for each of the batch; `admit_s` is the prefill that a sample adds when it
    starts. Time advances from one finished sample to the next, so cost grows with samples, not with tokens.
    """
    waiting = list(range(len(sizes)))[::-1]
    running: list[tuple[float, int]] = []  # (tokens of the engine's life at which it ends, sample)
    starts: dict[int, float] = {}
    clock = life = 0.0
    finished = [0.0] * len(sizes)
    while waiting or running:
        while waiting and len(running) < slots:
            sample = waiting.pop()
            starts[sample] = life
            heapq.heappush(running, (life + float(sizes[sample]), sample))
            clock += admit_s
        end, sample = running[0]
        steps = end - life
        done = sum(life - starts[other] for _, other in running) / len(running)
        clock += steps * step_s(len(running), prompt + done + steps / 2)  # context at the middle of the stretch
        life = end
        while running and running[0][0] <= life:
            finished[heapq.heappop(running)[1]] = clock
    return Decoded(seconds=clock, tokens=float(np.sum(sizes)), finished_s=tuple(finished))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Sampling and learning side by side, in its steady state."""

    step_s: float
    """Mean time from one update to the next."""
    staleness: dict[int, float]
    """Versions between the weights that began a group and those that train on it -> share of groups."""
    learner_busy: float
    """Share of the time that the learner computes."""


def overlap(
    group_s: Sequence[float] | NDArray[np.float64],
    *,
    slots: int,
    groups_per_step: int,
    learn_s: float,
    sync_s: float,
    max_staleness: int,
    steps: int = 60,
) -> Overlap:
    """Simulate `steps` updates; the first third is warm-up and not counted.

    `slots` groups are sampled at a time over all workers, group i takes `group_s[i mod n]`. A group may begin while
    fewer than (version + max_staleness + 1)·groups_per_step have begun (the bound of AReaL, arXiv:2505.24298, section
    5.1), so with 0 sampling waits for every update. That bounds the mean only; as `rlkit/rollout/schedule.py` does, an
    update also waits for every group that would be too old for the next. Sending weights stops both sides.
    """
    begun = 0
    free = [0.0] * slots  # when each slot is free
    now, busy, ages = 0.0, 0.0, Counter[int]()
    ends: list[float] = []
    pending: list[tuple[float, float, int]] = []  # (done, begun at, number)
    warm_up = steps // 3
    for version in range(steps):
        allowed = (version + max_staleness + 1) * groups_per_step
        while begun < allowed:
            # The last batch of them became allowed with this version, the others before.
            start = max(heapq.heappop(free), now if begun >= allowed - groups_per_step else 0.0)
            done = start + float(group_s[begun % len(group_s)])
            heapq.heappush(free, done)
            pending.append((done, start, begun))
            begun += 1
        # Groups for which this is the last step are waited for, the others are taken as they finish.
        pending.sort(key=lambda group: (bisect_right(ends, group[1]) + max_staleness > version, group[0]))
        batch, pending = pending[:groups_per_step], pending[groups_per_step:]
        trained = max(now, *(done for done, _, _ in batch)) + learn_s
        if version >= warm_up:
            ages.update(version - bisect_right(ends, start) for _, start, _ in batch)
            busy += learn_s
        now = trained + sync_s
        ends.append(now)
        free = [time + sync_s if time > trained else time for time in free]
        heapq.heapify(free)
    span = ends[-1] - ends[warm_up - 1]
    total = sum(ages.values())
    return Overlap(
        step_s=span / (steps - warm_up),
        staleness={age: count / total for age, count in sorted(ages.items())},
        learner_busy=busy / span,
    )
