"""Joining or starting Ray, and the environment of its workers. With the rest of this folder the only user of Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rlkit.models.pretrained import OFFLINE
from rlkit.policy.invariance import VARIABLE, strict_mode
from rlkit.recipe import Cluster

__all__ = ["actor_options", "connected"]


@contextmanager
def connected(cluster: Cluster) -> Iterator[None]:
    """Join the cluster that the recipe, or the job this process runs in, names; else start one on this machine.

    A process that is connected already stays as it is, and connected afterwards.
    """
    if ray.is_initialized():
        yield
        return
    address = cluster.address or ("auto" if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID") else None)
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if address is None:
        address = "local"  # not None, which joins whatever Ray happens to run on this machine
        # Workers are counted in CPUs; a laptop with fewer cores than workers still runs, only slower.
        threads = (cluster.rollout_workers + cluster.learner_ranks) * cluster.threads_per_worker + 1
        options |= {"num_cpus": max(threads, os.cpu_count() or 1), "include_dashboard": False}
    # Workers must find user plug-ins the way this process does.
    path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {"PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    ray.init(address=address, runtime_env={"env_vars": env}, **options)
    try:
        yield
    finally:
        ray.shutdown()


def actor_options(threads: int, gpus: float = 0.0, cpus: float | None = None) -> dict[str, Any]:
    """Options of one actor: its share of the machine, and arithmetic that no batch composition can change.

    Threads are fixed through the environment because MKL and OpenMP read it once, when torch is first imported.
    """
    env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), VARIABLE: strict_mode(), **OFFLINE}
    return {"num_cpus": threads if cpus is None else cpus, "num_gpus": gpus, "runtime_env": {"env_vars": env}}
