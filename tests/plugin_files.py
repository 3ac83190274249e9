"""A user's own folder, outside the repository: plug-ins in a file, and a recipe that names them."""

from __future__ import annotations

from pathlib import Path

PLUGINS = '''"""Plug-ins of a user."""
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal


class Quiz:
    """A task source without settings."""


class Chat:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        turns: int = 1
        style: Literal["plain", "formal"] = "plain"
        api_key: str = ""

        def __post_init__(self):
            if self.turns < 1:
                raise ValueError(f"turns: {self.turns} is below 1")


class Searcher:
    needs_retriever = True


class Untyped:
    Config = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    clip: float = 0.2


ALGORITHM = SimpleNamespace(config=Settings, credit=print, loss=print, min_group_size=2)
NUMBER = 3


def brevity(task, trajectory, *, limit: int = 200, words: tuple[str, ...] = ()) -> float:
    return float(len(trajectory) <= limit)


def keyword(task, trajectory, *, word: str) -> float:
    return float(word in trajectory)


def weighted(task, trajectory, *, weight: float = 1.0) -> float:
    return weight
'''

RECIPE = """\
task: {kind: own.py:Quiz}
env: {kind: own.py:Chat}
engine: {kind: own.py:Quiz}
algorithm: {kind: own.py:ALGORITHM}
rewards:
  - {kind: own.py:brevity, limit: 5}
"""


def user_folder(folder: Path) -> Path:
    """Fill `folder` and return the path of its recipe, which loads in milliseconds: nothing imports torch."""
    (folder / "own.py").write_text(PLUGINS, encoding="utf-8")
    (folder / "explodes.py").write_text("raise OSError('no such corpus')", encoding="utf-8")
    (folder / "typo.py").write_text("def f(:", encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe
