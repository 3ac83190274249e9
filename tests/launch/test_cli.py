"""The command line: what it prints, what it calls, and how it refuses."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from rlkit.config import load
from rlkit.errors import CheckpointError
from rlkit.launch.cli import main
from rlkit.launch.explain import prompt_tokens, sharing_bound
from tests.plugin_files import RECIPE, user_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return user_folder(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Replaces what runs a recipe by a list of what was asked of it; the model is an empty folder."""
    made: list[tuple[Any, ...]] = []
    run = ModuleType("rlkit.launch.run")
    run.run_recipe = lambda resolved: made.append(("run", resolved)) or 0  # type: ignore[attr-defined]
    run.evaluate_recipe = lambda *given: made.append(("eval", *given)) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rlkit.launch.run", run)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    return made


@pytest.mark.parametrize("words", [[], ["train"]])
def test_a_recipe_runs_with_and_without_the_word_train(recipe: Path, calls: list[Any], words: list[str]) -> None:
    assert main([*words, str(recipe), "model.path=model", "optim.lr=2e-5"]) == 0
    ((_, resolved),) = calls
    assert resolved.recipe.optim.lr == 2e-5


def test_options_may_stand_between_recipe_and_overrides(recipe: Path, calls: list[Any], tmp_path: Path) -> None:
    assert main(["eval", str(recipe), "model.path=model", "--checkpoint", str(tmp_path), "eval.tasks=3"]) == 3
    ((_, resolved, checkpoint),) = calls
    assert resolved.recipe.eval.tasks == 3
    assert checkpoint == tmp_path


def test_an_evaluation_without_checkpoint_is_of_the_model(recipe: Path, calls: list[Any]) -> None:
    main(["eval", str(recipe), "model.path=model"])
    assert calls[0][2] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe.yaml", "optim.lr=-1"], "error: optim.lr: -1.0 is not above 0"),
        (["nowhere.yaml"], "error: no recipe file 'nowhere.yaml'; one of "),
        (["shwo", "recipe.yaml"], "error: 'shwo' is neither a command nor a recipe; did you mean 'show'?"),
        (["quikstart"], "error: 'quikstart' is neither a command nor a recipe; did you mean 'quickstart'?"),
        (["recipe.yaml", "model.path=modle"], "error: model.path: 'modle' is no prepared name and no folder"),
        (["report", "runs"], "error: no folder 'runs'"),
        (["eval", "recipe.yaml", "--checkpoint", "runs/x"], "error: no folder 'runs/x'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    recipe: Path, calls: list[Any], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not calls


def test_an_error_of_a_running_recipe_is_one_line_too(
    recipe: Path, calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(resolved: object) -> int:
        raise CheckpointError("step_3 is torn")

    monkeypatch.setattr(sys.modules["rlkit.launch.run"], "run_recipe", fail)
    assert main([str(recipe), "model.path=model"]) == 2
    assert capsys.readouterr().err == "error: step_3 is torn\n"
    monkeypatch.setenv("RLKIT_DEBUG", "1")
    with pytest.raises(CheckpointError):
        main([str(recipe), "model.path=model"])


def test_show_prints_yaml_that_runs_again_with_origins(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(recipe), "optim.lr=2e-5", "rewards.0.words=[a, b]"]) == 0
    text = capsys.readouterr().out
    (lr,) = (line for line in text.splitlines() if line.startswith("  lr:"))
    assert lr.split() == ["lr:", "2.0e-05", "#", "command", "line"]
    assert "kind: own.py:Quiz" in text and "# recipe.yaml:1" in text
    again = recipe.with_name("again.yaml")
    again.write_text(text, encoding="utf-8")
    assert main(["show", str(again)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)


def test_explain_counts_processes_and_tells_what_it_does_not_know(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["cluster.kind=ray", "cluster.rollout_workers=2", "model.path=nowhere"]
    assert main(["explain", str(recipe), *overrides]) == 0
    text = capsys.readouterr().out
    assert "driver + 2 rollout workers + 1 learner rank (single), 1 thread each" in text
    assert "unknown sizes: model.path: 'nowhere'" in text
    assert "1·brevity -> own.py:ALGORITHM" in text


def test_a_prompt_with_evidence_is_explained_as_long_as_it_may_be() -> None:
    shown = ["env.kind=qa_retrieval", "env.max_passages_chars=4000", "model.path=nowhere"]
    count, source = prompt_tokens(load(ROOT / "recipes/tiny.yaml", shown).recipe)
    # 4000 characters of evidence, cut between words, and some 60 of instructions and question, at 4 each
    assert count is not None and 1000 <= count <= 1060
    assert source.startswith("the first task's prompt, its evidence as long as it may be,")


def test_the_sharing_bound_is_what_the_readme_says() -> None:
    # P = 200, R = 50, G = 8: 8 · 250 flat tokens, 200 + 400 unique ones
    assert sharing_bound(200, 50, 8) == pytest.approx(2000 / 600)


def test_list_names_kinds_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "algorithms"]) == 0
    assert "GRPO: advantages relative to the group" in capsys.readouterr().out
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    assert "agentic_search" in everything and "recipes/quickstart.yaml" in everything


def test_help_answers_at_once() -> None:
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-m", "rlkit", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "rlkit recipes/quickstart.yaml" in process.stdout
    assert time.perf_counter() - start < 2.0  # 0.2 s on an idle machine


def test_help_and_a_typo_import_neither_torch_nor_ray() -> None:
    program = (
        "import sys; from rlkit.launch.cli import main; main(['quickstart', 'optimm.lr=1']);"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stderr == "error: optimm: unknown section; did you mean 'optim'?\n"


def test_a_recipe_is_a_program(tmp_path: Path) -> None:
    user_folder(tmp_path)
    script = tmp_path / "program.yaml"
    script.write_text(f"#!/usr/bin/env -S python -m rlkit\n{RECIPE}optim: {{lr: 0}}\n", encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.run(
        [script], cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (2, "error: optim.lr: 0.0 is not above 0\n")
