"""Imports run one way: the picture of docs/architecture.md, held by parsing the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = {
    "errors", "records", "randomness", "metrics", "recipe", "settings", "plugins", "layers", "combinations", "config",
    "checkpoint", "live", "store", "recorder", "text", "tags", "network", "placement", "packages", "lock", "transcript",
}  # fmt: skip
PROTOCOLS = {"env", "reward", "render", "retriever"}
ALLOWED: dict[str, set[str]] = {
    "ground": {"ground"},
    "protocols": {"protocols", "ground"},
    "catalogue": {"catalogue", "ground"},
    "search": {"search", "ground"},
    "evidence": {"evidence", "ground"},
    "judging": {"judging", "search", "protocols", "ground"},
    "planning": {"planning", "judging", "search", "protocols", "ground"},
    "rewards": {"rewards", "judging", "search", "evidence", "catalogue", "protocols", "ground"},
    "envs": {"envs", "search", "evidence", "catalogue", "protocols", "ground"},
    "retrieval": {"retrieval", "judging", "evidence", "envs", "protocols", "ground"},
    "semantic_ids": {"semantic_ids", "ground"},
    "ops": {"ops", "ground"},
    "algorithms": {"algorithms", "ops", "ground"},
    "data": {"data", "search", "catalogue", "protocols", "ground"},
    "models": {"models", "catalogue", "ground"},
    "sync": {"sync", "policy", "ground"},
    "policy": {"policy", "sync", "models", "envs", "catalogue", "protocols", "ground"},
    "learner": {"learner", "algorithms", "data", "models", "ops", "ground"},
    "rollout": {"rollout", "policy", "data", "protocols", "ground"},
    "gate": {"gate", "rollout", "protocols", "ground"},
    "train": {"train", "rollout", "learner", "sync", "policy", "algorithms", "data", "protocols", "ground"},
    "report": {"report", "evidence", "ground"},
    "forecast": {"forecast", "ground"},
    "sweeps": {"sweeps", "ground"},
    "cluster": {
        "cluster",
        "sweeps",
        "train",
        "models",
        "rollout",
        "learner",
        "sync",
        "policy",
        "data",
        "protocols",
        "ground",
    },
    "launch": {
        "launch",
        "forecast",
        "sweeps",
        "planning",
        "judging",
        "gate",
        "catalogue",
        "retrieval",
        "semantic_ids",
        "cluster",
        "train",
        "report",
        "models",
        "rollout",
        "learner",
        "sync",
        "policy",
        "protocols",
        "ground",
    },
}
TORCH_FREE = ("ground", "protocols", "catalogue", "search", "evidence", "rewards", "envs", "rollout")
"""Environment and reward processes start fast and small; checked for imports at module level."""


def unit(module: str) -> str:
    """The unit that `rlkit.x.y` belongs to."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1].startswith("__"):
        return "package"
    name = parts[1]
    if name in GROUND:
        return "ground"
    if name in PROTOCOLS:
        return "protocols"
    return "train" if name in ("evaluate", "rescore", "canary") else name


def sources() -> Iterator[tuple[str, Path]]:
    for folder in ("rlkit", "rewards", "envs", "launch"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT)
            module = ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
            yield module if folder == "rlkit" else f"rlkit.{module}", path


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Every imported module, those inside functions too unless `top_only`."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            if node.module == "rlkit":
                yield from (f"rlkit.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in sources()])
def test_imports_follow_the_arrows(module: str, path: Path) -> None:
    here = unit(module)
    if here == "package":
        return
    for target in imports(path):
        if target.split(".")[0] == "rlkit" and target != "rlkit":
            there = unit(target)
            assert there in ALLOWED[here] | {"package"}, f"{module} ({here}) imports {target} ({there})"


def test_ray_is_imported_in_the_cluster_folder_only() -> None:
    users = {module for module, path in sources() for name in imports(path) if name.split(".")[0] == "ray"}
    assert users and all(module.startswith("rlkit.cluster") for module in users), users


def test_light_units_do_not_import_torch_when_they_load() -> None:
    heavy = {"torch", "transformers", "accelerate", "deepspeed"}
    for module, path in sources():
        if unit(module) in TORCH_FREE:
            found = {name for name in imports(path, top_only=True) if name.split(".")[0] in heavy}
            assert not found, f"{module} imports {found}"


def test_no_file_is_a_drawer_for_anything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for _, path in sources() if path.stem in drawers]
