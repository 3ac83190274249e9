"""Where plug-ins come from: tables, modules and files; and how their settings are typed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from rlkit.config import load
from rlkit.plugins import TABLES, Family, config_of, describe, load_object, resolve
from tests.plugin_files import user_folder

NAMES = [(family, kind) for family, table in TABLES.items() for kind in table]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    user_folder(tmp_path)
    yield tmp_path


def test_every_family_has_a_table() -> None:
    assert set(TABLES) == set(get_args(Family))


@pytest.mark.parametrize(("family", "kind"), NAMES, ids=[f"{family}-{kind}" for family, kind in NAMES])
def test_every_short_name_leads_to_a_plugin_with_settings_and_a_description(family: Family, kind: str) -> None:
    spec = resolve(family, kind)
    module = spec.partition(":")[0]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not written yet")
    assert config_of(load_object(spec))
    (description,) = (entry for entry in describe(family) if entry.kind == kind)
    assert description.summary


def test_listing_imports_no_plugin() -> None:
    program = (
        "import sys; from rlkit.launch.listing import listing; from rlkit.plugins import TABLES;"
        "assert 'grpo' in listing([*TABLES, 'recipes']);"
        "assert not {'torch', 'rlkit.algorithms.grpo', 'rlkit.envs.agentic_search'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_file_is_found_beside_the_recipe_and_below_the_working_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    spec = resolve("rewards", "own.py:brevity", [folder])
    assert spec == f"{folder / 'own.py'}:brevity"
    monkeypatch.chdir(folder)
    assert resolve("rewards", "own.py:brevity", [elsewhere]) == spec


def test_a_file_is_one_module_however_it_is_written(folder: Path) -> None:
    first = load_object(resolve("rewards", "own.py:brevity", [folder]))
    second = load_object(resolve("rewards", f"{folder}/../{folder.name}/own.py:brevity"))
    assert first is second


def test_the_same_file_has_the_same_module_name_in_another_process(folder: Path) -> None:
    spec = resolve("rewards", "own.py:brevity", [folder])
    program = f"from rlkit.plugins import load_object; print(load_object({spec!r}).__module__)"
    other = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == load_object(spec).__module__


def test_a_module_of_another_distribution_is_a_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    resolved = load(folder / "recipe.yaml", ["rewards.0.kind=own:keyword", "rewards.0.word=tree"])
    (reward,) = resolved.recipe.rewards
    assert reward.plugin.load()("task", "a tree", **reward.plugin.keywords) == 1.0


def test_keyword_parameters_of_a_reward_are_its_typed_settings(folder: Path) -> None:
    (reward,) = load(folder / "recipe.yaml", ["rewards.0.words=[a, b]"]).recipe.rewards
    assert reward.plugin.keywords == {"limit": 5, "words": ("a", "b")}


def test_equal_settings_of_a_function_are_equal(folder: Path) -> None:
    first, second = (load(folder / "recipe.yaml").recipe for _ in range(2))
    assert first == second


def test_a_plugin_without_config_takes_no_settings(folder: Path) -> None:
    assert load(folder / "recipe.yaml").values["task"] == {"kind": _portable(folder, "Quiz")}


def _portable(folder: Path, name: str) -> str:
    return f"{folder / 'own.py'}:{name}"
