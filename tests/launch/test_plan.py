"""`rlkit plan`: what it takes from a recipe, a run and the command line, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkit.config import load
from rlkit.errors import RlkitError
from rlkit.launch.cli import main
from rlkit.launch.plan import Assumed, workload

ROOT = Path(__file__).parents[2]
LARGE = ["model.max_context=8192", "learner.row_tokens=8192", "rollout.max_completion_tokens=4096"]


def test_a_recipe_becomes_a_workload_and_every_number_says_where_it_is_from() -> None:
    recipe = load(ROOT / "recipes/tiny.yaml", [*LARGE, "optim.minibatches=2", "algorithm.kl_coef=0.1"]).recipe
    work, sources = workload(recipe, Assumed(model="8b", prompt=100))
    assert (work.groups, work.group_size, work.updates, work.references) == (2, 4, 2, 1)
    assert work.completion == 2048 and "half of rollout.max_completion_tokens" in sources[2]
    # 2 prompts of 100 and 8 completions of 2048
    assert work.tokens == 200 + 8 * 2048
    assert work.model.parameters == 8.030e9 and not work.adapters
    low, sources = workload(
        load(ROOT / "recipes/tiny.yaml", [*LARGE, "model.lora.rank=32"]).recipe, Assumed(model="8b", prompt=100)
    )
    assert low.adapters == pytest.approx(83.9e6, rel=0.01)  # of peft on Llama-3.1-8B, all linear layers
    assert "adapters of rank 32 train 83.9 million" in sources[0]


def test_lengths_of_a_run_win_over_caps_and_the_rest_of_its_trees_was_observed(tmp_path: Path) -> None:
    rows = [
        {"rollout/completion_tokens": tokens, "tokens/unique": 1000.0, "rollout/turns": 2.0} for tokens in (40, 50, 90)
    ]
    lines = [
        json.dumps({"step": i, "phase": "train", "time": 0.0, "metrics": row}) for i, row in enumerate(rows, start=1)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    recipe = load(ROOT / "recipes/tiny.yaml", LARGE).recipe
    work, _ = workload(recipe, Assumed(model="8b", prompt=100), tmp_path)
    assert work.completion == 50
    assert work.observed == (1000 - 2 * 100 - 8 * 50) / 8 == 50
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(RlkitError, match="logged no training step with rollout/completion_tokens"):
        workload(recipe, Assumed(model="8b", prompt=100), tmp_path)


def test_a_plan_ends_with_settings_that_a_recipe_takes(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(ROOT / "recipes/tiny.yaml")
    arguments = ["--cluster", "8xH100", "--model", "8b", "--prompt", "300", "--completion", "900"]
    settings = [*LARGE, "cluster.kind=ray", "learner.kind=fsdp2", "rollout.max_staleness=2", "model.dtype=bfloat16"]
    assert main(["plan", recipe, *arguments, *settings]) == 0
    text = capsys.readouterr().out
    (advice,) = (line for line in text.splitlines() if line.startswith("best"))
    chosen = load(recipe, [*settings, *advice.split()[1:]]).recipe.cluster
    assert chosen.learner_ranks + chosen.rollout_workers >= 8
    assert (chosen.gpus_per_learner_rank, chosen.gpus_per_rollout_worker) in ((0.5, 0.5), (1, 1))
    (ages,) = (line for line in text.splitlines() if line.startswith("staleness"))
    assert "versions" in ages
    assert main(["plan", recipe, "--cluster", "2xcpu", *arguments[2:], *settings, "model.dtype=float32"]) == 0
    assert "nothing fits" in capsys.readouterr().out  # 8 billion parameters in 24 GB
    small = ["--cluster", "2xcpu", "--model", "0.5b", "--prompt", "300", "--completion", "90"]
    assert main(["plan", recipe, *small]) == 0
    assert "cluster.gpus_per_learner_rank=0 cluster.gpus_per_rollout_worker=0" in capsys.readouterr().out


def test_a_model_that_fits_nowhere_is_said_with_what_would_help(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cluster", "1xA10G", "--model", "70b", "--prompt", "300"]
    assert main(["plan", str(ROOT / "recipes/tiny.yaml"), *arguments, *LARGE]) == 0
    assert "nothing fits: the leanest split (colocated 1) needs " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "8xH10"], "error: --cluster: unknown device 'H10'; did you mean 'H100'?"),
        (
            ["--cluster", "8xH100", "--model", "9b"],
            "error: --model: unknown size '9b'; one of 0.5b, 1.5b, 14b, 32b, 70b, 7b, 8b",
        ),
        (["--cluster", "8xH100"], "error: model.path: 'runs/tiny-model' is no prepared name"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(ROOT / "recipes/tiny.yaml"), *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
