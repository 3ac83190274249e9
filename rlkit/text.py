"""Words of answers: the normalisation of open-domain question answering and the metrics that rest on it.

Rajpurkar et al. 2016 (arXiv:1606.05250), as HotpotQA, 2WikiMultihopQA and MuSiQue use it: lower-case, drop
ASCII punctuation, drop the articles a, an and the, collapse white space. Departure: a gold answer of which
nothing is left ("The") scores 0 in every metric; the usual scripts let it match any empty answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

__all__ = ["best", "contains", "contains_words", "exact", "f1", "normalize", "without_thoughts", "words"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize(text: str) -> str:
    """`"The Eddie Argos."` -> `"eddie argos"`; `"U.S.A."` -> `"usa"`."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def words(text: str) -> list[str]:
    """The words of the normalised text."""
    return normalize(text).split()


def exact(answer: str, gold: str) -> float:
    """1.0 if both are equal after `normalize`, else 0.0."""
    wanted = normalize(gold)
    return float(bool(wanted) and normalize(answer) == wanted)


def contains(answer: str, gold: str) -> float:
    """1.0 if the gold answer is a substring of the answer; "Einsteinium" contains "Einstein"."""
    wanted = normalize(gold)
    return float(bool(wanted) and wanted in normalize(answer))


def contains_words(answer: str, gold: str) -> float:
    """1.0 if the gold answer is a run of whole words of the answer; "Einsteinium" does not contain
    "Einstein".
    """
    wanted = normalize(gold)
    return float(bool(wanted) and f" {wanted} " in f" {normalize(answer)} ")


def f1(answer: str, gold: str) -> float:
    """Harmonic mean of word precision and recall, counting repeated words: `2·shared / (len + len)`."""
    given, wanted = words(answer), words(gold)
    shared = (Counter(given) & Counter(wanted)).total()
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0


def best(metric: Callable[[str, str], float], answer: str, golds: Iterable[str]) -> float:
    """The best score of `answer` over all accepted answers; 0.0 where there is none."""
    return max((metric(answer, gold) for gold in golds), default=0.0)


def without_thoughts(text: str, tag: str = "think") -> str:
    """`text` without `<think>` blocks; a block that is never closed reaches to the end: no answer came."""
    return re.sub(rf"<{re.escape(tag)}>.*?(?:</{re.escape(tag)}>|\Z)", "", text, flags=re.DOTALL).strip()
