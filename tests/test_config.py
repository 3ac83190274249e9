"""How layers merge, where values come from, and what a resolved recipe is good for."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from rlkit.config import Resolved, load
from rlkit.recipe import Recipe
from tests.plugin_files import RECIPE, user_folder


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return user_folder(tmp_path)


def based(recipe: Path, base: str, above: str) -> Path:
    """A recipe `above.yaml` over the user's recipe, to which `base` is added."""
    recipe.write_text(RECIPE + base, encoding="utf-8")
    file = recipe.with_name("above.yaml")
    file.write_text(f"base: recipe.yaml\n{above}", encoding="utf-8")
    return file


def test_command_line_wins_over_recipe_over_base_over_default(recipe: Path) -> None:
    file = based(recipe, "optim: {lr: 1e-4, eps: 1e-7, beta1: 0.5}\n", "optim: {lr: 1e-5, eps: 1e-6}\n")
    optim = load(file, ["optim.lr=3e-5"]).recipe.optim
    assert (optim.lr, optim.eps, optim.beta1, optim.beta2) == (3e-5, 1e-6, 0.5, 0.999)


def test_every_value_knows_its_file_and_line(recipe: Path) -> None:
    file = based(recipe, "optim:\n  eps: 1e-7\n  lr: 1e-4\n", "optim:\n  lr: 1e-5\n")
    origins = load(file, ["rewards.0.weight=0.5"]).origins
    assert origins["optim.lr"] == "above.yaml:3"
    assert origins["optim.eps"] == "recipe.yaml:8"
    assert origins["optim.beta1"] == "default"
    assert origins["rewards[0].limit"] == "recipe.yaml:6"
    assert origins["rewards[0].weight"] == "command line"


def test_origins_cover_exactly_the_values(recipe: Path) -> None:
    def paths(value: object, path: str = "") -> set[str]:
        if isinstance(value, dict) and value:
            return set().union(*(paths(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()))
        if isinstance(value, list) and value:
            return set().union(*(paths(item, f"{path}[{index}]") for index, item in enumerate(value)))
        return {path}

    resolved = load(recipe)
    assert set(resolved.origins) == paths(resolved.values)


def test_a_list_replaces_the_list_below(recipe: Path) -> None:
    file = based(recipe, "", "rewards: [{kind: own.py:keyword, word: yes}]\n")
    assert [reward.name for reward in load(file).recipe.rewards] == ["keyword"]


@pytest.mark.parametrize("kind", ["env: {kind: own.py:Searcher}\nretriever: {kind: own.py:Quiz}\n", None])
def test_another_kind_drops_the_settings_of_the_old_one(recipe: Path, kind: str | None) -> None:
    file = based(recipe, "", kind or "env: {turns: 4}\n")
    overrides = [] if kind else ["env.kind=own.py:Searcher", "retriever={kind: own.py:Quiz}"]
    assert load(file, overrides).values["env"] == {"kind": "own.py:Searcher"}


def test_the_same_kind_keeps_its_settings(recipe: Path) -> None:
    file = based(recipe, "", "env: {kind: own.py:Chat, turns: 4}\n")
    assert load(file, ["env.kind=own.py:Chat"]).recipe.env.settings.turns == 4


def test_another_kind_of_reward_keeps_its_weight(recipe: Path) -> None:
    overrides = ["rewards.0.word=why", "rewards.0.kind=own.py:keyword", "rewards[0].weight=0.5"]
    (reward,) = load(recipe, overrides).recipe.rewards
    assert (reward.name, reward.weight, reward.plugin.keywords) == ("keyword", 0.5, {"word": "why"})


def test_numbers_in_scientific_notation_are_numbers_and_off_is_a_word(recipe: Path) -> None:
    recipe.write_text(f"{RECIPE}optim: {{lr: 1e-6}}\nlog: {{wandb: off}}\nname: 2024-01-01\n", encoding="utf-8")
    resolved = load(recipe).recipe
    assert (resolved.optim.lr, resolved.log.wandb, resolved.name) == (1e-6, "off", "2024-01-01")


def test_values_can_refer_to_each_other_to_defaults_and_to_the_environment(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLKIT_TEST_LIMIT", "7")
    overrides = [
        "name=mine",
        "rollout.max_concurrent_groups=${rollout.groups_per_step}",
        "rewards.0.limit=${oc.env:RLKIT_TEST_LIMIT}",
        "log.wandb_project=${oc.env:RLKIT_TEST_UNSET,fallback}",
    ]
    resolved = load(recipe, overrides).recipe
    assert resolved.out == "runs/mine"
    assert resolved.rollout.max_concurrent_groups == 8
    assert resolved.rewards[0].plugin.keywords["limit"] == 7
    assert resolved.log.wandb_project == "fallback"


def test_secrets_are_masked_wherever_the_recipe_is_shown(recipe: Path, tmp_path: Path) -> None:
    resolved = load(recipe, ["env.api_key=sesame"])
    assert resolved.recipe.env.settings.api_key == "sesame"
    assert resolved.values["env"]["api_key"] == "***"
    resolved.save_resolved(tmp_path / "run" / "recipe.yaml")
    assert "sesame" not in (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    assert resolved.values["learner"]["row_tokens"] == 4096  # tokens of text are no secret


def test_a_saved_recipe_runs_again_and_says_the_same(recipe: Path, tmp_path: Path) -> None:
    resolved = load(recipe, ["optim.lr=3e-7", "name=first"])
    saved = tmp_path / "runs" / "first" / "recipe.yaml"
    resolved.save_resolved(saved)
    assert load(saved).values == resolved.values


def test_a_recipe_travels_to_another_process_by_name(recipe: Path) -> None:
    resolved: Recipe = load(recipe).recipe
    assert pickle.loads(pickle.dumps(resolved)) == resolved


def test_doubtful_combinations_warn_and_run(recipe: Path) -> None:
    resolved = load(recipe, ["cluster.kind=ray", "cluster.threads_per_worker=1000", "optim.warmup_steps=101"])
    cores, warmup = resolved.warnings
    assert cores.startswith("cluster.threads_per_worker: 1000 threads at a time share this machine's ")
    assert warmup == "optim.warmup_steps: 101 outlasts the run: optim.lr is not reached"


def test_a_shipped_recipe_can_be_the_base_from_anywhere(recipe: Path) -> None:
    recipe.write_text(f"base: base.yaml\n{RECIPE}", encoding="utf-8")
    resolved: Resolved = load(recipe)
    assert resolved.origins["rollout.temperature"].endswith("base.yaml:7")
