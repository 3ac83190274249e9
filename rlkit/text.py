"""Words of answers: the normalisation of open-domain question answering and the metrics that rest on it.

Rajpurkar et al. 2016 (arXiv:1606.05250), as HotpotQA, 2WikiMultihopQA and MuSiQue use it: lower-case, drop
ASCII punctuation, drop the articles a, an and the, collapse white space. Departure: a gold answer of which
nothing is left ("The") scores 0 in every metric; the usual scripts let it match any empty answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "best",
    "contains",
    "contains_words",
    "exact",
    "f1",
    "normalize",
    "replaced",
    "rouge_l",
    "without_thoughts",
    "words",
]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


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


def rouge_l(answer: str, gold: str) -> float:
    """ROUGE-L, F-measure with beta = 1 (Lin 2004, aclanthology.org/W04-1013): 2·LCS / (len + len) of the tokens.

    Tokens are words, and the single characters of Chinese, Japanese and Korean; articles count, nothing is stemmed.
    """
    given, wanted = _TOKEN.findall(answer.lower()), _TOKEN.findall(gold.lower())
    return 2 * _common(given, wanted) / (len(given) + len(wanted)) if given and wanted else 0.0


def _common(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, a row of the table per machine word (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << index
    everything = (1 << len(first)) - 1
    row = everything  # a 0 where the row of the table rises
    for token in second:
        found = row & places.get(token, 0)
        row = ((row + found) | (row - found)) & everything
    return len(first) - row.bit_count()


def replaced(text: str, words: Mapping[str, str]) -> str:
    """`text` with each of `words` replaced where it stands alone, so never inside a URL or a longer word."""
    if not words:
        return text
    either = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    alone = rf"(?<![\w./=&?%#@:~+-])(?:{either})(?![\w/=&?%#@~+-]|[.,:]\w)"
    return re.sub(alone, lambda found: words[found[0]], text)


def best(metric: Callable[[str, str], float], answer: str, golds: Iterable[str]) -> float:
    """The best score of `answer` over all accepted answers; 0.0 where there is none."""
    return max((metric(answer, gold) for gold in golds), default=0.0)


def without_thoughts(text: str, tag: str = "think") -> str:
    """`text` without `<think>` blocks; a block that is never closed reaches to the end: no answer came."""
    return re.sub(rf"<{re.escape(tag)}>.*?(?:</{re.escape(tag)}>|\Z)", "", text, flags=re.DOTALL).strip()
