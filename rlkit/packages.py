"""Which packages run here, and the refusal of a machine with others: two versions of one kernel are two policies."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata

from rlkit.errors import RecipeError

__all__ = ["PACKAGES", "installed", "refuse_others"]

PACKAGES = ("rlkit-tree", "ray", "torch", "transformers", "numpy")
"""Those that decide numbers, or what travels between processes; Python besides."""


def installed() -> dict[str, str]:
    """Name -> version, or `missing`."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def refuse_others(who: str, theirs: Mapping[str, str], mine: Mapping[str, str]) -> None:
    """Raise `RecipeError` naming every package of which a worker has another version than this process."""
    others = [f"{name} {theirs.get(name, 'missing')}, here {version}" for name, version in mine.items()]
    wrong = [text for text, (name, version) in zip(others, mine.items(), strict=True) if theirs.get(name) != version]
    if wrong:
        raise RecipeError(
            "cluster",
            f"{who} runs on other packages ({'; '.join(wrong)}); install the same constraints.txt on every machine",
        )
