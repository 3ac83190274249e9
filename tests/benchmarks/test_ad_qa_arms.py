"""Tables of arms from the evaluations of runs: rates are pooled, means are over seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.ad_qa_arms import rate, tables
from benchmarks.search_arms import read_runs
from rlkit.metrics import wilson

HALLUCINATED = "reward/faithfulness/hallucinated"


def test_a_rate_is_pooled_over_seeds_with_wilsons_interval() -> None:
    seeds = [{f"{HALLUCINATED}/mean": share, f"{HALLUCINATED}/n": 10.0} for share in (0.1, 0.3)]
    low, high = wilson(4, 20)
    assert rate(seeds, HALLUCINATED) == f"0.20 [{low:.2f}, {high:.2f}]"
    assert rate([{}], HALLUCINATED) == rate([], HALLUCINATED) == "-"


def test_the_last_evaluation_of_each_arm_stands_beside_the_warm_start(tmp_path: Path) -> None:
    for seed, style in ((0, 0.5), (1, 0.7)):
        folder = tmp_path / f"full-{seed}"
        folder.mkdir()
        rows = [(0, 0.2), (10, 0.9), (20, style)]
        (folder / "metrics.jsonl").write_text(
            "".join(
                json.dumps({"step": step, "phase": "eval", "metrics": {"reward/style/mean": value}}) + "\n"
                for step, value in rows
            )
        )
    lines = list(tables(read_runs(tmp_path)))
    means = [line for line in lines if line.startswith(("| warm start", "| full"))][2:]
    assert means[0].startswith("| warm start | 1 | - | - | 0.20 |")
    # 0.5 and 0.7: mean 0.6, t = 12.706 with one degree of freedom, s = 0.1414, s/sqrt(2) = 0.1
    assert means[1].startswith("| full | 2 | - | - | 0.60 ± 1.27 |")


def test_a_folder_without_runs_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no run"):
        read_runs(tmp_path)
