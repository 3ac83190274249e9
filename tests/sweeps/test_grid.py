"""The file of a sweep: arms, what they may vary, evaluations on disk, and the page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rlkit.errors import RecipeError
from rlkit.sweeps.grid import Arm, Range, arms, load_grid, num_arms, probes, race, ranges
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
    assert num_arms(found) == 16
    # what is tried before anything starts: both ends of the range, every value
    assert [list(arm.settings.values()) for arm in probes(found)] == [[1e-6, 1], [1e-4, 2]]


def test_a_race_counts_the_looks_that_a_trial_has(tmp_path: Path) -> None:
    found = load_grid(grid(tmp_path, "vary: {optim.lr: [1, 2, 3]}\nseeds: [0, 1]\ngrace: 2"))
    # evaluated after 3, 6, 9 and 10 steps; the first look is at 6
    empty = race(found, steps=10, every=3)
    assert (empty.arms, empty.looks, empty.seeds, empty.first) == (3, 3, 2, 6)


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
        ("", "vary: missing; write vary: {optim.lr: [1.0e-6, 1.0e-5]}"),
        ("vary: {}", "vary: missing"),
        ("vary: {optim.lr: []}", "vary.optim.lr: [] is not a list of different values"),
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
    # (0.2 - 0.4) + (0.3 - 0.6) + (0.2 - 0.4) + (0.1 - 0.6), over 4; on two prompts
    assert beaten.to_best is not None and beaten.to_best.mean == pytest.approx(-0.3)
    assert beaten.to_best.n == 2 and beaten.samples == 80 and beaten.dropped == 5
    assert best.curve == ((5, 0.5), (10, 0.8))
    assert [row.note(10) for row in (best, beaten)] == ["best", "stopped at step 5"]
    assert [row.note(10) for row in standings(FOUND, {})] == ["best", "at step 5 of 10"]  # interrupted, not stopped
    assert standings(FOUND, {"slow": 5})[1].note(5) == "beaten"  # at its end already


def test_intervals_hold_together_so_they_widen_with_the_number_of_arms() -> None:
    two, ten = (standings(FOUND, {}, arms=arms)[1].to_best for arms in (2, 10))
    # one degree of freedom is Cauchy: tan(pi/2 · (1 - level)) · 0.1 · sqrt(1/2) / sqrt 2, differences -0.2 and -0.4
    assert two is not None and ten is not None
    assert two.high - two.mean == pytest.approx(math.tan(math.pi / 2 * 0.95) * 0.1, rel=1e-6)
    assert ten.high - ten.mean == pytest.approx(math.tan(math.pi / 2 * (1 - 0.05 / 45)) * 0.1, rel=1e-6)


def test_the_page_says_what_was_saved_and_escapes_names(tmp_path: Path) -> None:
    rows = standings(FOUND, {"slow": 5})
    page = write_sweep_report(tmp_path, rows, title="<a>", steps=10, full_samples=320, alpha=0.05, prompts=2, seeds=2)
    text = page.read_text()
    assert "<b>good</b> leads with 0.800" in text
    assert "240 trajectories, 75% of the 320" in text and "2 arms · 2 seeds each · 2 held-out prompts" in text
    assert "stopped at step 5" in text and "<a>" not in text and text.count("<polyline") == 2
