"""The searches that lead to an answer, as the authors of a benchmark wrote them down.

In this order: a decomposition into single-hop questions (MuSiQue, the seeded world), evidence triples
(2WikiMultihopQA), titles of supporting passages (HotpotQA, NQ); failing these the question itself. They serve as an
expert for a supervised warm start, and as the reference steps of a path reward where no planner wrote any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlkit.records import Task
from rlkit.text import best, contains_words, words

__all__ = ["FUNCTION_WORDS", "Step", "is_annotated", "resolve", "steps"]

FUNCTION_WORDS = frozenset(
    words(
        "about and are as at be by did do does for from had has have how in is it its of on or s same than that "
        "their there these this those to was were what when where which who whom whose why will with would"
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One search of the expert."""

    goal: str
    """What it is for, with `[result 1]` for what an earlier step found; a line of a plan."""
    query: str
    """What is searched, with earlier results filled in."""
    result: str = ""
    """What it should find; empty where the annotation does not say."""


def steps(task: Task) -> tuple[Step, ...]:
    """The searches that lead to the answer; a query gives the answer away only where the question does."""
    data = task.data
    if data.get("decomposition"):
        found = list(_from_decomposition(data["decomposition"]))
    elif data.get("evidences"):
        found = list(_from_evidences(data["evidences"]))
    else:
        found = list(_from_titles(task.question, data.get("supporting_titles", ())))
    unique = {step.query.casefold(): _without_answer(task, step) for step in found}
    return tuple({step.query.casefold(): step for step in unique.values()}.values())


def is_annotated(task: Task) -> bool:
    """True if somebody wrote its steps down; without, `steps` has only the question itself."""
    return any(task.data.get(key) for key in ("decomposition", "evidences", "supporting_titles"))


def _from_decomposition(parts: list[Mapping[str, Any]]) -> Iterator[Step]:
    """MuSiQue: "#1" stands for the answer of step 1, ">>" joins a subject and its relation."""
    results = [str(part["answer"]) for part in parts]
    for part in parts:
        question = " ".join(str(part["question"]).replace(">>", " ").split())
        goal = re.sub(r"#(\d+)", r"[result \1]", question)
        yield Step(goal=goal, query=resolve(goal, results), result=str(part["answer"]))


def _from_evidences(triples: list[tuple[str, str, str]]) -> Iterator[Step]:
    """2WikiMultihopQA: (subject, relation, object); triples of one subject and relation are one search."""
    results: list[str] = []
    for subject, relation, value in triples:
        known = results.index(subject) + 1 if subject in results else 0
        name = f"[result {known}]" if known else subject
        yield Step(goal=f"{name}: {relation}", query=f"{subject} {relation}", result=value)
        results.append(value)


def _from_titles(question: str, titles: list[str]) -> Iterator[Step]:
    """Titles that the question names come first: the others can only be known from their passages."""
    asked = set(words(question))
    order = sorted(titles, key=lambda title: -_share(words(title), asked))
    for title in order:
        name = re.sub(r"\s*\(([^()]*)\)", r" \1", title).strip()
        yield Step(goal=f"facts about {name}", query=name)
    if not order:
        yield Step(goal=question, query=question)


def _without_answer(task: Task, step: Step) -> Step:
    """The step in the question's own words, where its query would tell an answer that nobody asked."""
    told = best(contains_words, step.query, task.answers) > best(contains_words, task.question, task.answers)
    if not told:
        return step
    keywords = " ".join(word for word in words(task.question) if word not in FUNCTION_WORDS) or task.question
    return Step(goal=keywords, query=keywords, result=step.result)  # a goal in other words no query could carry out


def resolve(text: str, results: list[str]) -> str:
    """`[result 2]` -> the second result; a result that is not known stays in brackets."""
    return re.sub(r"\[result (\d+)\]", lambda m: (results[int(m[1]) - 1 :] or [""])[0] or m[0], text)


def _share(some: list[str], of: set[str]) -> float:
    return sum(word in of for word in some) / max(1, len(some))
