"""Search-P1 trajectories in few words: reasoning with a plan, searches with what came back, an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlkit.records import Task, Trajectory
from rlkit.reward import Score
from rlkit.tags import NOTHING_FOUND, Tags
from tests.rewards.paths import path

P1 = Tags(think="reasoning", search="tool_call", information="tool_response")
O = "e:\n\n<tool_response>d</tool_response>\n\n"  # noqa: E741 - the letter of the grammar
NOTHING = f"e:\n\n<tool_response>{NOTHING_FOUND}</tool_response>\n\n"


def asked(*steps: str, answers: Sequence[str] = ("Ulm",), question: str = "Where?") -> Task:
    """A task with these reference steps."""
    data = {"reference": {"ref_steps": list(steps)}} if steps else {}
    return Task(id="t", question=question, answers=tuple(answers), data=data)


def alone(reward: Callable[..., list[Any]], task: Task, trajectory: Trajectory, **settings: Any) -> Score:
    """What a reward of groups says of a group of one."""
    (score,) = reward(task, [trajectory], **settings)
    assert isinstance(score, Score), score
    return score


def searched(
    *queries: str, task: Task, plan: Sequence[str] = (), answer: str | None = "Ulm", stray: str = ""
) -> Trajectory:
    """Plan, searches that are all answered, answer; `stray` words behind the reasoning make the format partial."""
    items = "\n".join(f"{n}. {step}" for n, step in enumerate(plan, start=1)) or "hm"
    parts, before = [], f"m:<reasoning>{items}</reasoning>{stray}"
    for query in queries:
        parts += [f"{before}<tool_call>{query}</tool_call>", O]
        before = "m:"
    if answer is not None:
        parts.append(f"{before}<answer>{answer}</answer>")
    return path(*parts, answer=answer, task=task)
