"""Stored rollouts under other rewards, against numbers worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rlkit.algorithms.grpo import ALGORITHM, GrpoConfig
from rlkit.config import load
from rlkit.errors import DataError
from rlkit.launch.cli import main
from rlkit.recorder import Recorder
from rlkit.records import CreditedTree, CreditPath, RewardTerm, ScoredTree, Task, Tree
from rlkit.rescore import Comparison, _advantages, pearson, ranks, rescore, spearman
from rlkit.transcript import Written, transcript


def group(name: str, *answers: str | None) -> Tree:
    """One trajectory per answer; None: its rollout failed."""
    task = Task(id=name, question="Which animal?", answers=("red fox",))
    said = [
        Written(parts=(("policy", answer or "?"),), answer=answer, status="done" if answer else "failed")
        for answer in answers
    ]
    return transcript(task, *said)


def em(tree: Tree, weight: float = 1.0) -> ScoredTree:
    """As a run with the reward exact_match would have scored it."""
    values = np.array([np.nan if leaf.answer is None else leaf.answer == "red fox" for leaf in tree.leaves], float)
    status = tuple("ok" if np.isfinite(value) else "skipped: rollout failed" for value in values)
    return ScoredTree(tree=tree, terms=(RewardTerm(name="exact_match", weight=weight, values=values, status=status),))


def stored(folder: Path, *trees: Tree, credited: bool = True) -> Path:
    run = folder / "run"
    with Recorder(run, live=False, trees_per_step=None) as recorder:
        scored = [em(tree) for tree in trees]
        recorder.trees(1, ALGORITHM.credit(scored, GrpoConfig(), None) if credited else scored)
    return run


def under(run: Path, *overrides: str) -> Comparison:
    return rescore(run, load("tiny", list(overrides)).recipe)


F1 = "rewards=[{kind: f1}]"


def test_other_rewards_make_other_advantages_and_the_signs_that_change_are_counted(tmp_path: Path) -> None:
    found = under(stored(tmp_path, group("a", "red fox", "red", "blue", "fox cub")), F1)
    # Run: R = 1 0 0 0, mean 0.25, sample deviation 0.5: A = 1.5 -0.5 -0.5 -0.5.
    # F1:  R = 1 2/3 0 1/2, mean 0.541667, deviation 0.416667: A = 1.1 0.3 -1.3 -0.1.
    assert (found.num_trees, found.num_leaves, found.num_compared) == (1, 4, 4)
    assert (found.same_sign, found.flipped, found.gained, found.lost) == (3, 1, 0, 0)
    assert found.pearson == pytest.approx(2.2 / 3, abs=1e-5)
    # Ranks 4 2 2 2 and 4 3 1 2: 3 / sqrt(3 · 5).
    assert found.spearman == pytest.approx(3 / math.sqrt(15))
    assert (found.reward_before, found.reward_after) == (0.25, pytest.approx(0.541667, abs=1e-6))
    assert [(row["sample"], round(row["after"], 4)) for row in found.flips][:2] == [(1, 0.3), (2, -1.3)]
    before, after = found.terms[1], found.terms[0]
    assert (after.name, after.before_weight, after.after_weight) == ("f1", None, 1.0)
    assert (before.name, before.before_weight, before.after_weight, before.before) == ("exact_match", 1.0, None, 0.25)
    assert math.isnan(before.after) and math.isnan(after.before)


def test_the_same_rewards_give_the_same_advantages(tmp_path: Path) -> None:
    found = under(stored(tmp_path, group("a", "red fox", "red", "blue")), "rewards=[{kind: exact_match}]")
    assert (found.pearson, found.spearman) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (found.same_sign, found.flips) == (3, ())


def test_another_weight_of_the_same_sign_changes_no_normalised_advantage_and_a_negative_one_flips_all(
    tmp_path: Path,
) -> None:
    run = stored(tmp_path, group("a", "red fox", "blue"))
    assert under(run, "rewards=[{kind: exact_match, weight: 3.0}]").pearson == pytest.approx(1.0)
    against = under(run, "rewards=[{kind: exact_match, weight: -1.0}]")
    assert (against.pearson, against.flipped) == (pytest.approx(-1.0), 2)


def test_a_group_that_taught_nothing_and_now_would_is_counted_as_gained(tmp_path: Path) -> None:
    found = under(stored(tmp_path, group("a", "red", "blue"), group("b", "red fox", "red fox red fox")), F1)
    # a: 0 0 before, F1 2/3 and 0: A = +-0.7071. b: 1 0 before; F1 1 and 2·2/(4 + 2) = 2/3.
    assert (found.gained, found.lost, found.same_sign) == (2, 0, 2)
    assert (found.effective_before, found.effective_after) == (0.5, 1.0)
    assert [round(row["after"], 3) for row in found.flips[:2]] == [0.707, -0.707]
    back = under(stored(tmp_path / "b", group("c", "red fox", "blue")), "rewards=[{kind: format}]")
    assert back.lost == 2  # both are badly formed: nothing to tell apart


def test_failed_rollouts_stay_out_and_failed_rewards_are_counted_not_zero(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def moody(task, trajectory):\n"
        "    if trajectory.answer == 'red':\n        raise ValueError('no mood')\n"
        "    return 1.0 if trajectory.answer == 'blue' else 0.0\n"
    )
    run = stored(tmp_path, group("a", "red fox", "red", "blue", None))
    found = under(run, f"rewards=[{{kind: '{tmp_path / 'mine.py'}:moody'}}]")
    assert (found.num_leaves, found.num_compared) == (3, 2)  # "red" has no advantage after
    assert found.terms[0].failed == 1 and found.terms[0].after == 0.5
    assert found.flipped == 2


def test_rollouts_without_stored_credit_are_credited_by_the_other_recipes_algorithm(tmp_path: Path) -> None:
    found = under(stored(tmp_path, group("a", "red fox", "red", "blue", "fox cub"), credited=False), F1)
    assert found.pearson == pytest.approx(2.2 / 3, abs=1e-5)


def test_a_kl_in_the_reward_cannot_be_recomputed_and_that_is_said(tmp_path: Path) -> None:
    run = stored(tmp_path, group("a", "red fox", "blue"))
    found = under(run, "algorithm.kl_coef=0.1", "algorithm.kl_in=reward")
    assert found.notes == ("algorithm.kl_in is 'reward': that KL needs models and is left out of the advantages after",)


def test_the_advantage_of_a_leaf_is_the_mean_over_its_tokens_credit_of_nodes_included() -> None:
    tree = group("a", "ab", "abcd")  # prompt of 13 tokens, then 2 and 4 tokens
    first, second = tree.policy_tokens(0), tree.policy_tokens(1)
    paths = (
        CreditPath(leaf=0, tokens=first, advantages=np.ones(2), weights=np.ones(2)),
        CreditPath(leaf=-1, tokens=first[:1], advantages=np.array([-2.0]), weights=np.ones(1)),
        CreditPath(leaf=-1, tokens=second[2:], advantages=np.array([3.0, 5.0]), weights=np.ones(2)),
    )
    # leaf 0: 1, 1 of its own and -2 of a node: 0; leaf 1: 3 and 5 of a node: 4
    assert _advantages(CreditedTree(scored=em(tree), paths=paths)).tolist() == [0.0, 4.0]
    assert np.isnan(_advantages(CreditedTree(scored=em(tree), paths=paths[:2]))[1])


def test_ranks_share_ties_and_constant_columns_have_no_correlation() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 8.0, 27.0])) == pytest.approx(1.0)
    assert math.isnan(pearson(np.ones(3), np.arange(3.0)))
    assert math.isnan(pearson(np.ones(1), np.ones(1)))


def test_the_command_prints_tables_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored(tmp_path, group("a", "red fox", "red", "blue", "fox cub"))
    assert main(["rescore", str(run), "--recipe", "tiny", F1, "--json", str(tmp_path / "found.json")]) == 0
    text = capsys.readouterr().out
    assert "Pearson 0.7333   Spearman 0.7746" in text
    assert "flipped 1 (25.0%)" in text
    assert "train step 1, task a, sample 1: reward 0 -> 0.6667, A -0.5000 -> +0.3000" in text
    plain = json.loads((tmp_path / "found.json").read_text())
    assert plain["flipped"] == 1 and plain["terms"][0]["before"] is None


def test_a_run_without_rollouts_or_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="holds no train rollouts"):
        under(tmp_path)
    assert main(["rescore", str(tmp_path)]) == 2
    assert "holds no recipe.yaml; name one with --recipe" in capsys.readouterr().err
