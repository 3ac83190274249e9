"""When a plan is refused: a reference that tells the answer, or cannot be followed, would pay for the wrong thing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlkit.records import Task
from rlkit.search.matching import Step
from rlkit.text import best, contains_words, normalize

__all__ = ["fault_of"]

_TAG = re.compile(r"</?[A-Za-z][\w-]*/?>")
_ADDRESS = re.compile(r"https?:|www\.|\w://", re.IGNORECASE)


def fault_of(steps: Sequence[str], task: Task, max_steps: int) -> str:
    """Why these steps are no reference for the task, or nothing.

    A step that holds an accepted answer is a leak unless the question holds it too.
    """
    if not steps:
        return "it has no steps"
    if len(steps) > max_steps:
        return f"it has {len(steps)} steps, more than {max_steps}"
    if len({normalize(step) for step in steps}) < len(steps):
        return "it says one step twice"
    asked = best(contains_words, task.question, task.answers)
    for step in steps:
        if not Step.of(step).words:
            return f"step {step!r} names nothing to search for"
        if _TAG.search(step):
            return f"step {step!r} holds a tag"
        if _ADDRESS.search(step):
            return f"step {step!r} holds a web address"
        if best(contains_words, step, task.answers) > asked:
            return f"step {step!r} tells the answer"
    return ""
