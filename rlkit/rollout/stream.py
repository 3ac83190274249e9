"""Rollouts that go on while the learner computes: the schedule's decisions, carried out.

    main thread        gather 1 │ learn 1            │ gather 2 │ learn 2 ...
    rollouts, version     0     │ 0 0 0 0 0 0 0 0 0 0 0 0 │ 1 1 1 1 1 1 1
                                  step 2 fills while step 1 is learned; version 1 comes when step 2 is complete

A step that is followed by an evaluation or a checkpoint is learned while everything rests: then the newest weights are
evaluated, and what is saved is one version and groups between two rounds.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rlkit.errors import CheckpointError, DataError
from rlkit.records import ScoredTree
from rlkit.rollout.background import Background
from rlkit.rollout.ledger import Draw, Ledger, TaskStream
from rlkit.rollout.loop import Progress, RolloutSettings
from rlkit.rollout.pace import Past, Segment
from rlkit.rollout.schedule import Schedule
from rlkit.store import packed, read_trees, write_trees

__all__ = ["Advancing", "Dropped", "Gathered", "Stream", "lengths"]

READY_FILE, UNDER_WAY_FILE = "ready_groups.jsonl.gz", "groups_under_way.json.gz"


class Advancing(Protocol):
    """Rollouts that go a round at a time: in this process, or spread over workers."""

    @property
    def background(self) -> Background:
        """Where `advance` runs."""
        ...

    async def advance(self, draw: Draw, settings: RolloutSettings, past: Past) -> Progress:
        """One more round of a group, which is built up from `past` where nobody has it."""
        ...

    async def abandon(self, draw: Draw) -> None:
        """Give up a group."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A group that is not trained on."""

    reason: str
    lengths: tuple[int, ...]
    """Sampled tokens of each trajectory that did not fail; of a group that was cut short those so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a step trains on, and what it left out."""

    draws: Sequence[Draw]
    trees: Sequence[ScoredTree]
    dropped: Sequence[Dropped] = ()
    under_way: Sequence[Draw] = ()
    """Draws that later steps may train on."""
    rounds: int = 0
    """Rounds of the logical clock since the step before; 0 in a synchronous run."""


def lengths(scored: ScoredTree) -> tuple[int, ...]:
    """Sampled tokens of each trajectory that did not fail."""
    paths = scored.tree.trajectories()
    return tuple(path.num_policy_tokens for path in paths if path.leaf.status != "failed")


@dataclass(slots=True, kw_only=True)
class _Held:
    """What is known of a group under way, or of one that waits for its step."""

    draw: Draw
    segments: list[Segment] = field(default_factory=list)
    scored: ScoredTree | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        if self.scored is not None:
            return lengths(self.scored)
        samples: dict[int, int] = {}
        for segment in self.segments:
            if segment.completion is not None:
                before = samples.get(segment.sample_index, 0)
                samples[segment.sample_index] = before + len(segment.completion.token_ids)
        return tuple(samples.values())


class Stream:
    """Groups under way, and the steps that they fill. `gather` and `go_on` take turns."""

    def __init__(
        self,
        *,
        rollouts: Advancing,
        tasks: TaskStream,
        schedule: Schedule,
        settings: RolloutSettings,
        drop: Callable[[ScoredTree], str | None],
    ) -> None:
        """`drop` says why a group cannot be trained on, or None."""
        self.rollouts, self.tasks, self.schedule, self.settings, self.drop = rollouts, tasks, schedule, settings, drop
        self._held: dict[int, _Held] = {}
        self._filtered: list[tuple[int, Dropped]] = []
        self._steps: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.resting = True
        """Nothing is under way in the background."""

    def go_on(self, version: int) -> None:
        """Sample with the weights that the engines have now, until the next step is complete."""
        self.schedule.resume(version)
        self.resting = False
        self.rollouts.background.start(self._fill())

    def gather(self, ledger: Ledger, step: int) -> Gathered:
        """Wait for the groups of a step and write down what happened. Everything rests afterwards."""
        error = self._steps.get()
        self.resting = True
        if error is not None:
            raise error
        done = self.schedule.complete
        assert done is not None
        for entry in done.entries:  # in the order of the logical clock, whatever came first in this run
            draw = self.tasks.at(entry.number)
            if entry.event == "drawn":
                ledger.drawn(self.tasks.draw(1), step, clock=entry.clock)
            elif entry.event == "arrived":
                ledger.arrived([draw], step, clock=entry.clock)
            else:
                ledger.dropped_for(entry.reason, [draw], step)
        reasons = {entry.number: entry.reason for entry in done.entries if entry.event == "dropped"}
        held = [self._held.pop(number) for number in done.groups]
        given_up = [(number, self._held.pop(number)) for number in done.given_up]
        dropped = [
            *self._filtered,
            *((number, Dropped(reason=reasons[number], lengths=h.lengths)) for number, h in given_up),
        ]
        self._filtered = []
        return Gathered(
            draws=[h.draw for h in held],
            trees=[h.scored for h in held if h.scored is not None],
            dropped=[entry for _, entry in sorted(dropped, key=lambda pair: pair[0])],
            under_way=[self._held[number].draw for number in done.open],
            rounds=done.rounds,
        )

    async def _fill(self) -> None:
        """Advance groups until a step is complete; whatever goes wrong is raised by `gather`."""
        running: dict[asyncio.Task[Progress], int] = {}
        flying: set[int] = set()
        try:
            while self.schedule.complete is None:
                for number, rounds in self.schedule.startable():
                    if number not in flying:
                        held = self._held.setdefault(number, _Held(draw=self.tasks.at(number)))
                        past = Past(rounds=rounds, segments=tuple(held.segments))
                        call = self.rollouts.advance(held.draw, self.settings, past)
                        running[asyncio.ensure_future(call)] = number
                        flying.add(number)
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    number = running.pop(task)
                    flying.discard(number)
                    self._take(number, task.result())
            for number in self.schedule.complete.given_up:
                await self.rollouts.abandon(self._held[number].draw)
        except BaseException as error:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            if not isinstance(error, Exception):
                raise
            self._steps.put(error)
        else:
            self._steps.put(None)

    def _take(self, number: int, progress: Progress) -> None:
        held = self._held[number]
        held.segments += progress.segments
        reason = None
        if progress.scored is not None:
            held.scored, held.segments = progress.scored, []
            reason = self.drop(progress.scored)
            if reason is not None:
                self._filtered.append((number, Dropped(reason=reason, lengths=held.lengths)))
                del self._held[number]
        self.schedule.report(number, ended=progress.scored is not None, reason=reason)

    def close(self) -> None:
        """Give up whatever is under way."""
        self.rollouts.background.close()

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; groups go into its files (`save`)."""
        return self.schedule.state()

    def save(self, folder: Path) -> None:
        """Groups that later steps may train on: ended ones whole, those under way as what was drawn for them."""
        ready = {number: held.scored for number, held in self._held.items() if held.scored is not None}
        write_trees(folder / READY_FILE, [ready[number] for number in sorted(ready)])
        under_way = {
            str(number): [segment.to_json() for segment in held.segments]
            for number, held in sorted(self._held.items())
            if held.scored is None
        }
        content = json.dumps({"ready": sorted(ready), "under_way": under_way}, separators=(",", ":"))
        (folder / UNDER_WAY_FILE).write_bytes(packed(content))

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Continue from them; environments of groups under way are asked again, engines are not.

        Raises `CheckpointError`.
        """
        self.schedule.restore(state)
        try:
            content = json.loads(gzip.decompress((folder / UNDER_WAY_FILE).read_bytes()))
            trees = [stored.scored for stored in read_trees(folder / READY_FILE)]
            ready = dict(zip(content["ready"], trees, strict=True))
            segments = {
                int(number): [Segment.from_json(row) for row in rows] for number, rows in content["under_way"].items()
            }
        except (OSError, EOFError, ValueError, KeyError, TypeError, DataError) as error:
            raise CheckpointError(f"{folder}: the groups under way cannot be read ({error})") from error
        self._held = {number: _Held(draw=self.tasks.at(number), scored=scored) for number, scored in ready.items()}
        for number, found in segments.items():
            self._held[number] = _Held(draw=self.tasks.at(number), segments=found)
