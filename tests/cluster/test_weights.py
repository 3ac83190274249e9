"""Every way of the weights ends with the learner's on every worker, also on one that was replaced."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")

from safetensors.numpy import load_file  # noqa: E402

from rlkit.cluster import ray_workers  # noqa: E402
from rlkit.cluster.rollouts import RayRollouts  # noqa: E402
from rlkit.cluster.weights import Parcel  # noqa: E402
from rlkit.sync.buckets import described, planned  # noqa: E402
from rlkit.sync.delta import changed  # noqa: E402
from rlkit.sync.fingerprint import fingerprint  # noqa: E402
from tests.cluster.tiny import SMALL, recipe  # noqa: E402

pytestmark = pytest.mark.ray


def test_a_worker_that_died_or_hangs_is_replaced_and_told_the_weights_and_every_change_since(
    cluster: None, model: Path
) -> None:
    rollouts = RayRollouts(recipe(model, "cluster.rollout_workers=2", "cluster.sync_timeout_s=10").recipe, model)
    whole = dict(load_file(model / "model.safetensors"))
    tensors = described(whole)
    plan = planned(tensors, 10_000)
    assert len(plan) > 3
    chain = [
        Parcel(
            version=1,
            tensors=tensors,
            plan=plan,
            buckets=[ray.put({n: whole[n] for n in names}) for names in plan],
            changes=True,
        )
    ]
    assert rollouts.load_weights(chain) == ([fingerprint(whole)] * 2, False)
    held = whole
    for version in (2, 3, 4):
        moved = {name: array.copy() for name, array in held.items()}
        moved[next(iter(moved))].flat[version] += 1
        buckets = [ray.put({n: changed(moved[n], held[n]) for n in names}) for names in plan]
        chain.append(Parcel(version=version, tensors=tensors, plan=plan, buckets=buckets, changes=True))
        if version == 3:
            ray.kill(rollouts.workers[0])
        if version == 4:
            os.kill(ray.get(rollouts.workers[1].__ray_call__.remote(lambda self: os.getpid())), signal.SIGSTOP)
        assert rollouts.load_weights(chain) == ([fingerprint(moved)] * 2, version > 2)
        assert rollouts.num_replaced == version - 2
        held = moved
    for worker in rollouts.workers:
        ray.kill(worker)


def test_a_broadcast_outlives_a_worker_and_every_worker_ends_with_the_learners_weights(
    cluster: None, model: Path
) -> None:
    overrides = ("cluster.rollout_workers=2", "cluster.sync_over=gloo", "cluster.sync_bucket_mb=0.01")
    with ray_workers(recipe(model, *overrides).recipe, model, model, 1) as (rollouts, learner, sync):
        first = sync.push(learner)
        assert first.sent_bytes == first.num_bytes and first.link_bytes_per_s > 0
        ray.kill(rollouts.workers[1])
        assert sync.push(learner).fingerprint == first.fingerprint  # a push confirms what every worker runs
        assert rollouts.num_replaced == 1
        assert sync.push(learner).fingerprint == first.fingerprint
        for actor in [*rollouts.workers, *learner.ranks]:
            ray.kill(actor)


def test_workers_share_the_learners_memory_and_one_that_cannot_gets_the_weights_through_the_store(
    cluster: None, model: Path
) -> None:
    with ray_workers(recipe(model, "cluster.rollout_workers=2", *SMALL).recipe, model, model, 1) as parts:
        rollouts, learner, sync = parts
        first = sync.push(learner)
        assert sync._near == [True, True]
        assert first.sent_bytes == first.num_bytes and first.link_bytes_per_s > 0
        ray.kill(rollouts.workers[1])
        assert sync.push(learner).fingerprint == first.fingerprint  # the new worker's weights came with its start
        assert rollouts.num_replaced == 1
        assert sync.push(learner).fingerprint == first.fingerprint and sync._near == [True, True]
        sync._near = [True, False]  # as on two machines
        assert sync.push(learner).fingerprint == first.fingerprint
        sync._near = [True, True]
        assert sync.push(learner).fingerprint == first.fingerprint
        for actor in [*rollouts.workers, *learner.ranks]:
            ray.kill(actor)
