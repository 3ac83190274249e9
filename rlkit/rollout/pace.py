"""Rounds: the clock of rollouts that go on while weights change.

In a round each sample of a group may draw `round_tokens` tokens; then it waits for the next. Nothing is drawn between
two rounds, so that is where an engine gets new weights, and a sample goes on with them: partial rollouts.

    round 1            round 2            round 3          round_tokens 64
    sample 0: 64       64 (64 more)       20, done         weights changed after round 1: one node of version 0
    sample 1: 30, done                                     and one of version 1 in the same turn

What was drawn is also kept as segments. With them a group can be built up again, after its worker died or the run was
killed: its environments are asked again, and the engine is not.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlkit.errors import DataError, EngineError
from rlkit.policy.base import Completion, Engine, SampleRequest
from rlkit.records import Node, SamplingState, Tree
from rlkit.store import node_from_json, node_to_json

__all__ = ["Flight", "Pace", "Past", "Segment", "joined"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What one request drew, or why it failed."""

    sample_index: int
    turn: int
    start: int
    """Tokens of the turn before it."""
    path: int
    """Checksum of the tokens before it."""
    completion: Completion | None
    """None: the engine failed."""
    error: str = ""
    """What the engine said then."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        done = self.completion
        node = done and Node(
            parent=-1,
            author="policy",
            token_ids=done.token_ids,
            text=done.text,
            behavior_logprobs=done.behavior_logprobs,
            policy_version=done.policy_version,
            sampling=done.sampling,
            turn=self.turn,
        )
        place = {"sample_index": self.sample_index, "turn": self.turn, "start": self.start, "path": self.path}
        return place | {
            "node": node and node_to_json(node),
            "finish": done and done.finish,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Segment:
        """The same again. Raises `DataError`."""
        completion = None
        if row["node"] is not None:
            node = node_from_json(row["node"])
            if node.behavior_logprobs is None or node.sampling is None:
                raise DataError("a segment without log-probabilities")
            completion = Completion(
                token_ids=node.token_ids,
                behavior_logprobs=node.behavior_logprobs,
                sampling=node.sampling,
                policy_version=node.policy_version,
                text=node.text,
                finish=row["finish"],
            )
        place = {name: int(row[name]) for name in ("sample_index", "turn", "start", "path")}
        return cls(**place, completion=completion, error=row["error"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What a group has behind it."""

    rounds: int = 0
    """Rounds that it finished."""
    segments: tuple[Segment, ...] = ()
    """What was drawn in them."""


class Pace:
    """Lets the samples of one group go a round at a time."""

    def __init__(self, round_tokens: int, past: Past = Past()) -> None:
        self.round_tokens = round_tokens
        self.round = 0
        """Rounds begun."""
        self.paused = asyncio.Event()
        """Set while every sample under way waits for the next round."""
        self._known = {(s.sample_index, s.turn, s.start): s for s in past.segments}
        self._new: list[Segment] = []
        self._drawn: dict[int, int] = {}
        self._playing = self._waiting = 0
        self._opened = asyncio.Condition()

    async def open(self) -> None:
        """Begin the next round."""
        async with self._opened:
            self.paused.clear()
            self.round += 1
            self._waiting = 0
            self._opened.notify_all()

    @contextmanager
    def playing(self, sample_index: int) -> Iterator[None]:
        """While a sample is under way; the group rests when all that are have to wait."""
        self._playing += 1
        # who joins late has this round's tokens, not those of rounds that it was not there for
        self._drawn[sample_index] = max(self._drawn.get(sample_index, 0), (self.round - 1) * self.round_tokens)
        try:
            yield
        finally:
            self._playing -= 1
            self._rest()

    async def allowance(self, sample_index: int, *, whole: bool) -> int:
        """Tokens that the sample may draw now; waits for a round with some. `whole`: as many as it likes."""
        while (left := self.round * self.round_tokens - self._drawn[sample_index]) <= 0:
            async with self._opened:
                self._waiting += 1
                self._rest()
                await self._opened.wait()
        return 2**31 if whole else left

    async def sample(self, engine: Engine, request: SampleRequest) -> Completion:
        """What is known of this request, else what the engine draws. Raises `EngineError`."""
        place = (request.sample_index, request.turn, request.start)
        path = zlib.crc32(np.ascontiguousarray(request.token_ids, np.int32).tobytes())
        segment = self._known.pop(place, None)
        if segment is not None and segment.path != path:
            log.warning(
                "task %s, sample %d: its environment answered otherwise than before the restart; it is sampled anew "
                "from turn %d on",
                request.task_id,
                request.sample_index,
                request.turn,
            )
            segment = None
        if segment is None:
            segment = await self._draw(engine, request, path)
            self._new.append(segment)
        if segment.completion is None:
            raise EngineError(segment.error)
        self._drawn[request.sample_index] += len(segment.completion.token_ids)
        return segment.completion

    def take(self) -> tuple[Segment, ...]:
        """Segments drawn since it was asked last."""
        new, self._new = tuple(self._new), []
        return new

    async def _draw(self, engine: Engine, request: SampleRequest, path: int) -> Segment:
        completion, problem = None, ""
        try:
            completion = await engine.sample(request)
        except EngineError as error:
            problem = str(error)
        return Segment(
            sample_index=request.sample_index,
            turn=request.turn,
            start=request.start,
            path=path,
            completion=completion,
            error=problem,
        )

    def _rest(self) -> None:
        """Look again after everything that is due now has run: a sample that was just made has not joined yet."""
        asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        if self._playing and self._playing == self._waiting:
            self.paused.set()


class Flight:
    """One group under way."""

    def __init__(self, make: Callable[[Pace], Coroutine[Any, Any, Tree]], pace: Pace) -> None:
        self.pace = pace
        self._task = asyncio.get_running_loop().create_task(make(pace))

    async def round(self) -> Tree | None:
        """One more round; the tree if the group ended in it."""
        await self.pace.open()
        resting = asyncio.ensure_future(self.pace.paused.wait())
        await asyncio.wait({self._task, resting}, return_when=asyncio.FIRST_COMPLETED)
        resting.cancel()
        return self._task.result() if self._task.done() else None

    async def abandon(self) -> None:
        """End it without a tree."""
        self._task.cancel()
        await asyncio.wait({self._task})


def joined(before: Completion, after: Completion) -> Completion:
    """Two pieces of a turn that the same version sampled, as one; the text is for `Episode` to spell."""
    return replace(
        after,
        token_ids=np.concatenate([before.token_ids, after.token_ids]),
        behavior_logprobs=np.concatenate([before.behavior_logprobs, after.behavior_logprobs]),
        sampling=_joined_state(before, after),
        text=before.text + after.text,
    )


def _joined_state(before: Completion, after: Completion) -> SamplingState:
    first, second = before.sampling, after.sampling
    if first.support_offsets is None or second.support_offsets is None:
        if (first.support_offsets is None) != (second.support_offsets is None):
            raise EngineError("pieces of one turn were sampled with and without kept sets")
        return second
    assert first.support_ids is not None and second.support_ids is not None
    return replace(
        second,
        support_offsets=np.concatenate([first.support_offsets, first.support_offsets[-1] + second.support_offsets[1:]]),
        support_ids=np.concatenate([first.support_ids, second.support_ids]),
    )
