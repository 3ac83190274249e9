"""What an environment is: it opens a task, answers each completion, and says when it is over.

One instance serves one trajectory; it holds no model and no tokenizer. Text it returns becomes environment tokens,
which are never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self, runtime_checkable

from rlkit.records import LeafStatus, Message, Task

__all__ = ["Env", "EnvFactory", "EnvStep", "ForkableEnv"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvStep:
    """What the environment says, and how the next completion is to be sampled."""

    messages: tuple[Message, ...] = ()
    """New chat messages (the prompt at the start, a tool message later); rendered by the chat template."""
    text: str = ""
    """Text put raw into the assistant's turn (Search-R1's `<information>` block, a forced `<answer>`)."""
    stop: tuple[str, ...] = ()
    """The next completion ends with the token that completes one of these strings."""
    max_tokens: int | None = None
    """Cap on the next completion, in tokens; None: the recipe's `rollout.max_completion_tokens`."""
    done: bool = False
    """True: the trajectory ends here; `messages` and `text` are not shown to the policy any more."""
    status: LeafStatus = "done"
    """How it ended; read only when `done`."""
    reason: str = ""
    """Why, when it was truncated or failed."""
    answer: str | None = None
    """Final answer, parsed from completions only; read only when `done`."""
    signals: Mapping[str, float] = field(default_factory=dict)
    """Running counts such as `num_searches`; the last step's are kept."""


class Env(Protocol):
    """One trajectory's environment."""

    async def start(self, task: Task) -> EnvStep:
        """Open the task; `messages` is the prompt, `text` an optional prefilled beginning of the answer."""
        ...

    async def step(self, completion: str) -> EnvStep:
        """Answer one completion (special tokens removed). May raise `EnvError`: the leaf is then `failed`."""
        ...

    async def close(self) -> None:
        """Free what the trajectory holds; called once, also after a failure."""
        ...


@runtime_checkable
class ForkableEnv(Env, Protocol):
    """An environment whose trajectory can split, for rollouts that branch; its factory says `can_fork = True`."""

    def fork(self) -> Self:
        """An independent copy of where the trajectory is; both go on as if the other did not exist."""
        ...


class EnvFactory(Protocol):
    """What `env.kind` names: a class built once per worker as `Kind(config, retriever)`, with a `Config` dataclass."""

    def make(self) -> Env:
        """A fresh environment for one trajectory; must be cheap."""
        ...
