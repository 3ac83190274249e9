"""The planner `direct`: a language model that is shown the answer writes the fewest searches that lead to it.

Xia et al. 2026 (arXiv:2602.22576), figure 8 in our words, with validation and a new try (search_p1 §7, C4). Departure:
the two products come as one JSON object under the names of the paper's tags, not inside tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlkit.judging import Judge

__all__ = ["DIRECT", "Plan", "read_plan"]

TEMPLATE = """\
You optimise how a search assistant plans and reasons. You are given a question and its accepted answers. Write
1. the best search path: a list of search queries, the smallest set that is needed, in order, none of them redundant.
   A query may depend on what an earlier one finds: write [what was found] in its place. No query may contain an
   accepted answer, a web address or a tag;
2. a short step-by-step instruction that leads to this path without telling any answer.
Write one JSON object of this form and nothing else:
{"correct_reasoning_path": ["first query", "second query"], "optimized_planner": "instruction"}

Question:
{question}
Accepted answers:
{golden_answers}
{complaint}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a planner wrote, not validated yet."""

    steps: tuple[str, ...]
    planner: str = ""


def read_plan(values: Mapping[str, Any]) -> Plan:
    """The plan of the model's JSON: a list, or text with a numbered item a line. Raises `ValueError` for anything else.

    Numbers before an item are dropped.
    """
    steps = values.get("correct_reasoning_path")
    if isinstance(steps, str):
        steps = steps.splitlines()
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"correct_reasoning_path: {steps!r} is not a list of queries")
    plain = (re.sub(r"^\s*(?:step\s*)?\d{1,3}\s?[.):]\s*", "", step, flags=re.IGNORECASE).strip() for step in steps)
    return Plan(steps=tuple(step for step in plain if step), planner=str(values.get("optimized_planner") or "").strip())


DIRECT = Judge(name="direct planner", template=TEMPLATE, parse=read_plan)
