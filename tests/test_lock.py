"""Two drivers never share a run folder, and a killed one leaves nothing locked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlkit.errors import RecipeError
from rlkit.launch.cli import main
from rlkit.lock import locked
from rlkit.policy.tiny import tiny_model

HOLD = "import sys, time; from pathlib import Path; from rlkit.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_the_second_driver_is_refused_with_the_name_of_the_first_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    with pytest.raises(RecipeError) as caught, locked(tmp_path):
        pass
    assert str(caught.value).startswith(f"out: '{tmp_path}' is in use by process {first.pid} on ")
    first.send_signal(signal.SIGKILL)
    first.wait()
    with locked(tmp_path):  # the file is still there, the lock is not
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_the_lock_ends_with_the_block_also_when_it_raises(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
        raise ZeroDivisionError
    twice = (locked(tmp_path / "new"), pytest.raises(RecipeError, match=f"process {os.getpid()} on "))
    with twice[0], twice[1], locked(tmp_path / "new"):
        pass


def test_a_second_run_in_a_folder_is_one_line_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, model = Path(__file__).parents[1] / "recipes/tiny.yaml", tiny_model(tmp_path / "tiny")
    out = tmp_path / "run"
    with locked(out):
        before = {path: path.read_bytes() for path in out.rglob("*")}
        assert main([str(recipe), f"model.path={model}", f"out={out}", "train.steps=9"]) == 2
        assert {path: path.read_bytes() for path in out.rglob("*")} == before
    problem = capsys.readouterr().err.splitlines()[-1]
    assert problem.startswith(f"error: out: '{out}' is in use by process {os.getpid()} on ")
