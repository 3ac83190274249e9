"""Reference steps: the searches that an expert needs for a question, against which a path is measured (search_p1 §2.6).

A planner's steps travel with the task, as `task.data["reference"]` (`rlkit plan-references` writes them, the setting
`references` of a task source reads them). Where there are none, what the benchmark's authors annotated serves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlkit.errors import DataError
from rlkit.records import Task
from rlkit.search.annotation import is_annotated, steps
from rlkit.text import best, contains_words

__all__ = [
    "ANNOTATION",
    "PlannedReference",
    "Reference",
    "annotated_reference",
    "read_references",
    "reference_of",
    "with_references",
]

ANNOTATION = "annotation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What an expert would search."""

    steps: tuple[str, ...]
    """R_ref, at least one; `[result 1]` stands for what an earlier step finds."""
    planner: str = ""
    """P_ref, a short instruction in words; for a judge."""
    source: str = ANNOTATION
    """Who wrote it: `annotation`, `direct: MODEL`, `vote: MODEL`."""


def reference_of(task: Task) -> Reference | None:
    """The planned reference of a task, else the annotated one, else None."""
    planned = task.data.get("reference")
    if isinstance(planned, dict) and planned.get("ref_steps"):
        return Reference(
            steps=tuple(map(str, planned["ref_steps"])),
            planner=str(planned.get("ref_planner", "")),
            source=str(planned.get("source", "")),
        )
    return annotated_reference(task)


def annotated_reference(task: Task) -> Reference | None:
    """What the authors of the benchmark wrote: decomposition, evidence triples, or supporting titles.

    A title stands for any query that names it, so it is written as an open step. A step whose wording would tell the
    answer, though the question does not, is left out: nobody can be asked to search for what is asked.
    """
    if not is_annotated(task):
        return None
    if task.data.get("decomposition") or task.data.get("evidences"):
        found = [step.goal for step in steps(task)]
    else:
        found = [f"[facts about] {_without_brackets(title)}" for title in task.data["supporting_titles"]]
    asked = best(contains_words, task.question, task.answers)
    kept = [step for step in dict.fromkeys(found) if best(contains_words, step, task.answers) <= asked]
    return Reference(steps=tuple(kept)) if kept else None


def _without_brackets(title: str) -> str:
    """`"Peter Best (composer)"` -> `"Peter Best"`; a title that is nothing else stays."""
    return re.sub(r"\s*\([^()]*\)", "", str(title)).strip() or str(title)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedReference:
    """One line of a file of references: what a planner found for one task."""

    data_source: str
    split: str
    index: int
    """Position of the task among those of its data source and split, from 0."""
    question: str
    """Finds the task where the index has changed."""
    ref_planner: str = ""
    ref_steps: tuple[str, ...] = ()
    """Empty where no planner found any."""
    source: str = ""
    """`annotation`, `direct: MODEL`, `vote: MODEL`, `vote: words`; empty without steps."""
    n_calls: int = 0
    """Requests to a language model."""
    reason: str = ""
    """Why there are no steps."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Data source, split and index."""
        return self.data_source, self.split, self.index

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"ref_steps": list(self.ref_steps)}


def read_references(file: Path) -> list[PlannedReference]:
    """The lines of a file, the last one of a key counts. A last line that was cut off is left out.

    Raises `DataError` with file and line for anything else that is wrong.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"references: {file} cannot be read: {error}") from error
    found: dict[tuple[str, str, int], PlannedReference] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = _entry_of(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # the writer was killed here
            raise DataError(f"{file}:{number}: is no reference: {error}") from error
        found[entry.key] = entry
    return list(found.values())


def with_references(tasks: Iterable[Task], split: str, entries: Iterable[PlannedReference]) -> list[Task]:
    """The tasks of one data source and split, in order, with `data["reference"]` where an entry fits.

    By data source, split and index if the question is the same, else by the question. Entries without steps are none.
    """
    usable = [entry for entry in entries if entry.ref_steps]
    by_key = {entry.key: entry for entry in usable}
    by_question = {entry.question: entry for entry in usable}
    out = []
    for index, task in enumerate(tasks):
        entry = by_key.get((str(task.data.get("dataset", "")), split, index))
        if entry is None or entry.question != task.question:
            entry = by_question.get(task.question)
        out.append(replace(task, data={**task.data, "reference": entry.to_json()}) if entry else task)
    return out


def _entry_of(row: Mapping[str, Any]) -> PlannedReference:
    steps_of = row["ref_steps"]
    if not isinstance(steps_of, list) or not all(isinstance(step, str) for step in steps_of):
        raise ValueError(f"ref_steps: {steps_of!r} is not a list of texts")
    return PlannedReference(
        data_source=str(row["data_source"]),
        split=str(row["split"]),
        index=int(row["index"]),
        question=str(row["question"]),
        ref_planner=str(row.get("ref_planner", "")),
        ref_steps=tuple(steps_of),
        source=str(row.get("source", "")),
        n_calls=int(row.get("n_calls", 0)),
        reason=str(row.get("reason", "")),
    )
