"""Tables of arms from the metrics of runs, with numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.search_arms import cell, read_runs, tables


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
