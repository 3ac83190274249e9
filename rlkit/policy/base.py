"""The engine protocol: tokens in, tokens out, and the log-probabilities of what was really drawn from.

Every engine (in-process transformers, vLLM, a trie decoder, the scripted fake) sits behind `Engine`, so the rollout
loop knows none of them. A request carries the full path of token ids: how much of it is still in some KV cache is the
engine's own business.

An engine that chooses all completions of a task together (beam search, value-guided search) is a `Grower` as well: it
is asked once for the whole tree below the prompt instead of once per sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rlkit.recipe import LoraSettings, ValueSettings
from rlkit.records import Node, SamplingState, SearchReport, Task

__all__ = [
    "Completion",
    "Engine",
    "EngineContext",
    "GrowRequest",
    "Grower",
    "Growth",
    "SampleRequest",
    "Sampling",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The distribution to draw from. All of it is replayed by the learner (design.md section 4)."""

    temperature: float = 1.0
    """Divides the logits; 0 is greedy, for evaluation only."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Then keep the smallest set of likeliest tokens whose mass reaches this; 1 keeps all."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature: {self.temperature} is below 0")
        if self.top_k < 0:
            raise ValueError(f"top_k: {self.top_k} is below 0; use 0 to keep all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p} is not in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Extend one path of one tree by one completion."""

    task_id: str
    """Tree it belongs to; with the next two fields the address of its random draws."""
    sample_index: int
    """0..G-1 within the group."""
    turn: int
    """0-based; which completion of the trajectory this is."""
    token_ids: NDArray[np.int32]
    """[P] the whole path so far, prompt included."""
    num_shared: int
    """Leading tokens of `token_ids` that all samples of the task share (the prompt): computed once."""
    max_tokens: int
    """At most this many new tokens."""
    stop: tuple[str, ...] = ()
    """End with the token that completes one of these strings in the decoded completion."""
    sampling: Sampling = Sampling()
    """Distribution to draw from."""
    start: int = 0
    """Last tokens of `token_ids` that were sampled in this turn already: the request continues them, with the draws and
    stop strings that one request for all would have had. Only for engines with `can_continue = True`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What one request sampled."""

    token_ids: NDArray[np.int32]
    """[R] R >= 1; the end-of-turn token is included when it was sampled."""
    behavior_logprobs: NDArray[np.float32]
    """[R] nats, under the distribution that was sampled (after temperature, top-k, top-p)."""
    sampling: SamplingState
    """Replayable form of that distribution."""
    policy_version: int
    """Version of the weights that sampled it."""
    text: str
    """Decoded, special tokens kept."""
    finish: Literal["stop", "eos", "length"]
    """A stop string was completed, the end token was sampled, or `max_tokens` was reached."""


class Engine(Protocol):
    """Serves completions of one policy version at a time."""

    @property
    def version(self) -> int:
        """Version of the weights it runs."""
        ...

    async def sample(self, request: SampleRequest) -> Completion:
        """Sample one completion; concurrent calls are batched. Raises `EngineError`."""
        ...

    def release(self, task_id: str) -> None:
        """Forget the cached keys and values of a tree; unknown ids are ignored."""
        ...

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        """Run these weights (name -> array) from now on and return their fingerprint; drops every cache."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowRequest:
    """Choose the completions of one task together."""

    task_id: str
    """Address of its random draws."""
    token_ids: NDArray[np.int32]
    """[P] the prompt."""
    num_candidates: int
    """Completions wanted; there may be fewer, never copies of one that was found once."""
    max_tokens: int
    """At most this many tokens per completion."""
    sampling: Sampling = Sampling()
    """Distribution to choose from; temperature 0 asks for the likeliest completions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What was grown below one prompt."""

    nodes: tuple[Node, ...]
    """Policy nodes; `parent` is an index into this tuple, before the node itself, or -1 for the prompt."""
    candidates: tuple[int, ...]
    """[C] last node of each completion, in order of `sample_index`; one that was drawn twice stands twice."""
    search: SearchReport
    """How they were chosen."""

    def path(self, candidate: int) -> list[int]:
        """Indices of the nodes of a completion, first to last."""
        found, node = [], self.candidates[candidate]
        while node != -1:
            found.append(node)
            node = self.nodes[node].parent
        return found[::-1]


@runtime_checkable
class Grower(Protocol):
    """An engine that grows whole trees."""

    async def grow(self, request: GrowRequest) -> Growth:
        """Grow one tree; concurrent calls are batched. Raises `EngineError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineContext:
    """What a worker has for an engine that a recipe names: `Kind.build(config, context)`."""

    model_dir: Path
    """Weights and tokenizer in the transformers format."""
    seed: int
    """The recipe's seed, the root of every address."""
    dtype: str = "float32"
    """Of weights and keys, `model.dtype` of the recipe: the learner sends its weights in it."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Adapters that the learner sends in place of whole weights."""
    value: ValueSettings = field(default_factory=ValueSettings)
    """Shape of the value head, for engines that search with it."""
    tasks: tuple[Task, ...] = ()
    """Tasks of the run, for engines that play an expert."""
