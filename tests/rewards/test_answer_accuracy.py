"""What is measured of an answer beside its rewards, and the rates of an evaluation with their intervals."""

from __future__ import annotations

import asyncio
import math

import pytest

from rlkit.errors import RewardError
from rlkit.metrics import held_out_metrics, metric, wilson
from rlkit.records import Task, Trajectory
from rlkit.rewards.answer_accuracy import answer_accuracy
from rlkit.rollout.judge import RewardSpec
from rlkit.rollout.scoring import Scorer
from rlkit.transcript import Written, transcript
from tests.rewards.paths import path

PAGE = "https://a.com/review"
EVIDENCE = f"Ads are reviewed within 2 business days. URL: {PAGE}"
GOLD = f"Ads are reviewed within 2 business days. Write to us. See {PAGE}."
TASK = Task(id="t", question="How long does review take?", answers=(GOLD,))
DECLINES = Task(id="u", question="Who owns it?", answers=("The documentation does not contain an answer.",))
TURNED = Task(
    id="t~counterfactual",
    question="How long does review take?",
    answers=("Ads are reviewed within 7 business days.",),
    data={"counterfactual": True, "replace": {"2": "7"}},
)


def shown(answer: str | None, evidence: str = EVIDENCE) -> Trajectory:
    return path(f"e:<information>{evidence}</information>", "m:x", answer=answer)


def test_the_value_is_rouge_l_without_urls() -> None:
    # 7 tokens of the answer in order among the reference's 11 (7 + write, to, us, see).
    score = answer_accuracy(TASK, shown(f"Ads are reviewed within 2 business days {PAGE}"))
    assert score.value == pytest.approx(2 * 7 / (7 + 11))
    # "Write to us." has two words of content and is missing: one of two statements; the one URL is cited.
    assert score.measured["complete"] == pytest.approx(1 / 2)
    assert score.measured["cited"] == 1.0
    assert answer_accuracy(TASK, shown(None)).value == answer_accuracy(TASK, shown("<think>2")).value == 0.0


def test_declining_is_counted_apart_for_questions_with_and_without_an_answer() -> None:
    refusal = shown("The documentation does not contain an answer.")
    with_answer, without = (answer_accuracy(task, refusal).measured for task in (TASK, DECLINES))
    assert (with_answer["answerable_declined"], without["unanswerable_declined"]) == (1.0, 1.0)
    assert math.isnan(with_answer["unanswerable_declined"]) and math.isnan(without["answerable_declined"])
    assert math.isnan(without["complete"]) and math.isnan(without["cited"])
    assert answer_accuracy(DECLINES, shown("Petra Vann owns it.")).measured["unanswerable_declined"] == 0.0


@pytest.mark.parametrize(
    ("answer", "follows", "remembers"),
    [
        ("Within 7 days.", 1.0, 0.0),
        ("Within 2 days.", 0.0, 1.0),
        ("Within 2 or 7 days.", 0.0, 0.0),
        ("Soon; see https://a.com/7.", 0.0, 0.0),
    ],
)
def test_a_counterfactual_answer_follows_evidence_or_memory(answer: str, follows: float, remembers: float) -> None:
    evidence = EVIDENCE.replace("2", "7")
    measured = answer_accuracy(TURNED, shown(answer, evidence)).measured
    assert (measured["evidence_followed"], measured["memory_preferred"]) == (follows, remembers)


def test_nothing_is_said_where_the_turned_evidence_was_not_retrieved() -> None:
    assert "evidence_followed" not in answer_accuracy(TURNED, shown("Within 7 days.", "Other pages.")).measured


def test_a_task_without_reference_is_an_error_and_no_zero() -> None:
    with pytest.raises(RewardError, match="no reference answer"):
        answer_accuracy(Task(id="n", question="?"), shown("x"))


ANSWERS = (  # answer, task: with one trajectory each every rate is a share of tasks
    (f"Ads are reviewed within 2 business days. See {PAGE}.", TASK),
    ("Ads are reviewed within 2 business days. See https://a.com/invented.", TASK),
    ("Refunds arrive on Tuesdays by carrier pigeon.", TASK),
    ("The documentation does not contain an answer.", DECLINES),
    ("Petra Vann bought the whole company.", DECLINES),
)


def test_an_evaluation_reports_each_rate_with_its_wilson_interval() -> None:
    kinds = ("faithfulness", "url_validity", "answer_accuracy")
    specs = [
        RewardSpec(name=kind, weight=1.0, deadline_s=9.0, spec=f"rlkit.rewards.{kind}:{kind}", settings={})
        for kind in kinds
    ]
    scorer = Scorer(specs, isolate=False)
    trees = []
    for number, (answer, task) in enumerate(ANSWERS):
        named = Task(id=str(number), question=task.question, answers=task.answers)
        written = Written(parts=(("policy", answer),), answer=answer)
        prompt = f"<information>{EVIDENCE}</information> {task.question}"
        trees.append(asyncio.run(scorer.score(transcript(named, written, prompt=prompt))))
    found = held_out_metrics(trees, learner_version=0)
    rates = {
        "faithfulness/hallucinated": (2, 5),  # the pigeon and the company
        "url_validity/any_invalid": (1, 5),
        "answer_accuracy/unanswerable_declined": (1, 2),
        "answer_accuracy/answerable_declined": (0, 3),
        "answer_accuracy/cited": (1, 3),
    }
    for name, (count, among) in rates.items():
        assert found[f"reward/{name}/mean"] == pytest.approx(count / among), name
        assert found[f"reward/{name}/n"] == among
        assert (found[f"reward/{name}/low"], found[f"reward/{name}/high"]) == wilson(count, among)
    assert found["reward/url_validity/num_invalid/mean"] == pytest.approx(1 / 5)
    assert found["reward/faithfulness/unsupported/mean"] == pytest.approx((0 + 0 + 1 + 1) / 4)
    assert metric("reward/answer_accuracy/cited/mean").unit == "share"
    assert metric("reward/faithfulness/hallucinated/mean").meaning.startswith("The hallucination rate")
