"""Sweeps on Ray Tune: a planted better arm, going on after a kill, Optuna, and one of a real recipe."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")
pytest.importorskip("ray.tune", reason="the sweep extra is not installed", exc_type=ImportError)

from rlkit.cluster.sweep import run_sweep  # noqa: E402
from rlkit.errors import RlkitError  # noqa: E402
from rlkit.launch.cli import main  # noqa: E402
from rlkit.policy.invariance import VARIABLE, strict_mode  # noqa: E402
from rlkit.policy.tiny import tiny_model  # noqa: E402
from rlkit.recipe import Cluster  # noqa: E402
from rlkit.sweeps.grid import Arm, Grid  # noqa: E402
from rlkit.sweeps.record import Evaluation, read_trials, trial_folder  # noqa: E402

LONG = pytest.mark.skipif(os.environ.get("RLKIT_LONG") != "1", reason="a minute or two on two cores; RLKIT_LONG=1")
pytestmark = [pytest.mark.ray, pytest.mark.slow, LONG]
ROOT = Path(__file__).parents[2]
STEPS = 5
BEST = 0.9


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {"env_vars": {"PYTHONPATH": path, VARIABLE: strict_mode()}}
    ray.init(address="local", num_cpus=10, include_dashboard=False, runtime_env=env, log_to_driver=False)
    yield
    ray.shutdown()


def objective(arm: Arm, seed: int, out: Path, report: Callable[[Evaluation], None]) -> None:
    """A learning curve that ends at the arm's `optim.lr`; 20 prompts of different difficulty."""
    if (out / "broken").exists() and seed == 1:
        raise ValueError("no such luck")
    level = float(arm.settings["optim.lr"])
    for step in range(STEPS + 1):
        if (out / "side_by_side").exists() and level != BEST:  # however slow the machine: never ahead of the best arm
            while sum(one.arm == f"lr={BEST}" and one.step == step for one in read_trials(out)) < 2:
                time.sleep(0.2)
        scores = {str(i): level * step / STEPS + 0.01 * ((7 * i + 3 * step + seed) % 5) + i for i in range(20)}
        report(Evaluation(arm=arm.name, seed=seed, step=step, samples=10 * step, scores=scores))


def samples(out: Path) -> dict[str, int]:
    used: dict[tuple[str, int], int] = {}
    for one in read_trials(out):
        used[one.arm, one.seed] = max(used.get((one.arm, one.seed), 0), one.samples)
    arms: dict[str, int] = {}
    for (arm, _), count in used.items():
        arms[arm] = arms.get(arm, 0) + count
    return arms


LOCAL = Cluster()


def test_a_planted_better_arm_is_found_with_clearly_fewer_samples_than_a_fixed_grid(tmp_path: Path) -> None:
    grid = Grid(vary={"optim.lr": [0.1, 0.2, BEST, 0.3]}, seeds=(0, 1))
    (tmp_path / "side_by_side").touch()
    run_sweep(grid, tmp_path, objective, LOCAL, steps=STEPS, every=1)
    used = samples(tmp_path)
    assert max(used, key=lambda arm: used[arm]) == f"lr={BEST}" and used[f"lr={BEST}"] == 2 * 10 * STEPS
    assert sum(used.values()) <= 0.8 * len(used) * 2 * 10 * STEPS


def test_a_sweep_whose_trials_failed_goes_on_where_it_was(tmp_path: Path) -> None:
    grid = Grid(vary={"optim.lr": [0.1, 0.2]}, seeds=(0, 1), stop="none")
    (tmp_path / "broken").touch()
    with pytest.raises(RlkitError, match=r"2 of 4 trials failed, the first with: ValueError: no such luck"):
        run_sweep(grid, tmp_path, objective, LOCAL, steps=STEPS, every=1)
    done = {(one.arm, one.seed) for one in read_trials(tmp_path)}
    assert done == {("lr=0.1", 0), ("lr=0.2", 0)}
    (tmp_path / "broken").unlink()
    before = (tmp_path / "trials/lr=0.1/seed_0/evaluations.jsonl").read_text()
    run_sweep(grid, tmp_path, objective, LOCAL, steps=STEPS, every=1)
    assert samples(tmp_path) == {"lr=0.1": 100, "lr=0.2": 100}
    assert (tmp_path / "trials/lr=0.1/seed_0/evaluations.jsonl").read_text() == before  # not run again


def test_optuna_proposes_and_asha_stops(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the sweep extra is not installed")
    vary = {"optim.lr": {"low": 0.01, "high": 1.0, "log": True}}
    grid = Grid(vary=vary, search="optuna", samples=6, stop="asha", reduction=2)
    run_sweep(grid, tmp_path, objective, LOCAL, steps=STEPS, every=1, concurrent=2)
    used = samples(tmp_path)
    assert len(used) == 6 and all(0.01 <= float(arm.removeprefix("lr=")) <= 1 for arm in used)
    assert sum(used.values()) < 6 * 10 * STEPS


def test_a_real_recipe_is_swept_and_ends_with_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model(tmp_path / "tiny")
    (tmp_path / "rates.yaml").write_text("vary: {optim.lr: [1.0e-4, 1.0e-3]}\nreward: f1\nstop: none\n")
    arguments = ["sweep", str(ROOT / "recipes/tiny.yaml"), "rates.yaml", f"model.path={model}", "train.steps=2"]
    assert main([*arguments, "--dry"]) == 0
    assert "lr=0.0001\nlr=0.001\n2 arms x 1 seeds" in capsys.readouterr().out
    assert main([*arguments, "--concurrent", "1"]) == 0
    out = tmp_path / "runs/sweeps/rates"
    text = capsys.readouterr().out
    assert f"report: {Path('runs/sweeps/rates/sweep.html')}" in text and (out / "sweep.html").is_file()
    found = read_trials(out)
    assert [(one.arm, one.step, one.samples) for one in found if one.arm == "lr=0.001"] == [
        ("lr=0.001", 0, 0), ("lr=0.001", 1, 8), ("lr=0.001", 2, 16),
    ]  # fmt: skip
    prompts = {tuple(sorted(one.scores)) for one in found}
    assert len(prompts) == 1  # the same evaluation set
    draws = []
    for arm in ("lr=0.0001", "lr=0.001"):
        lines = (out / f"trials/{arm}/seed_0/ledger.jsonl").read_text().splitlines()
        draws.append([json.loads(line)["task"] for line in lines if "task" in line])
    assert draws[0] == draws[1] and draws[0]  # the same training prompts in the same order
    (tmp_path / "rates.yaml").write_text("vary: {optim.lr: [1.0e-2]}\nreward: f1\nstop: none\n")
    assert main([*arguments]) == 2
    message = capsys.readouterr().err
    assert "holds another sweep (grid.vary.optim.lr[0]: 0.0001 there, 0.01 here" in message


def steps_of(sweep: Path, arm: str) -> list[int]:
    file = trial_folder(sweep, arm, 0) / "evaluations.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def test_a_killed_sweep_goes_on_with_what_is_left(tmp_path: Path) -> None:
    """SIGKILL while the second of two arms is half way: the first is not run again, the second not from its start."""
    tiny_model(tmp_path / "runs/tiny-model")  # as the recipe names it, relative to where the sweep is started
    out = tmp_path / "runs/sweeps/rates"
    (tmp_path / "rates.yaml").write_text("vary: {optim.lr: [1.0e-4, 1.0e-3]}\nstop: none\n")
    settings = ["train.steps=12", "train.checkpoint_every=0"]
    command = [sys.executable, "-m", "rlkit", "sweep", str(ROOT / "recipes/tiny.yaml"), "rates.yaml", *settings]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    first = subprocess.Popen([*command, "--concurrent", "1"], cwd=tmp_path, env=env, start_new_session=True)
    while len(steps_of(out, "lr=0.001")) < 5 and first.poll() is None:
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    before = len(steps_of(out, "lr=0.001"))
    assert before < 13
    assert subprocess.run(command, cwd=tmp_path, env=env, check=False).returncode == 0
    assert steps_of(out, "lr=0.0001") == list(range(13))
    done = steps_of(out, "lr=0.001")
    assert done[:5] == list(range(5)) and sorted(set(done)) == list(range(13))
    assert len(done) <= 13 + 2  # a step that was evaluated when the kill came, and had not been saved
