"""A rollout worker that only waits, in a module without torch: 64 of them start in a minute on two cores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlkit.randomness import stream
from rlkit.records import Leaf, Node, RewardTerm, SamplingState, ScoredTree, Task, Tree
from rlkit.rollout.ledger import Draw
from rlkit.rollout.loop import RolloutSettings

__all__ = ["COMPLETION", "PROMPT", "SAMPLES", "Version", "WaitingWorker", "grown"]

SAMPLES, PROMPT, COMPLETION, VOCABULARY = 8, 500, 200, 50_000


@dataclass(frozen=True, slots=True)
class Version:
    """In the place of `rlkit.cluster.weights.Parcel`, whose module imports torch: no weights."""

    version: int


def grown(draw: Task | Draw, version: int) -> ScoredTree:
    """A group as a real worker returns it: no two of its numbers are alike, so that storing it costs what it costs."""
    task = draw.task if isinstance(draw, Draw) else draw
    random = stream("grown", task.id)
    prompt = random.integers(VOCABULARY, size=PROMPT, dtype=np.int32)
    nodes = [Node(parent=-1, author="prompt", token_ids=prompt)]
    for _ in range(SAMPLES):
        nodes.append(
            Node(
                parent=0,
                author="policy",
                token_ids=random.integers(VOCABULARY, size=COMPLETION, dtype=np.int32),
                behavior_logprobs=-random.exponential(size=COMPLETION).astype(np.float32),
                policy_version=version,
                sampling=SamplingState(),
            )
        )
    leaves = tuple(Leaf(node=1 + sample, sample_index=sample, status="done") for sample in range(SAMPLES))
    term = RewardTerm(name="turn", weight=1.0, values=np.arange(SAMPLES) % 2.0, status=("ok",) * SAMPLES)
    return ScoredTree(tree=Tree(task=task, nodes=tuple(nodes), leaves=leaves), terms=(term,))


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

    async def load_weights(self, parcels: Sequence[Version]) -> str:
        """Take the version."""
        self.version = parcels[-1].version
        return str(self.version)
