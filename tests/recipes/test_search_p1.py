"""What the recipes of Search-P1 say about themselves is true."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.config import load
from rlkit.layers import shipped_recipes

PAPER, SMALL = (shipped_recipes() / name for name in ("search_p1.yaml", "search_p1_cpu.yaml"))
ABLATIONS = [
    line[4:].split("  ")[0].split()
    for line in PAPER.read_text(encoding="utf-8").splitlines()
    if re.match(r"#   (rewards|env|algorithm|model)\.[\w.]+=", line)
]


def test_the_ablations_are_listed() -> None:
    assert len(ABLATIONS) >= 10


@pytest.mark.parametrize("overrides", ABLATIONS, ids=" ".join)
def test_every_ablation_of_the_paper_recipe_parses(overrides: list[str]) -> None:
    assert load(PAPER, overrides).recipe != load(PAPER).recipe


@pytest.mark.parametrize("overrides", [o for o in ABLATIONS if o[0].startswith("rewards")], ids=" ".join)
def test_the_ablations_of_the_reward_fit_the_small_recipe_too(overrides: list[str]) -> None:
    assert load(SMALL, overrides).recipe.rewards[0] != load(SMALL).recipe.rewards[0]


def test_only_the_rewards_tell_the_small_recipe_from_search_r1() -> None:
    mine, base = load(SMALL).recipe, load(shipped_recipes() / "search_r1.yaml").recipe
    for section in ("task", "retriever", "env", "algorithm", "model", "engine", "rollout", "optim", "train", "eval"):
        assert getattr(mine, section) == getattr(base, section), section
    assert [reward.name for reward in mine.rewards if reward.weight] == ["search_p1"]


def test_the_paper_recipe_has_the_numbers_of_the_paper() -> None:
    recipe = load(PAPER).recipe
    reward = recipe.rewards[0].plugin.settings
    assert (reward.lambda_p, reward.lambda_a, reward.lambda_f, reward.alpha) == (0.3, 0.6, 0.1, 0.8)
    assert (recipe.algorithm.settings.clip_low, recipe.algorithm.settings.clip_high) == (0.2, 0.28)
    assert (recipe.env.settings.max_searches, recipe.env.settings.top_k) == (4, 3)
    assert reward.tags == recipe.env.settings.tags


PAGE = (Path(__file__).parents[2] / "docs" / "search_p1.md").read_text(encoding="utf-8")
ARMS = [line.split("-$seed")[1].split() for line in PAGE.splitlines() if line.startswith("  $ARM ")]
FURTHER = re.findall(r"`((?:rewards|algorithm)\.[^`]+=[^`]+)`", PAGE)


def weights(overrides: list[str]) -> dict[str, float]:
    return {reward.name: reward.weight for reward in load(SMALL, overrides).recipe.rewards if reward.weight}


def test_the_arms_of_the_page_differ_in_their_reward_only() -> None:
    base = load(SMALL).recipe
    assert [weights(arm) for arm in ARMS] == [{"exact_match": 1.0}, {"search_p1": 1.0}, {"search_p1": 1.0}]
    for arm in ARMS:
        assert replace(load(SMALL, arm).recipe, rewards=base.rewards) == base
    assert len({str(load(SMALL, arm).recipe.rewards) for arm in ARMS}) == len(ARMS)


@pytest.mark.parametrize("overrides", FURTHER)
def test_every_other_arm_of_the_page_parses(overrides: str) -> None:
    assert len(FURTHER) >= 7
    assert load(SMALL, overrides.split()).recipe != load(SMALL).recipe
