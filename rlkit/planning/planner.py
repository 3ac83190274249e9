"""Plans many tasks into a file: one line a task as soon as it is known, so that a run that stops goes on where it was.

    tasks ─> those not in the file ─> vote ─> direct ─> annotation ─> validation ─> one line each

A planner that is not chosen, or has nothing to go on, is left out; a task that none of them could plan gets a line
without steps, which says why and is not asked about again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rlkit.judging import JudgeClient, Question
from rlkit.planning.direct import DIRECT, Plan
from rlkit.planning.validation import fault_of
from rlkit.planning.vote import MERGE, common_steps
from rlkit.records import Task
from rlkit.search.references import ANNOTATION, PlannedReference, annotated_reference, read_references

__all__ = ["UNANSWERED", "Mode", "Place", "Planner"]

Mode = Literal["direct", "vote", "annotation"]
UNANSWERED = "unanswered"
"""Counts tasks whose endpoint failed; they are asked about again when the planner runs again."""
MAX_TRIES = 3
"""Plans asked for one task before it goes without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A task and where it stands in its source."""

    task: Task
    data_source: str
    split: str
    index: int

    @property
    def key(self) -> tuple[str, str, int]:
        """What the file is keyed by."""
        return self.data_source, self.split, self.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one way to plan made of one task."""

    plan: Plan | None = None
    source: str = ""
    reason: str = ""
    """Why there is no plan."""
    calls: int = 0
    """Requests that were sent."""
    unanswered: bool = False
    """The endpoint failed, which says nothing about the task: it is asked again when the planner runs again."""

    def then(self, later: Result) -> Result:
        """What is known after a second way was tried."""
        return replace(later, calls=self.calls + later.calls, reason=later.reason if later.plan else _both(self, later))


@dataclass(kw_only=True)
class Planner:
    """One way to plan, and what it has planned so far."""

    mode: Mode
    file: Path
    max_steps: int = 4
    """B: a longer plan is refused."""
    direct: JudgeClient[Plan] | None = None
    """Writes plans from question and answers."""
    merge: JudgeClient[Plan] | None = None
    """Merges the paths of correct rollouts; None: they are clustered by words."""
    paths: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)
    """Task id -> queries of each correct rollout, for `vote`."""
    batch: int = 32
    """Tasks that are asked about together."""

    def plan(self, places: Sequence[Place], advance: Callable[[int], None] = lambda count: None) -> Counter[str]:
        """Plan what the file does not hold yet; returns how many tasks each source gave, over the whole file.

        `advance` hears of tasks that are done. Raises `DataError` for a file that cannot be read.
        """
        known = {entry.key: entry for entry in read_references(self.file)} if self.file.is_file() else {}
        open_places = [place for place in places if not self._has(known.get(place.key), place)]
        advance(len(places) - len(open_places))
        self.file.parent.mkdir(parents=True, exist_ok=True)
        _mend(self.file)
        with self.file.open("a", encoding="utf-8") as lines:
            for start in range(0, len(open_places), self.batch):
                part = open_places[start : start + self.batch]
                for place, entry in zip(part, self._plan(part), strict=True):
                    if entry is None:
                        known.pop(place.key, None)
                        continue
                    known[place.key] = entry
                    lines.write(json.dumps(entry.to_json()) + "\n")
                lines.flush()
                os.fsync(lines.fileno())
                advance(len(part))
        return Counter(
            (known[place.key].source or "no reference") if place.key in known else UNANSWERED for place in places
        )

    @staticmethod
    def _has(entry: PlannedReference | None, place: Place) -> bool:
        """The file's line counts only for the question that it was written for."""
        return entry is not None and entry.question == place.task.question

    def _plan(self, places: Sequence[Place]) -> list[PlannedReference | None]:
        """One entry for each place, with steps or with the reason why there are none; None: nobody answered."""
        found = [Result()] * len(places)
        for attempt in (self._by_vote, self._by_direct, self._by_annotation):
            waiting = [number for number, result in enumerate(found) if result.plan is None and not result.unanswered]
            if waiting:
                results = attempt([places[number] for number in waiting])
                for number, result in zip(waiting, results, strict=True):
                    found[number] = found[number].then(result)
        return [
            None if result.unanswered else _entry(place, result) for place, result in zip(places, found, strict=True)
        ]

    def _by_vote(self, places: Sequence[Place]) -> list[Result]:
        """Steps that correct rollouts share, merged by the model where there is one, else clustered by words."""
        if self.mode != "vote":
            return [Result()] * len(places)
        having = [place for place in places if self.paths.get(place.task.id)]
        if self.merge is not None:
            results = self._ask(self.merge, "vote", having)
        else:
            results = [self._by_words(place) for place in having]
        planned = {place.key: result for place, result in zip(having, results, strict=True)}
        return [planned.get(place.key, Result(reason="no correct rollout")) for place in places]

    def _by_words(self, place: Place) -> Result:
        steps = common_steps(self.paths[place.task.id])
        fault = fault_of(steps, place.task, self.max_steps)
        return Result(reason=fault) if fault else Result(plan=Plan(steps=steps), source="vote: words")

    def _by_direct(self, places: Sequence[Place]) -> list[Result]:
        if self.mode == "annotation" or self.direct is None:
            return [Result()] * len(places)
        return self._ask(self.direct, "direct", places)

    def _by_annotation(self, places: Sequence[Place]) -> list[Result]:
        """What the authors of the benchmark wrote; it may be longer than B, they knew."""
        found = [annotated_reference(place.task) for place in places]
        return [
            Result(plan=Plan(steps=each.steps), source=ANNOTATION) if each else Result(reason="no annotation")
            for each in found
        ]

    def _ask(self, client: JudgeClient[Plan], name: str, places: Sequence[Place]) -> list[Result]:
        """Up to `MAX_TRIES` plans for each task; one that is refused is told why."""
        out = [Result()] * len(places)
        waiting = list(range(len(places)))
        for _ in range(MAX_TRIES):
            questions = [self._question(client, places[number], out[number].reason) for number in waiting]
            for number, verdict in zip(waiting, client.ask(questions), strict=True):
                calls = out[number].calls + verdict.requests
                if verdict.value is None:
                    out[number] = Result(reason=verdict.error, calls=calls, unanswered=True)
                elif fault := fault_of(verdict.value.steps, places[number].task, self.max_steps):
                    out[number] = Result(reason=fault, calls=calls)
                else:
                    out[number] = Result(plan=verdict.value, source=f"{name}: {client.endpoint.model}", calls=calls)
            waiting = [number for number in waiting if out[number].plan is None and not out[number].unanswered]
        return out

    def _question(self, client: JudgeClient[Plan], place: Place, refused: str) -> Question:
        task = place.task
        slots = {
            "question": task.question,
            "complaint": f"An earlier plan was refused: {refused}" if refused else "This is the first attempt.",
        }
        if client.judge is DIRECT:
            slots["golden_answers"] = "\n".join(task.answers)
        if client.judge is MERGE:
            paths = self.paths[task.id]
            slots["paths"] = "\n".join(f"{n}. " + " -> ".join(path) for n, path in enumerate(paths, start=1))
        return Question(id=task.id, trajectory=slots["complaint"], slots=slots)


def _both(first: Result, second: Result) -> str:
    return "; ".join(filter(None, (first.reason, second.reason)))


def _entry(place: Place, result: Result) -> PlannedReference:
    plan = result.plan or Plan(steps=())
    return PlannedReference(
        data_source=place.data_source,
        split=place.split,
        index=place.index,
        question=place.task.question,
        ref_planner=plan.planner,
        ref_steps=plan.steps,
        source=result.source,
        n_calls=result.calls,
        reason=result.reason,
    )


def _mend(file: Path) -> None:
    """Cut a last line that a killed planner left unfinished, so that the next one does not continue it."""
    if file.is_file() and (text := file.read_bytes()) and not text.endswith(b"\n"):
        os.truncate(file, text.rfind(b"\n") + 1)
