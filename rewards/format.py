"""Reward for a well-formed search protocol, in three grades (search_p1 §2.5 and §5.2).

    full     R? (C O R?)* A   with a legal C, white space between blocks, nothing blank, nested or forged
    partial  an answer and at least one real observation, but not full
    invalid  everything else

R reasoning, C search call, O observation by the environment, A answer. Departure: the paper pays nothing at
all for a direct answer; `require_search=False` grades it like the others, for tasks that need no search.
"""

from __future__ import annotations

import re
from typing import Literal

from rlkit.records import Task, Trajectory
from rlkit.tags import Block, Tags, blocks, query_fault

__all__ = ["Grade", "format_reward", "grade"]

Grade = Literal["full", "partial", "invalid"]
LETTERS = {"think": "R", "search": "C", "information": "O", "answer": "A", "loose": "x", "control": "x"}
WELL_FORMED = re.compile(r"R?(?:COR?)*A")


def format_reward(
    task: Task,
    trajectory: Trajectory,
    *,
    full: float = 1.0,
    partial: float = 0.5,
    invalid: float = 0.0,
    require_search: bool = True,
    think: str = "think",
    search: str = "search",
    information: str = "information",
    answer: str = "answer",
) -> float:
    """The value of the trajectory's grade; the last four settings are the tag names of the environment."""
    tags = Tags(think=think, search=search, information=information, answer=answer)
    found = blocks(((node.author, node.text) for node in trajectory.nodes), tags)
    return {"full": full, "partial": partial, "invalid": invalid}[grade(found, tags, require_search)]


def grade(found: list[Block], tags: Tags, require_search: bool = True) -> Grade:
    """Grade a trajectory split by `rlkit.tags.blocks`."""
    answered = any(block.kind == "answer" and block.text for block in found)
    called = any(block.kind == "search" and not query_fault(block.text, tags) for block in found)
    observed = any(block.kind == "information" for block in found)
    letters = "".join(LETTERS[block.kind] for block in found)
    written = all(block.text for block in found)
    if written and answered and WELL_FORMED.fullmatch(letters) and (called or not require_search):
        return "full"
    return "partial" if answered and (observed or not require_search) else "invalid"
