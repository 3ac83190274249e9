"""Which steps of a plan did the queries carry out: a matcher of words, and a matching of one query to one step.

Search-P1 (arXiv:2602.22576) leaves both open; this is search_p1 §5.3. An action may serve one step only and a step
counts once, in any order, so the count is that of a *maximum* bipartite matching: where step A fits {q1, q2} and step
B fits {q1}, taking q1 for A first would give 1, the maximum is 2. Known weakness: words cannot see a wrong entity.

The words of a step are those of its normalised text less function words and planning verbs, and less what stands in
brackets: `[that film]` is a placeholder for what an earlier step finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlkit.search.annotation import FUNCTION_WORDS
from rlkit.text import normalize, words

__all__ = ["MIN_F1", "Query", "Step", "newly_covered", "num_covered", "word_f1"]

MIN_F1 = 0.6
"""Word F1 from which a query carries out a step."""
PLANNING_WORDS = frozenset(
    words(
        "search searching find finding identify determine look lookup check verify confirm get retrieve query figure "
        "out up into know learn discover research locate step first then next finally information info name"
    )
)
_PLACEHOLDER = re.compile(r"\[[^\[\]]*\]")


@dataclass(frozen=True, slots=True)
class Step:
    """A step as the matcher sees it."""

    words: frozenset[str]
    """Without what stands in brackets."""
    is_open: bool
    """It has a placeholder, so a query may say more than the step."""

    @classmethod
    def of(cls, text: str) -> Step:
        """Read a line of a plan."""
        plain = _PLACEHOLDER.sub(" ", text)
        return cls(_content(plain), plain != text)


@dataclass(frozen=True, slots=True)
class Query:
    """A query as the matcher sees it."""

    words: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Query:
        """Read a query."""
        return cls(_content(text))

    def carries_out(self, step: Step) -> bool:
        """Word F1 of at least `MIN_F1`, or an open step of which no word is missing. Nothing matches no words."""
        if not step.words or not self.words:
            return False
        return word_f1(step.words, self.words) >= MIN_F1 or (step.is_open and step.words <= self.words)


def word_f1(some: frozenset[str], others: frozenset[str]) -> float:
    """F1 of two sets: `2·shared / (len + len)`; 0 where nothing is shared."""
    shared = len(some & others)
    return 2 * shared / (len(some) + len(others)) if shared else 0.0


def num_covered(steps: Sequence[str], queries: Iterable[str]) -> int:
    """Steps that the queries carry out, in any order."""
    return sum(newly_covered(steps, queries))


def newly_covered(steps: Sequence[str], queries: Iterable[str]) -> tuple[bool, ...]:
    """For each query whether it raised the number of covered steps; a repeated query never does.

    Queries enter one after the other and each is kept if an augmenting path exists (Kuhn 1955), so after the k-th
    the number of True is the maximum matching of the first k.
    """
    kinds: dict[Step, list[int]] = {}
    for index, step in enumerate(steps):
        kinds.setdefault(Step.of(step), []).append(index)
    fitting: dict[Query, list[int]] = {}
    taken: dict[int, Query] = {}
    seen: set[str] = set()
    found: list[bool] = []
    for text in queries:
        key, query = normalize(text), Query.of(text)
        if key in seen or len(taken) == len(steps):
            found.append(False)
            continue
        seen.add(key)
        if query not in fitting:
            fitting[query] = [i for step, places in kinds.items() if query.carries_out(step) for i in places]
        found.append(_augment(query, fitting, taken))
    return tuple(found)


def _augment(query: Query, fitting: dict[Query, list[int]], taken: dict[int, Query]) -> bool:
    """Find a place for `query`, moving others where that helps; breadth first, each step is looked at once."""
    came_from: dict[int, int | None] = {}
    waiting: list[tuple[Query, int | None]] = [(query, None)]
    for mover, left in waiting:  # grows while it is read
        for step in fitting[mover]:
            if step in came_from:
                continue
            came_from[step] = left
            if step in taken:
                waiting.append((taken[step], step))
                continue
            place: int | None = step
            while place is not None:  # each mover on the way takes the place that the search reached
                previous = came_from[place]
                taken[place] = query if previous is None else taken[previous]
                place = previous
            return True
    return False


def _content(text: str) -> frozenset[str]:
    return frozenset(words(text)) - FUNCTION_WORDS - PLANNING_WORDS
