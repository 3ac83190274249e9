"""V-STAR's recipes: every ablation that v_star.yaml names parses, and trains a small shop."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.vectors import write_vectors
from rlkit.config import load
from rlkit.errors import CheckpointError, RecipeError
from rlkit.launch.run import run_recipe
from rlkit.layers import shipped_recipes
from rlkit.models.recommender import add_semantic_ids, build_recommender
from rlkit.policy.tiny import tiny_model
from rlkit.recorder import read_metrics, rollout_files
from rlkit.store import read_trees
from tests.catalogue.shop import ITEMS, write_shop

RECIPES = shipped_recipes()


def named() -> list[list[str]]:
    """The overrides in the comments of v_star.yaml, line by line, and the values that it names in passing."""
    comments = (RECIPES / "v_star.yaml").read_text(encoding="utf-8").partition("Ablations are overrides:")[2]
    lines = [
        re.findall(r"[a-z_]+(?:\.[a-z0-9_]+)+=[a-z0-9_.]+", line) for line in comments.split("base:")[0].splitlines()
    ]
    one_by_one = [[found] for line in lines for found in line if "order" not in found]
    together = [line for line in lines if any("order" in found for found in line)]
    return [*one_by_one, *together, ["engine.decoder=iid"], ["engine.decoder=without_replacement"]]


ABLATIONS = named()


def test_the_recipe_names_every_ablation() -> None:
    keys = {override.partition("=")[0] for overrides in ABLATIONS for override in overrides}
    assert keys == {
        *("engine.decoder", "engine.scored", "engine.ved.entropy_coef", "engine.ved.order", "rewards.1.order"),
        *("engine.ved.budget_multiple", "algorithm.sibling_coef", "algorithm.global_coef", "value.head"),
        *("algorithm.sibling_weight", "algorithm.sibling_reward"),
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop, a model of its items, and vectors."""
    root = write_shop(tmp_path_factory.mktemp("data"))
    items = Catalogue.read(root / "shop" / "items.jsonl.gz")
    build_recommender(root / "model", items, hidden=32, layers=1, heads=2, max_context=64)
    write_vectors(root / "vectors.safetensors", items, np.eye(6), made_by="identity")
    return root


def small(root: Path, out: Path) -> list[str]:
    """v_star_cpu.yaml at the size of the shop: four candidates of three levels for each of its two users."""
    return [
        *(
            f"task.path={root}",
            "task.dataset=shop",
            f"model.path={root / 'model'}",
            f"out={out}",
            "model.max_context=64",
        ),
        *(f"rewards.2.vectors={root / 'vectors.safetensors'}", "rewards.2.weights=[0.3,0.5,1.0]"),
        *("rollout.group_size=4", "rollout.groups_per_step=2", "rollout.max_completion_tokens=3"),
        *("engine.deterministic=false", "engine.ved.beam=2", "value.warmup_steps=1", "optim.warmup_steps=0"),
        *(
            "train.steps=2",
            "train.eval_every=0",
            "eval.tasks=1",
            "eval.samples=4",
            "log.tensorboard=false",
            "log.live=false",
        ),
    ]


@pytest.mark.parametrize("overrides", ABLATIONS, ids=" ".join)
@pytest.mark.parametrize("name", ["v_star", "v_star_cpu"])
def test_every_ablation_parses(name: str, overrides: list[str]) -> None:
    load(RECIPES / f"{name}.yaml", overrides)


def test_a_run_on_other_items_than_the_models_is_refused(shop: Path, tmp_path: Path) -> None:
    other = write_shop(tmp_path / "other", items=ITEMS[:5], sequences=[{"user_id": 1, "items": [10, 11, 12]}])
    overrides = [*small(shop, tmp_path / "run"), f"task.path={other}"]
    with pytest.raises(CheckpointError, match=r"model\.path: .* was made for catalogue .* \(5 items\)"):
        run_recipe(load(RECIPES / "v_star_cpu.yaml", overrides))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], *ABLATIONS], ids=lambda overrides: " ".join(overrides) or "as it is")
def test_every_ablation_trains(shop: Path, tmp_path: Path, overrides: list[str]) -> None:
    assert run_recipe(load(RECIPES / "v_star_cpu.yaml", [*small(shop, tmp_path / "run"), *overrides])) == 0
    last = [row.metrics for row in read_metrics(tmp_path / "run") if "loss" in row.metrics][-1]
    assert math.isfinite(last["loss"]) and last["search/candidates"] >= 1
    assert ("value/loss" in last) == ("value.head=none" not in overrides)
    assert ("sibling/parents" in last) == ("algorithm.sibling_coef=0" not in overrides) or last["sibling/parents"] == 0


@pytest.mark.slow
def test_the_baseline_trains(shop: Path, tmp_path: Path) -> None:
    assert run_recipe(load(RECIPES / "sid_grpo.yaml", small(shop, tmp_path / "run"))) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_titles_are_not_shown_to_a_model_that_knows_semantic_ids_alone(shop: Path, tmp_path: Path) -> None:
    resolved = load(RECIPES / "v_star_cpu.yaml", [*small(shop, tmp_path / "run"), "env.history=text"])
    with pytest.raises(RecipeError, match=r"env.history: 'text', but the model of .*/model knows semantic IDs alone"):
        run_recipe(resolved)


@pytest.mark.slow
def test_a_language_model_is_shown_titles_and_answers_with_semantic_ids(shop: Path, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", layers=1, hidden=32)
    add_semantic_ids(base, tmp_path / "grown", Catalogue.read(shop / "shop" / "items.jsonl.gz"))
    overrides = [f"model.path={tmp_path / 'grown'}", "env.history=text", "env.separator=; ", "model.max_context=256"]
    assert run_recipe(load(RECIPES / "v_star_cpu.yaml", [*small(shop, tmp_path / "run"), *overrides])) == 0
    [first, *_] = read_trees(rollout_files(tmp_path / "run")[1])
    assert "thing 10" in first.tree.nodes[0].text
    assert {leaf.status for leaf in first.tree.leaves} == {"done"}
    assert {leaf.answer for leaf in first.tree.leaves} <= set(
        Catalogue.read(shop / "shop" / "items.jsonl.gz").sid_texts
    )
