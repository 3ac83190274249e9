"""How much the trajectories of a group agree on the evidence they saw: a measurement, not a part of Search-P1's reward.

The appendix of Xia et al. 2026 (arXiv:2602.22576) speaks of pairwise Jaccard of extracted evidence spans over several
reasoning paths of one question, its equations do not (search_p1 §3, C5). Here a span is one retrieved passage. Give it
the weight 0.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

from rlkit.records import Task, Trajectory
from rlkit.reward import contract
from rlkit.search.path import parse_path
from rlkit.tags import SEARCH_R1_TAGS, Tags

__all__ = ["agreement", "evidence_agreement"]


def agreement(spans: Sequence[Collection[str]]) -> float:
    """Mean Jaccard of all pairs, the shared part of what either has.

    1 for two empty sets, 0 for one; 1 for fewer than two sets.
    """
    pairs = list(combinations([frozenset(found) for found in spans], 2))
    shares = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs]
    return sum(shares) / len(shares) if shares else 1.0


@contract(per_group=True, bounds=(0.0, 1.0), invariant=("answer_order", "group_order"))
def evidence_agreement(task: Task, trajectories: Sequence[Trajectory], *, tags: Tags = SEARCH_R1_TAGS) -> list[float]:
    """How much the group agrees on the passages it saw, in [0, 1]; the same for each of its trajectories."""
    spans = [
        {line for search in parse_path(trajectory, tags).searches for line in search.passages.splitlines() if line}
        for trajectory in trajectories
    ]
    return [agreement(spans)] * len(trajectories)
