"""An expert that plays agentic search from a task's own annotation, for a supervised warm start.

It searches the steps that the benchmark's authors wrote down (`rlkit.search.annotation`). It never sees what a search
returned: what it calls found is the annotation.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.randomness import stream
from rlkit.records import Task
from rlkit.search.annotation import Step, resolve, steps
from rlkit.tags import Role, Tags

__all__ = ["SearchExpert"]

FIRST = ("I need to find out: {goal}.", "Let me look this up first: {goal}.", "To start: {goal}.")
NEXT = ("Next: {goal}.", "Now I need to know: {goal}.", "The next step: {goal}.")
FOUND = ("So it is {result}. ", "The passage says {result}. ", "That gives {result}. ")
LAST = ("Now I can answer.", "That is all I need.", "I know enough to answer.")


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
        """Open with the numbered plan that Search-P1 asks for (search_p1 §4.3): as the first thought, or in a tag of
        its own where `tags.plan` names one; needs `think`.
        """
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
        thought = self._thought(task, turn, plan)
        if turn == 0 and self.config.plan and tags.plan and opened != "think":
            start = f"{'' if opened == 'plan' else tags.open('plan')}{_numbered(plan)}{tags.close('plan')}{start}"
        elif turn == 0 and self.config.plan:
            thought = _numbered(plan)
        return f"{start}{thought}{tags.close('think')}{action}"

    def _thought(self, task: Task, turn: int, plan: tuple[Step, ...]) -> str:
        draw = stream("search_expert", self.config.seed, task.id, turn)

        def pick(options: tuple[str, ...]) -> str:
            return options[int(draw.integers(len(options)))]

        found = plan[turn - 1].result if 0 < turn <= len(plan) else ""
        seen = pick(FOUND).format(result=found) if found else ""
        if turn >= len(plan):
            return seen + pick(LAST)
        goal = resolve(plan[turn].goal, [step.result for step in plan]).rstrip("?. ")
        return seen + pick(NEXT if turn else FIRST).format(goal=goal)


def _numbered(plan: tuple[Step, ...]) -> str:
    return "\n" + "".join(f"{n}. {step.goal}\n" for n, step in enumerate(plan, start=1))
