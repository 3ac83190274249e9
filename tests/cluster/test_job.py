"""Recipes are programs: run directly, submitted to a real Ray head that shares the folder, and uploaded to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="the cluster extra is not installed")
pytest.importorskip("ray.dashboard.modules.job", reason="ray was installed without its job server")


pytestmark = pytest.mark.ray
ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """What a user's shell has after `source .venv/bin/activate`."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def head(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real head's job server; its own process group, so that no other Ray is touched."""
    port, gcs = free_port(), free_port()
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats"]
    command += [f"--port={gcs}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
    # Ports of the agent that runs jobs have fixed defaults, which another Ray on this machine may hold.
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
    log = (tmp_path_factory.mktemp("ray") / "head.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=ROOT)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            # The job server answers before it has an agent to run jobs on, so only a job shows that it is ready.
            trial = [str(BIN / "ray"), "job", "submit", f"--address={address}", "--", "true"]
            if subprocess.run(trial, env=environment, capture_output=True).returncode == 0:
                break
            time.sleep(1)
        else:
            pytest.fail(f"no job server in 120 s: {Path(log.name).read_text()[-2000:]}")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)  # it waits for its own children, which ended at the same signal
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def overrides(model: Path, out: Path) -> list[str]:
    return [f"model.path={model}", f"out={out}", "train.eval_every=0", "log.tensorboard=false"]


def test_a_recipe_runs_as_a_program(environment: dict[str, str], model: Path, tmp_path: Path) -> None:
    command = ["recipes/tiny.yaml", *overrides(model, tmp_path / "run")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run/report.html").is_file()
    assert f"report: {tmp_path / 'run/report.html'}" in done.stdout


@pytest.mark.parametrize("upload", [False, True], ids=["shared folder", "uploaded"])
def test_a_recipe_is_a_ray_job(
    head: str, environment: dict[str, str], model: Path, tmp_path: Path, upload: bool
) -> None:
    folder = ROOT
    if upload:  # a small working folder with the package in it, as a user's project would be
        folder = tmp_path / "project"
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
        if not tracked:
            pytest.skip("not a git checkout")
        for name in (n for n in tracked if n.split("/")[0] in ("rlkit", "rewards", "envs", "recipes", "launch")):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = ROOT / name
            if source.is_symlink():
                target.symlink_to(source.readlink())
            elif source.is_file():
                target.write_bytes(source.read_bytes())
                target.chmod(source.stat().st_mode)
    options = ["--working-dir", ".", "--"] if upload else ["--"]
    entry = "recipes/tiny.yaml" if upload else str(ROOT / "recipes/tiny.yaml")
    command = [str(BIN / "ray"), "job", "submit", f"--address={head}", *options, entry]
    command += [*overrides(model, tmp_path / "run"), "cluster.kind=ray"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "succeeded" in done.stdout
    assert (tmp_path / "run/checkpoints/step_000002/manifest.json").is_file()
