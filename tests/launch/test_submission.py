"""Submitting: what `--dry` shows, the RayJob against the CRD's fields, the Slurm script run with stand-ins."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkit.errors import RlkitError
from rlkit.launch.bundle import environment, file_bundle
from rlkit.launch.cli import main

jsonschema = pytest.importorskip("jsonschema", reason="comes with Ray")
SCHEMA = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text())
GPUS = ["cluster.kind=ray", "cluster.placement=disaggregated", "learner.kind=fsdp2", "cluster.learner_ranks=4"]
GPUS += ["cluster.gpus_per_learner_rank=1", "cluster.gpus_per_rollout_worker=1", "cluster.rollout_workers=12"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project: a recipe, a large run and a secret in the environment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: tiny.yaml\nname: My_Run\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/weights.bin").write_bytes(b"0" * 4096)
    monkeypatch.setenv("RLKIT_DATA", "/data")
    monkeypatch.setenv("RLKIT_API_KEY", "hush")
    return tmp_path


def out(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["submit", *arguments]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def manifest(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return yaml.safe_load(out(capsys, *arguments))


def test_dry_shows_bundle_environment_and_placement(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = out(capsys, "mine.yaml", "--dry", "cluster.kind=ray", "cluster.rollout_workers=3", "cluster.placement=mixed")
    assert "to           http://127.0.0.1:8265" in text
    assert "command      python -m rlkit train mine.yaml cluster.kind=ray cluster.rollout_workers=3" in text
    assert f"bundle       1 file, 0.0 MiB of {folder}" in text and "weights.bin" not in text
    assert "RLKIT_DATA=/data" in text and "hush" not in text and "ray 2." in text
    assert "placement    mixed\n             1 x [1 learner rank + 1 rollout worker]: 2 CPUs" in text
    assert "every node   must see the same files under model.path=runs/tiny-model" in text


def test_a_rayjob_fits_the_fields_of_its_definition(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = ["--to", "kuberay", "--image", "registry.example/rlkit:1", "--node", "96,8", "--memory", "512Gi"]
    groups = ["cluster.learner_nodes=train", "cluster.rollout_nodes=sample"]
    text = out(capsys, "mine.yaml", "--dry", *node, *GPUS, *groups)
    job: dict[str, Any] = yaml.safe_load(text)
    jsonschema.validate(job, SCHEMA)
    assert job["metadata"]["name"] == "my-run"
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    # 4 ranks of a GPU fill half a node; 12 workers of a GPU need two
    assert [(group["groupName"], group["replicas"]) for group in workers] == [("train", 1), ("sample", 2)]
    limits = workers[0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "96", "memory": "512Gi", "nvidia.com/gpu": "8"}
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RLKIT_DATA"] == "/data"
    assert "hush" not in text and job["spec"]["entrypoint"].startswith("python -m rlkit train mine.yaml")


def test_the_schema_refuses_what_the_definition_does_not_know(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = ["--to", "kuberay", "--image", "i", "--node", "8"]
    job = manifest(capsys, "mine.yaml", "--dry", *node, "cluster.kind=ray")
    jsonschema.validate(job, SCHEMA)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(job, SCHEMA)


@pytest.mark.parametrize("name", ["search_p1", "ad_qa", "v_star"])
def test_every_large_recipe_goes_to_every_cluster(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--node", "128,8", "--memory", "900Gi"]
    assert "placement    " in out(capsys, name, "--dry")
    job = manifest(capsys, name, "--dry", "--to", "kuberay", "--image", "registry.example/rlkit:1", *size)
    jsonschema.validate(job, SCHEMA)
    script = out(capsys, name, "--dry", "--to", "slurm", *size)
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "#SBATCH --mem=900G\n" in script and "#SBATCH --gpus-per-node=8\n" in script


def test_a_file_that_is_shown_has_stdout_to_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "mine.yaml", "--dry", "--to", "slurm", "--node", "8", "cluster.kind=ray"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("#!/usr/bin/env bash\n") and shown.err.startswith("to           slurm\n")


STEP = """
trap 'echo "step ended" >>"$LOG"; kill $!; exit' TERM
echo "srun $*" >>"$LOG"
sleep 60 >/dev/null 2>&1 & wait $!"""
FAKES = {
    "slurm/scontrol": "printf 'node1\\nnode2\\nnode3\\n'",
    "slurm/srun": STEP,
    # The head answers the second time.
    "venv/ray": 'echo "ray $*" >>"$LOG"; test "$(grep -c "ray status" "$LOG")" -ge 2',
    "venv/python": """echo "python $* address=$RAY_ADDRESS data=$RLKIT_DATA" >>"$LOG"
        until (($(grep -c ^srun "$LOG") == 2)); do sleep 0.05; done  # a run takes longer than a step to start
        exit 3""",
    "slurm/sbatch": 'cat >"$LOG.script"; echo "Submitted batch job 7"',
}


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for Slurm, Ray and Python that write down how they were called; returns the log."""
    for name, body in FAKES.items():
        program = folder / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    log = folder / "log"
    log.touch()
    monkeypatch.setenv("PATH", f"{folder}/slurm:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setattr(sys, "executable", str(folder / "venv/python"))  # whose python and ray the job gets
    return log


def started(script: str) -> subprocess.Popen[str]:
    """The script as sbatch would run it, in a shell where nothing is activated."""
    env = {"SLURM_JOB_NODELIST": "node[1-3]", "SLURM_JOB_ID": "40005", "RLKIT_POLL_S": "0.1"}
    env |= {name: os.environ[name] for name in ("LOG", "PATH")}
    return subprocess.Popen(["bash", "-c", script], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_slurm_script_is_taken_by_sbatch_and_starts_head_workers_and_driver_in_this_order(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "mine.yaml", "--to", "slurm", "--node", "16,8", "--time", "2-00:00:00", *GPUS]) == 0
    script = Path(f"{slurm}.script")
    text = script.read_text()
    for line in ("--job-name=My_Run", "--nodes=2", "--cpus-per-task=16", "--gpus-per-node=8", "--time=2-00:00:00"):
        assert f"#SBATCH {line}\n" in text
    assert not re.search("@[A-Z_]+@", text)

    slurm.write_text("")
    job = started(text)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 3, errors  # the driver's own code
    lines = until(slurm, "step ended", 2)  # head and workers
    head = next(i for i, line in enumerate(lines) if "--head --port=20005" in line and "--nodelist=node1" in line)
    joined = "--exclude=node1 ray start --address=node1:20005"
    rest = next(i for i, line in enumerate(lines) if joined in line)
    assert "--nodes=1 --ntasks=1 " in lines[head] and "--nodes=2 --ntasks=2 " in lines[rest]
    driver = next(i for i, line in enumerate(lines) if line.startswith("python -m rlkit train mine.yaml"))
    assert sum("ray status" in line for line in lines) == 2
    assert lines[driver].endswith("address=node1:20005 data=/data") and head < driver
    assert "--num-cpus=16 --num-gpus=8 --block" in lines[head] and "--num-gpus=8 --block" in lines[rest]


def until(log: Path, mark: str, times: int = 1) -> list[str]:
    deadline = time.monotonic() + 30
    while True:
        lines = log.read_text().splitlines()
        if sum(mark in line for line in lines) >= times:
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def script_of(capsys: pytest.CaptureFixture[str]) -> str:
    return out(capsys, "mine.yaml", "--dry", "--to", "slurm", "--node", "16,8", *GPUS)


def test_a_slurm_job_that_is_cancelled_ends_its_driver_and_its_steps(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm.parent / "venv/python").write_text(f"#!/bin/bash{STEP.replace('srun', 'python').replace('step', 'driver')}")
    job = started(script_of(capsys))
    until(slurm, "python -m rlkit train")
    until(slurm, "ray start --address")
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 143
    until(slurm, "driver ended")
    until(slurm, "step ended", 2)


def test_a_head_that_dies_ends_the_slurm_job_at_once(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (slurm.parent / "slurm/srun").write_text("#!/bin/bash\nexit 1")
    (slurm.parent / "venv/ray").write_text("#!/bin/bash\nexit 1")
    job = started(script_of(capsys))
    _, errors = job.communicate(timeout=30)  # the head's patience is 120 s
    assert job.returncode == 1 and errors.startswith("no Ray head on node1 after ")


def test_the_slurm_script_has_no_trap_of_the_shell(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    text = script_of(capsys)
    done = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "slurm"], "--to slurm needs --node CPUS,GPUS"),
        (["--to", "kuberay", "--node", "8"], "--to kuberay needs --image"),
        (["--to", "slurm", "--node", "8x"], "--node: '8x' is not CPUS or CPUS,GPUS of one node"),
        (["--to", "slurm", "--node", "8", "--time", "soon"], "--time: 'soon' is not D-HH:MM:SS"),
        (["--to", "slurm", "--node", "8", "--memory", "all"], "--memory: 'all' is not a whole number of Gi or Mi"),
        (["--to", "slurm", "--node", "8", *GPUS], "cluster: a bundle of 1 CPU and 1 GPU does not fit a node of 8 CPUs"),
        (
            ["--to", "slurm", "--node", "64,8", *GPUS, "cluster.rollout_nodes=a"],
            "cluster.learner_nodes, cluster.rollout_nodes: the nodes of a Slurm job are all alike",
        ),
        (["cluster.kind=ray", "cluster.address=x:1"], "cluster.address: 'x:1': a submitted recipe joins the cluster"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert out(capsys, "mine.yaml", "--dry", *arguments, code=2).startswith(f"error: {message}")


def test_a_program_that_is_not_installed_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    text = out(capsys, "mine.yaml", "--to", "slurm", "--node", "8", "cluster.kind=ray", code=2)
    assert text == "error: --to slurm: no program 'sbatch' on the PATH; --dry prints what it would get\n"


def test_a_dead_dashboard_is_named_with_the_way_to_start_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray.job_submission", reason="the cluster extra is not installed")
    text = out(capsys, "mine.yaml", "--address", "http://127.0.0.1:9", "cluster.kind=ray", code=2)
    assert text.splitlines()[-1].startswith("error: --address: no job server answers at 'http://127.0.0.1:9'")
    assert "ray start --head --dashboard-host=0.0.0.0" in text


def test_a_dashboard_that_dies_meanwhile_leaves_the_name_of_the_job_and_how_to_follow_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.job_submission", reason="the cluster extra is not installed")

    class Dying:
        def __init__(self, address: str) -> None: ...

        def submit_job(self, **_: Any) -> str:
            return "raysubmit_7"

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "step 1\n"
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    monkeypatch.setattr("rlkit.cluster.jobs.JobSubmissionClient", Dying)
    assert main(["submit", "mine.yaml", "--address", "http://head:8265", "cluster.kind=ray"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "job raysubmit_7 at http://head:8265\nstep 1\n"
    assert shown.err.startswith("error: --address: the job server at 'http://head:8265' is gone (WebSocket")
    assert "ray job logs --address=http://head:8265 --follow raysubmit_7" in shown.err


def test_a_recipe_outside_the_folder_is_refused_and_a_shipped_one_goes_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "python -m rlkit train tiny cluster.kind=ray" in out(capsys, "tiny", "--dry")
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / "inner")
    assert "lies outside the working folder" in out(capsys, "../mine.yaml", "--dry", code=2)


def test_a_folder_too_large_to_upload_names_its_largest_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkit.launch.bundle.LIMIT", 2 << 20)
    (folder / "big.bin").write_bytes(bytes(3 << 20))
    with pytest.raises(RlkitError, match=r"3 MiB are more than the 2 MiB .* big.bin \(3 MiB\)"):
        file_bundle(folder)


def test_secrets_stay_behind() -> None:
    variables = {"RLKIT_DATA": "d", "RLKIT_API_KEY": "k", "HOME": "/", "HF_HUB_OFFLINE": "1", "RLKIT_HF_TOKEN": "t"}
    assert environment(variables) == {"HF_HUB_OFFLINE": "1", "RLKIT_DATA": "d"}


def test_the_launcher_is_a_program() -> None:
    script = Path(__file__).parents[2] / "launch/submit"
    assert os.access(script, os.X_OK) and subprocess.run(["bash", "-n", script]).returncode == 0
