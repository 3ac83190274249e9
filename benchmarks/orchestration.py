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
import asyncio
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

from benchmarks.machine import machine
from benchmarks.waiting import WaitingLearner, WaitingSync, parts_of
from rlkit.cluster.rollouts import RayRollouts
from rlkit.cluster.weights import Parcel
from rlkit.recorder import read_metrics
from rlkit.records import Leaf, Node, RewardTerm, SamplingState, ScoredTree, Task, Tree
from rlkit.rollout.background import Background
from rlkit.rollout.ledger import Draw
from rlkit.rollout.loop import RolloutSettings
from rlkit.train import train

__all__ = ["WaitingRollouts", "grown", "memory"]

GROUPS, SAMPLES, PROMPT, COMPLETION = 1, 8, 500, 200
ROLLOUT_S, UPDATE_S = 8.0, 2.0
MIB = 2**20


def grown(draw: Task | Draw, version: int) -> ScoredTree:
    """A group as a real worker returns it."""
    task = draw.task if isinstance(draw, Draw) else draw
    nodes = [Node(parent=-1, author="prompt", token_ids=np.arange(PROMPT, dtype=np.int32))]
    for sample in range(SAMPLES):
        nodes.append(
            Node(
                parent=0,
                author="policy",
                token_ids=np.full(COMPLETION, sample, np.int32),
                behavior_logprobs=np.full(COMPLETION, -1.0, np.float32),
                policy_version=version,
                sampling=SamplingState(),
            )
        )
    leaves = tuple(Leaf(node=1 + sample, sample_index=sample, status="done") for sample in range(SAMPLES))
    term = RewardTerm(name="turn", weight=1.0, values=np.arange(SAMPLES) % 2.0, status=("ok",) * SAMPLES)
    return ScoredTree(tree=Tree(task=task, nodes=tuple(nodes), leaves=leaves), terms=(term,))


def empty(version: int) -> Parcel:
    """No weights."""
    return Parcel(version=version, tensors={}, plan=(), buckets=(), changes=False)


class WaitingWorker:
    """`rlkit.cluster.rollouts.RolloutWorker` without an engine."""

    def __init__(self, rollout_s: float) -> None:
        self.rollout_s, self.version = rollout_s, 0

    async def tree(self, draw: Task | Draw, settings: RolloutSettings) -> ScoredTree:
        """Wait, and give back a group, made meanwhile: a worker's processor is not the driver's."""
        start = time.perf_counter()
        made = grown(draw, self.version)
        await asyncio.sleep(self.rollout_s - (time.perf_counter() - start))
        return made

    async def load_weights(self, parcels: Sequence[Parcel]) -> str:
        """Take the version."""
        self.version = parcels[-1].version
        return str(self.version)


class WaitingRollouts(RayRollouts):
    """The real spreading of groups over workers, with workers that wait."""

    def __init__(self, workers: int, rollout_s: float) -> None:
        options = {"num_cpus": 0, "max_concurrency": 1000}
        self._make = lambda: ray.remote(WaitingWorker).options(**options).remote(rollout_s)
        self.workers = [self._make() for _ in range(workers)]
        self._parcels, self._owners, self.num_replaced = None, {}, 0
        self.index = None
        self.background = Background()
        self.load_weights([empty(0)])


class WeightsOnRay:
    """`WeightSync` that sends nothing but the version."""

    def __init__(self, rollouts: WaitingRollouts) -> None:
        self.rollouts = rollouts

    def push(self, learner: WaitingLearner) -> Any:
        """Every worker confirms."""
        self.rollouts.load_weights([empty(learner.version)])
        return WaitingSync(engines=()).push(learner)


def overheads(workers: int, steps: int) -> list[float]:
    """Seconds of each step that were not waiting."""
    rollouts = WaitingRollouts(workers, ROLLOUT_S)
    with tempfile.TemporaryDirectory() as name:
        parts = parts_of(
            rollouts, WaitingLearner(update_s=UPDATE_S), WeightsOnRay(rollouts), _settings(workers, steps), Path(name)
        )
        with parts.recorder:
            train(parts)
        times = [step.metrics["timing/step_s"] for step in read_metrics(Path(name)) if "timing/step_s" in step.metrics]
    for worker in rollouts.workers:
        ray.kill(worker)
    return [step - ROLLOUT_S - UPDATE_S for step in times]


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
        f"samples of\n{COMPLETION} tokens after {PROMPT}. Goals: overhead at most 2 %, efficiency at least 95 %.\n"
    )
    print("| workers | groups a step | samples a step | overhead, median s | worst s | of a step | efficiency |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    if given.workers:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for workers in given.workers:
        found = overheads(workers, given.steps)
        middle = float(np.median(found))
        print(
            f"| {workers} | {workers * GROUPS} | {workers * GROUPS * SAMPLES} | {middle:.3f} | {max(found):.3f} "
            f"| {middle / (ideal + middle):.1%} | {ideal / (ideal + middle):.1%} |",
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
