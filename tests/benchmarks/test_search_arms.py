"""Tables of arms from the metrics of runs, with numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.search_arms import Run, cell, figure, read_runs, tables


def run(folder: Path, name: str, *rows: tuple[int, str, dict[str, float]]) -> None:
    (folder / name).mkdir(parents=True)
    lines = [json.dumps({"step": step, "phase": phase, "time": 0.0, "metrics": m}) for step, phase, m in rows]
    (folder / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def exact(value: float) -> dict[str, Any]:
    return {"reward/exact_match/mean": value, "signals/num_searches": 2.0}


def test_a_cell_is_the_mean_and_students_interval() -> None:
    # Mean 2, deviation 1: 4.303 / √3 = 2.484.
    assert cell([1.0, 2.0, 3.0]) == "2.000 ± 2.484"
    assert (cell([0.5]), cell([])) == ("0.500", "-")
    assert cell([1.0] * 20) == "1.000 ± 0.000"


def test_arms_are_compared_at_their_last_evaluation_and_over_training(tmp_path: Path) -> None:
    for seed, end in (("0", 0.2), ("1", 0.4)):
        run(
            tmp_path, f"no_reference-{seed}", (0, "eval", exact(0.1)),
            (1, "train", {"groups/effective": 0.5, "tokens/unique": 2000.0}),
            (2, "train", {"groups/effective": 0.7, "tokens/unique": 1000.0}), (2, "train", {"timing/eval_s": 1.0}),
            (2, "eval", exact(end)),
        )  # fmt: skip
    run(tmp_path, "search_r1-0", (0, "eval", exact(0.3)))
    (tmp_path / "unfinished-0").mkdir()
    page = list(tables(read_runs(tmp_path)))
    # 12.706·0.1414/√2 = 1.271 around 0.3; 0.6 in every step; 3 thousand tokens.
    assert "| no_reference | 0, 1 | 0.300 ± 1.271 | - | - | 2.000 ± 0.000 | - | - | - | - |" in page
    assert "| no_reference | 2 | 3 ± 0 | 0.600 ± 0.000 | - | - | - |" in page
    assert "| no_reference | 0.100 ± 0.000 | 0.300 ± 1.271 |" in page
    assert "| search_r1 | 0.300 | - |" in page


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no run ARM-SEED"):
        read_runs(tmp_path)


def test_the_figure_draws_each_run_and_the_mean_of_its_arm() -> None:
    runs = [
        Run(
            arm="a",
            seed=str(seed),
            steps={1: {"groups/effective": 0.0}, 2: {"groups/effective": high}},
            evaluations={0: {}},
        )
        for seed, high in enumerate((1.0, 0.5))
    ]
    picture = ElementTree.fromstring(figure(runs))
    lines = [line.get("points") for line in picture.iter("{http://www.w3.org/2000/svg}polyline")][:3]
    # The panel is 250 wide from 40 and 170 high from 44: 0 lies at 214, 1 at 44, 0.5 at 129, their mean 0.75 at 86.5.
    assert lines == ["40.0,214.0 290.0,44.0", "40.0,214.0 290.0,129.0", "40.0,214.0 290.0,86.5"]
