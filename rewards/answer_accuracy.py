"""How right an answer is, and what it does where the evidence holds no answer or an unusual one: a measurement.

The value is ROUGE-L against the best reference, URLs left out; give it the weight 0. Measured beside it, each over the
questions that it speaks of:

    complete              share of the reference's statements that the answer supports
    cited                 share of the reference's URLs that the answer cites
    unanswerable_declined 1 if a question without an answer is declined
    answerable_declined   1 if one with an answer is
    evidence_followed     1 if a counterfactual answer says what its evidence says, and not what is usually true
    memory_preferred      1 if it says what is usually true although the evidence says otherwise; silence is neither

Hallucination rates are measured by `faithfulness` (statements) and `url_validity` (URLs). Kinds of questions: FaithEval
(Ming et al. 2025, arXiv:2410.03727), which the paper evaluates on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlkit import text
from rlkit.errors import RewardError
from rlkit.evidence.passages import evidence_of
from rlkit.evidence.urls import extract_urls, without_urls
from rlkit.records import Task, Trajectory
from rlkit.reward import Score, contract, needs_answers
from rlkit.rewards.faithfulness import is_refusal, statements, unsupported

__all__ = ["answer_accuracy"]


@contract(bounds=(0, 1), invariant=("answer_order",))
@needs_answers
def answer_accuracy(
    task: Task, trajectory: Trajectory, *, share: float = 0.6, evidence_tag: str = "information"
) -> Score:
    """ROUGE-L in [0, 1]; 0 for a blank answer. `share`: of a statement's words that support it, as in `faithfulness`.

    Raises `RewardError` if the task has no reference.
    """
    if not task.answers:
        raise RewardError(f"task {task.id} has no reference answer to compare with")
    answer = text.without_thoughts(trajectory.answer or "")
    bare = without_urls(answer)
    references = [without_urls(reference) for reference in task.answers]
    declined, answerable = is_refusal(answer), not is_refusal(task.answers[0])
    wanted = {url for reference in task.answers for url in extract_urls(reference)}
    measured = {
        "complete": max(_complete(bare, reference, share) for reference in references) if answerable else math.nan,
        "cited": len(wanted.intersection(extract_urls(answer))) / len(wanted) if wanted else math.nan,
        "unanswerable_declined": math.nan if answerable else float(declined),
        "answerable_declined": float(declined) if answerable else math.nan,
    }
    instead = task.data.get("replace") or {}
    shown = evidence_of(trajectory, evidence_tag)
    if any(_says(shown, word) for word in instead.values()):
        measured |= _sides(bare, instead)
    return Score(value=text.best(text.rouge_l, bare, references), measured=measured)


def _complete(answer: str, reference: str, share: float) -> float:
    """A reference without statements (a bare "Yes.") is complete if the answer contains it."""
    said = statements(reference)
    if not said:
        return text.contains_words(answer, reference)
    return 1 - len(unsupported(reference, [answer], share)) / len(said)


def _sides(answer: str, instead: Mapping[str, str]) -> dict[str, float]:
    follows = any(_says(answer, word) for word in instead.values())
    remembers = any(_says(answer, word) for word in instead)
    return {
        "evidence_followed": float(follows and not remembers),
        "memory_preferred": float(remembers and not follows),
    }


def _says(passage: str, word: str) -> bool:
    return text.replaced(passage, {word: ""}) != passage
