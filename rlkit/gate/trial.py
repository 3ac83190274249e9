"""One reward before the gate: how it is asked, and how what it says of two trajectories is compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlkit.gate.variants import Variant
from rlkit.records import Task, Tree
from rlkit.reward import Contract
from rlkit.rollout.judge import Outcome, RewardSpec
from rlkit.tags import Tags
from rlkit.transcript import Written, transcript, written

__all__ = ["TOLERANCE", "Ask", "Refuted", "Trial", "shown", "total"]

TOLERANCE = 1e-9
"""Values nearer than this are equal."""
SHOWN = 400
"""Characters of an example."""


class Ask(Protocol):
    """Asks one reward about a group."""

    def __call__(self, tree: Tree, backwards: bool = False) -> list[Outcome]:
        """One outcome for each leaf that is spoken of, whichever was asked about first."""
        ...


class Refuted(Exception):
    """A check found a counterexample."""

    def __init__(self, check: str, note: str, example: str = "") -> None:
        super().__init__(note)
        self.check, self.note, self.example = check, note, example


def total(outcome: Outcome) -> float | None:
    """Sum of the terms; None where there is no value."""
    return sum(outcome.values.values()) if outcome.values and not outcome.errors else None


def shown(path: Written, task: Task) -> str:
    """A trajectory as an example of what was found."""
    text = "".join(text for _, text in path.parts).encode("utf-8", "replace").decode()
    text = text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} [...] {text[-SHOWN // 2 :]}"
    return f"task {task.id}, answer {path.answer if path.answer is None else path.answer[:80]!r}\n{text}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One reward before the gate."""

    spec: RewardSpec
    contract: Contract
    tags: Tags
    """Names that the probes are written with."""
    probes: Sequence[Tree]
    """Groups to try it on."""
    ask: Ask
    ask_elsewhere: Ask
    """In another process."""
    ask_under_faults: Ask
    """While every service times out."""

    known: dict[int, list[Outcome]] = field(default_factory=dict)
    """First outcomes by the probe's identity."""

    def first(self, probe: Tree) -> list[Outcome]:
        """What it said of a probe when it was asked first."""
        if id(probe) not in self.known:
            self.known[id(probe)] = self.ask(probe)
        return self.known[id(probe)]

    def paths(self, probe: Tree) -> list[Written]:
        """The trajectories of a probe as text."""
        return [written(trajectory) for trajectory in probe.trajectories()]

    def rewritten(self, variant: Variant, probe: Tree) -> list[Written]:
        """The same, each rewritten where the variant can."""
        return [variant(path) or path for path in self.paths(probe)]

    def compare(self, probe: Tree, variant: Variant) -> Iterator[tuple[Written, Outcome, Outcome]]:
        """(rewritten trajectory, outcome before, outcome after); of a group one trajectory is rewritten at a time."""
        paths = self.paths(probe)
        rewritten = {index: new for index, path in enumerate(paths) if (new := variant(path)) is not None}
        if not rewritten:
            return
        before, prompt = self.first(probe), probe.nodes[0].text
        batches = [[index] for index in rewritten] if self.contract.per_group else [[*rewritten]]
        for batch in batches:
            mixed = [rewritten[i] if i in batch else path for i, path in enumerate(paths)]
            after = self.ask(transcript(probe.task, *mixed, prompt=prompt))
            for index in batch:
                yield rewritten[index], before[index], after[index]

    def no_growth(self, check: str, what: str, probe: Tree, some: Variant, much: Variant) -> None:
        """Much of it earns no more than some of it."""
        few, many = self.compare(probe, some), self.compare(probe, much)
        for (_, _, little), (path, _, lot) in zip(few, many, strict=True):
            self.not_above(check, f"more of {what} raised it from {{}} to {{}}", path, probe.task, little, lot)

    def not_above(self, check: str, note: str, path: Written, task: Task, before: Outcome, after: Outcome) -> None:
        """It did not rise; `note` has two places for the values."""
        first, second = total(before), total(after)
        self.no_hang(after, path, transcript(task, path))
        if first is not None and second is not None and second > first + TOLERANCE:
            raise Refuted(check, note.format(f"{first:.4g}", f"{second:.4g}"), shown(path, task))

    def same(self, check: str, how: str, path: Written, task: Task, before: Outcome, after: Outcome) -> None:
        """Every term stayed as it was."""
        self.no_hang(after, path, transcript(task, path))
        keys = before.values.keys() | after.values.keys()
        for key in keys:
            first, second = before.values.get(key, math.nan), after.values.get(key, math.nan)
            if not math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                said = [f"{value:.6g}" if math.isfinite(value) else "nothing" for value in (first, second)]
                raise Refuted(check, f"{said[0]} became {said[1]} {how}", shown(path, task))

    def no_hang(self, outcome: Outcome, path: Written, probe: Tree) -> None:
        """It came back in time, and its process lives."""
        for error in outcome.errors.values():
            if error.startswith(("deadline of", "its process")):
                raise Refuted("deadline", error, shown(path, probe.task))
