"""The path of a search trajectory: its plan, its searches, its answer, and how well it keeps to the protocol.

What path rewards and judges read (search_p1 §5). Calls, plan and answer come from the policy's own text; whether a
search was answered comes from the environment's. Nothing here raises on what a model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from rlkit.records import Trajectory
from rlkit.tags import NOTHING_FOUND, SEARCH_FAILED, Block, Tags, blocks, query_fault

__all__ = ["Grade", "PlanSource", "Search", "SearchPath", "grade", "numbered_items", "parse_path"]

Grade = Literal["full", "partial", "invalid"]
PlanSource = Literal["first_reasoning", "plan_tag"]
LETTERS = {
    "plan": "P", "think": "R", "search": "C", "information": "O", "answer": "A", "loose": "x", "control": "x",
}  # fmt: skip
_MARKER = re.compile(r"(?:step\s*)?(\d{1,3})\s?[.):](?=\s|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One closed search call with a query."""

    query: str
    turn: int
    """Index into `Trajectory.turns`."""
    found: bool
    """The environment answered it with at least one passage; only then was it carried out."""
    passages: str = ""
    """What came back, as the policy read it; empty where nothing did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPath:
    """What a trajectory did, in order."""

    plan: tuple[str, ...]
    """Its own numbered steps; empty where it wrote none."""
    searches: tuple[Search, ...]
    """Every call, duplicates included; their number is n_actions."""
    answer: str | None
    """The last closed answer that is not blank."""
    grade: Grade
    """How well it keeps to the protocol."""
    plan_turn: int = 0
    """Turn in which the plan was written, an index into `Trajectory.turns`; 0 without a plan."""

    @property
    def carried_out(self) -> tuple[str, ...]:
        """Queries that brought passages, in order."""
        return tuple(search.query for search in self.searches if search.found)


def parse_path(
    trajectory: Trajectory,
    tags: Tags,
    *,
    plan_source: PlanSource = "first_reasoning",
    require_search: bool = True,
) -> SearchPath:
    """Read a trajectory.

    `plan_source`: the plan is in the first block of reasoning, wherever that stands, or in a block of its own tag
    (`tags.plan`, or `plan` where that is empty). A plan that is restated later is ignored.
    """
    tagged = plan_source == "plan_tag"
    tags = replace(tags, plan=(tags.plan or "plan") if tagged else "")
    found = blocks(((node.author, node.text) for node in trajectory.nodes), tags)
    source = next((block for block in found if block.kind == ("plan" if tagged else "think")), None)
    answers = [block.text for block in found if block.kind == "answer" and block.text]
    opening = "PR" if tagged else "R"
    turns = _turns(trajectory)
    return SearchPath(
        plan=tuple(numbered_items(source.text)) if source else (),
        searches=tuple(_searches(found, turns)),
        answer=answers[-1] if answers else None,
        grade=grade(found, tags, require_search=require_search, opening=opening),
        plan_turn=turns[source.part] if source else 0,
    )


def grade(found: Sequence[Block], tags: Tags, *, require_search: bool = True, opening: str = "R?") -> Grade:
    """Grade a trajectory split by `rlkit.tags.blocks` (search_p1 §2.5 and §5.2).

        full     opening (C O R?)* A   with a legal C, white space between blocks, nothing blank, nested or forged
        partial  an answer and at least one real observation, but not full
        invalid  everything else

    P plan, R reasoning, C search call, O observation by the environment, A answer.
    """
    answered = any(block.kind == "answer" and block.text for block in found)
    called = any(block.kind == "search" and not query_fault(block.text, tags) for block in found)
    observed = any(block.kind == "information" for block in found)
    letters = "".join(LETTERS[block.kind] for block in found)
    written = all(block.text for block in found)
    well_formed = re.fullmatch(rf"{opening}(?:COR?)*A", letters)
    if written and answered and well_formed and (called or not require_search):
        return "full"
    return "partial" if answered and (observed or not require_search) else "invalid"


def numbered_items(text: str) -> Iterator[str]:
    """The items of a numbered list: `1. a`, `2) b`, `Step 3: c`, one a line or several in one line.

    A number at the start of a line begins an item whatever it is; inside a line only one that continues the count, so
    that "in 1990. Then" is no step. An item ends with its line.
    """
    last = 0
    for line in text.splitlines():
        starts: list[tuple[int, int]] = []
        lead = len(line) - len(line.lstrip(" \t-*#>"))
        for match in _MARKER.finditer(line):
            before, number = line[: match.start()], int(match[1])
            at_start = match.start() == lead
            if at_start or (before[-1:].isspace() and number == last + 1):
                starts.append((match.start(), match.end()))
                last = number
        ends = [start for start, _ in starts[1:]] + [len(line)]
        for (_, begin), end in zip(starts, ends, strict=False):
            if item := line[begin:end].strip(" \t*;,"):
                yield item


def _turns(trajectory: Trajectory) -> list[int]:
    """For each node the index into `Trajectory.turns` of the turn that it belongs to; 0 before the first."""
    order = {turn: n for n, turn in enumerate(dict.fromkeys(n.turn for n in trajectory.nodes if n.author == "policy"))}
    return [order.get(node.turn, 0) for node in trajectory.nodes]


def _searches(found: Sequence[Block], turns: Sequence[int]) -> Iterator[Search]:
    for block, after in pairwise((*found, None)):
        if block is not None and block.kind == "search" and block.text:
            said = after.text if after is not None and after.kind == "information" else ""
            passages = "" if said in (NOTHING_FOUND, SEARCH_FAILED) else said
            yield Search(query=block.text, turn=turns[block.part], found=bool(passages), passages=passages)
