"""rlkit's side of `benchmarks.grpo_step`: engine, learner and what is between them, in one process."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from rlkit.policy.invariance import VARIABLE, strict_mode

os.environ.setdefault(VARIABLE, strict_mode())  # before the first product of the process

import numpy as np
from safetensors.torch import save_file

from benchmarks.contest import LEARNING_RATE, Job, Meter, Outcome, jobs, report
from benchmarks.machine import peak_bytes
from rlkit.algorithms import grpo
from rlkit.data.packing import pack
from rlkit.learner.build import build_learner
from rlkit.policy.base import Completion, SampleRequest
from rlkit.policy.hf import HfEngine
from rlkit.recipe import LearnerSettings, ModelSettings, Optim
from rlkit.records import Leaf, Node, RewardTerm, ScoredTree, Task, Tree
from rlkit.sync.local import LocalSync

__all__ = ["RlkitSide", "reward"]


def reward(token_ids: list[int]) -> float:
    """Share of even token ids: free to compute, and no two completions are alike in it."""
    return sum(token % 2 == 0 for token in token_ids) / len(token_ids)


class RlkitSide:
    """A learner and an engine that follows it."""

    def __init__(self, folder: Path, *, deterministic: bool = True, row_tokens: int = 4096) -> None:
        self.row_tokens = row_tokens
        self.config = grpo.GrpoConfig(eps=1e-4)  # added to the standard deviation; TRL's value
        self.learner = build_learner(
            ModelSettings(),
            LearnerSettings(),
            Optim(lr=LEARNING_RATE),
            grpo.ALGORITHM,
            self.config,
            model_dir=folder,
            total_updates=1,
            device="cpu",
        )
        settings = HfEngine.Config(device="cpu", deterministic=deterministic)
        # No end token: both sides make exactly as many tokens as the shape says.
        self.engine = HfEngine.from_pretrained(settings, folder, seed=0, eos_ids=())
        self.sync, self.meter = LocalSync(self.engine), Meter()

    def step(self, job: Job) -> Outcome:
        """Sample, score, update, and send the weights to the engine."""
        if job.record:
            self._record_gradient(Path(job.record))
        self.meter.start()
        groups = asyncio.run(self._sample(job))
        generation = self.meter.lap()
        trees = [_tree(str(i), p, g) for i, (p, g) in enumerate(zip(job.prompts, groups, strict=True))]
        self.learner.update([pack(grpo.ALGORITHM.credit(trees, self.config, None), self.row_tokens)])
        learner = self.meter.lap()
        self.sync.push(self.learner)
        sync, peak = self.meter.lap(), peak_bytes()
        if job.record:
            save_file(self.learner.weights(), Path(job.record, "weights.safetensors"))
        completions = [[completion.token_ids.tolist() for completion in group] for group in groups]
        return Outcome(
            generation=generation,
            learner=learner,
            sync=sync,
            peak_bytes=peak,
            completions=completions,
            rewards=[[reward(ids) for ids in group] for group in completions],
        )

    async def _sample(self, job: Job) -> list[list[Completion]]:
        def request(task: int, sample: int) -> SampleRequest:
            ids = np.array(job.prompts[task], np.int32)
            return SampleRequest(
                task_id=str(task),
                sample_index=sample,
                turn=0,
                token_ids=ids,
                num_shared=len(ids),
                max_tokens=job.new_tokens,
            )

        async def group(task: int) -> list[Completion]:
            return await asyncio.gather(*(self.engine.sample(request(task, i)) for i in range(job.group)))

        return await asyncio.gather(*map(group, range(len(job.prompts))))

    def _record_gradient(self, folder: Path) -> None:
        """Save the gradient of the next update, as AdamW sees it."""
        policy: Any = self.learner.sharding.policy
        optimizer: Any = self.learner.sharding.optimizer  # type: ignore[attr-defined]

        def save(*_: Any) -> None:
            with self.meter.stopped():
                save_file({n: p.grad for n, p in policy.model.named_parameters()}, folder / "gradient.safetensors")
            handle.remove()

        handle = optimizer.register_step_pre_hook(save)


def _tree(name: str, prompt: list[int], group: list[Completion]) -> ScoredTree:
    """What the rollout hands to the learner."""
    nodes = [Node(parent=-1, author="prompt", token_ids=np.array(prompt, np.int32))]
    for completion in group:
        nodes.append(
            Node(
                parent=0,
                author="policy",
                token_ids=completion.token_ids,
                text=completion.text,
                behavior_logprobs=completion.behavior_logprobs,
                policy_version=completion.policy_version,
                sampling=completion.sampling,
            )
        )
    leaves = tuple(Leaf(node=i + 1, sample_index=i, status="done") for i in range(len(group)))
    tree = Tree(task=Task(id=name, question=""), nodes=tuple(nodes), leaves=leaves)
    values = np.array([reward(completion.token_ids.tolist()) for completion in group])
    return ScoredTree(
        tree=tree, terms=(RewardTerm(name="even", weight=1.0, values=values, status=("ok",) * len(group)),)
    )


def main() -> None:
    """`python -m benchmarks.rlkit_side MODEL_FOLDER`, started by `benchmarks.grpo_step`."""
    side = RlkitSide(Path(sys.argv[1]))
    for job in jobs():
        report(side.step(job))


if __name__ == "__main__":
    main()
