"""Stand-ins for the loop: environments that follow a script, and an engine that samples arbitrary ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rlkit.env import EnvStep
from rlkit.policy.base import Completion, SampleRequest
from rlkit.randomness import stream
from rlkit.records import Message, SamplingState, Task

TASK = Task(id="q1", question="who?", answers=("paris",))


class Scene:
    """Environments whose n-th instance is `make(n)`: a mapping from turn to what is said; -1 is the start.

    A value may be an exception, which is raised. After the last scripted turn the environment is done, and
    the answer is what was completed.
    """

    def __init__(self, make: Callable[[int], Mapping[int, Any]] = lambda n: {}) -> None:
        self.make_script = make
        self.made: list[Act] = []

    def make(self) -> Act:
        act = Act(self.make_script(len(self.made)))
        self.made.append(act)
        return act


class Act:
    def __init__(self, script: Mapping[int, Any]) -> None:
        self.script = script
        self.heard: list[str] = []
        self.closed = 0

    async def start(self, task: Task) -> EnvStep:
        return self.say(-1, EnvStep(messages=(Message(role="user", content=task.question),)))

    async def step(self, completion: str) -> EnvStep:
        self.heard.append(completion)
        turn = len(self.heard) - 1
        return self.say(turn, EnvStep(done=True, answer=completion, signals={"num_turns": float(turn + 1)}))

    async def close(self) -> None:
        self.closed += 1

    def say(self, turn: int, otherwise: EnvStep) -> EnvStep:
        said = self.script.get(turn, otherwise)
        if isinstance(said, BaseException):
            raise said
        return said


def opening(question: str = "who?", **step: Any) -> EnvStep:
    """A first step with one user message."""
    return EnvStep(messages=(Message(role="user", content=question),), **step)


class BabbleEngine:
    """Samples ids that no tokenizer would produce from their text, so that re-tokenising would show."""

    version = 7

    def __init__(self, tokenizer: Any, seed: int = 0) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.requests: list[SampleRequest] = []
        self.released: list[str] = []

    async def sample(self, request: SampleRequest) -> Completion:
        self.requests.append(request)
        draw = stream(self.seed, request.task_id, request.sample_index, request.turn)
        size = int(draw.integers(1, request.max_tokens + 1))
        ids = draw.integers(0, len(self.tokenizer), size).astype(np.int32)
        finish = "length" if size == request.max_tokens else "eos"
        if finish == "eos":
            ids[-1] = self.tokenizer.eos_token_id
        return Completion(
            token_ids=ids,
            behavior_logprobs=draw.uniform(-2, 0, size).astype(np.float32),
            sampling=SamplingState(),
            policy_version=self.version,
            text=self.tokenizer.decode(ids.tolist(), skip_special_tokens=False),
            finish=finish,
        )

    def release(self, task_id: str) -> None:
        self.released.append(task_id)

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        raise NotImplementedError
