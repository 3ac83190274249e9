"""The retriever that all workers share follows the run as one in this process does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")

from rlkit.cluster.index import RayIndex  # noqa: E402
from rlkit.cluster.rollouts import RayRollouts  # noqa: E402
from rlkit.config import Resolved, load  # noqa: E402
from rlkit.launch.run import run_recipe  # noqa: E402
from rlkit.policy.tiny import tiny_model  # noqa: E402
from rlkit.records import ScoredTree  # noqa: E402
from rlkit.retrieval.heat import read_log  # noqa: E402
from rlkit.rollout.loop import RolloutSettings  # noqa: E402
from tests.cluster.tiny import ROOT  # noqa: E402

pytestmark = pytest.mark.ray


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


def test_a_retriever_that_dies_is_brought_back_and_its_step_is_sampled_again(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_recipe(recipe(tmp_path / "whole", "ray"))
    spread, unbroken = RayRollouts._spread, RayIndex.unbroken
    moments = iter(["before", "after", "between", "before", ""])  # the first three in step 1, the fourth in step 2
    between = False

    def kill(index: RayIndex | None) -> None:
        assert index is not None
        ray.kill(index.actor, no_restart=False)

    def spread_and_die(self: RayRollouts, tasks: Sequence[Any], settings: RolloutSettings) -> list[ScoredTree]:
        nonlocal between
        moment = next(moments, "")
        if moment == "before":  # it answers from the index that the run began with
            kill(self.index)
        found = spread(self, tasks, settings)
        if moment == "after":  # what it logged of this step must not count twice
            kill(self.index)
        between = moment == "between"
        return found

    def die_between(self: RayIndex) -> bool:
        found = unbroken(self)
        if between:  # the next step begins with a refresh
            kill(self)
        return found

    monkeypatch.setattr(RayRollouts, "_spread", spread_and_die)
    monkeypatch.setattr(RayIndex, "unbroken", die_between)
    run_recipe(recipe(tmp_path / "killed", "ray"))
    assert list(moments) == []
    for name in ("ledger.jsonl", "checkpoints/step_000002/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    searched = [read_log(tmp_path / name / "retrieval.jsonl") for name in ("whole", "killed")]
    assert sorted(map(str, searched[0])) == sorted(map(str, searched[1]))
