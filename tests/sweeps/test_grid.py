"""The file of a sweep: arms, what they may vary, evaluations on disk, and the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.errors import RecipeError
from rlkit.sweeps.grid import Arm, Range, arms, load_grid, ranges
from rlkit.sweeps.record import Evaluation, append, read_trials, trial_folder
from rlkit.sweeps.report import standings, write_sweep_report


def grid(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    return file


def test_every_combination_is_an_arm_whose_overrides_the_command_line_reads_back(tmp_path: Path) -> None:
    found = load_grid(grid(tmp_path, "vary: {optim.lr: [1.0e-6, 2.0e-5], algorithm.kind: [grpo, gspo]}\nseeds: [3, 4]"))
    assert found.seeds == (3, 4) and found.stop == "race"
    names = [arm.name for arm in arms(found)]
    assert names == ["lr=1e-06,kind=grpo", "lr=1e-06,kind=gspo", "lr=2e-05,kind=grpo", "lr=2e-05,kind=gspo"]
    assert arms(found)[3].overrides == ["optim.lr=2.0e-05", "algorithm.kind=gspo"]
    assert Arm(settings={"env.prompt": "a/b: {question}"}).name == "prompt=a_b___question_"


def test_ranges_are_for_optuna(tmp_path: Path) -> None:
    found = load_grid(
        grid(
            tmp_path,
            "search: optuna\nvary: {optim.lr: {low: 1.0e-6, high: 1.0e-4, log: true}, optim.minibatches: [1, 2]}",
        )
    )
    assert ranges(found) == {"optim.lr": Range(low=1e-6, high=1e-4, log=True), "optim.minibatches": [1, 2]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vary: {eval.tasks: [1, 2]}", "vary.eval.tasks: all arms share it"),
        ("vary: {seed: [1, 2]}", "vary.seed: all arms share it"),
        ("vary: {train.steps: [1, 2]}", "vary.train.steps: all arms share it"),
        ("vary: {optim.lr: 1.0}", "vary.optim.lr: 1.0 is not a list of values"),
        ("vary: {optim.lr: [1, 1]}", "vary.optim.lr: [1, 1] is not a list of different values"),
        ("vary: {optim.lr: {low: 1, high: 2}}", "ranges need search=optuna"),
        ("search: optuna\nvary: {optim.lr: {low: 2, high: 1}}", "vary.optim.lr.high: 1.0 is not above low=2.0"),
        ("search: optuna\nvary: {optim.lr: [1]}\nseeds: [0, 1]", "seeds: [0, 1] with search=optuna"),
        ("vary: {optim.lr: [1]}\nseeds: [0, 0]", "seeds: [0, 0] is not a list of different seeds"),
        (
            "vary: {optim.lr: [1]}\nstop: rase",
            "stop: 'rase' (str) is not one of race, asha, none; did you mean 'race'?",
        ),
        ("seeds: [1]", "vary: missing"),
        ("very: {}", "very: unknown setting; did you mean 'vary'?"),
    ],
)
def test_what_a_grid_cannot_be_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_grid(grid(tmp_path, text))
    assert message in str(caught.value)


def one(arm: str, seed: int, step: int, *values: float) -> Evaluation:
    return Evaluation(arm=arm, seed=seed, step=step, samples=8 * step, scores={str(i): v for i, v in enumerate(values)})


def test_evaluations_come_back_and_a_repeated_or_torn_one_does_no_harm(tmp_path: Path) -> None:
    append(tmp_path, one("a", 0, 5, 0.1, 0.2))
    append(tmp_path, one("a", 0, 5, 0.3, 0.4))  # a trial that went on from before its last evaluation
    append(tmp_path, one("a", 1, 5, 0.5))
    with (trial_folder(tmp_path, "a", 0) / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 10, "sam')
    assert read_trials(tmp_path) == [one("a", 0, 5, 0.3, 0.4), one("a", 1, 5, 0.5)]


FOUND = [
    one("slow", 0, 5, 0.2, 0.3), one("slow", 1, 5, 0.2, 0.1),
    one("good", 0, 5, 0.4, 0.6), one("good", 1, 5, 0.4, 0.6),
    one("good", 0, 10, 0.8, 0.8), one("good", 1, 10, 0.8, 0.8),
]  # fmt: skip


def test_standings_compare_prompt_by_prompt_at_the_latest_step_both_have() -> None:
    best, beaten = standings(FOUND, {"slow": 5})
    assert (best.arm, best.step, best.score, best.samples, best.to_best) == ("good", 10, 0.8, 160, None)
    # (0.2 - 0.4) + (0.3 - 0.6) + (0.2 - 0.4) + (0.1 - 0.6), over 4
    assert beaten.to_best is not None and beaten.to_best.mean == pytest.approx(-0.3)
    assert beaten.to_best.n == 4 and beaten.samples == 80 and beaten.dropped == 5
    assert best.curve == ((5, 0.5), (10, 0.8))


def test_the_page_says_what_was_saved_and_escapes_names(tmp_path: Path) -> None:
    page = write_sweep_report(tmp_path, FOUND, {"slow": 5}, title="<a>", full_samples=320, alpha=0.05)
    text = page.read_text()
    assert "2 arms, 240 trajectories of the 320" in text and "(75%)" in text
    assert "stopped at step 5" in text and "<a>" not in text and text.count("<polyline") == 2
