"""From a packed batch to gradients and scores on one rank: pure of optimizers, ranks and clocks.

Losses of rows add up (their denominators are global), so a gradient may be accumulated in any order and split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkit.algorithms.base import Algorithm, AlgorithmConfig, LossInputs
from rlkit.data.packing import Batch, Row, scatter
from rlkit.learner.tree_policy import RowInputs
from rlkit.ops.ratios import kl_estimate

__all__ = ["add_gradients", "loss_inputs", "reference_kl", "score_rows", "squared_errors"]

Floats = NDArray[np.float64]
Metrics = dict[str, tuple[float, float]]


def _placement(policy: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device of the weights, and the dtype that log-probs are kept in (at least float32)."""
    weight = next(policy.parameters())
    return weight.device, torch.promote_types(weight.dtype, torch.float32)


def loss_inputs(row: Row, logprobs: Tensor, entropy: Tensor) -> LossInputs:
    """Join the model's scores with the row's credit, in the scores' dtype and device."""

    def floats(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=logprobs.dtype, device=logprobs.device)

    def ints(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.long, device=logprobs.device)

    def optional(array: np.ndarray) -> Tensor | None:
        return None if np.isnan(array).any() else floats(array)

    return LossInputs(
        logprobs=logprobs,
        entropy=entropy,
        behavior_logprobs=floats(row.behavior_logprobs),
        proximal_logprobs=optional(row.proximal_logprobs),
        reference_logprobs=optional(row.reference_logprobs),
        c_pos=floats(row.c_pos),
        c_neg=floats(row.c_neg),
        weight=floats(row.weight),
        path_index=ints(row.path_index),
        path_token=ints(row.path_token),
        path_advantage=floats(row.path_advantage),
        path_weight=floats(row.path_weight),
        num_paths=row.num_paths,
    )


def add_gradients(
    policy: torch.nn.Module,
    rows: Sequence[Row],
    algorithm: Algorithm,
    config: AlgorithmConfig,
    *,
    scale: float = 1.0,
    backward: Callable[[Tensor], Any] = torch.Tensor.backward,
    with_entropy: bool = False,
) -> Metrics:
    """Forward and backward of each row; gradients accumulate in the parameters. Returns metrics as (sum, count).

    `scale` multiplies the loss that is differentiated, not the metric. `backward` may be a sharding engine's own.
    """
    device, dtype = _placement(policy)
    metrics: Metrics = {}
    for row in rows:
        logprobs, entropy, values = policy(
            RowInputs.of(row, device, dtype), with_entropy=with_entropy or config.entropy_coef != 0
        )
        out = algorithm.loss(loss_inputs(row, logprobs, entropy), config)
        loss, found = out.loss, dict[str, tuple[Any, Any]](out.metrics)
        if len(values):
            errors, weights = squared_errors(values, row)
            loss = loss + (errors * weights).sum()
            found["value/loss"] = ((errors * weights).detach().sum(), weights.sum())
        backward(loss * scale)
        found["loss"] = (loss.detach(), 0.0)
        for name, (total, count) in found.items():
            before = metrics.get(name, (0.0, 0.0))
            metrics[name] = (before[0] + float(total), before[1] + float(count))
    if "loss" in metrics:
        metrics["loss"] = (metrics["loss"][0], 1.0)
    return metrics


def squared_errors(values: Tensor, row: Row) -> tuple[Tensor, Tensor]:
    """Squared errors [E] and weights [E] of a value head's predictions [M] at a row's edges (`records.ValueEdges`)."""
    following = torch.tensor(row.edge_next, device=values.device)
    reward, discount, weight = (
        torch.tensor(array, dtype=values.dtype, device=values.device)
        for array in (row.edge_reward, row.edge_discount, row.edge_weight)
    )
    later = torch.where(following >= 0, values.detach()[following.clamp(min=0)], torch.zeros_like(reward))
    predicted = values[torch.tensor(row.edge_state, device=values.device)]
    return (predicted - reward - discount * later) ** 2, weight


@torch.no_grad()
def score_rows(policy: torch.nn.Module, batch: Batch, sizes: Sequence[int]) -> list[Floats]:
    """Log-probs of every scored token, per tree [T] (`sizes` are the T); NaN on tokens that were not scored."""
    device, dtype = _placement(policy)
    values = [policy(RowInputs.of(row, device, dtype))[0].double().cpu().numpy() for row in batch.rows]
    return scatter(batch, values, sizes)


def reference_kl(policy: Sequence[Floats], reference: Sequence[Floats], config: AlgorithmConfig) -> list[Floats]:
    """Per-token KL estimates [T] of each tree, for a KL in the reward; NaN where a token was not scored."""
    return [
        kl_estimate(torch.from_numpy(p), torch.from_numpy(r), config.kl_estimator, config.kl_max).numpy()
        for p, r in zip(policy, reference, strict=True)
    ]


def merged(parts: Sequence[Mapping[str, tuple[float, float]]]) -> Metrics:
    """Metrics of several ranks or updates as one: sums add, counts add."""
    out: Metrics = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = out.get(name, (0.0, 0.0))
            out[name] = (before[0] + total, before[1] + count)
    return out
