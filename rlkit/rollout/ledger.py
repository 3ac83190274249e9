"""Accounting of tasks: every draw is trained, dropped for a reason, or pending, also after a crash.

A checkpoint holds `ledger.state()` and `stream.state()`. After a crash, `restore` forgets the events behind
the checkpoint, so that nothing is counted twice, and draws that were pending at it are rolled out again:

    stream.restore(saved["stream"])
    ledger.restore(saved["ledger"])
    waiting = [stream.at(number) for number in ledger.pending]
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import CheckpointError, DataError, LedgerError
from rlkit.randomness import stream
from rlkit.records import Task

__all__ = ["Draw", "Ledger", "TaskStream"]

Event = Literal["drawn", "arrived", "trained", "dropped"]
_EPOCH = re.compile(r"@epoch\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One task, taken from its source once."""

    task: Task
    number: int = 0
    """How many draws the run made before this one."""
    epoch: int = 0
    """How often the source had been used up before."""

    @property
    def address(self) -> str:
        """Its name in random addresses and in the ledger: `q17`, and `q17@epoch2` two epochs later.

        The policy version is part of an address too, but a small source comes round more than once per
        version, and then the second rollout would be a clone of the first.
        """
        return f"{self.task.id}@epoch{self.epoch}" if self.epoch else self.task.id


class TaskStream:
    """Endless epochs over the tasks, each shuffled by (seed, epoch).

    Draw n is the same in every run with this seed and these tasks. Raises `DataError` unless ids are unique.
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        ids = Counter(task.id for task in tasks)
        if not ids:
            raise DataError("no tasks to draw from")
        if twice := [name for name, count in ids.items() if count > 1]:
            raise DataError(f"{len(twice)} task ids are not unique, e.g. {twice[0]!r}")
        if taken := [name for name in ids if _EPOCH.search(name)]:
            raise DataError(f"task id {taken[0]!r} ends like the address of a later epoch; rename it")
        self._tasks = tuple(tasks)
        self._next = 0
        self._name = hashlib.blake2b("\n".join([str(seed), *ids]).encode(), digest_size=8).hexdigest()

        @lru_cache(maxsize=2)  # a step reads at most the end of one epoch and the start of the next
        def order(epoch: int) -> NDArray[np.int64]:
            return stream(seed, "task order", epoch).permutation(len(tasks))

        self._order = order

    def at(self, number: int) -> Draw:
        """Draw `number` of the run, whether it was made yet or not."""
        epoch, position = divmod(number, len(self._tasks))
        return Draw(task=self._tasks[self._order(epoch)[position]], number=number, epoch=epoch)

    def draw(self, count: int) -> list[Draw]:
        """The next `count` draws."""
        draws = [self.at(number) for number in range(self._next, self._next + count)]
        self._next += count
        return draws

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"next": self._next, "tasks": self._name}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue behind the draws of `state`. Raises `CheckpointError` if the tasks or the seed changed."""
        if state["tasks"] != self._name:
            raise CheckpointError(
                f"the checkpoint is of other tasks or another seed ({state['tasks']}, now {self._name})"
            )
        self._next = state["next"]


class Ledger:
    """The book of one run, `ledger.jsonl`: one line per event, appended as it happens.

    A new ledger replaces the file at its first event; one that was restored goes on behind its checkpoint.
    Raises `LedgerError` for an event that cannot be: trained twice, dropped without having been drawn.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._file: BinaryIO | None = None
        self._reset()

    def _reset(self) -> None:
        self._num_events = 0
        self._last = -1  # highest number drawn
        self._pending: dict[int, str] = {}  # number -> address
        self._dropped: Counter[str] = Counter()
        self.index = ""
        """Version of the index that the newest draws searched; empty where no index follows the run."""
        self.num_drawn = 0
        """Draws so far."""
        self.num_trained = 0
        """Draws whose tree reached the learner."""

    @property
    def pending(self) -> tuple[int, ...]:
        """Numbers of the draws that are neither trained nor dropped, oldest first."""
        return tuple(self._pending)

    @property
    def dropped(self) -> dict[str, int]:
        """Draws given up, by reason."""
        return dict(self._dropped)

    def drawn(self, draws: Iterable[Draw], step: int, *, clock: int | None = None) -> None:
        """Draws that were made now; not those that are rolled out again after `restore`.

        `clock` counts the rounds before it in an asynchronous run (`rlkit.rollout.schedule`).
        """
        self._record("drawn", draws, step, clock=clock)

    def arrived(self, draws: Iterable[Draw], step: int, *, clock: int) -> None:
        """Draws whose rollout ended with round `clock`; they stay pending."""
        self._record("arrived", draws, step, clock=clock)

    def trained(self, draws: Iterable[Draw], step: int) -> None:
        """Draws whose trees the learner used in `step`."""
        self._record("trained", draws, step)

    def dropped_for(self, reason: str, draws: Iterable[Draw], step: int) -> None:
        """Draws given up; `reason` is a short name that metrics count, such as `all_failed` or `stale`."""
        self._record("dropped", draws, step, reason)

    def searched(self, index: str, step: int) -> None:
        """Draws from `step` on search this version of the index."""
        if index != self.index:
            self._write({"event": "index", "step": step, "index": index})
            self.index = index
            self._num_events += 1

    def check(self, step: int, in_flight: Iterable[Draw] = ()) -> None:
        """Compare the book with the draws that the caller really has. Raises `LedgerError` if they differ."""
        held = {draw.number: draw.address for draw in in_flight}
        lost = [name for number, name in self._pending.items() if number not in held]
        unknown = [name for number, name in held.items() if number not in self._pending]
        num_dropped, num_pending = self._dropped.total(), len(self._pending)
        if lost or unknown or self.num_drawn != self.num_trained + num_dropped + num_pending:
            raise LedgerError(
                f"step {step}: {self.num_drawn} drawn, {self.num_trained} trained, {num_dropped} dropped and "
                f"{num_pending} pending, but {len(held)} in flight; "
                f"lost: {_some(lost)}; unknown: {_some(unknown)}"
            )

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint; every event before is safe on disk when this returns."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
        return {"events": self._num_events} | self._totals()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to `state`: later events leave the file. Raises `LedgerError` if it does not lead there."""
        self.close()
        self._reset()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+b")
        self._file.seek(0)
        for _ in range(state["events"]):
            line = self._file.readline()
            if not line.endswith(b"\n"):
                raise LedgerError(f"{self._path} has {self._num_events} of the checkpoint's {state['events']} events")
            event = json.loads(line)
            if event["event"] == "index":
                self.index = event["index"]
                self._num_events += 1
            else:
                self._apply(event["event"], event["draw"], event["task"], event.get("reason", ""))
        if self._totals() != {name: value for name, value in state.items() if name != "events"}:
            raise LedgerError(f"{self._path} leads to {self._totals()}, but the checkpoint says {dict(state)}")
        self._file.truncate(self._file.tell())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _totals(self) -> dict[str, Any]:
        return {
            "drawn": self.num_drawn,
            "trained": self.num_trained,
            "dropped": self.dropped,
            "pending": list(self._pending),
        } | ({"index": self.index} if self.index else {})

    def _record(
        self, event: Event, draws: Iterable[Draw], step: int, reason: str = "", clock: int | None = None
    ) -> None:
        lines = []
        for draw in draws:
            self._apply(event, draw.number, draw.address, reason)
            entry = {"event": event, "step": step, "draw": draw.number, "task": draw.address}
            more = ({"reason": reason} if reason else {}) | ({} if clock is None else {"clock": clock})
            lines.append(entry | more)
        self._write(*lines)

    def _write(self, *lines: Mapping[str, Any]) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        self._file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
        self._file.flush()

    def _apply(self, event: Event, number: int, address: str, reason: str) -> None:
        """Count one event; the same for a new one and for one read back."""
        if event == "drawn":
            if number <= self._last:
                raise LedgerError(f"draw {number} ({address}) was drawn before; the last was {self._last}")
            self._last = number
            self._pending[number] = address
            self.num_drawn += 1
        elif event == "arrived":
            if number not in self._pending:
                raise LedgerError(f"draw {number} ({address}) cannot have arrived: it is not pending")
        elif self._pending.pop(number, None) is None:
            fate = "already trained or dropped" if number <= self._last else "never drawn"
            raise LedgerError(f"draw {number} ({address}) cannot be {event}: it was {fate}")
        elif event == "trained":
            self.num_trained += 1
        else:
            self._dropped[reason] += 1
        self._num_events += 1


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return (", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"
