"""Rates, AdamW, clipping, minibatches and skipped updates, against numbers worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rlkit.algorithms.grpo import ALGORITHM
from rlkit.data.packing import Batch, pack
from rlkit.errors import LearnerError
from rlkit.learner.learner import Learner
from rlkit.learner.optim import adamw, learning_rate, set_rate
from rlkit.learner.sharding import Replicated
from rlkit.learner.tree_policy import TreePolicy
from rlkit.recipe import Optim
from rlkit.records import ScoredTree
from tests.forest import random_forest, tiny_model


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # Two updates of warm-up: 1/2, 1. Then, of the four that are left: constant,
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        # 1 - k/4,
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        # (1 + cos(k·π/4)) / 2 = 1, (2 + √2)/4, 1/2, (2 - √2)/4. From the seventh on, the run is over.
        ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466, 0.0, 0.0]),
    ],
)
def test_the_rate_warms_up_and_then_follows_its_schedule(schedule: Any, rates: list[float]) -> None:
    optim = Optim(lr=2.0, warmup_steps=2, schedule=schedule)
    assert [learning_rate(update, optim, 6) / 2.0 for update in range(8)] == pytest.approx(rates, abs=1e-7)


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    optim = Optim(lr=1.0, warmup_steps=10, schedule="cosine")
    assert [learning_rate(update, optim, 3) for update in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_a_value_head_has_a_learning_rate_of_its_own_on_the_same_schedule() -> None:
    body, head = (torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    names = [("model.norm", body), ("model.value_head.bias", head)]
    optimizer = adamw(names, Optim(lr=0.01, value_lr=0.05, eps=1e-12))
    for rate, moved in ((0.01, 0.01), (0.005, 0.015)):  # AdamW's steps on an even gradient are those of its rate
        set_rate(optimizer.param_groups, rate)
        body.grad, head.grad = torch.ones(1).double(), torch.ones(1).double()
        optimizer.step()
        assert (body.item(), head.item()) == pytest.approx((1 - moved, 1 - 5 * moved), rel=1e-9)
    together = adamw(names, Optim(lr=0.01))
    assert [len(group["params"]) for group in together.param_groups] == [0, 2]


def test_adamw_takes_the_step_worked_by_hand_and_decays_matrices_only() -> None:
    matrix, vector = (torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in ((1, 1), (1,)))
    optimizer = adamw(
        [("matrix", matrix), ("vector", vector)], Optim(lr=0.1, beta1=0.9, beta2=0.999, eps=0.5, weight_decay=0.1)
    )
    # g = 0.5: m = 0.05, v = 0.00025; corrected by 1 - β they are 0.5 and 0.25; step 0.5 / (√0.25 + 0.5) = 0.5.
    # vector 1 - 0.1·0.5 = 0.95; matrix 1·(1 - 0.1·0.1) - 0.1·0.5 = 0.94.
    matrix.grad, vector.grad = torch.full((1, 1), 0.5).double(), torch.full((1,), 0.5).double()
    optimizer.step()
    assert (vector.item(), matrix.item()) == pytest.approx((0.95, 0.94), rel=1e-12)
    # g = -1: m = 0.9·0.05 - 0.1 = -0.055, over 1 - 0.81; v = 0.999·0.00025 + 0.001 = 0.00124975, over 1 - 0.998001.
    step = (-0.055 / 0.19) / (math.sqrt(0.00124975 / 0.001999) + 0.5)  # -0.2243
    matrix.grad, vector.grad = torch.full((1, 1), -1.0).double(), torch.full((1,), -1.0).double()
    optimizer.step()
    assert (vector.item(), matrix.item()) == pytest.approx((0.95 - 0.1 * step, 0.94 * 0.99 - 0.1 * step), rel=1e-12)


class OneWeight(torch.nn.Module):
    """As much of a `TreePolicy` as an optimizer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))})


@pytest.mark.parametrize(("max_norm", "factor"), [(1.0, 0.2), (5.1, 1.0)])
def test_gradients_are_scaled_down_to_the_norm_and_never_up(max_norm: float, factor: float) -> None:
    policy: Any = OneWeight()
    sharding = Replicated(policy, Optim(eps=1.0))
    sharding.backward((policy.model["w"] * torch.tensor([3.0, 4.0])).sum())
    assert sharding.step(lr=1.0, max_norm=max_norm) == pytest.approx(5.0)  # √(3² + 4²), before clipping
    # AdamW's first step is -g / (|g| + 1).
    expected = [-3 * factor / (3 * factor + 1), -4 * factor / (4 * factor + 1)]
    assert policy.model["w"].tolist() == pytest.approx(expected, rel=1e-5)
    assert policy.model["w"].grad is None


# ---------------------------------------------------------------------------------------------- the learner


def make_learner(lr: float = 1e-2) -> Learner:
    """Of the tiny model, in this process."""
    optim = Optim(lr=lr)
    return Learner(Replicated(TreePolicy(tiny_model()), optim), ALGORITHM, ALGORITHM.config(), optim, total_updates=100)


def batch_of(forest: list[ScoredTree]) -> Batch:
    """All of it, credited as one step."""
    return pack(ALGORITHM.credit(forest, ALGORITHM.config(), None), 4096)


def spoiled(batch: Batch) -> Batch:
    """The same with credit that is not a number."""
    return Batch(rows=tuple(replace(row, c_pos=row.c_pos * np.nan) for row in batch.rows))


def copied(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in learner.weights().items()}


def test_an_update_moves_the_weights_and_reports_its_norm_and_rate() -> None:
    learner = make_learner()
    before = copied(learner)
    report = learner.update([batch_of(random_forest(1))])
    assert report.applied and not report.reason
    assert report.metrics["lr"] == (1e-2, 1.0) and report.metrics["grad_norm"][0] > 0
    assert report.metrics["update/skipped"] == (0.0, 1.0)
    assert any(not torch.equal(before[name], weight) for name, weight in learner.weights().items())
    assert learner.counters() == {"version": 1, "updates": 1, "skipped": 0}


def test_a_loss_that_is_not_finite_leaves_the_weights_and_is_reported() -> None:
    learner, batch = make_learner(), batch_of(random_forest(1))
    learner.update([batch])
    before = copied(learner)
    report = learner.update([spoiled(batch)])
    assert not report.applied and report.reason == "loss is nan"
    assert report.metrics["update/skipped"] == (1.0, 1.0)
    assert "loss" not in report.metrics
    assert all(torch.equal(before[name], weight) for name, weight in learner.weights().items())
    assert learner.counters() == {"version": 2, "updates": 2, "skipped": 1}


def test_a_skipped_update_leaves_no_trace_in_the_next() -> None:
    batch = batch_of(random_forest(1))
    straight, interrupted = make_learner(), make_learner()
    straight.update([batch])
    interrupted.update([spoiled(batch)])
    interrupted.update([batch])
    for name, weight in straight.weights().items():
        torch.testing.assert_close(interrupted.weights()[name], weight, rtol=0, atol=0)


def test_the_third_skipped_update_in_a_row_ends_the_run_with_numbers() -> None:
    learner, batch = make_learner(), batch_of(random_forest(1))
    for found in (batch, spoiled(batch), spoiled(batch), batch, spoiled(batch), spoiled(batch)):
        learner.update([found])
    message = r"loss is nan in 3 updates in a row; the weights are those after update 4\. Lower optim\.lr \(0\.01\)"
    with pytest.raises(LearnerError, match=message):
        learner.update([spoiled(batch)])


def test_each_minibatch_weighs_as_much_as_a_step_of_its_own() -> None:
    forest = random_forest(1)[2:3]  # the same tree twice: each minibatch holds half of the step's weight
    halves = [pack([one], 4096) for one in ALGORITHM.credit(forest * 2, ALGORITHM.config(), None)]
    norm, count = make_learner(lr=1e-30).update(halves).metrics["grad_norm"]
    alone, _ = make_learner(lr=1e-30).update([batch_of(forest)]).metrics["grad_norm"]
    assert count == 2 and norm / 2 == pytest.approx(alone, rel=1e-12)


def test_a_minibatch_without_rows_is_no_update() -> None:
    learner = make_learner()
    learner.update([Batch(rows=()), batch_of(random_forest(1))])
    assert learner.counters() == {"version": 1, "updates": 1, "skipped": 0}
