"""The evidence of an answer: what retrieval showed the policy, cut to a budget and read back from a trajectory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rlkit.evidence.urls import spans
from rlkit.records import Trajectory

__all__ = ["estimated_tokens", "evidence_of", "within_budget"]

CHARS_PER_TOKEN = 4
"""Of English prose under byte-pair vocabularies of 30,000 tokens and more."""


def evidence_of(trajectory: Trajectory, tag: str = "information") -> str:
    """All text between `<tag>` and `</tag>` that the environment or the prompt holds; never what the policy wrote.

    The environment defuses tags inside passages and questions, so nobody else can open such a block.
    """
    block = re.compile(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", re.DOTALL)
    shown = "".join(node.text for node in trajectory.nodes if node.author != "policy")
    return "\n".join(block.findall(shown))


def estimated_tokens(text: str) -> int:
    """Tokens of `text` without a tokenizer: a quarter of its ASCII characters plus one for each other character."""
    ascii_chars = sum(char.isascii() for char in text)
    return -(-ascii_chars // CHARS_PER_TOKEN) + len(text) - ascii_chars


def within_budget(texts: Sequence[str], budget: int, size: Callable[[str], int] = len) -> list[str]:
    """The first texts that fit together, whole; the first alone is cut at white space if it exceeds the budget.

    A cut never falls inside a URL: the whole URL goes. `size` measures one text, in the unit of `budget`.
    """
    kept: list[str] = []
    left = budget
    for text in texts:
        if size(text) > left:
            break
        kept.append(text)
        left -= size(text)
    return kept or [_cut(text, budget, size) for text in texts[:1]]


def _cut(text: str, budget: int, size: Callable[[str], int]) -> str:
    """The longest beginning within the budget that ends between words and outside URLs."""
    low, high = 0, len(text)
    while low < high:  # `size` never falls when text is added
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(text[:middle]) <= budget else (low, middle - 1)
    end = low
    for start, stop, _ in spans(text):
        if start < end < stop:
            end = start
    if end < len(text) and not text[end].isspace() and (space := re.search(r"\s\S*\Z", text[:end])):
        end = space.start()
    return text[:end].rstrip()
