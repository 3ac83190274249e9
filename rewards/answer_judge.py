"""Asks the judge of answers once for the three rewards that read its verdict: faithfulness, style, safety (adqa, §3.3).

One request gives all three. It is remembered in this process, and in `Endpoint.cache` across processes and runs. A
judge that gives no verdict is a failed reward; the paper's spec would put in S, 5 and 5, which is a number nobody gave.
"""

from __future__ import annotations

from functools import lru_cache

from rlkit.judging import Endpoint, Question, shared
from rlkit.judging.answer import ANSWER_JUDGE, AnswerVerdict
from rlkit.records import Task

__all__ = ["ask"]


def ask(judge: Endpoint, task: Task, materials: str, answer: str, *, swapped: bool = False) -> AnswerVerdict:
    """The verdict on `answer`; `swapped` shows it as A, the reference as B. Raises `RewardError` if there is none."""
    reference = task.answers[0] if task.answers else ""
    first, second = (answer, reference) if swapped else (reference, answer)
    history = str(task.data.get("dialogue_history", ""))
    return _asked(judge, task.id, task.question, history, materials, first, second)


@lru_cache(maxsize=4096)  # answers of a few steps; what raises is not kept
def _asked(
    judge: Endpoint, task: str, query: str, history: str, materials: str, first: str, second: str
) -> AnswerVerdict:
    slots = {"query": query, "dialogue_history": history, "file": materials, "ans_a": first, "ans_b": second}
    [verdict] = shared(judge, ANSWER_JUDGE).ask([Question(id=task, trajectory=second, slots=slots)])
    return verdict.settle()
