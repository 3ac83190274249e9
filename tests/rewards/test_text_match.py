"""Rewards on the final answer."""

from __future__ import annotations

import pytest

from rlkit.errors import RewardError
from rlkit.records import Task
from rlkit.rewards.text_match import containment, exact_match, f1
from tests.rewards.paths import TASK, path


@pytest.mark.parametrize(
    ("answer", "em", "acc", "word_f1"),
    [
        ("The Eddie Argos.", 1.0, 1.0, 1.0),
        ("Argos, Eddie", 1.0, 1.0, 1.0),
        ("It was Eddie Argos, the frontman", 0.0, 1.0, 2 * 2 / (5 + 2)),  # it was eddie argos frontman
        ("Argos", 0.0, 0.0, 2 / 3),
        ("", 0.0, 0.0, 0.0),
        (None, 0.0, 0.0, 0.0),
    ],
)
def test_answers_are_compared_with_the_best_accepted_one(
    answer: str | None, em: float, acc: float, word_f1: float
) -> None:
    trajectory = path(answer=answer)
    assert exact_match(TASK, trajectory) == em
    assert containment(TASK, trajectory) == acc
    assert f1(TASK, trajectory) == pytest.approx(word_f1)


def test_containment_can_be_held_to_whole_words() -> None:
    task = Task(id="e", question="?", answers=("Einstein",))
    trajectory = path(answer="Einsteinium", task=task)
    assert containment(task, trajectory) == 1.0
    assert containment(task, trajectory, whole_words=True) == 0.0


def test_an_answer_in_an_observation_is_not_rewarded() -> None:
    assert exact_match(TASK, path("e:<answer>Eddie Argos</answer>", answer=None)) == 0.0


@pytest.mark.parametrize("reward", [exact_match, containment, f1])
def test_a_task_without_accepted_answers_is_an_error_and_not_a_zero(reward: object) -> None:
    task = Task(id="open", question="?")
    with pytest.raises(RewardError, match="task open has no accepted answers"):
        reward(task, path(answer="x", task=task))  # type: ignore[operator]
