"""An engine whose completions are the accepted answers: supervised training is the usual loop with algorithm `sft`.

Where the answer stands in the task there is no expert to ask: what it says is `task.answers[0]`. Nothing is drawn, so
log-probabilities are 0 and the temperature is 1, the distribution that `sft` fits. Tasks of an evaluation are sampled
by the policy itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlkit.errors import EngineError
from rlkit.policy.base import Completion, Engine, EngineContext, SampleRequest
from rlkit.records import SamplingState, Task
from rlkit.render import Renderer

__all__ = ["AnswerEngine"]


class AnswerEngine:
    """Serves the tasks' own answers; see `rlkit.policy.base.Engine`."""

    needs_tasks = True
    """Its `EngineContext` holds the tasks: the answers are what a policy may not read."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the engine."""

        slots: int = 32
        """Samples of the policy that decode at the same time, in evaluations."""

    def __init__(
        self, *, renderer: Renderer, tasks: Iterable[Task], version: int = 0, policy: Engine | None = None
    ) -> None:
        """`policy` samples every task that is not among `tasks`; without one, such a task is an error."""
        self._renderer = renderer
        self._tasks = {task.id: task for task in tasks}
        self._version = version
        self._policy = policy

    @classmethod
    def build(cls, config: Config, context: EngineContext) -> AnswerEngine:
        """The engine of a rollout worker, as a recipe names it."""
        from transformers import AutoTokenizer  # slow to import, and only a worker needs it

        from rlkit.policy.hf import HfEngine

        renderer = Renderer(AutoTokenizer.from_pretrained(context.model_dir, local_files_only=True))
        policy = HfEngine.build(HfEngine.Config(slots=config.slots), context)
        return cls(renderer=renderer, tasks=context.tasks, policy=policy)

    @property
    def version(self) -> int:
        """Version of the weights that a policy would run now."""
        return self._version

    async def sample(self, request: SampleRequest) -> Completion:
        """The first accepted answer, cut at `max_tokens`. Raises `EngineError` for an unknown task, or one without.

        The end token follows an answer that completes no stop string and leaves room for it.
        """
        task = self._tasks.get(request.task_id) or self._tasks.get(request.task_id.rpartition("@epoch")[0])
        if task is None and self._policy is not None:
            return await self._policy.sample(request)
        if task is None or not task.answers:
            raise EngineError(f"task {request.task_id!r} has no answer to show among {len(self._tasks)} tasks")
        text, end_id = task.answers[0], self._renderer.end_id
        ids = self._renderer.text_ids(text)
        if not len(ids):
            raise EngineError(f"task {request.task_id!r}: its answer is empty")
        stopped = any(stop in text for stop in request.stop) or len(ids) == request.max_tokens
        if not stopped and end_id is not None:
            ids = np.append(ids, np.int32(end_id))
        cut = len(ids) > request.max_tokens
        ids = ids[: request.max_tokens]
        return Completion(
            token_ids=ids,
            behavior_logprobs=np.zeros(len(ids), np.float32),
            sampling=SamplingState(),
            policy_version=self._version,
            text=self._renderer.decode(ids),
            finish="length" if cut else "stop" if stopped else "eos",
        )

    def release(self, task_id: str) -> None:
        """Answers cache nothing; the policy does."""
        if self._policy is not None:
            self._policy.release(task_id)

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        """Take the version and hand the weights to the policy; without one, only confirm them."""
        self._version = version
        if self._policy is not None:
            return self._policy.load_weights(weights, version)
        from rlkit.sync.fingerprint import fingerprint  # imports torch, which whoever has weights has loaded

        return fingerprint(weights)
