"""Whether a run folder's checkpoints were made by this recipe; where not, every setting that differs is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlkit.checkpoint import CheckpointStore
from rlkit.config import Resolved
from rlkit.errors import CheckpointError
from rlkit.layers import leaves
from rlkit.train import fingerprint

__all__ = ["differences", "refuse_other_recipe"]

SHOWN = 12
"""Differences named before the rest is counted."""


def refuse_other_recipe(resolved: Resolved, run_dir: Path) -> None:
    """Raise `CheckpointError` with the differences, before anything of the folder is overwritten or a worker starts.

    What decides is the checkpoint's own fingerprint; the folder's `recipe.yaml` only says how the two differ.
    """
    for folder in reversed(CheckpointStore(run_dir).folders()):
        theirs = _recipe_of(folder)
        if theirs is not None:
            break
    else:
        return
    mine = fingerprint(resolved.recipe)
    changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if not changed:
        return
    named = differences(_written(run_dir / "recipe.yaml"), resolved.values, changed)
    lines = [f"{path}: {old} there, {new} here" for path, old, new in named[:SHOWN]]
    lines += [f"and {len(named) - SHOWN} more"] * (len(named) > SHOWN)
    what = "; ".join(lines) or f"which differs in {', '.join(changed)}"
    raise CheckpointError(
        f"out: {folder} was made by another recipe ({what}); choose another `out`, or remove the folder"
    )


def _recipe_of(folder: Path) -> dict[str, str] | None:
    """The fingerprint in a manifest; None where it is torn, of which whoever reads the checkpoint whole says more."""
    try:
        return dict(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["state"]["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], sections: list[str] | None = None
) -> list[tuple[str, str, str]]:
    """(path, old, new) of every value that differs, in the order of the new one; `-` where a side has none."""
    sides = [
        {path: repr(value) for path, value in leaves(values) if sections is None or _top(path) in sections}
        for values in (old, new)
    ]
    before, after = sides
    paths = [*after, *(path for path in before if path not in after)]
    return [(p, before.get(p, "-"), after.get(p, "-")) for p in paths if before.get(p) != after.get(p)]


def _top(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]


def _written(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
