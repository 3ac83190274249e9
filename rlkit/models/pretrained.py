"""From the model's name in a recipe to a folder on this disk; nothing is ever downloaded from a hub.

A name is one of `PREPARED`, made once by `python -m rlkit.launch.model`, or the path of a folder in the
layout of `transformers`. Whoever loads from it keeps `trust_remote_code` off: data, not a program.
"""

from __future__ import annotations

import os
from pathlib import Path

from rlkit.errors import RecipeError, nearest

__all__ = ["CHECKSUMS", "OFFLINE", "PREPARED", "cache_root", "is_prepared", "prepared_path", "resolve_model"]

PREPARED = {"smollm2-135m": "smollm2-135m-instruct"}
"""Name in a recipe -> folder below `cache_root()`."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Environment of every process that loads a model: no network, and no bars across the live table."""

CHECKSUMS = "SHA256SUMS"
"""The file written last into a prepared folder, in the form that `sha256sum -c` reads."""


def cache_root() -> Path:
    """Where prepared models live: `$RLKIT_CACHE`, else `~/.cache/rlkit`."""
    return Path(os.environ.get("RLKIT_CACHE") or "~/.cache/rlkit").expanduser()


def prepared_path(name: str) -> Path:
    """The folder of a name in `PREPARED`, whether it exists yet or not."""
    return cache_root() / PREPARED[name]


def is_prepared(folder: Path) -> bool:
    """True once the folder is complete; reads no weights (`rlkit.launch.model` compares their hashes)."""
    return (folder / CHECKSUMS).is_file()


def resolve_model(name: str, *, setting: str = "model.path") -> Path:
    """The folder to load `name` from; `setting` is the recipe's path that named it, for the message.

    Raises `RecipeError` for a name of `PREPARED` that is not prepared yet and for a folder without a model.
    """
    if name in PREPARED:
        folder = prepared_path(name)
        if not is_prepared(folder):
            problem = f"'{name}' is not prepared in {folder}; run: python -m rlkit.launch.model"
            raise RecipeError(setting, problem)
        return folder

    folder = Path(name).expanduser()
    if not folder.is_dir():
        hint = nearest(name, [*PREPARED, *_models_in(folder.parent)])
        problem = f"'{name}' is no prepared name and no folder, and rlkit downloads no models{hint}"
        raise RecipeError(setting, problem)
    if not (folder / "config.json").is_file():
        hint = nearest(name, _models_in(folder) + _models_in(folder.parent))
        raise RecipeError(setting, f"folder '{name}' has no config.json, so it holds no model{hint}")
    return folder


def _models_in(folder: Path) -> list[str]:
    """The folders directly below `folder` that hold a model."""
    return [str(config.parent) for config in folder.glob("*/config.json")]
