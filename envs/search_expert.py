"""An expert that plays agentic search from a task's own annotation, for a supervised warm start.

It reads what the benchmark's authors wrote down, in this order: a decomposition into single-hop questions
(MuSiQue, the seeded world), evidence triples (2WikiMultihopQA), titles of supporting passages (HotpotQA, NQ);
failing these it searches for the question itself. It never sees what a search returned: what it calls found
is the annotation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlkit.randomness import stream
from rlkit.records import Task
from rlkit.tags import Role, Tags
from rlkit.text import best, contains_words, words

__all__ = ["SearchExpert", "Step", "steps"]

FUNCTION_WORDS = frozenset(
    words(
        "about and are as at be by did do does for from had has have how in is it its of on or s same than that "
        "their there these this those to was were what when where which who whom whose why will with would"
    )
)
FIRST = ("I need to find out: {goal}.", "Let me look this up first: {goal}.", "To start: {goal}.")
NEXT = ("Next: {goal}.", "Now I need to know: {goal}.", "The next step: {goal}.")
FOUND = ("So it is {result}. ", "The passage says {result}. ", "That gives {result}. ")
LAST = ("Now I can answer.", "That is all I need.", "I know enough to answer.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One search of the expert."""

    goal: str
    """What it is for, with `[result 1]` for what an earlier step found; a line of a plan."""
    query: str
    """What is searched, with earlier results filled in."""
    result: str = ""
    """What it should find; empty where the annotation does not say."""


class SearchExpert:
    """Completions of an ideal searcher, in varied words."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the expert."""

        max_searches: int = 4
        """At most so many steps; `env.max_searches` or less."""
        think: bool = True
        """Write a thought before each action."""
        plan: bool = False
        """Open with the numbered plan that Search-P1 asks for (search_p1 §4.3); needs `think`."""
        seed: int = 0
        """Of the choice of words."""

        def __post_init__(self) -> None:
            if self.max_searches < 1:
                raise ValueError(f"max_searches: {self.max_searches} is below 1")
            if self.plan and not self.think:
                raise ValueError("plan: true needs think: true, which is where the plan stands")

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def next_completion(self, task: Task, turn: int, tags: Tags, opened: Role | None = None) -> str:
        """The completion of `turn` (0-based): a search while steps are left, then the first accepted answer.

        `opened` is a tag that the environment has written already; after a forced `<answer>` only the answer
        is left.
        """
        plan = steps(task)[: self.config.max_searches]
        if opened == "answer" or turn >= len(plan):
            role: Role = "answer"
            content = task.answers[0] if task.answers else ""
        else:
            role, content = "search", plan[turn].query
        action = f"{tags.open(role)}{content}{tags.close(role)}"
        if opened == role:
            return action.removeprefix(tags.open(role))
        if not self.config.think:
            return action
        start = "" if opened == "think" else tags.open("think")
        return f"{start}{self._thought(task, turn, plan)}{tags.close('think')}{action}"

    def _thought(self, task: Task, turn: int, plan: tuple[Step, ...]) -> str:
        draw = stream("search_expert", self.config.seed, task.id, turn)

        def pick(options: tuple[str, ...]) -> str:
            return options[int(draw.integers(len(options)))]

        if turn == 0 and self.config.plan:
            return "\n" + "".join(f"{n}. {step.goal}\n" for n, step in enumerate(plan, start=1))
        found = plan[turn - 1].result if 0 < turn <= len(plan) else ""
        seen = pick(FOUND).format(result=found) if found else ""
        if turn >= len(plan):
            return seen + pick(LAST)
        goal = _resolve(plan[turn].goal, [step.result for step in plan]).rstrip("?. ")
        return seen + pick(NEXT if turn else FIRST).format(goal=goal)


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


def _from_decomposition(parts: list[Mapping[str, Any]]) -> Iterator[Step]:
    """MuSiQue: "#1" stands for the answer of step 1, ">>" joins a subject and its relation."""
    results = [str(part["answer"]) for part in parts]
    for part in parts:
        question = " ".join(str(part["question"]).replace(">>", " ").split())
        goal = re.sub(r"#(\d+)", r"[result \1]", question)
        yield Step(goal=goal, query=_resolve(goal, results), result=str(part["answer"]))


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
    """The step with the question's own words as query, where its query would tell an answer that nobody
    asked.
    """
    told = best(contains_words, step.query, task.answers) > best(contains_words, task.question, task.answers)
    if not told:
        return step
    keywords = " ".join(word for word in words(task.question) if word not in FUNCTION_WORDS)
    return Step(goal="what the question describes", query=keywords or task.question, result=step.result)


def _resolve(text: str, results: list[str]) -> str:
    """`[result 2]` -> the second result."""
    return re.sub(r"\[result (\d+)\]", lambda m: (results[int(m[1]) - 1 :] or [""])[0] or m[0], text)


def _share(some: list[str], of: set[str]) -> float:
    return sum(word in of for word in some) / max(1, len(some))
