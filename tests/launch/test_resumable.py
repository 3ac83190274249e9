"""A run folder with checkpoints of another recipe is refused with the settings that differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rlkit.config import Resolved, load
from rlkit.errors import CheckpointError
from rlkit.launch.resumable import differences, refuse_other_recipe
from rlkit.train import fingerprint

ROOT = Path(__file__).parents[2]


def recipe(*overrides: str) -> Resolved:
    return load(ROOT / "recipes/tiny.yaml", overrides)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run of the recipe leaves, as far as it is looked at."""
    folder = tmp_path / "checkpoints" / "step_000002"
    folder.mkdir(parents=True)
    manifest = {"state": {"recipe": fingerprint(recipe().recipe)}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe().values))
    return tmp_path


def test_the_same_recipe_goes_on_also_with_what_decides_no_weights(run: Path) -> None:
    refuse_other_recipe(recipe(), run)
    refuse_other_recipe(recipe("train.steps=9", "log.live=true", "eval.tasks=1"), run)


def test_every_setting_that_differs_is_named_with_both_values(run: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        refuse_other_recipe(recipe("optim.lr=0.5", "rewards.1.weight=0.25", "train.steps=9"), run)
    message = str(caught.value)
    assert "optim.lr: 0.001 there, 0.5 here" in message
    assert "rewards[1].weight: 0.5 there, 0.25 here" in message
    assert "train.steps" not in message
    assert message.startswith(f"out: {run}/checkpoints/step_000002 was made by another recipe (")


def test_without_the_old_recipe_the_sections_are_named(run: Path) -> None:
    (run / "recipe.yaml").unlink()
    (run / "recipe.yaml").mkdir()
    with pytest.raises(CheckpointError, match=r"rollout.group_size: - there, 2 here"):
        refuse_other_recipe(recipe("rollout.group_size=2"), run)


def test_under_a_torn_manifest_the_checkpoint_before_decides(run: Path) -> None:
    torn = run / "checkpoints/step_000004"
    torn.mkdir()
    (torn / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="step_000002 was made by another recipe"):
        refuse_other_recipe(recipe("optim.lr=0.5"), run)
    (run / "checkpoints/step_000002/manifest.json").write_text("{")
    refuse_other_recipe(recipe("optim.lr=0.5"), run)  # left to whoever reads the checkpoints


def test_a_value_that_only_one_side_has_is_a_difference() -> None:
    assert differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2}, "d": None}) == [
        ("a.b", "1", "2"),
        ("d", "-", "None"),
        ("a.c[0]", "1", "-"),
    ]
