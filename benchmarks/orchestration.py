"""What the driver costs: real Ray workers and a real loop, engines and learners that only wait.

    python -m benchmarks.orchestration [--workers 1 4 16 64] [--steps 4] [--memory-steps 2000]
        > benchmarks/results/orchestration.md

Every worker rolls out a group of eight samples of 200 tokens after a prompt of 500, which takes 8 s of waiting, and the
learner waits 2 s: a step of 10 s in which all else is overhead. Trees are of full size, so that
draws, transport, credit, packing, ledger and metrics are paid for. With more workers a step has more groups. Then the
driver's memory over thousands of steps that do not wait.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from numpy.typing import NDArray

from benchmarks.machine import machine
from benchmarks.waiting import WaitingLearner, WaitingSync, parts_of
from benchmarks.waiting_worker import COMPLETION, PROMPT, SAMPLES, Version, WaitingWorker, grown
from rlkit.cluster.rollouts import RayRollouts
from rlkit.records import ScoredTree, Task
from rlkit.rollout.background import Background
from rlkit.rollout.ledger import Draw
from rlkit.rollout.loop import RolloutSettings
from rlkit.train import train

__all__ = ["WaitingRollouts", "memory"]

GROUPS = 1
ROLLOUT_S, UPDATE_S = 8.0, 2.0
MIB = 2**20


class WaitingRollouts(RayRollouts):
    """The real spreading of groups over workers, with workers that wait."""

    def __init__(self, workers: int, rollout_s: float) -> None:
        options = {"num_cpus": 0, "max_concurrency": 1000}
        self._make = lambda: ray.remote(WaitingWorker).options(**options).remote(rollout_s)
        self.workers = [self._make() for _ in range(workers)]
        self._parcels, self._owners, self.num_replaced = None, {}, 0
        self.index = None
        self.background = Background()
        self.begun: list[tuple[float, float]] = []
        """When each step asked for its groups: seconds of the wall clock, seconds of this process on a processor."""
        self.tell(0)

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """See `RayRollouts`."""
        self.begun.append((time.perf_counter(), time.process_time()))
        return super().collect(tasks, settings)

    def tell(self, version: int) -> None:
        """The version alone, as weights go."""
        parcels: Any = [Version(version)]
        self.load_weights(parcels)


class WeightsOnRay:
    """`WeightSync` that sends nothing but the version."""

    def __init__(self, rollouts: WaitingRollouts) -> None:
        self.rollouts = rollouts

    def push(self, learner: WaitingLearner) -> Any:
        """Every worker confirms."""
        self.rollouts.tell(learner.version)
        return WaitingSync(engines=()).push(learner)


def overheads(workers: int, steps: int) -> NDArray[np.float64]:
    """(steps, 2): seconds from one step to the next that were not waiting, and those that the driver computed."""
    rollouts = WaitingRollouts(workers, ROLLOUT_S)
    with tempfile.TemporaryDirectory() as name:
        learner, sync = WaitingLearner(update_s=UPDATE_S), WeightsOnRay(rollouts)
        # One step more than is measured, which is from asking for groups to asking again: metrics and records count.
        parts = parts_of(rollouts, learner, sync, _settings(workers, steps + 1), Path(name))
        with parts.recorder:
            train(parts)
    for worker in rollouts.workers:
        ray.kill(worker)
    return np.diff(np.array(rollouts.begun), axis=0)[:steps] - [ROLLOUT_S + UPDATE_S, 0.0]


def _settings(workers: int, steps: int) -> list[str]:
    return [
        f"train.steps={steps}",
        f"rollout.groups_per_step={workers * GROUPS}",
        f"rollout.max_concurrent_groups={GROUPS}",
        f"rollout.group_size={SAMPLES}",
        "model.max_context=1024",
        "learner.row_tokens=4096",
    ]


class Instant:
    """A `Collector` that does not wait, and notes the memory of the driver."""

    def __init__(self, every: int) -> None:
        self.every, self.calls, self.resident = every, 0, list[float]()

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """Groups at once."""
        self.calls += 1
        if self.calls % self.every == 0:
            gc.collect()
            self.resident.append(psutil.Process().memory_info().rss / MIB)
        return [grown(task, self.calls - 1) for task in tasks]


def memory(steps: int, every: int) -> list[float]:
    """MiB of the driver after each `every` steps."""
    rollouts = Instant(every)
    with tempfile.TemporaryDirectory() as name:
        learner = WaitingLearner(update_s=0.0)
        parts = parts_of(rollouts, learner, WaitingSync(engines=()), _settings(4, steps), Path(name))
        with parts.recorder:
            train(parts)
    return rollouts.resident


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--memory-steps", type=int, default=2000)
    given = parser.parse_args()
    ideal = ROLLOUT_S + UPDATE_S
    print("# What the driver costs\n")
    command = shlex.join(["python", "-m", "benchmarks.orchestration", *sys.argv[1:]])
    print(f"```bash\n{command} > benchmarks/results/orchestration.md\n```\n")
    print(
        f"Real Ray workers and the real loop; engines and learner only wait, {ideal:g} s a step. A group has {SAMPLES} "
        f"samples of\n{COMPLETION} tokens after {PROMPT}. Goal: at least 95 % efficiency, at most 2 % for the driver.\n"
        "Overhead is from asking for the groups of one step to asking for those of the next, less the waiting. The "
        "driver's\nown part is what its process computed in that time; the rest went to the workers' processes and to "
        "Ray's, which\nhave machines of their own on a cluster and share two cores with the driver here.\n"
    )
    print("| workers | groups | samples a step | overhead, median s | worst s | efficiency | driver, s | of a step |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    if given.workers:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for workers in given.workers:
        found = overheads(workers, given.steps)
        middle, computed = np.median(found, axis=0)
        print(
            f"| {workers} | {workers * GROUPS} | {workers * GROUPS * SAMPLES} | {middle:.3f} | {found[:, 0].max():.3f} "
            f"| {ideal / (ideal + middle):.1%} | {computed:.3f} | {computed / (ideal + middle):.1%} |",
            flush=True,
        )
    if given.workers:
        ray.shutdown()
    every = max(given.memory_steps // 10, 1)
    resident = memory(given.memory_steps, every)
    print(f"\nMemory of the driver over {given.memory_steps} steps of 16 groups, MiB resident after each tenth:\n")
    print("| " + " | ".join(f"{(index + 1) * every}" for index in range(len(resident))) + " |")
    print("| " + " | ".join("---:" for _ in resident) + " |")
    print("| " + " | ".join(f"{value:.0f}" for value in resident) + " |")
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine(1).items()))


if __name__ == "__main__":
    main()
