"""What the README shows works: its reward, in a folder of the user's own, and every command it names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlkit.config import load
from rlkit.policy.tiny import tiny_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with the README's files, whose first lines name them."""
    for text in blocks("python") + blocks("yaml"):
        (tmp_path / text.splitlines()[0].removeprefix("# ")).write_text(text)
    return tmp_path


def test_the_ten_line_reward_is_ten_lines_and_its_recipe_is_checked(folder: Path) -> None:
    assert len([line for line in (folder / "rewards.py").read_text().splitlines() if line.strip()]) <= 10
    (reward,) = load(folder / "mine.yaml").recipe.rewards
    assert (reward.name, reward.plugin.keywords) == ("brief_and_right", {"limit": 120})


def test_a_reward_from_a_folder_outside_the_repository_is_called_and_each_term_logged(folder: Path) -> None:
    model = tiny_model(folder / "tiny")
    rewards = (folder / "mine.yaml").read_text().split("rewards: ")[1]
    (folder / "small.yaml").write_text(f"base: tiny.yaml\nrewards: {rewards}")
    command = [sys.executable, "-m", "rlkit", "small.yaml", f"model.path={model}", "out=run", "train.eval_every=0"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line)["metrics"] for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    terms = [row for row in rows if "reward/brief_and_right/right/mean" in row]
    assert terms and all("reward/brief_and_right/brief/mean" in row for row in terms)
    assert all(row["reward/brief_and_right/right/failed"] == 0 for row in terms)


def test_every_file_that_the_readme_links_or_runs_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    programs = re.findall(r"^(launch/\w+|recipes/\w+\.yaml)", "\n".join(blocks("bash")), flags=re.MULTILINE)
    assert links and programs
    for name in [*links, *programs]:
        assert (ROOT / name).exists(), name
    for name in programs:
        assert os.access(ROOT / name, os.X_OK), f"{name} has no run bit"
