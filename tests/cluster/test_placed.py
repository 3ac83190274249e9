"""Placement on real raylets: bundles are held where the recipe says, and a node that is killed is replaced."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")

from ray.cluster_utils import Cluster as RayCluster  # noqa: E402

from rlkit.cluster import ray_workers  # noqa: E402
from rlkit.cluster.runtime import connected, nodes, reserved  # noqa: E402
from rlkit.config import Resolved, load  # noqa: E402
from rlkit.errors import RecipeError  # noqa: E402
from rlkit.policy.base import Sampling  # noqa: E402
from rlkit.policy.tiny import tiny_model  # noqa: E402
from rlkit.recipe import Cluster  # noqa: E402
from rlkit.rollout.build import build_source  # noqa: E402
from rlkit.rollout.ledger import TaskStream  # noqa: E402
from rlkit.rollout.loop import RolloutSettings  # noqa: E402

pytestmark = pytest.mark.ray
LONG = pytest.mark.skipif(os.environ.get("RLKIT_LONG") != "1", reason="a minute or two on two cores; RLKIT_LONG=1")
ROOT = Path(__file__).parent.parent.parent
SETTINGS = RolloutSettings(
    group_size=4, max_completion_tokens=12, max_path_tokens=512, sampling=Sampling(), max_concurrent_groups=2
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def raylets() -> Iterator[RayCluster]:
    """A head without room, and two nodes of two cores: `train` and `sample`."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    cluster = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for group in ("train", "sample"):
        cluster.add_node(num_cpus=2, labels={"ray.io/node-group": group})
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def recipe(model: Path, *overrides: str) -> Resolved:
    settings = ["cluster.kind=ray", "cluster.wait_s=0", *overrides]
    return load(ROOT / "recipes/tiny.yaml", [f"model.path={model}", *settings])


def where(actors: list[Any]) -> list[str]:
    """Node group of each actor."""
    groups = {node["NodeID"]: (node.get("Labels") or {}).get("ray.io/node-group", "") for node in ray.nodes()}

    calls = [actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()) for actor in actors]
    return [groups[node] for node in ray.get(calls)]


@LONG
@pytest.mark.slow
def test_bundles_keep_ranks_and_workers_on_their_nodes_and_a_killed_node_is_replaced(
    raylets: RayCluster, model: Path
) -> None:
    resolved = recipe(
        model,
        "cluster.placement=disaggregated",
        "cluster.rollout_workers=2",
        "cluster.learner_nodes=train",
        "cluster.rollout_nodes=sample",
    )
    draws = TaskStream(build_source(resolved.recipe).tasks("train"), 0).draw(4)
    with ray_workers(resolved.recipe, model, model, 2) as (rollouts, learner, sync):
        assert where(learner.ranks) == ["train"]
        assert where(rollouts.workers) == ["sample", "sample"]
        sync.push(learner)
        wanted = [tree.rewards.tobytes() for tree in rollouts.collect(draws, SETTINGS)]
        tokens = [[n.token_ids.tolist() for n in t.tree.nodes] for t in rollouts.collect(draws, SETTINGS)]

        victim = next(n for n in raylets.worker_nodes if n.node_id in _nodes_of("sample"))
        raylets.remove_node(victim, allow_graceful=False)  # SIGKILL
        until(lambda: not _nodes_of("sample"))
        with ThreadPoolExecutor(1) as thread:
            collected = thread.submit(rollouts.collect, draws, SETTINGS)  # waits for a node, then goes on there
            raylets.add_node(num_cpus=2, labels={"ray.io/node-group": "sample"})
            trees = collected.result(timeout=200)
        assert [tree.rewards.tobytes() for tree in trees] == wanted
        assert [[n.token_ids.tolist() for n in t.tree.nodes] for t in trees] == tokens
        assert rollouts.num_replaced >= 1
        assert set(where(rollouts.workers)) == {"sample"}
    until(lambda: ray.available_resources().get("CPU") == 4.0)  # the reservation ends with the run


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _nodes_of(group: str) -> set[str]:
    return {
        n["NodeID"] for n in ray.nodes() if n["Alive"] and (n.get("Labels") or {}).get("ray.io/node-group") == group
    }


@LONG
@pytest.mark.slow
def test_what_a_cluster_lacks_is_said_before_a_worker_starts(raylets: RayCluster) -> None:
    assert sorted(node.cpus for node in nodes()) == [0, 2, 2]

    def refused(**settings: Any) -> str:
        cluster = Cluster(kind="ray", wait_s=0, **settings)
        with pytest.raises(RecipeError) as caught, connected(cluster), reserved(cluster):
            pass
        return str(caught.value)

    assert refused(rollout_workers=8).startswith("cluster.rollout_workers: 1 learner rank + 8 rollout workers need 9")
    assert "no node group 'simple'; did you mean 'sample'?" in refused(
        placement="disaggregated", rollout_nodes="simple"
    )
    assert "3 CPUs on one node" in refused(threads_per_worker=3)
    held = Cluster(kind="ray", placement="colocated", wait_s=0)
    with connected(held), reserved(held):  # 2 of 4 cores are taken, 3 more are not free
        assert "bundles were not free within cluster.wait_s=0" in refused(placement="mixed", rollout_workers=2)


def test_a_cluster_that_does_not_answer_is_an_error_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", no_answer)
    asked = Cluster(kind="ray", address="10.0.0.1:6379")
    with pytest.raises(
        RecipeError, match=r"cluster.address: no Ray cluster answers at '10.0.0.1:6379' \(Could not find"
    ):
        connected(asked).__enter__()
