"""Reward for answers that say what the evidence says (adqa, §3.3): by a judge, or by counting supported statements.

With a judge: the answer is compared with the reference; better (G) is 1, a tie (S) 0.5, worse (B) 0.

Without: the mean of two numbers in [0, 1].

    agreement   word F1 with the best reference
    support     share of the answer's statements that the evidence or a reference supports

A statement is a sentence with at least two words of content, URLs left out (they have a reward of their own). It is
supported if all its numbers occur in the sources, and `share` of its words of content in two neighbouring sentences of
them; with `nli`, if a model of inference finds it entailed by two such sentences. Where the reference declines to
answer, declining is worth 1 and everything else 0; where it does not, declining is worth 0. The rule of words cannot
see a negation or a paraphrase: it is the stand-in for machines without a judge.

`hallucinated` is logged beside it: 1 if any statement is unsupported by the evidence alone. Its mean is the
hallucination rate; `unsupported` is the share of such statements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial

from rlkit import text
from rlkit.errors import RewardError
from rlkit.evidence.passages import evidence_of
from rlkit.evidence.urls import without_urls
from rlkit.judging import Endpoint
from rlkit.records import Task, Trajectory
from rlkit.reward import Score, contract, needs_answers
from rlkit.rewards.answer_judge import ask
from rlkit.rewards.entailment import entails

__all__ = ["GRADES", "faithfulness", "is_refusal", "statements", "unsupported"]

GRADES = {"G": 1.0, "S": 0.5, "B": 0.0}
"""{1, 0, -1} rescaled to [0, 1] gives the same values."""
REFUSAL = re.compile(
    r"\b(?:(?:can(?:no|')t|could not|couldn't|unable to|not able to) (?:be )?(?:answer|find|confirm|determine|say|tell)"
    r"|(?:does|do|did)(?: not|n't) (?:contain|include|say|mention|provide|cover|answer)"
    r"|(?:is|are)(?: not|n't) (?:mentioned|covered|stated|specified|documented)"
    r"|no (?:information|evidence|answer)|not enough information|i (?:do not|don't) know)\b",
    re.IGNORECASE,
)
_STOP = """
about above after again all also am an and any are as at be because been before being below between both but by can
could did do does doing down during each few for from further had has have having he her here hers him his how if in
into is it its just may me might more most must my no nor not now of off on once only or other our out over own please
same shall she should so some such than that the their them then there these they this those through to too under
until up very was we were what when where which while who whom why will with would yes you your
"""
STOP = frozenset(_STOP.split())
PREMISES = 8
"""Pairs of sentences that a model of inference reads for one statement, those with most words in common."""
Entailed = Callable[[Sequence[str], str], bool]
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*%?")
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n+")  # noqa: RUF001  # full-width marks of Chinese


@contract(bounds=(0, 1))
@needs_answers
def faithfulness(
    task: Task,
    trajectory: Trajectory,
    *,
    judge: Endpoint | None = None,
    swap: bool = False,
    share: float = 0.6,
    nli: str | None = None,
    evidence_tag: str = "information",
) -> Score:
    """1 for an answer better than the reference or fully supported, 0 for a worse, invented or blank one.

    `judge`: null counts supported statements. `swap`: judge both orders and take the mean, against a judge that
    prefers a place. `nli`: folder of a model that says what supports a statement; null compares words, by `share`.
    Raises `RewardError` if the judge gives no verdict, the model cannot be used, or the task has no reference.
    """
    if not task.answers:
        raise RewardError(f"task {task.id} has no reference answer to compare with")
    answer = text.without_thoughts(trajectory.answer or "")
    evidence = evidence_of(trajectory, evidence_tag)
    entailed = partial(entails, nli) if nli is not None else None
    invented = unsupported(answer, [evidence], share, entailed)
    declined = is_refusal(answer)
    said = statements(answer)
    measured = {
        "hallucinated": float(bool(invented) and not declined) if answer else math.nan,
        "unsupported": math.nan if declined or not said else len(invented) / len(said),
        "refused": float(declined) if answer else math.nan,
    }
    if not answer:
        value = 0.0
    elif judge is not None:
        value = GRADES[ask(judge, task, evidence, answer).grade]
        if swap:
            value = (value + 1 - GRADES[ask(judge, task, evidence, answer, swapped=True).grade]) / 2
    else:
        value = _by_rule(answer, evidence, task.answers, share, entailed)
    return Score(value=value, measured=measured)


def _by_rule(answer: str, evidence: str, references: Sequence[str], share: float, entailed: Entailed | None) -> float:
    if is_refusal(references[0]) or is_refusal(answer):
        return float(is_refusal(references[0]) and is_refusal(answer))
    said = statements(answer)
    invented = unsupported(answer, [evidence, *references], share, entailed)
    support = 1 - len(invented) / len(said) if said else 1.0
    return (text.best(text.f1, without_urls(answer), map(without_urls, references)) + support) / 2


def is_refusal(answer: str) -> bool:
    """True if the first two sentences say that there is no answer."""
    return any(REFUSAL.search(sentence.replace("’", "'")) for sentence in _sentences(answer)[:2])  # noqa: RUF001


def statements(answer: str) -> list[str]:
    """The sentences of `answer` that claim something."""
    return [sentence for sentence in _sentences(without_urls(answer)) if len(_content(sentence)) >= 2]


def unsupported(answer: str, sources: Sequence[str], share: float = 0.6, entailed: Entailed | None = None) -> list[str]:
    """Statements of `answer` that no source supports: by words, or as `entailed(premises, statement)` says."""
    sentences = [sentence for source in sources for sentence in _sentences(source)]
    pairs = [f"{first} {second}" for first, second in zip(sentences, [*sentences[1:], ""], strict=False)]
    windows = [_content(pair) for pair in pairs]
    numbers = {number for source in sources for number in NUMBER.findall(source)}

    def supported(statement: str) -> bool:
        wanted = _content(statement)
        if not numbers.issuperset(NUMBER.findall(statement)):
            return False
        if entailed is not None:
            near = sorted(range(len(pairs)), key=lambda index: -len(wanted & windows[index]))[:PREMISES]
            return entailed([pairs[index] for index in near], statement)
        return any(len(wanted & window) >= share * len(wanted) for window in windows)

    return [statement for statement in statements(answer) if not supported(statement)]


def _sentences(passage: str) -> list[str]:
    return [sentence.strip() for sentence in SENTENCE.split(passage) if sentence.strip()]


def _content(sentence: str) -> set[str]:
    """Words of content, without a plural's s."""
    return {word.removesuffix("s") for word in text.words(sentence) if word not in STOP}
