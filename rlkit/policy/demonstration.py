"""An engine whose completions are an expert's: a supervised warm start is the usual loop with algorithm `sft`.

The environment runs as always, so observations, budgets and rewards are those of the later training. Nothing is
drawn: log-probabilities are 0, and the temperature is 1, because that is the distribution that `sft` fits. Tasks that
are not to be demonstrated, those of an evaluation, are sampled by the policy itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rlkit.envs.search_expert import SearchExpert
from rlkit.errors import EngineError, RecipeError
from rlkit.policy.base import Completion, Engine, EngineContext, SampleRequest
from rlkit.records import SamplingState, Task
from rlkit.render import Renderer
from rlkit.tags import Role, Tags

__all__ = ["DemonstrationEngine", "Expert"]

_TAIL = 64  # tokens; holds whatever tag a path may end with


class Expert(Protocol):
    """Whose completions are shown: `rlkit.envs.search_expert.SearchExpert`."""

    def next_completion(self, task: Task, turn: int, tags: Tags, opened: Role | None = None) -> str:
        """The completion of `turn`; `opened` is a tag that the environment wrote directly before it."""
        ...


class DemonstrationEngine:
    """Serves an expert's completions; see `rlkit.policy.base.Engine`."""

    needs_tasks = True
    """Its `EngineContext` holds the tasks: an expert reads what a policy may not."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the expert."""

        expert: SearchExpert.Config = field(default_factory=SearchExpert.Config)
        """How it searches and how much it says."""
        tags: Tags = field(default_factory=Tags)
        """Names of the tags; those of the environment."""
        slots: int = 32
        """Samples of the policy that decode at the same time, in evaluations."""

    def __init__(
        self,
        expert: Expert,
        *,
        renderer: Renderer,
        tasks: Iterable[Task],
        tags: Tags | None = None,
        version: int = 0,
        policy: Engine | None = None,
    ) -> None:
        """`policy` samples every task that is not among `tasks`; without one, such a task is an error."""
        if renderer.end_id is None:
            raise RecipeError("model.path", "its tokenizer has no end token to close a demonstration with")
        self._end_id = renderer.end_id
        self._expert = expert
        self._renderer = renderer
        self._tasks = {task.id: task for task in tasks}
        self._tags = tags or Tags()
        self._version = version
        self._policy = policy

    @classmethod
    def build(cls, config: Config, context: EngineContext) -> DemonstrationEngine:
        """The engine of a rollout worker, as a recipe names it."""
        from transformers import AutoTokenizer  # slow to import, and only a worker needs it

        from rlkit.policy.hf import HfEngine

        renderer = Renderer(AutoTokenizer.from_pretrained(context.model_dir, local_files_only=True))
        return cls(
            SearchExpert(config.expert),
            renderer=renderer,
            tasks=context.tasks,
            tags=config.tags,
            policy=HfEngine.build(HfEngine.Config(slots=config.slots), context),
        )

    @property
    def version(self) -> int:
        """Version of the weights that a policy would run now."""
        return self._version

    async def sample(self, request: SampleRequest) -> Completion:
        """What the expert says in this turn, cut at `max_tokens`. Raises `EngineError` for an unknown task.

        The end token follows a final answer, even where an answer is a stop string, so that the policy learns to
        stop by itself; and whatever completes no stop string.
        """
        task = self._task(request.task_id)
        if task is None and self._policy is not None:
            return await self._policy.sample(request)
        if task is None:
            raise EngineError(f"task {request.task_id!r} is none of the {len(self._tasks)} tasks to demonstrate")
        opened = self._opened(request)
        text = self._expert.next_completion(task, request.turn, self._tags, opened)
        ids = self._renderer.text_ids(text)
        final = text.rstrip().endswith(self._tags.close("answer"))
        stopped = not final and any(stop in text for stop in request.stop)
        if not stopped:
            ids = np.append(ids, np.int32(self._end_id))
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
        """Demonstrations cache nothing; the policy does."""
        if self._policy is not None:
            self._policy.release(task_id)

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        """Take the version and hand the weights to the policy; without one, only confirm them."""
        self._version = version
        if self._policy is not None:
            return self._policy.load_weights(weights, version)
        from rlkit.sync.fingerprint import fingerprint  # imports torch, which whoever has weights has loaded

        return fingerprint(weights)

    def _task(self, address: str) -> Task | None:
        """The task of a request, if it is one to demonstrate: later epochs append `@epoch...` to its id."""
        return self._tasks.get(address) or self._tasks.get(address.rpartition("@epoch")[0])

    def _opened(self, request: SampleRequest) -> Role | None:
        """The tag that the path so far ends with."""
        said = self._renderer.decode(request.token_ids[-_TAIL:]).rstrip()
        return next((role for role in self._tags.roles.values() if said.endswith(self._tags.open(role))), None)
