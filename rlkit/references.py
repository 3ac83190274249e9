"""Reference steps: the searches that an expert needs for a question, against which a path is measured (search_p1 §2.6).

A planner's steps travel with the task, as `task.data["reference"]` (`rlkit plan-references` writes them, the setting
`references` of a task source reads them). Where there are none, what the benchmark's authors annotated serves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlkit.annotation import is_annotated, steps
from rlkit.records import Task
from rlkit.text import best, contains_words

__all__ = ["ANNOTATION", "Reference", "annotated_reference", "reference_of"]

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
