"""Placement on real raylets: bundles are held where the recipe says, and a node that is killed is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")

from ray.cluster_utils import Cluster as RayCluster  # noqa: E402

from benchmarks.kill_anywhere import Mode, arguments_of, differences, lines  # noqa: E402
from rlkit.cluster.runtime import connected, nodes, reserved  # noqa: E402
from rlkit.config import load  # noqa: E402
from rlkit.errors import LearnerError, RecipeError  # noqa: E402
from rlkit.launch.run import run_parts  # noqa: E402
from rlkit.recipe import Cluster  # noqa: E402
from rlkit.train import train  # noqa: E402

pytestmark = pytest.mark.ray
LONG = pytest.mark.skipif(os.environ.get("RLKIT_LONG") != "1", reason="a minute or two on two cores; RLKIT_LONG=1")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
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


def where(actors: list[Any]) -> list[str]:
    """Node group of each actor."""
    groups = {node["NodeID"]: (node.get("Labels") or {}).get("ray.io/node-group", "") for node in ray.nodes()}

    calls = [actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()) for actor in actors]
    return [groups[node] for node in ray.get(calls)]


class Placed(NamedTuple):
    """A placement on the two nodes, and the node that is killed under it."""

    settings: tuple[str, ...]
    workers: list[str]
    """Nodes of the rollout workers; the learner rank is on `train`."""
    victim: str
    ends: int
    """Times that the run ends early, to be started again: once where its learner dies; else it goes on by itself."""


SPLIT = ("cluster.rollout_workers=2", "cluster.learner_nodes=train", "cluster.rollout_nodes=sample")
TOGETHER = ("cluster.rollout_workers=1", "cluster.learner_nodes=train", "cluster.rollout_nodes=train")
PLACED = {
    "colocated": Placed(TOGETHER, ["train"], "train", 1),
    "disaggregated": Placed(SPLIT, ["sample", "sample"], "sample", 0),
    "mixed": Placed(SPLIT, ["sample", "train"], "sample", 0),
}


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process, which nobody disturbs."""
    out = tmp_path_factory.mktemp("whole")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlkit", *arguments_of(Mode(overrides=(), victims=()), model, out)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@LONG
@pytest.mark.slow
@pytest.mark.parametrize("placement", PLACED)
def test_a_run_ends_as_if_nothing_had_happened_when_one_of_its_nodes_is_killed_and_replaced(
    placement: str, raylets: RayCluster, model: Path, whole: Path, tmp_path: Path
) -> None:
    placed = PLACED[placement]
    settings = (f"cluster.placement={placement}", "cluster.kind=ray", "cluster.wait_s=120", *placed.settings)
    file, *overrides = arguments_of(Mode(overrides=settings, victims=()), model, tmp_path)
    ends: list[str] = []

    def run() -> None:
        with run_parts(load(file, overrides)) as parts:
            assert where(parts.learner.ranks) == ["train"]
            assert sorted(where(parts.rollouts.workers)) == placed.workers
            train(parts)

    def run_to_its_end() -> None:
        """As a job scheduler would."""
        try:
            run()
        except LearnerError as error:
            ends.append(str(error))
            run()

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(run_to_its_end)
        until(lambda: ended.done() or lines(tmp_path) >= 10)  # 6 steps of 2 draws, each drawn and trained: 24 lines
        assert not ended.done(), ended.exception()
        victim = next(node for node in raylets.worker_nodes if node.node_id in _nodes_of(placed.victim))
        raylets.remove_node(victim, allow_graceful=False)  # SIGKILL
        until(lambda: not _nodes_of(placed.victim))
        raylets.add_node(num_cpus=2, labels={"ray.io/node-group": placed.victim})
        ended.result(timeout=400)
    assert len(ends) == placed.ends, ends
    assert all("give the same command again" in problem for problem in ends)
    assert not differences(tmp_path, whole)  # weights to the bit, every draw trained once and in the same step
    until(lambda: ray.available_resources().get("CPU") == 4.0)  # the reservation ends with the run


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
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
