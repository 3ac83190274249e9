"""One, two or four workers and a replaced one make the same rollouts, to the bit; ranks make the same weights."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")

from safetensors.numpy import load_file  # noqa: E402

from rlkit.cluster import ray_workers  # noqa: E402
from rlkit.cluster.rollouts import RayRetriever, RayRollouts, retriever_actor  # noqa: E402
from rlkit.cluster.weights import Parcel  # noqa: E402
from rlkit.config import Resolved, load  # noqa: E402
from rlkit.errors import RecipeError  # noqa: E402
from rlkit.evaluate import evaluation_settings  # noqa: E402
from rlkit.launch.run import run_recipe  # noqa: E402
from rlkit.packages import installed  # noqa: E402
from rlkit.policy.base import Sampling  # noqa: E402
from rlkit.policy.tiny import tiny_model  # noqa: E402
from rlkit.records import ScoredTree  # noqa: E402
from rlkit.rollout.build import build_source  # noqa: E402
from rlkit.rollout.ledger import Draw, TaskStream  # noqa: E402
from rlkit.rollout.loop import Progress, RolloutSettings  # noqa: E402
from rlkit.rollout.pace import Past  # noqa: E402
from rlkit.sync.buckets import described, planned  # noqa: E402
from rlkit.sync.delta import changed  # noqa: E402
from rlkit.sync.fingerprint import fingerprint  # noqa: E402

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def recipe(model: Path, *overrides: str) -> Resolved:
    return load(ROOT / "recipes/tiny.yaml", [f"model.path={model}", "cluster.kind=ray", *overrides])


SMALL = ("cluster.sync_bucket_mb=0.01",)
"""Several buckets even of a tiny model."""
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


def test_a_worker_that_is_replaced_is_told_the_weights_and_every_change_since(cluster: None, model: Path) -> None:
    rollouts = RayRollouts(recipe(model, "cluster.rollout_workers=2").recipe, model)
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
    moved = {name: array.copy() for name, array in whole.items()}
    first = next(iter(moved))
    moved[first].flat[7] += 1
    buckets = [ray.put({n: changed(moved[n], whole[n]) for n in names}) for names in plan]
    chain.append(Parcel(version=2, tensors=tensors, plan=plan, buckets=buckets, changes=True))
    assert rollouts.load_weights(chain) == ([fingerprint(moved)] * 2, False)
    ray.kill(rollouts.workers[0])
    assert rollouts.load_weights(chain)[0] == [fingerprint(moved)] * 2
    assert rollouts.num_replaced == 1
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


def test_ray_ranks_and_one_process_train_the_same_weights(cluster: None, model: Path, tmp_path: Path) -> None:
    runs = {
        "local": ["cluster.kind=local"],
        "workers": ["cluster.rollout_workers=2"],
        "store": ["cluster.rollout_workers=2", "cluster.sync_over=store"],
        "changes": ["cluster.rollout_workers=2", *SMALL, "cluster.sync_over=store", "cluster.sync_changes=true"],
        "broadcast": ["cluster.rollout_workers=2", *SMALL, "cluster.sync_over=gloo"],
        "ranks": ["cluster.learner_ranks=2", "learner.kind=ddp"],
    }
    found = {}
    for name, overrides in runs.items():
        out = tmp_path / name
        assert (
            run_recipe(
                recipe(
                    model,
                    f"out={out}",
                    "algorithm.entropy_coef=0.1",
                    "train.eval_every=0",
                    "log.tensorboard=false",
                    *overrides,
                )
            )
            == 0
        )
        found[name] = load_file(out / "checkpoints/step_000002/model.safetensors")
    start = load_file(model / "model.safetensors")
    # A random model earns no reward; the entropy bonus is what moves the weights here.
    assert any(not np.array_equal(weights, start[name]) for name, weights in found["local"].items() if name in start)
    for name, weights in found["local"].items():
        for alike in ("workers", "store", "changes", "broadcast"):
            assert np.array_equal(weights, found[alike][name]), (alike, name)
        # Two ranks add the same numbers in another order. Adam divides by the root of tiny second moments, so a
        # difference of 1e-7 in a gradient near 0 can grow to a part of the learning rate (1e-3), never beyond it.
        assert np.abs(weights - found["ranks"][name]).max() <= 1e-3, name
        assert np.linalg.norm(weights - found["ranks"][name]) <= 1e-4 * np.linalg.norm(weights), name


def test_groups_under_way_survive_their_worker_and_end_as_in_one_process(
    cluster: None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asynchronous = (
        "rollout.max_staleness=2",
        "rollout.round_tokens=3",
        "train.steps=3",
        "algorithm.entropy_coef=0.1",
        "train.eval_every=0",
        "train.checkpoint_every=0",
        "log.tensorboard=false",
    )
    run_recipe(recipe(model, *asynchronous, "cluster.kind=local", f"out={tmp_path / 'local'}"))
    kills = 0
    whole = RayRollouts.advance

    async def advance(self: RayRollouts, draw: Draw, settings: RolloutSettings, past: Past) -> Progress:
        nonlocal kills
        if past.segments and kills < 2:  # something was drawn for this group already
            ray.kill(self._owners[draw.number])
            kills += 1
        return await whole(self, draw, settings, past)

    monkeypatch.setattr(RayRollouts, "advance", advance)
    run_recipe(recipe(model, *asynchronous, "cluster.rollout_workers=2", f"out={tmp_path / 'ray'}"))
    assert kills == 2
    weights = [load_file(tmp_path / name / "checkpoints/step_000003/model.safetensors") for name in ("local", "ray")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    books = [(tmp_path / name / "ledger.jsonl").read_text() for name in ("local", "ray")]
    assert books[0] == books[1]


def test_workers_with_other_packages_are_refused_before_anything_is_sampled(
    cluster: None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.cluster.rollouts.installed", lambda: installed() | {"torch": "9.9"})
    with pytest.raises(RecipeError, match=r"rollout worker 0 on .* runs on other packages \(torch .*, here 9\.9\)"):
        RayRollouts(recipe(model).recipe, model)
