"""`rlkit list`: what a recipe can choose from, read from tables and sources; nothing is imported or run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlkit.layers import shipped_recipes
from rlkit.plugins import Family, describe

__all__ = ["listing"]


def listing(families: Iterable[str]) -> str:
    """One paragraph per family, one line per name."""
    return "\n\n".join(_paragraph(family) for family in families)


def _paragraph(family: str) -> str:
    rows = _recipes() if family == "recipes" else _plugins(family)  # type: ignore[arg-type]
    width = max((len(name) for name, _, _ in rows), default=0)
    lines = [family]
    for name, summary, place in rows:
        lines += [f"  {name:<{width}}  {summary or '(no description)'}", f"  {'':<{width}}  {place}"]
    return "\n".join(lines)


def _plugins(family: Family) -> list[tuple[str, str, str]]:
    return [(entry.kind, entry.summary, entry.spec) for entry in describe(family)]


def _recipes() -> list[tuple[str, str, str]]:
    """Recipes that run; the base of others does not."""
    files = (file for file in sorted(shipped_recipes().glob("*.yaml")) if not file.stem.startswith("base"))
    return [(file.stem, _first_comment(file), f"recipes/{file.name}") for file in files]


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")
