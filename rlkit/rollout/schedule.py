"""Which groups are under way, which of them make a step, and when weights change: decided by a logical clock alone.

The clock counts rounds (`rlkit/rollout/pace.py`). What happens in a round is known once every group under way has
reported it, and is then written down in the order of draw numbers, so nothing here depends on which report came first:

    arrive      groups that ended in the round: ready, or dropped for a reason (dynamic sampling)
    complete    a step has its groups; all rest, the engines get new weights, what became too old is dropped
    admit       new draws begin with the next round

Weights of version v sample groups that are trained at version v + max_staleness at the latest. So a group has a last
step, and a step is complete when enough groups are ready and the others can still make theirs:
`max_staleness` steps of groups are under way, and the longest rollout delays none of them unless it is its last step.
With `over_sampling` more are under way, a step is complete as soon as it has its groups, and those that miss their last
step are dropped as `stale`, which favours short ones; `rollout/length_bias` says how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rlkit.errors import CheckpointError

__all__ = ["Entry", "Limits", "Schedule", "Step", "can_all_be_trained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a schedule keeps."""

    groups_per_step: int
    steps: int
    """Steps of the run: no group is begun that none of them needs."""
    max_staleness: int
    """Versions between the weights that begin a group and those that are trained with it."""
    over_sampling: float = 0.0
    """Share of groups under way beyond those that are needed."""
    max_drawn: int = 10
    """A step ends with fewer groups once so many times its size were dropped while it was filled."""


@dataclass(slots=True, kw_only=True)
class _Group:
    """One draw, from its first round to its step."""

    number: int
    last_step: int
    """Its weights are too old for the steps after it."""
    rounds: int
    """The clock when it last reported; it began after the round it was admitted with."""
    begun: int
    """The clock when it was admitted."""
    ended: bool = False
    reason: str | None = None
    """Why it cannot be trained on; None: it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of what happened, for the ledger."""

    event: Literal["drawn", "arrived", "dropped"]
    number: int
    clock: int
    """Rounds of the run before it."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A complete step."""

    groups: tuple[int, ...]
    """Draws to train on, in order of their numbers."""
    given_up: tuple[int, ...]
    """Draws that no later step may use."""
    open: tuple[int, ...]
    """Draws that are under way or wait for a later step."""
    entries: tuple[Entry, ...]
    """What happened since the step before."""
    rounds: int
    """Rounds since then."""


@dataclass(kw_only=True)
class Schedule:
    """Pure: it is told what was reported and answers what may begin."""

    limits: Limits
    version: int = 0
    """Of the weights that the engines run."""
    steps: int = 0
    """Steps that were completed."""
    clock: int = 0
    """Rounds that everything under way has reported."""
    _next: int = 0
    _groups: dict[int, _Group] = field(default_factory=dict)
    """Under way."""
    _ready: dict[int, _Group] = field(default_factory=dict)
    """Ended, and wait for their step; in order of arrival."""
    _entries: list[Entry] = field(default_factory=list)
    _num_dropped: int = 0
    _began: int = 0
    complete: Step | None = None
    """Set while everything rests because a step has its groups."""

    def resume(self, version: int) -> None:
        """The engines run this version now: go on."""
        self.version, self.complete = version, None
        self._admit()
        if not self._groups:
            self._complete()

    def startable(self) -> list[tuple[int, int]]:
        """(draw, rounds it has behind it) of the groups that may begin their next round, oldest draw first.

        A group may be one round ahead of the clock where the reports that are missing cannot complete a step.
        """
        if self.complete is not None:
            return []
        ahead = self.clock + 1 if self._undecided() < self.limits.groups_per_step else self.clock
        return [(g.number, g.rounds - g.begun) for g in self._groups.values() if not g.ended and g.rounds <= ahead]

    def report(self, number: int, *, ended: bool, reason: str | None = None) -> None:
        """A group finished a round; `reason` why it is not to be trained on, if it ended so."""
        group = self._groups[number]
        group.rounds += 1
        group.ended, group.reason = ended, reason
        self._settle()

    def _undecided(self) -> int:
        """Most groups that the step can have after the round that is being reported; all, if drops could end it."""
        unknown = sum(not group.ended and group.rounds == self.clock for group in self._groups.values())
        arriving = [group for group in self._groups.values() if group.ended and group.rounds == self.clock + 1]
        dropped = self._num_dropped + sum(group.reason is not None for group in arriving) + unknown
        if dropped >= self._most_dropped:
            return self.limits.groups_per_step
        return len(self._ready) + sum(group.reason is None for group in arriving) + unknown

    def _settle(self) -> None:
        """Count rounds that all have reported."""
        while self.complete is None and self._groups:
            if any(group.rounds == self.clock for group in self._groups.values()):
                return
            self.clock += 1
            for group in [g for g in self._groups.values() if g.ended and g.rounds == self.clock]:
                self._arrive(self._groups.pop(group.number))
            self._complete()
            if self.complete is None:
                self._admit()

    def _arrive(self, group: _Group) -> None:
        self._entries.append(Entry(event="arrived", number=group.number, clock=self.clock))
        if group.reason is None:
            self._ready[group.number] = group
        else:
            self._num_dropped += 1
            self._drop(group.number, group.reason)

    def _drop(self, number: int, reason: str) -> None:
        self._entries.append(Entry(event="dropped", number=number, clock=self.clock, reason=reason))

    @property
    def _most_dropped(self) -> int:
        return self.limits.max_drawn * self.limits.groups_per_step

    def _complete(self) -> None:
        """Take the groups of the step if it can have them."""
        size, step = self.limits.groups_per_step, self.steps + 1
        gave_up = self._num_dropped >= self._most_dropped
        if len(self._ready) < size and not gave_up:
            return
        # oldest weights first, then first come first served: sorting keeps the order of arrival
        chosen = sorted(self._ready.values(), key=lambda group: group.last_step)[:size]
        taken = {group.number for group in chosen}
        left = [group for group in (*self._ready.values(), *self._groups.values()) if group.number not in taken]
        last = step == self.limits.steps
        given_up = [group for group in left if last or group.last_step <= step]
        if not self.limits.over_sampling and not gave_up and not can_all_be_trained(left, step, size):
            return
        for group in sorted(given_up, key=lambda group: group.number):
            self._drop(group.number, "stale" if group.last_step <= step else "surplus")
            self._groups.pop(group.number, None)
            self._ready.pop(group.number, None)
        for number in taken:
            del self._ready[number]
        self.complete = Step(
            groups=tuple(sorted(taken)),
            given_up=tuple(sorted(group.number for group in given_up)),
            open=tuple(sorted((*self._groups, *self._ready))),
            entries=tuple(self._entries),
            rounds=self.clock - self._began,
        )
        self.steps, self._num_dropped, self._began = step, 0, self.clock
        self._entries.clear()

    def _admit(self) -> None:
        """Begin new draws up to what the steps that may use them need."""
        limits = self.limits
        steps = min(max(limits.max_staleness, 1), limits.steps - self.steps)
        room = math.ceil((1 + limits.over_sampling) * limits.groups_per_step * steps)
        for _ in range(room - len(self._groups) - len(self._ready)):
            self._groups[self._next] = _Group(
                number=self._next,
                last_step=self.version + limits.max_staleness + 1,
                rounds=self.clock,
                begun=self.clock,
            )
            self._entries.append(Entry(event="drawn", number=self._next, clock=self.clock))
            self._next += 1

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; only while everything rests."""
        assert self.complete is not None
        return {
            "steps": self.steps,
            "clock": self.clock,
            "next": self._next,
            "groups": [asdict(group) for group in self._groups.values()],
            "ready": [asdict(group) for group in self._ready.values()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on behind `state`; `resume` is next. Raises `CheckpointError`."""
        try:
            self.steps, self.clock, self._next = state["steps"], state["clock"], state["next"]
            self._groups = {row["number"]: _Group(**row) for row in state["groups"]}
            self._ready = {row["number"]: _Group(**row) for row in state["ready"]}
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"the schedule in the checkpoint is of another kind ({error})") from error
        self._began = self.clock
        groups = tuple(sorted((*self._groups, *self._ready)))
        self.complete = Step(groups=(), given_up=(), open=groups, entries=(), rounds=0)

    @property
    def next_number(self) -> int:
        """Number of the next draw."""
        return self._next


def can_all_be_trained(left: list[_Group], step: int, size: int) -> bool:
    """Whether the groups that a step leaves fit into the steps that may still use them."""
    horizon = max((group.last_step for group in left), default=step)
    return all(
        sum(group.last_step <= later for group in left) <= (later - step) * size for later in range(step, horizon + 1)
    )
