"""One, two or four workers and a replaced one make the same rollouts, to the bit."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")


from rlkit.cluster.rollouts import RayRetriever, RayRollouts, RolloutWorker, retriever_actor  # noqa: E402
from rlkit.errors import RecipeError  # noqa: E402
from rlkit.evaluate import evaluation_settings  # noqa: E402
from rlkit.packages import installed  # noqa: E402
from rlkit.policy.base import Sampling  # noqa: E402
from rlkit.records import ScoredTree  # noqa: E402
from rlkit.rollout.build import build_source  # noqa: E402
from rlkit.rollout.ledger import TaskStream  # noqa: E402
from rlkit.rollout.loop import RolloutSettings  # noqa: E402
from tests.cluster.tiny import recipe  # noqa: E402

pytestmark = pytest.mark.ray


SETTINGS = RolloutSettings(
    group_size=4, max_completion_tokens=12, max_path_tokens=512, sampling=Sampling(), max_concurrent_groups=2
)


def bits(tree: ScoredTree) -> list[object]:
    """Everything a learner reads of a tree."""
    nodes = [
        (
            n.parent,
            n.author,
            n.token_ids.tobytes(),
            None if n.behavior_logprobs is None else n.behavior_logprobs.tobytes(),
        )
        for n in tree.tree.nodes
    ]
    return [nodes, [(leaf.node, leaf.status) for leaf in tree.tree.leaves], tree.rewards.tobytes()]


def test_the_number_of_workers_and_the_order_of_arrival_change_no_bit(cluster: None, model: Path) -> None:
    resolved = recipe(model)
    draws = TaskStream(build_source(resolved.recipe).tasks("train"), 0).draw(8)
    made = {}
    for count in (1, 2, 4):
        rollouts = RayRollouts(recipe(model, f"cluster.rollout_workers={count}").recipe, model)
        made[count] = [bits(tree) for tree in rollouts.collect(draws, SETTINGS)]
        if count == 4:
            shuffled = np.random.default_rng(0).permutation(len(draws))
            again = rollouts.collect([draws[i] for i in shuffled], SETTINGS)
            assert [bits(tree) for tree in again] == [made[1][i] for i in shuffled]
            alone = rollouts.collect([draws[5]], SETTINGS)
            assert bits(alone[0]) == made[1][5]
        for worker in rollouts.workers:
            ray.kill(worker)
    assert made[1] == made[2] == made[4]


def test_a_killed_worker_is_replaced_and_its_trees_are_the_same(cluster: None, model: Path) -> None:
    resolved = recipe(model, "cluster.rollout_workers=2")
    draws = TaskStream(build_source(resolved.recipe).tasks("train"), 0).draw(8)
    rollouts = RayRollouts(resolved.recipe, model)
    wanted = [bits(tree) for tree in rollouts.collect(draws, SETTINGS)]
    ray.kill(rollouts.workers[0])
    assert [bits(tree) for tree in rollouts.collect(draws, SETTINGS)] == wanted
    assert rollouts.num_replaced == 1
    assert evaluation_settings(resolved.recipe).group_size == 1


def test_a_worker_that_stands_still_is_replaced_and_its_trees_are_the_same(cluster: None, model: Path) -> None:
    resolved = recipe(model, "cluster.rollout_workers=2", "cluster.ping_timeout_s=10")
    draws = TaskStream(build_source(resolved.recipe).tasks("train"), 0).draw(8)
    rollouts = RayRollouts(resolved.recipe, model)
    wanted = [bits(tree) for tree in rollouts.collect(draws, SETTINGS)]
    os.kill(ray.get(rollouts.workers[0].__ray_call__.remote(lambda self: os.getpid())), signal.SIGSTOP)
    assert [bits(tree) for tree in rollouts.collect(draws, SETTINGS)] == wanted
    assert rollouts.num_replaced == 1
    for worker in rollouts.workers:
        ray.kill(worker)


def test_a_worker_that_is_slow_but_answers_is_left_alone(cluster: None, model: Path) -> None:
    rollouts = RayRollouts(recipe(model, "cluster.rollout_workers=1", "cluster.ping_timeout_s=0.5").recipe, model)

    def slowed(self: RolloutWorker) -> None:
        async def run(*_: object) -> list[str]:
            await asyncio.sleep(3)
            return ["done"]

        self.rollouts.run = run  # type: ignore[method-assign, assignment]

    worker = rollouts.workers[0]
    ray.get(worker.__ray_call__.remote(slowed))
    assert ray.get(rollouts._ended([worker.tree.remote(None, SETTINGS)])) == ["done"]
    assert asyncio.run(rollouts._answer(worker, worker.tree.remote(None, SETTINGS))) == "done"
    assert rollouts.workers == [worker] and rollouts.num_replaced == 0
    ray.kill(worker)


def test_a_retriever_that_dies_is_built_anew_and_answers_as_before(cluster: None, model: Path) -> None:
    actor = retriever_actor(recipe(model).recipe, restarts=3)
    shared = RayRetriever(actor)
    queries = ["who founded the company?", "where was it?"]

    async def searched() -> list[object]:
        return list(await shared.search(queries, 2))

    before = asyncio.run(searched())
    ray.kill(actor, no_restart=False)
    assert asyncio.run(searched()) == before
    assert all(found.status == "ok" for found in before)
    ray.kill(actor)
    assert [found.status for found in asyncio.run(searched())] == ["failed: ActorDiedError"] * 2


def test_workers_with_other_packages_are_refused_before_anything_is_sampled(
    cluster: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.cluster.rollouts.installed", lambda: installed() | {"torch": "9.9"})
    with pytest.raises(RecipeError, match=r"rollout worker 0 on .* runs on other packages \(torch .*, here 9\.9\)"):
        RayRollouts(recipe(model).recipe, model)
