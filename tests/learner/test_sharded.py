"""Two processes that share a model or its adapters are one process: gradients, metrics, scores, skips, checkpoints."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.learner.two_ranks import SINGLES, batches, learner, scenario, write_model

pytestmark = pytest.mark.slow

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
"""Relative. Measured on 2 and 3 ranks: 2e-15 and 3e-6; DeepSpeed has no float64, its master weights are float32."""

Weights = dict[str, torch.Tensor]
Results = dict[tuple[str | tuple[str, str], int], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model lies and results go."""
    folder = tmp_path_factory.mktemp("ranks")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """(kind, rank) -> what `two_ranks.scenario` found; one process under the names that `SINGLES` has for it."""
    found: Results = {(single, 0): scenario(*single, folder) for single in dict.fromkeys(SINGLES.values())}
    kinds = [kind for kind in SINGLES if importable(kind)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.learner.two_ranks", str(rank), "2", str(folder), *kinds],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=900)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, output in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, output[-4000:]
    for kind in kinds:
        for rank in range(2):
            found[kind, rank] = torch.load(folder / f"{kind}.{rank}.pt", weights_only=False)
    return found


def importable(kind: str) -> bool:
    return not kind.startswith("zero") or importlib.util.find_spec("deepspeed") is not None


@pytest.fixture(params=SINGLES)
def kind(request: pytest.FixtureRequest) -> str:
    if not importable(request.param):
        pytest.skip("DeepSpeed is not installed (extra [deepspeed])")
    return str(request.param)


def tolerance(kind: str) -> float:
    return TOLERANCE[SINGLES[kind][1]]


def difference(found: Weights, expected: Weights, first: Weights) -> float:
    """Largest over parameters of |found - expected|, relative to how far `expected` moved from `first`."""
    assert found.keys() == expected.keys()
    moved = {name: weight for name, weight in expected.items() if weight.is_floating_point()}
    named = expected.keys() - moved.keys()  # adapters name the weights that they belong to
    assert all(torch.equal(found[name], expected[name]) for name in named)
    return max(float((found[n] - e).norm() / (e - first[n]).norm()) for n, e in moved.items())


@pytest.mark.parametrize("moment", ["one update", "three updates", "after the skipped", "uninterrupted"])
def test_weights_are_those_of_a_single_process(results: Results, kind: str, moment: str) -> None:
    single, shared = results[SINGLES[kind], 0], results[kind, 0]
    assert difference(shared[moment], single[moment], single["first"]) <= tolerance(kind)


def test_ranks_have_unequal_numbers_of_rows(results: Results) -> None:
    assert any(rows % 2 for rows in results[("single", "float64"), 0]["rows"])


@pytest.mark.parametrize("update", ["one update", "two minibatches", "one row"])
def test_every_rank_reports_the_metrics_of_a_single_process(results: Results, kind: str, update: str) -> None:
    close, single = tolerance(kind), results[SINGLES[kind], 0][f"metrics of {update}"]
    for rank in range(2):
        shared = results[kind, rank][f"metrics of {update}"]
        assert shared.keys() == single.keys()
        for name in single.keys() - {"memory/peak_mib"}:  # a process's own
            assert shared[name] == pytest.approx(single[name], rel=close, abs=close), name


def test_zero_runs_on_an_engine_of_accelerate_whose_backward_passes_never_update(results: Results, kind: str) -> None:
    if not kind.startswith("zero"):
        pytest.skip("of ZeRO")
    # Rank by rank, rows are run and accumulated; the second minibatch's are the first to see the first's update.
    rows = [math.ceil(number / 2) for number in results[("single", "float64"), 0]["rows"]]
    for rank in range(2):
        assert results[kind, rank]["accelerate"] == {
            "engine is its own": True,
            "ranks": 2,
            "type": "DEEPSPEED",
            "stage": int(kind[-1]),
            "counts": [1] * rows[0] + [2] * rows[1],
        }


@pytest.mark.parametrize("which", ["policy", "reference"])
def test_every_rank_has_the_scores_of_a_single_process(results: Results, kind: str, which: str) -> None:
    single = results[SINGLES[kind], 0][f"{which} scores"]
    for rank in range(2):
        for found, expected in zip(results[kind, rank][f"{which} scores"], single, strict=True):
            np.testing.assert_allclose(found, expected, rtol=tolerance(kind))  # NaN only where NaN is due


def test_what_is_not_finite_on_one_rank_is_skipped_on_all(results: Results, kind: str) -> None:
    for rank in range(2):
        found = results[kind, rank]
        assert found["loss spoiled"] == (False, "loss is nan")
        applied, reason = found["gradient spoiled"]
        assert not applied and reason.startswith("gradient norm is ")
    before, after = results[kind, 0]["three updates"], results[kind, 0]["two skipped"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_loaded_checkpoint_continues_bit_equal(results: Results, kind: str) -> None:
    found = results[kind, 0]
    for resumed, straight in {"loaded": "after the skipped", "resumed": "uninterrupted"}.items():
        assert difference(found[f"{resumed} from {kind}"], found[straight], found["first"]) == 0


def test_ranks_continue_what_one_process_saved(results: Results, kind: str) -> None:
    alone = SINGLES[kind]
    single, shared = results[alone, 0], results[kind, 0][f"resumed from {alone[0]}"]
    assert difference(shared, single["uninterrupted"], single["first"]) <= tolerance(kind)


def test_one_process_continues_what_ranks_saved(results: Results, folder: Path, kind: str) -> None:
    alone, dtype = SINGLES[kind]
    again = learner(alone, dtype, folder)
    again.load(folder / f"saved by {kind} {dtype}", {"version": 5, "updates": 6, "skipped": 0})
    again.update(batches(again, 6))
    single = results[SINGLES[kind], 0]
    assert difference(again.weights(), single["uninterrupted"], single["first"]) <= tolerance(kind)
