"""A run that is killed anywhere and started again ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from rlkit.policy.invariance import VARIABLE, strict_mode
from rlkit.policy.tiny import tiny_model
from rlkit.sync.fingerprint import fingerprint

ROOT = Path(__file__).parent.parent
STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def environment() -> dict[str, str]:
    # The children of `tests.killing` are forks: more than one thread in the parent would hang them.
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        VARIABLE: strict_mode(),
        "PYTHONPATH": str(ROOT),
    }


def final_weights(run: Path) -> str:
    return fingerprint(load_file(run / "checkpoints" / f"step_{STEPS:06d}" / "model.safetensors"))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_at_random_moments_ends_with_the_same_weights_and_a_balanced_ledger(
    model: Path, tmp_path: Path, seed: int
) -> None:
    overrides = [
        f"model.path={model}",
        f"out={tmp_path / 'run'}",
        f"train.steps={STEPS}",
        "train.checkpoint_every=1",
        "train.eval_every=0",
        "log.tensorboard=false",
        "algorithm.entropy_coef=0.1",  # a random model earns no reward; the bonus moves its weights
        f"seed={seed}",
    ]
    command = [sys.executable, "-m", "tests.killing", str(ROOT / "recipes/tiny.yaml"), str(seed), "5", *overrides]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "run_whole")
    assert final_weights(tmp_path / "run") != fingerprint(load_file(model / "model.safetensors"))
    books = {}
    for name in ("run", "run_whole"):
        events = [json.loads(line) for line in (tmp_path / name / "ledger.jsonl").read_text().splitlines()]
        fates = Counter((e["draw"], e["event"]) for e in events)
        assert set(fates.values()) == {1}, "an event happened twice"
        drawn = {e["draw"] for e in events if e["event"] == "drawn"}
        assert drawn == {e["draw"] for e in events if e["event"] in ("trained", "dropped")}, "a draw was lost"
        books[name] = [(e["event"], e["draw"], e["task"]) for e in events]
    assert books["run"] == books["run_whole"]
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rewards = Counter(s["step"] for s in steps if s["phase"] == "train" and "reward/mean" in s["metrics"])
    assert rewards == Counter(range(1, STEPS + 1)), "a step was logged twice or lost"
