"""Joining or starting Ray, placement, and the environment of its workers. With this folder the only user of Ray."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlkit.errors import RecipeError
from rlkit.models.pretrained import OFFLINE
from rlkit.placement import Node, bundles, refuse_shortage, resources
from rlkit.policy.invariance import VARIABLE, strict_mode
from rlkit.recipe import Cluster

__all__ = ["actor_options", "connected", "nodes", "reserved"]

NODE_GROUP = "ray.io/node-group"
"""Label that KubeRay gives to the nodes of a worker group, and Ray to nodes started with RAY_NODE_TYPE_NAME."""
_seats: tuple[PlacementGroup, int] | None = None
"""The reservation of this process's run and the index of its first bundle; a process has one connection to Ray."""


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Join the cluster that the recipe, or the job this process runs in, names; else start one on this machine.

    A process that is connected already stays as it is, and connected afterwards. Raises `RecipeError` where no cluster
    answers, or where it lacks what the recipe asks for and `cluster.wait_s` has passed.
    """
    if ray.is_initialized():
        _wait_for_nodes(cluster, cluster.wait_s)
        yield
        return
    address = cluster.address or ("auto" if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID") else None)
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    alone = address is None
    if alone:
        address = "local"  # not None, which joins whatever Ray happens to run on this machine
        # Workers are counted in CPUs; a laptop with fewer cores than workers still runs, only slower.
        threads = (cluster.rollout_workers + cluster.learner_ranks) * cluster.threads_per_worker + 1
        options |= {"num_cpus": max(threads, os.cpu_count() or 1), "include_dashboard": False}
    # Workers must find user plug-ins the way this process does.
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    try:
        ray.init(address=address, runtime_env={"env_vars": env}, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:  # no head, another Ray version, a malformed address
        if alone:
            raise
        reason = str(error).strip().splitlines()[0]
        fix = "check it with `ray status --address ...`, or leave it out for a Ray on this machine"
        raise RecipeError("cluster.address", f"no Ray cluster answers at '{address}' ({reason}); {fix}") from error
    try:
        _wait_for_nodes(cluster, 0.0 if alone else cluster.wait_s)
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Node]:
    """The machines of the cluster that are alive."""
    return [
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            group=(node.get("Labels") or {}).get(NODE_GROUP),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _wait_for_nodes(cluster: Cluster, patience_s: float) -> None:
    """Nodes of a cluster join one by one; what is still lacking in the end is the recipe's error."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return refuse_shortage(cluster, nodes())
        except RecipeError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1.0)


@contextmanager
def reserved(cluster: Cluster) -> Iterator[None]:
    """Hold the recipe's bundles while its processes live; bundles of a node that dies move to another by themselves.

    Inside a trial of a sweep the trial's own reservation is used: its bundle 0 is this process, ours follow.
    Raises `RecipeError` where the bundles exist but are not free within `cluster.wait_s`.
    """
    global _seats
    current = ray.util.get_current_placement_group()
    if current is not None:
        _seats = current, 1
    elif cluster.placement != "free":
        asked = bundles(cluster)
        selectors = [{NODE_GROUP: bundle.nodes} if bundle.nodes else {} for bundle in asked]
        group = placement_group(
            [dict(resources(bundle)) for bundle in asked],
            # Ranks talk most, so bundles are packed; workers on nodes of their own are asked for by node groups.
            strategy="PACK",
            **({"bundle_label_selector": selectors} if any(selectors) else {}),
        )
        if not group.wait(max(cluster.wait_s, 1.0)):
            remove_placement_group(group)
            raise RecipeError(
                "cluster.placement",
                f"'{cluster.placement}': its {len(asked)} bundles were not free within cluster.wait_s="
                f"{cluster.wait_s:g}; other jobs hold the cluster (`ray status`), or no node group has room",
            )
        _seats = group, 0
    try:
        yield
    finally:
        if _seats is not None and current is None:
            remove_placement_group(_seats[0])
        _seats = None


def actor_options(
    threads: int, gpus: float = 0.0, cpus: float | None = None, *, bundle: int | None = None
) -> dict[str, Any]:
    """Options of one actor: its share of the machine, and arithmetic that no batch composition can change.

    `bundle` is its reservation (`reserved`); None: whichever has room. Threads are fixed through the environment
    because MKL and OpenMP read it once, when torch is first imported.
    """
    env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), VARIABLE: strict_mode(), **OFFLINE}
    options = {"num_cpus": threads if cpus is None else cpus, "num_gpus": gpus, "runtime_env": {"env_vars": env}}
    if _seats is not None and (options["num_cpus"] or gpus):
        group, first = _seats
        index = -1 if bundle is None else first + bundle
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return options
