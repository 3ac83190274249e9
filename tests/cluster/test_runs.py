"""Whole runs on Ray end with the weights of one process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")

from safetensors.numpy import load_file  # noqa: E402

from rlkit.cluster.rollouts import RayRollouts  # noqa: E402
from rlkit.launch.run import run_recipe  # noqa: E402
from rlkit.rollout.ledger import Draw  # noqa: E402
from rlkit.rollout.loop import Progress, RolloutSettings  # noqa: E402
from rlkit.rollout.pace import Past  # noqa: E402
from tests.cluster.tiny import SMALL, recipe  # noqa: E402

pytestmark = pytest.mark.ray


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
    victims: list[object] = []
    whole = RayRollouts.advance

    async def advance(self: RayRollouts, draw: Draw, settings: RolloutSettings, past: Past) -> Progress:
        worker = self._owners.get(draw.number)
        if past.segments and worker not in victims and len(victims) < 3:  # something was drawn for this group already
            victims.append(worker)
            if len(victims) < 3:
                ray.kill(worker)
            else:  # the last stands still instead
                os.kill(await worker.__ray_call__.remote(lambda self: os.getpid()), signal.SIGSTOP)
        return await whole(self, draw, settings, past)

    monkeypatch.setattr(RayRollouts, "advance", advance)
    still = "cluster.ping_timeout_s=10"
    run_recipe(recipe(model, *asynchronous, still, "cluster.rollout_workers=2", f"out={tmp_path / 'ray'}"))
    assert len(victims) == 3
    weights = [load_file(tmp_path / name / "checkpoints/step_000003/model.safetensors") for name in ("local", "ray")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    books = [(tmp_path / name / "ledger.jsonl").read_text() for name in ("local", "ray")]
    assert books[0] == books[1]
