"""Reward for the style of customer service (adqa, §3.3): 0 to 10 by a judge or by rules, divided by 10.

The judge's bands: 0-2 poor, 3-4 below average, 5-6 acceptable, 7-8 good, 9-10 excellent. Without a judge an answer
begins at 10 and loses points once for each rule it breaks; a blank answer has 0.
"""

from __future__ import annotations

import re
from collections import Counter

from rlkit import text
from rlkit.evidence.passages import evidence_of
from rlkit.judging import Endpoint
from rlkit.records import Task, Trajectory
from rlkit.reward import contract
from rlkit.rewards.answer_judge import ask

__all__ = ["INFORMAL", "style", "style_faults"]

INFORMAL = ("gonna", "wanna", "gotta", "lol", "omg", "btw", "dude", "yeah", "nope", "kinda", "dunno", "crap", "damn")
SHOUTED = re.compile(r"[!?]{2,}|\b[A-Z]{4,}(?:\s+[A-Z]{4,})+\b")
EMOJI = re.compile(r"[\U0001F300-\U0001FAFF☀-➿]")
RESIDUE = re.compile(
    r"<\|?/?\w+\|?>|\{\w+\}|\bas an ai\b|\bDoc \d+\s*\(|\[(?:Query|Materials|Answer [AB])\]", re.IGNORECASE
)
OPENED = re.compile(r"^[\"'“(\[*_#>\-–•]*\s*[A-Z0-9\d]|^[^\x00-\x7f]|^[\"'(\[*_#>\-]*\s*https?://")  # noqa: RUF001
CLOSED = re.compile(r"[.!?:)\]*`。！？]\s*$|https?://\S+\s*$|(?:^|\n)\s*(?:[-*•]|\d+\.)\s[^\n]*$")  # noqa: RUF001


@contract(bounds=(0, 1))
def style(
    task: Task,
    trajectory: Trajectory,
    *,
    judge: Endpoint | None = None,
    min_words: int = 3,
    max_words: int = 250,
    informal: list[str] = list(INFORMAL),  # noqa: B006  # copied by rlkit.plugins
    evidence_tag: str = "information",
) -> float:
    """Style in [0, 1]. Raises `RewardError` if the judge gives no verdict."""
    answer = text.without_thoughts(trajectory.answer or "")
    if not answer:
        return 0.0
    if judge is not None:
        return ask(judge, task, evidence_of(trajectory, evidence_tag), answer).style / 10
    lost = sum(style_faults(answer, min_words=min_words, max_words=max_words, informal=informal).values())
    return max(10 - lost, 0) / 10


def style_faults(
    answer: str, *, min_words: int = 3, max_words: int = 250, informal: list[str] | tuple[str, ...] = INFORMAL
) -> dict[str, int]:
    """Rules that the answer breaks, with the points of 10 that each costs."""
    used = answer.split()
    parts = re.split(r"(?<=[.!?])\s+|\n+", answer)
    sentences = Counter(text.normalize(part) for part in parts if len(part.split()) > 3)
    slang = re.search(rf"\b(?:{'|'.join(map(re.escape, informal))})\b", answer, re.IGNORECASE) if informal else None
    broken = {
        "informal": (bool(slang), 3),
        "shouting": (bool(SHOUTED.search(answer)), 2),
        "emoji": (bool(EMOJI.search(answer)), 2),
        "residue": (bool(RESIDUE.search(answer)), 4),  # tags, slots and roles of the prompt
        "repetition": (any(count > 1 for count in sentences.values()), 3),
        "too_short": (len(used) < min_words, 3),
        "too_long": (len(used) > max_words, 3),
        "no_beginning": (not OPENED.search(answer), 1),  # a capital, a digit, a list
        "no_end": (not CLOSED.search(answer), 2),  # cut off, or no sentence
    }
    return {name: points for name, (is_broken, points) in broken.items() if is_broken}
