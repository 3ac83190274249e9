"""Every recipe that comes with rlkit is a program that parses."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from rlkit.config import load
from rlkit.errors import RecipeError
from rlkit.layers import shipped_recipes
from rlkit.recipe import Recipe

ALL = sorted(shipped_recipes().glob("**/*.yaml"))
RUNNABLE = [file for file in ALL if not file.name.startswith("base")]
FIRST_LINE = "#!/usr/bin/env -S python -m rlkit"


def parsed(file: Path) -> Recipe:
    try:
        return load(file).recipe
    except RecipeError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and str(cause.name).startswith("rlkit."):
            assert importlib.util.find_spec(str(cause.name)) is None
            pytest.skip(f"{cause.name} is not written yet")
        raise


@pytest.mark.parametrize("file", RUNNABLE, ids=lambda file: file.stem)
def test_a_recipe_parses(file: Path) -> None:
    recipe = parsed(file)
    assert recipe.name == file.stem
    assert recipe.out == f"runs/{file.stem}"


@pytest.mark.parametrize("file", RUNNABLE, ids=lambda file: file.stem)
def test_a_recipe_is_a_program_that_says_what_it_does(file: Path) -> None:
    first, second = file.read_text(encoding="utf-8").splitlines()[:2]
    assert first == FIRST_LINE
    assert second.startswith("# ") and len(second) > 20
    assert os.access(file, os.X_OK)


@pytest.mark.parametrize("file", sorted(set(ALL) - set(RUNNABLE)), ids=lambda file: file.stem)
def test_a_base_is_no_program(file: Path) -> None:
    assert not os.access(file, os.X_OK)
    with pytest.raises(RecipeError, match=r"rewards: missing"):
        load(file)


@pytest.mark.parametrize("file", RUNNABLE, ids=lambda file: file.stem)
def test_a_recipe_gives_no_warning_on_two_cores(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed(file)  # skips
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert load(file).warnings == ()
