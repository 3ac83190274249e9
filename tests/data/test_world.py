"""The seeded world is the same everywhere, self-consistent, and its splits share nothing."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

import pytest

from rlkit.data.world import World
from rlkit.envs.bm25 import Bm25
from rlkit.errors import DataError
from rlkit.records import Task
from rlkit.text import best, contains_words, normalize

MIXED = World(World.Config(hops=[0.5, 0.5]))
SPLITS = ("train", "dev", "test")


def words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in normalize(text).split()}


def entities(tasks: Iterable[Task]) -> set[str]:
    """Every name and year on the way to an answer."""
    return {
        name for task in tasks for name in (*task.answers, *(step["answer"] for step in task.data["decomposition"]))
    } | {title for task in tasks for title in task.data["supporting_titles"]}


def test_a_seed_is_one_world_on_every_machine() -> None:
    told = "\n".join(
        [
            *(f"{task.id} {task.question} {task.answers}" for split in SPLITS for task in MIXED.tasks(split)),
            *(f"{passage.id} {passage.text}" for passage in MIXED.passages()),
        ]
    )
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "0369d1c3e45fb1f3"
    again = World(World.Config(hops=[0.5, 0.5]))
    assert again.tasks("dev") == MIXED.tasks("dev") and again.passages() == MIXED.passages()


def test_another_seed_is_another_world() -> None:
    other = World(World.Config(seed=1))
    names = words(passage.title for passage in MIXED.passages())
    shared = names & words(passage.title for passage in other.passages())
    assert len(shared) < 0.1 * len(names)


def test_splits_share_no_question_entity_or_supporting_passage() -> None:
    for one, two in (("train", "dev"), ("train", "test"), ("dev", "test")):
        first, second = MIXED.tasks(one), MIXED.tasks(two)
        assert not {task.question for task in first} & {task.question for task in second}
        shared = entities(first) & entities(second)
        assert all(name.isdigit() for name in shared), shared  # a year may come twice; 500 are too many to guess
        supports = [{passage for task in tasks for passage in task.data["supporting_ids"]} for tasks in (first, second)]
        assert not supports[0] & supports[1]


def test_no_answer_is_common_enough_to_guess() -> None:
    counts = Counter(task.answers[0] for task in MIXED.tasks("train"))
    assert counts.most_common(1)[0][1] <= 0.02 * len(MIXED.tasks("train"))


def test_questions_and_ids_are_never_repeated() -> None:
    tasks = [task for split in SPLITS for task in MIXED.tasks(split)]
    assert len({task.id for task in tasks}) == len({task.question for task in tasks}) == len(tasks)


def test_every_step_of_a_chain_can_be_read_off_its_passage() -> None:
    texts = {passage.id: passage.text for passage in MIXED.passages()}
    for task in MIXED.tasks("train"):
        steps = task.data["decomposition"]
        for step in steps:
            assert contains_words(texts[step["supporting_id"]], step["answer"])
        assert steps[-1]["answer"] == task.answers[0]
        assert all(f"#{n}" in step["question"] for n, step in enumerate(steps[1:], start=1))
        assert not re.search(r"[{}]", task.question)


def test_a_question_of_two_hops_does_not_name_its_second_subject() -> None:
    for task in MIXED.tasks("train"):
        if task.data["hops"] == 2:
            assert not contains_words(task.question, task.data["decomposition"][0]["answer"])
        assert not best(contains_words, task.question, task.answers)


def test_the_mix_of_hops_is_what_was_asked_for() -> None:
    tasks = World(World.Config(hops=[3.0, 1.0], num_dev=40)).tasks("dev")
    assert Counter(task.data["hops"] for task in tasks) == {1: 30, 2: 10}


def test_the_question_finds_its_first_passage_and_the_entity_its_second() -> None:
    bm25 = Bm25(Bm25.Config(), MIXED.passages())
    tasks = MIXED.tasks("dev")
    for hop, queries in (
        (0, [task.question for task in tasks]),
        (-1, [task.data["supporting_titles"][-1] for task in tasks]),
    ):
        found = bm25.search_now(queries, 1)
        hits = [
            task.data["supporting_ids"][hop] == result.passages[0].id for task, result in zip(tasks, found, strict=True)
        ]
        assert sum(hits) == len(tasks)


def test_more_regions_leave_the_first_ones_as_they_are() -> None:
    small, large = World(World.Config(test_regions=1, num_test=8)), World(World.Config(test_regions=9, num_test=8))
    assert small.tasks("train") == large.tasks("train") and small.tasks("dev") == large.tasks("dev")
    assert small.passages() == large.passages()[: len(small.passages())]


def test_a_split_that_is_too_large_says_what_to_raise() -> None:
    with pytest.raises(DataError, match=r"num_dev: 999 questions need 999 with 1 hops.*raise dev_regions"):
        World(World.Config(num_dev=999)).tasks("dev")
    with pytest.raises(DataError, match="unknown split 'devv'; did you mean 'dev'"):
        World(World.Config()).tasks("devv")


@pytest.mark.parametrize("setting", [{"hops": [1.0]}, {"hops": [0.0, 0.0]}, {"hops": [-1.0, 2.0]}, {"num_dev": 0}])
def test_impossible_settings_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        World.Config(**setting)  # type: ignore[arg-type]
