"""Engines and learners that only wait, in the place of real ones: what is left is the loop.

An engine has slots; each decodes one sample at a fixed speed, as continuous batching does up to the batch that memory
bandwidth feeds, and further samples wait. Lengths are drawn by task and sample, so every loop does the same work.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.algorithms import grpo
from rlkit.checkpoint import CheckpointStore
from rlkit.config import load
from rlkit.data.packing import Batch
from rlkit.env import EnvStep
from rlkit.learner.learner import UpdateReport
from rlkit.policy.base import Completion, SampleRequest
from rlkit.randomness import stream
from rlkit.recorder import Recorder
from rlkit.records import Message, RewardTerm, SamplingState, ScoredTree, Task, Tree
from rlkit.rollout.ledger import Ledger, TaskStream
from rlkit.sync.base import SyncReport
from rlkit.train import Parts

__all__ = ["Asking", "Rewarding", "WaitingEngine", "WaitingLearner", "WaitingSync", "parts_of"]


@dataclass(kw_only=True)
class WaitingEngine:
    """`rlkit.policy.base.Engine` without a model; see the head of this file."""

    slots: int
    token_s: float
    """Seconds per token of one sample."""
    median_tokens: float
    sigma: float
    """Of the logarithm of lengths."""
    max_tokens: int
    jitter: float = 0.0
    """A request takes between 1 - jitter and 1 + jitter times as long; other times in every run."""
    seed: int = 0
    version: int = 0
    busy_s: float = 0.0
    """Seconds of all slots together."""
    num_tokens: int = 0
    can_continue: bool = True
    _free: asyncio.Semaphore | None = None
    _chance: random.Random = field(default_factory=random.Random)

    def length(self, request: SampleRequest) -> int:
        """Tokens of the whole completion."""
        drawn = stream("length", self.seed, request.task_id, request.sample_index).standard_normal()
        return int(np.clip(self.median_tokens * np.exp(self.sigma * drawn), 1, self.max_tokens))

    async def sample(self, request: SampleRequest) -> Completion:
        """Wait as long as that many tokens take."""
        if self._free is None:
            self._free = asyncio.Semaphore(self.slots)
        left = self.length(request) - request.start
        size = min(left, request.max_tokens)
        async with self._free:
            wait_s = size * self.token_s * (1 + self.jitter * (2 * self._chance.random() - 1))
            await asyncio.sleep(wait_s)
            self.busy_s += wait_s
        self.num_tokens += size
        return Completion(
            token_ids=np.full(size, 7, np.int32),
            behavior_logprobs=np.full(size, -1.0, np.float32),
            sampling=SamplingState(),
            policy_version=self.version,
            text="",
            finish="eos" if size == left else "length",
        )

    def release(self, task_id: str) -> None:
        """There is no cache."""

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        """Take the version."""
        self.version = version
        return str(version)


class Asking:
    """An environment of one question."""

    def make(self) -> Asking:
        """A fresh one."""
        return Asking()

    async def start(self, task: Task) -> EnvStep:
        """The question."""
        return EnvStep(messages=(Message(role="user", content=task.question),))

    async def step(self, completion: str) -> EnvStep:
        """Any answer ends it."""
        return EnvStep(done=True, answer="")

    async def close(self) -> None:
        """Nothing to free."""


class Rewarding:
    """Rewards 1, 0, 1, 0 ..."""

    async def score(self, tree: Tree) -> ScoredTree:
        """The tree with one term."""
        size = len(tree.leaves)
        term = RewardTerm(name="turn", weight=1.0, values=np.arange(size) % 2.0, status=("ok",) * size)
        return ScoredTree(tree=tree, terms=(term,))

    def close(self) -> None:
        """Nothing to end."""


@dataclass(kw_only=True)
class WaitingLearner:
    """An update takes so long and changes nothing but the version."""

    update_s: float
    version: int = 0
    ends: list[float] = field(default_factory=list)
    """When each update ended, seconds of the machine's clock."""

    def update(self, minibatches: Sequence[Batch]) -> UpdateReport:
        """Wait."""
        time.sleep(self.update_s)
        self.version += 1
        self.ends.append(time.perf_counter())
        return UpdateReport(metrics={"loss": (0.0, 1.0)})

    def score(self, *_: Any) -> Any:
        """Never asked."""
        raise AssertionError

    def save(self, folder: Path) -> None:
        """A file, so that a checkpoint holds something."""
        (folder / "weights").write_text(str(self.version))

    def load(self, folder: Path, counters: Mapping[str, int]) -> None:
        """Continue."""
        self.version = counters["version"]

    def counters(self) -> dict[str, int]:
        """The version."""
        return {"version": self.version}


@dataclass(kw_only=True)
class WaitingSync:
    """Weights arrive after so many seconds at whatever is in `engines`."""

    engines: Sequence[Any]
    sync_s: float = 0.0

    def push(self, learner: Any) -> SyncReport:
        """Wait, and set the version."""
        time.sleep(self.sync_s)
        for engine in self.engines:
            engine.load_weights({}, learner.version)
        return SyncReport(version=learner.version, num_bytes=0, sent_bytes=0, link_bytes_per_s=1e9, fingerprint="")


def parts_of(rollouts: Any, learner: Any, sync: Any, overrides: Sequence[str], folder: Path | None = None) -> Parts:
    """A run of recipe `tiny` with these parts; everything that the driver does by itself is real."""
    folder = folder or Path(tempfile.mkdtemp())
    quiet = ["train.eval_every=0", "train.checkpoint_every=0", "log.trees_per_step=0"]
    root = Path(__file__).parents[1]
    recipe = load(root / "recipes/tiny.yaml", [*quiet, *overrides]).recipe
    tasks = [Task(id=f"t{i}", question="?", answers=("!",)) for i in range(4096)]
    return Parts(
        recipe=recipe,
        algorithm=grpo.ALGORITHM,
        config=grpo.GrpoConfig(),
        rollouts=rollouts,
        learner=learner,
        sync=sync,
        stream=TaskStream(tasks, 0),
        held_out=[],
        ledger=Ledger(folder / "ledger.jsonl"),
        recorder=Recorder(folder, live=False, tensorboard=False),
        checkpoints=CheckpointStore(folder),
    )
