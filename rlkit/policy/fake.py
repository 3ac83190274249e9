"""An engine that says what it is told: for tests of the loop, without a model and without torch.

Log-probabilities and delays come from the request's address, so a rollout
with the fake is as repeatable as a real one, in whatever order the answers arrive.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from rlkit.errors import EngineError
from rlkit.policy.base import Completion, SampleRequest
from rlkit.policy.tokens import StopWatch, decode
from rlkit.randomness import Address, uniform
from rlkit.records import SamplingState

__all__ = ["ByteTokenizer", "FakeEngine"]


class ByteTokenizer:
    """UTF-8 bytes are ids 0..255, and a few markers follow. Every text survives `decode(encode(text))`."""

    special_tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    """Ids 256, 257, 258."""
    pad_token_id = 256
    eos_token_id = 258
    vocab_size = 259

    def __init__(self) -> None:
        self._split = re.compile("(" + "|".join(map(re.escape, self.special_tokens)) + ")")

    def __len__(self) -> int:
        return self.vocab_size

    @property
    def all_special_tokens(self) -> list[str]:
        """The markers."""
        return list(self.special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of `text`; markers in it become one id each. `add_special_tokens` is accepted and adds none."""
        ids: list[int] = []
        for part in self._split.split(text):
            ids += [256 + self.special_tokens.index(part)] if part in self.special_tokens else part.encode()
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of the ids; bytes that make no whole character become U+FFFD."""
        parts: list[bytes] = []
        for token in map(int, token_ids):
            if token < 256:
                parts.append(bytes([token]))
            elif not skip_special_tokens:
                parts.append(self.special_tokens[token - 256].encode())
        return b"".join(parts).decode(errors="replace")


class ScriptTokenizer(Protocol):
    """What the fake needs to turn scripts into tokens; tokenizers of `transformers` have it."""

    @property
    def eos_token_id(self) -> int | None:
        """Ends a completion."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of `text`."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of the ids."""
        ...


class FakeEngine:
    """Answers with scripted text; see `rlkit.policy.base.Engine`."""

    can_continue = True
    """A turn may be sampled in pieces (`SampleRequest.start`)."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of the fake."""

        latency_s: float = 0.0
        """Longest delay of an answer; each request waits a fraction of it that its address decides."""

        def __post_init__(self) -> None:
            if self.latency_s < 0:
                raise ValueError(f"latency_s: {self.latency_s} is below 0")

    def __init__(
        self,
        config: Config = Config(),
        *,
        script: Callable[[SampleRequest], str] | Sequence[str],
        seed: int = 0,
        version: int = 0,
        tokenizer: ScriptTokenizer | None = None,
    ) -> None:
        """`script` gives a completion's text, or lists texts of which the request's address chooses one."""
        self.tokenizer: ScriptTokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self._config = config
        self._script = script
        self._seed = seed
        self._version = version
        self.requests: list[SampleRequest] = []
        """All requests served, in order of arrival."""
        self.released: list[str] = []
        """Task ids released, in order."""

    @property
    def version(self) -> int:
        """Version of the weights it pretends to run."""
        return self._version

    async def sample(self, request: SampleRequest) -> Completion:
        """The scripted text and the end token, cut at `max_tokens` or after the first stop string."""
        if request.max_tokens < 1:
            raise EngineError(f"task {request.task_id!r}: max_tokens {request.max_tokens} is below 1")
        self.requests.append(request)
        address = Address(
            seed=self._seed,
            version=self._version,
            task_id=request.task_id,
            sample_index=request.sample_index,
            turn=request.turn,
        )
        text = self._script(request) if callable(self._script) else self._choose(self._script, address)
        await asyncio.sleep(self._config.latency_s * uniform(address, 1))
        token_ids, finish = self._cut(text, request)
        positions = range(request.start, request.start + len(token_ids))
        logprobs = [-uniform(address, 2 + position) for position in positions]  # in (-1, 0]
        return Completion(
            token_ids=np.array(token_ids, np.int32),
            behavior_logprobs=np.array(logprobs, np.float32),
            sampling=SamplingState(temperature=request.sampling.temperature or 1.0),
            policy_version=address.version,
            text=decode(self.tokenizer, token_ids),
            finish=finish,
        )

    def release(self, task_id: str) -> None:
        """Only noted: there is no cache."""
        self.released.append(task_id)

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        """Take the version and return a digest of names and values."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(weights):
            digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
        self._version = version
        return digest.hexdigest()

    @staticmethod
    def _choose(texts: Sequence[str], address: Address) -> str:
        return texts[int(uniform(address, 0) * len(texts))]

    def _cut(self, text: str, request: SampleRequest) -> tuple[list[int], Literal["stop", "eos", "length"]]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        end = self.tokenizer.eos_token_id
        if end is not None and end not in ids:
            ids.append(end)
        watch = StopWatch(self.tokenizer, request.stop)
        for token in ids[: request.start]:
            watch.completes(token)
        left = ids[request.start : request.start + request.max_tokens]
        for count, token in enumerate(left, start=1):
            stopped = watch.completes(token)
            if token == end:
                return left[:count], "eos"
            if stopped:
                return left[:count], "stop"
        return left, "length"
