"""Reward for a well-formed search protocol, in three grades (search_p1 §2.5 and §5.2; `rlkit.search.path.grade`).

Departure: the paper pays nothing at all for a direct answer; `require_search=False` grades it like the others, for
tasks that need no search. Reasoning may be left out anywhere; `search_format` asks for it, as the paper does.
"""

from __future__ import annotations

from rlkit.records import Task, Trajectory
from rlkit.reward import contract
from rlkit.search.path import grade
from rlkit.tags import Tags, blocks

__all__ = ["format_reward"]


def _bounds(*, full: float, partial: float, invalid: float, **_: object) -> tuple[float, float]:
    return min(full, partial, invalid), max(full, partial, invalid)


@contract(bounds=_bounds, invariant=("answer_order", "turn_order"))
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
    """Keeps to the search protocol: 1 fully, 0.5 loosely, 0 without an answer or a real search.

    The first three settings are the values of these grades, the last four the tag names of the environment.
    """
    tags = Tags(think=think, search=search, information=information, answer=answer)
    found = blocks(((node.author, node.text) for node in trajectory.nodes), tags)
    return {"full": full, "partial": partial, "invalid": invalid}[grade(found, tags, require_search=require_search)]
