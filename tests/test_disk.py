"""A run whose disk fills up, or tears its newest checkpoint, goes on from the last whole one and loses nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kill_anywhere import Mode, arguments_of, differences
from rlkit.checkpoint import CheckpointStore
from rlkit.policy.tiny import tiny_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def run(model: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Six steps, with checkpoints after 2, 4 and 6."""
    command = [sys.executable, "-m", "rlkit", *arguments_of(Mode(overrides=(), victims=()), model, out)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, undisturbed."""
    out = tmp_path_factory.mktemp("whole")
    done = run(model, out)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def num_bytes(folder: Path) -> int:
    """On a disk of 4 KiB blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def small_disk(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one and a half checkpoints, and for everything else that a run writes."""
    checkpoint = num_bytes(whole / "checkpoints/step_000006")
    beside = num_bytes(whole) - num_bytes(whole / "checkpoints")
    command = ["mount", "-t", "tmpfs", "-o", f"size={checkpoint * 3 // 2 + beside}", "tmpfs", tmp_path]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_costs_checkpoints_and_with_room_again_the_run_ends_as_the_undisturbed_one(
    model: Path, whole: Path, small_disk: Path
) -> None:
    out = small_disk / "run"
    done = run(model, out)
    assert done.returncode == 2
    assert "step 4: " in done.stderr and "No space left on device" in done.stderr  # only a warning
    problem = done.stderr.splitlines()[-1]
    assert problem.startswith(f"error: {out}/checkpoints/step_000006: could not be written (")
    assert problem.endswith("; earlier checkpoints are intact")
    assert [folder.name for folder in CheckpointStore(out).folders()] == ["step_000002"]
    assert len((out / "ledger.jsonl").read_bytes().splitlines()) == 24  # 6 steps of 2 draws, each drawn and trained

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    done = run(model, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not differences(out, whole)  # weights to the bit, every draw trained once and in the same step


def test_a_disk_that_has_no_room_for_the_ledger_is_one_line_and_with_room_again_nothing_is_lost(
    model: Path, whole: Path, small_disk: Path
) -> None:
    out, ballast = small_disk / "run", small_disk / "ballast"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("step_000006", "report.html"))  # goes on from step 4
    with pytest.raises(OSError, match="No space left"), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(ballast, ballast.stat().st_size - 2 * 4096)  # the run begins, and soon has nowhere to write
    done = run(model, out)
    assert done.returncode == 2, done.stderr[-2000:]
    problem = done.stderr.splitlines()[-1]
    assert problem.startswith("error: [Errno 28] No space left on device")
    assert problem.endswith("give the same command again: a run goes on from its newest checkpoint")

    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    done = run(model, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not differences(out, whole)


def test_a_torn_manifest_is_said_and_the_run_goes_on_from_the_checkpoint_before(
    model: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    os.truncate(out / "checkpoints/step_000006/manifest.json", 1000)
    done = run(model, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step_000006/manifest.json: unreadable" in done.stderr
    assert f"going on from {out}/checkpoints/step_000004" in done.stderr
    assert not differences(out, whole)
    assert CheckpointStore(out).folders()[-1].name == "step_000006"
