"""`rlkit check-reward`, and a recipe that does not start with a reward that the gate refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.config import load
from rlkit.errors import DataError, RecipeError
from rlkit.launch.cli import main
from rlkit.launch.reward_gate import require
from rlkit.policy.tiny import tiny_model
from rlkit.recorder import Recorder
from rlkit.records import ScoredTree, Task
from rlkit.transcript import Written, transcript

REWARDS = """
def longer(task, trajectory, *, scale: float = 1.0):
    return scale * len(trajectory.completion) / 1000

def no_foxes(task, trajectory):
    return float("nan") if "fox" in (trajectory.answer or "") else 1.0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARDS)
    return tmp_path


def test_a_reward_that_passes_exits_with_0_and_a_refused_one_with_1_and_an_example(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-reward", "f1"]) == 0
    assert capsys.readouterr().out.startswith("f1: passed\n")
    assert main(["check-reward", "mine.py:longer", "scale=2"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("longer: refused\n")
    assert "85 words of filler in the reasoning raised it from 0.416 to 1.268" in text
    assert "| task probe, answer 'Eddie Argos'" in text


def test_stored_rollouts_of_a_run_can_refute_what_the_probes_do_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-reward", "mine.py:no_foxes"]) == 0
    tree = transcript(Task(id="t7", question="?", answers=("x",)), Written(parts=(("policy", "fox"),), answer="fox"))
    with Recorder(folder / "run", live=False) as recorder:
        recorder.trees(3, [ScoredTree(tree=tree, terms=())])
    assert main(["check-reward", "mine.py:no_foxes", "--on", "run"]) == 1
    assert "returned nan" in capsys.readouterr().out
    (folder / "empty").mkdir()
    assert main(["check-reward", "f1", "--on", "empty"]) == 2
    assert "holds no rollouts" in capsys.readouterr().err


def test_a_wrong_name_or_setting_is_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-reward", "exact_mach"]) == 2
    assert main(["check-reward", "mine.py:longer", "scael=2"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: reward: unknown 'exact_mach'; did you mean 'exact_match'?"
    assert second == "error: scael: unknown setting; did you mean 'scale'?"


RECIPE = "base: tiny.yaml\nrewards: [{kind: f1}, {kind: 'mine.py:longer'}]\n"


def test_a_recipe_that_requires_the_gate_stops_before_anything_is_built(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(folder / "model")
    (folder / "mine.yaml").write_text(f"{RECIPE}reward_gate: true\n")
    assert main(["mine.yaml", f"model.path={model}", "out=run", "log.tensorboard=false"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: rewards[1]: longer is refused by the gate: length: 85 words of filler")
    assert "task world-train-" in error  # tried on a task of the recipe
    assert not list(folder.glob("run/rollouts/*")) and not (folder / "run" / "metrics.jsonl").exists()


def test_the_gate_lets_good_rewards_pass_and_does_nothing_unless_asked(folder: Path) -> None:
    (folder / "mine.yaml").write_text(RECIPE)
    recipe = load("mine.yaml").recipe
    assert not recipe.reward_gate
    with pytest.raises(RecipeError, match=r"^rewards\[1\]: longer is refused"):
        require(recipe)
    require(load("tiny").recipe)


def test_an_unreadable_run_is_refused(folder: Path) -> None:
    rollouts = folder / "run" / "rollouts"
    rollouts.mkdir(parents=True)
    (rollouts / "step_000001.jsonl.gz").write_bytes(b"torn")
    with pytest.raises(DataError, match="not a readable file"):
        from rlkit.launch.reward_gate import check_reward

        check_reward("f1", [], folder / "run", [])
