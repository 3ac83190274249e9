"""A KubeRay RayJob from a recipe: `templates/rayjob.yaml` with its sizes, image and worker groups filled in."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlkit.errors import RlkitError
from rlkit.placement import Node, bundles, nodes_needed
from rlkit.recipe import Recipe

__all__ = ["rayjob"]

TEMPLATE = Path(__file__).parent / "templates" / "rayjob.yaml"
DEFAULT_GROUP = "workers"
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""What Kubernetes takes as a name, short enough for the suffixes that KubeRay adds."""


def rayjob(
    recipe: Recipe,
    command: Sequence[str],
    *,
    image: str,
    node: Node,
    memory: str,
    ray_version: str,
    env: Mapping[str, str],
    working_dir: str | None = None,
) -> dict[str, Any]:
    """The manifest. Raises `RlkitError` for names that Kubernetes refuses and bundles larger than a node."""
    job: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    name = re.sub(r"[^a-z0-9]+", "-", recipe.name.lower()).strip("-")[:40].rstrip("-")
    if not NAME.fullmatch(name):
        raise RlkitError(f"name: '{recipe.name}' makes no name for Kubernetes; begin it with a letter")
    job["metadata"]["name"] = name
    spec = job["spec"]
    spec["entrypoint"] = shlex.join(command)
    runtime: dict[str, Any] = {"env_vars": dict(env)} if env else {}
    if working_dir is not None:
        runtime["working_dir"] = working_dir
    if runtime:
        spec["runtimeEnvYAML"] = yaml.safe_dump(runtime, sort_keys=True)
    cluster = spec["rayClusterSpec"]
    cluster["rayVersion"] = ray_version
    _container(cluster["headGroupSpec"])["image"] = image
    (group,) = cluster["workerGroupSpecs"]
    cluster["workerGroupSpecs"] = [
        _group(copy.deepcopy(group), group_name, count, image, node, memory)
        for group_name, count in _replicas(recipe, node).items()
    ]
    return job


def _replicas(recipe: Recipe, node: Node) -> dict[str, int]:
    """Node group -> nodes of this size that its bundles need."""
    groups: dict[str, list[Any]] = {}
    for bundle in bundles(recipe.cluster):
        groups.setdefault(bundle.nodes or DEFAULT_GROUP, []).append(bundle)
    for name in groups:
        if not NAME.fullmatch(name):
            raise RlkitError(
                f"cluster.learner_nodes, cluster.rollout_nodes: '{name}' is no name for Kubernetes; use lower-case "
                "letters, digits and '-'"
            )
    return {name: nodes_needed(inside, node) for name, inside in groups.items()}


def _group(group: dict[str, Any], name: str, count: int, image: str, node: Node, memory: str) -> dict[str, Any]:
    group |= {"groupName": name, "replicas": count, "minReplicas": count, "maxReplicas": count}
    container = _container(group)
    container["image"] = image
    size = {"cpu": f"{node.cpus:g}", "memory": memory} | ({"nvidia.com/gpu": f"{node.gpus:g}"} if node.gpus else {})
    container["resources"] = {"requests": dict(size), "limits": dict(size)}
    return group


def _container(group: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return container
