"""Rewards on semantic IDs: the paper's worked examples to the digits printed there."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.vectors import write_vectors
from rlkit.errors import RewardError
from rlkit.records import Leaf, Node, SamplingState, Task, Trajectory
from rlkit.rewards.ranking import rank_penalty, ranking
from rlkit.rewards.sid_match import sid_match
from rlkit.rewards.sid_prefix import level_rewards, sid_prefix
from tests.catalogue.shop import ITEMS, text, write

TASK = Task(id="t", question="", answers=(text(12),), data={"levels": 3})


def candidate(answer: str | None, logprob: float = 0.0, index: int = 0) -> Trajectory:
    node = Node(
        parent=-1,
        author="policy",
        token_ids=np.zeros(2, np.int32),
        behavior_logprobs=np.array([logprob, 0.0], np.float32),
        policy_version=0,
        sampling=SamplingState(),
    )
    return Trajectory(task=TASK, leaf=Leaf(node=0, sample_index=index, status="done", answer=answer), nodes=(node,))


def group(*answers: str | None) -> list[Trajectory]:
    """Candidates, likeliest first."""
    return [candidate(answer, -index, index) for index, answer in enumerate(answers)]


def test_a_match_is_the_whole_semantic_id() -> None:
    assert [sid_match(TASK, candidate(a)) for a in (text(12), text(11), None)] == [1.0, 0.0, 0.0]
    with pytest.raises(RewardError, match="no accepted answers"):
        sid_match(replace(TASK, answers=()), candidate(text(12)))


def test_the_rank_penalty_is_the_published_one() -> None:
    found = rank_penalty(TASK, group(text(10), text(12), text(11), None))
    assert np.round(found, 6).tolist() == [-0.39038, 0.0, -0.19519, -0.168128]  # places count the hit


def test_without_a_hit_nobody_is_penalised() -> None:
    assert rank_penalty(TASK, group(text(10), text(11))) == [0.0, 0.0]


def test_places_are_by_probability_unless_the_order_of_sampling_is_asked_for() -> None:
    unsorted = [candidate(text(10), -9.0), candidate(text(12), -1.0)]
    assert rank_penalty(TASK, unsorted)[0] == pytest.approx(-0.386853, abs=1e-6)  # second of two: q = .6309 / 1.6309
    assert rank_penalty(TASK, unsorted, order="sample")[0] == pytest.approx(-0.613147, abs=1e-6)


def test_a_group_is_a_ranked_list() -> None:
    found = ranking(TASK, group(text(10), text(10), None, text(12), text(11)))  # second of the distinct ones
    assert found[0] == found[4]
    assert {name: round(value, 6) for name, value in found[0].items()} == {
        **{"hr_1": 0.0, "hr_3": 1.0, "hr_5": 1.0, "hr_10": 1.0},
        **{"ndcg_1": 0.0, "ndcg_3": 0.63093, "ndcg_5": 0.63093, "ndcg_10": 0.63093},
    }
    assert set(ranking(TASK, group(text(10), None))[0].values()) == {0.0}


def test_items_on_one_semantic_id_are_ties_where_the_items_are_known(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl.gz", ITEMS)
    task = replace(TASK, answers=(text(14),))  # shared by two
    found = ranking(task, group(text(14)), cutoffs=[1, 2], items=str(tmp_path / "items.jsonl.gz"))[0]
    assert (found["hr_1"], found["hr_2"]) == (0.5, 1.0)
    assert found["ndcg_2"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert ranking(task, group(text(14)), cutoffs=[1])[0]["hr_1"] == 1.0


def test_cutoffs_below_one_are_refused() -> None:
    with pytest.raises(RewardError, match=r"cutoffs: \[0\]"):
        ranking(TASK, group(text(12)), cutoffs=[0])


# V-STAR section 10, oracle (c)
SIDS = [(1, 2, 3), (1, 2, 4), (1, 5, 6), (7, 8, 9), (7, 8, 10)]
VECTORS = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-0.6, 0.8]])
REWARDS = [[0.3, 0.5, 1.0], [0.3, 0.5, -0.2], [0.3, -0.2, -0.4], [-0.3949, -0.6581, -1.0], [-0.3949, -0.6581, -1.6]]


def test_level_rewards_are_the_published_worked_example() -> None:
    found = level_rewards(SIDS, SIDS[0], VECTORS, VECTORS[0], [0.3, 0.5, 1.0])
    assert found.round(4).tolist() == REWARDS
    assert found[0] @ [1, 0.99, 0.99**2] == pytest.approx(1.7751)  # the perfect path's value


def test_a_wrong_first_level_is_judged_by_the_mean_of_its_bucket() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = level_rewards([(2, 1), (2, 2), (2, 3)], (1, 1), vectors, np.array([1.0, 0.0]), [0.3])
    assert found[0, 0] == pytest.approx(-0.100691, abs=1e-6)


def test_the_group_reward_reads_vectors_and_is_silent_where_there_is_no_item(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl.gz", ITEMS)
    items = Catalogue.read(tmp_path / "items.jsonl.gz")
    file = tmp_path / "vectors.safetensors"
    write_vectors(file, items, np.eye(6), made_by="identity")
    found = sid_prefix(TASK, group(text(12), text(10), text(10), None), vectors=str(file))
    assert found[0] == {"level_1": 0.3, "level_2": 0.5, "level_3": 1.0}
    assert found[1] == found[2] == {"level_1": 0.3, "level_2": -0.5, "level_3": -1.0}  # unrelated: cosine 0
    assert isinstance(found[3], RewardError) and str(found[3]).startswith("None is no semantic ID of ")
    (alone,) = sid_prefix(TASK, group("<no_1>"), vectors=str(file))  # a group in which nothing is an item
    assert isinstance(alone, RewardError)
    with pytest.raises(RewardError, match="2 numbers for a target of 3 levels"):
        sid_prefix(TASK, group(text(12)), vectors=str(file), weights=[0.3, 0.5])
    with pytest.raises(RewardError, match="has none for the target <a_9>"):
        sid_prefix(replace(TASK, answers=("<a_9><b_9><c_9>",)), group(text(12)), vectors=str(file))
