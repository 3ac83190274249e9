"""Where a recipe's processes go: bundles of CPUs and GPUs that must lie on one node each.

    colocated      every learner rank shares its bundle, and its GPU, with the same number of rollout workers
    disaggregated  every process has a bundle of its own; no GPU is shared between sampling and training
    mixed          every learner rank shares its bundle with one rollout worker, the other workers have their own
    free           no bundles are reserved: Ray puts each process where it finds room

Pure: this file knows no Ray. `rlkit/cluster/runtime.py` reserves what it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkit.errors import RecipeError, nearest
from rlkit.recipe import Cluster

__all__ = ["Bundle", "Node", "bundles", "nodes_needed", "refuse_shortage", "resources", "shown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What must be free on one node at once."""

    cpus: float
    """Cores, one per thread."""
    gpus: float = 0.0
    """GPUs; a share below 1 leaves the rest of that GPU to other bundles."""
    ranks: tuple[int, ...] = ()
    """Learner ranks inside."""
    workers: tuple[int, ...] = ()
    """Rollout workers inside. Workers are all alike, so the numbers say how many, not which."""
    nodes: str | None = None
    """Group of nodes that it may lie on; None: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine of a cluster."""

    cpus: float
    gpus: float = 0.0
    group: str | None = None
    """Name of its node group (`ray.io/node-group`), if it has one."""


def bundles(cluster: Cluster) -> tuple[Bundle, ...]:
    """One entry per reservation, those with learner ranks first; in `free` one per process, and nothing is reserved.

    Raises `RecipeError` for a placement that these numbers of workers and ranks cannot have.
    """
    ranks, workers, threads = cluster.learner_ranks, cluster.rollout_workers, cluster.threads_per_worker
    rank_gpus, worker_gpus = cluster.gpus_per_learner_rank, cluster.gpus_per_rollout_worker
    beside = {"colocated": workers // ranks, "mixed": 1}.get(cluster.placement, 0)
    _check(cluster, beside)
    found = []
    for rank in range(ranks):
        inside = tuple(range(rank * beside, (rank + 1) * beside))
        gpus = rank_gpus + beside * worker_gpus
        cpus = threads * (1 + beside)
        found.append(Bundle(cpus=cpus, gpus=gpus, ranks=(rank,), workers=inside, nodes=cluster.learner_nodes))
    for worker in range(ranks * beside, workers):
        found.append(Bundle(cpus=threads, gpus=worker_gpus, workers=(worker,), nodes=cluster.rollout_nodes))
    return tuple(found)


def _check(cluster: Cluster, beside: int) -> None:
    ranks, workers, placement = cluster.learner_ranks, cluster.rollout_workers, cluster.placement
    path = "cluster.placement"
    if placement == "colocated" and (workers < ranks or workers % ranks):
        near = max(round(workers / ranks), 1) * ranks
        raise RecipeError(
            path,
            f"'colocated' puts the same number of rollout workers beside each of {ranks} learner ranks, but "
            f"cluster.rollout_workers={workers}; use {near}, or cluster.placement=mixed",
        )
    if placement == "mixed" and workers <= ranks:
        raise RecipeError(
            path,
            f"'mixed' wants more rollout workers than the {ranks} learner ranks, but cluster.rollout_workers="
            f"{workers}; use {ranks + 1} or more, or cluster.placement=colocated",
        )
    shared = cluster.gpus_per_learner_rank + beside * cluster.gpus_per_rollout_worker
    if beside and (cluster.gpus_per_learner_rank > 0) != (cluster.gpus_per_rollout_worker > 0):
        raise RecipeError(
            path,
            f"'{placement}' shares GPUs, but cluster.gpus_per_learner_rank={cluster.gpus_per_learner_rank:g} and "
            f"cluster.gpus_per_rollout_worker={cluster.gpus_per_rollout_worker:g}; give both a share, or neither",
        )
    if beside and shared > 1:
        raise RecipeError(
            path,
            f"'{placement}' puts a learner rank and {_count(beside, 'rollout worker')} on one GPU, but their shares "
            f"add up to {shared:g}; lower cluster.gpus_per_learner_rank or cluster.gpus_per_rollout_worker",
        )
    if placement == "disaggregated":
        for name in ("gpus_per_learner_rank", "gpus_per_rollout_worker"):
            share = getattr(cluster, name)
            if share != int(share):
                raise RecipeError(
                    path, f"'disaggregated' shares no GPU, but cluster.{name}={share:g}; use {math.ceil(share)}"
                )
    for name in ("learner_nodes", "rollout_nodes"):
        if placement == "free" and (group := getattr(cluster, name)) is not None:
            raise RecipeError(
                f"cluster.{name}",
                f"'{group}' with cluster.placement=free, which reserves nothing; use cluster.placement=disaggregated",
            )
    if placement == "colocated" and cluster.rollout_nodes != cluster.learner_nodes:
        raise RecipeError(
            path,
            f"'colocated' has all processes on the same nodes, but cluster.rollout_nodes={cluster.rollout_nodes} and "
            f"cluster.learner_nodes={cluster.learner_nodes}; make them equal, or use cluster.placement=disaggregated",
        )


def refuse_shortage(cluster: Cluster, nodes: Sequence[Node]) -> None:
    """Raise `RecipeError` where the recipe asks for what these nodes cannot have: a proof, never a guess.

    Looked at, in this order: groups of nodes by name, each bundle against the largest node, sums over all nodes.
    """
    groups = {node.group for node in nodes if node.group}
    for name in ("learner_nodes", "rollout_nodes"):
        wanted = getattr(cluster, name)
        if wanted is not None and wanted not in groups:
            known = nearest(wanted, groups) or "; its nodes have no groups (RAY_NODE_TYPE_NAME sets one)"
            raise RecipeError(f"cluster.{name}", f"the cluster has no node group '{wanted}'{known}")
    asked = bundles(cluster)
    have = f"the cluster has {_sizes(nodes)}"
    for bundle in asked:
        fitting = [node for node in nodes if bundle.nodes in (None, node.group)]
        if not any(node.gpus >= bundle.gpus and node.cpus >= bundle.cpus for node in fitting):
            who = _inside(len(bundle.ranks), len(bundle.workers))
            raise RecipeError(
                _setting(cluster, bundle.gpus > max((node.gpus for node in fitting), default=0), bundle),
                f"{who} need {_amount(bundle.cpus, bundle.gpus)} on one node; {have}",
            )
    for resource in ("gpus", "cpus"):
        need, total = (sum(getattr(item, resource) for item in items) for items in (asked, nodes))
        if need > total:
            many = cluster.rollout_workers >= cluster.learner_ranks
            more = "rollout_workers" if many else "learner_ranks"
            who = _inside(cluster.learner_ranks, cluster.rollout_workers)
            raise RecipeError(
                f"cluster.{more}",
                f"{who} need {need:g} {resource.upper()[:3]}s; {have}",
            )


def _setting(cluster: Cluster, of_gpus: bool, bundle: Bundle) -> str:
    if not of_gpus:
        return "cluster.threads_per_worker"
    learner = bundle.ranks and cluster.gpus_per_learner_rank >= cluster.gpus_per_rollout_worker
    return "cluster.gpus_per_learner_rank" if learner else "cluster.gpus_per_rollout_worker"


def nodes_needed(asked: Sequence[Bundle], node: Node) -> int:
    """Nodes of this size that hold the bundles: first fit, the largest first.

    A GPU share never crosses GPUs, so a bundle that shares one must find its share on a single GPU.
    Raises `RecipeError` if a bundle is larger than a node.
    """
    open_nodes: list[tuple[float, list[float]]] = []  # free CPUs, free share of each GPU
    for bundle in sorted(asked, key=lambda b: (b.gpus, b.cpus), reverse=True):
        if bundle.cpus > node.cpus or bundle.gpus > node.gpus:
            size = _amount(node.cpus, node.gpus)
            raise RecipeError(
                "cluster", f"a bundle of {_amount(bundle.cpus, bundle.gpus)} does not fit a node of {size}"
            )
        for index, (cpus, gpus) in enumerate(open_nodes):
            taken = _take(gpus, bundle.gpus) if cpus >= bundle.cpus else None
            if taken is not None:
                open_nodes[index] = cpus - bundle.cpus, taken
                break
        else:
            fresh = _take([1.0] * int(node.gpus), bundle.gpus)
            assert fresh is not None
            open_nodes.append((node.cpus - bundle.cpus, fresh))
    return len(open_nodes)


def _take(free: list[float], gpus: float) -> list[float] | None:
    """The GPUs after `gpus` were taken: whole ones, or a share of one; None where that does not fit."""
    left = list(free)
    share = gpus - int(gpus)
    for amount in [1.0] * int(gpus) + [share] * (share > 0):
        index = next((i for i, room in enumerate(left) if room >= amount - 1e-9), None)
        if index is None:
            return None
        left[index] -= amount
    return left


def shown(cluster: Cluster) -> str:
    """A few lines for a person: equal bundles are one line."""
    kinds: dict[tuple[int, int, float, float, str | None], int] = {}
    for bundle in bundles(cluster):
        key = (len(bundle.ranks), len(bundle.workers), bundle.cpus, bundle.gpus, bundle.nodes)
        kinds[key] = kinds.get(key, 0) + 1
    lines = [f"{cluster.placement}" + (": nothing is reserved" if cluster.placement == "free" else "")]
    for (ranks, workers, cpus, gpus, nodes), count in kinds.items():
        where = f", on nodes '{nodes}'" if nodes else ""
        lines.append(f"{count} x [{_inside(ranks, workers)}]: {_amount(cpus, gpus)}{where}")
    return "\n".join(lines)


def resources(bundle: Bundle) -> Mapping[str, float]:
    """The bundle in Ray's words."""
    return {"CPU": float(bundle.cpus)} | ({"GPU": float(bundle.gpus)} if bundle.gpus else {})


def _inside(ranks: int, workers: int) -> str:
    counts = ((ranks, "learner rank"), (workers, "rollout worker"))
    return " + ".join(_count(number, thing) for number, thing in counts if number)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _amount(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'s' * (cpus != 1)}" + (f" and {gpus:g} GPU{'s' * (gpus != 1)}" if gpus else "")


def _sizes(nodes: Sequence[Node]) -> str:
    """`2 nodes: 8 CPUs and 1 GPU, 4 CPUs`."""
    return f"{_count(len(nodes), 'node')}: {', '.join(_amount(node.cpus, node.gpus) for node in nodes) or 'none'}"
