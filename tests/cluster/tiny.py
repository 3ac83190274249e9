"""The recipe of these tests."""

from __future__ import annotations

from pathlib import Path

from rlkit.config import Resolved, load

ROOT = Path(__file__).parent.parent.parent
SMALL = ("cluster.sync_bucket_mb=0.01",)
"""Several buckets even of a tiny model."""


def recipe(model: Path, *overrides: str) -> Resolved:
    return load(ROOT / "recipes/tiny.yaml", [f"model.path={model}", "cluster.kind=ray", *overrides])
