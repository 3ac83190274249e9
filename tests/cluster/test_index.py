"""The retriever that all workers share follows the run as one in this process does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")

from rlkit.config import Resolved, load  # noqa: E402
from rlkit.launch.run import run_recipe  # noqa: E402
from rlkit.policy.tiny import tiny_model  # noqa: E402

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {"env_vars": {"PYTHONPATH": path}}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=env)
    yield
    ray.shutdown()


def recipe(out: Path, kind: str) -> Resolved:
    settings = [
        f"cluster.kind={kind}",
        f"model.path={tiny_model(out.parent / 'model')}",
        "engine.deterministic=false",  # other tests of this process may have multiplied before
        f"out={out}",
        "env.kind=qa_retrieval",
        "retriever.kind=hybrid",
        "retriever.graph.share=0.01",
        "retriever.refresh_every=1",
        f"retriever.log={out}/retrieval.jsonl",
        f"retriever.cache_dir={out.parent / 'indexes'}",
        "train.eval_every=0",
        "log.tensorboard=false",
    ]
    return load(ROOT / "recipes/tiny.yaml", settings)


def test_ray_and_one_process_search_the_same_indexes(cluster: None, tmp_path: Path) -> None:
    books = {}
    for kind in ("local", "ray"):
        run_recipe(recipe(tmp_path / kind, kind))
        books[kind] = (tmp_path / kind / "ledger.jsonl").read_text()
    assert books["ray"] == books["local"]
    events = [json.loads(line) for line in books["ray"].splitlines()]
    assert [event["step"] for event in events if event["event"] == "index"] == [1, 2]
