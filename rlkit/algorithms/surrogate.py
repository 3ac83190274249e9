"""Losses of the family on a row: token-level clipped surrogate, with KL and entropy terms. Pure torch, sums not means.

Shared tokens carry C⁺, C⁻ and Σw (design.md section 3), so one pass over unique tokens is the flat objective exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.algorithms.base import AlgorithmConfig, LossInputs, LossOutput
from rlkit.ops.ratios import clipped_gain, importance_weight, kl_estimate

__all__ = ["assemble_loss", "clipped_surrogate", "importance"]


def importance(inputs: LossInputs, config: AlgorithmConfig) -> Tensor:
    """[S] weight that corrects behaviour to proximal log-probs; ones where the proximal ones were not computed."""
    if inputs.proximal_logprobs is None:
        return torch.ones_like(inputs.behavior_logprobs)
    return importance_weight(
        inputs.proximal_logprobs,
        inputs.behavior_logprobs,
        config.importance,
        config.importance_low,
        config.importance_high,
    )


def clipped_surrogate(inputs: LossInputs, config: AlgorithmConfig) -> LossOutput:
    """PPO's clipped surrogate on shared tokens, ratio per token: GRPO, Dr. GRPO, DAPO, RLOO, REINFORCE++, siblings."""
    ratio = (inputs.logprobs - inputs.anchor).exp()
    weight = importance(inputs, config)
    gain = clipped_gain(
        ratio, weight * inputs.c_pos, weight * inputs.c_neg, config.clip_low, config.clip_high, config.dual_clip
    )
    clipped = ((ratio > 1 + config.clip_high) & (inputs.c_pos > 0)) | (
        (ratio < 1 - config.clip_low) & (inputs.c_neg < 0)
    )
    return assemble_loss(inputs, config, -gain.sum(), ratio=ratio, clipped=clipped)


def assemble_loss(
    inputs: LossInputs, config: AlgorithmConfig, policy_loss: Tensor, *, ratio: Tensor, clipped: Tensor
) -> LossOutput:
    """Add the KL and entropy terms, weighted by Σw, and collect the metrics that all algorithms share.

    `ratio` and `clipped` may be per token [S] or per path [P].
    """
    loss = policy_loss
    count = torch.tensor(float(inputs.logprobs.numel()), dtype=inputs.logprobs.dtype)
    metrics: dict[str, tuple[Tensor, Tensor]] = {}
    if inputs.reference_logprobs is not None:
        kl = kl_estimate(inputs.logprobs, inputs.reference_logprobs, config.kl_estimator, config.kl_max)
        if config.kl_in == "loss":
            loss = loss + config.kl_coef * (inputs.weight * kl).sum()
        metrics["kl/reference"] = (kl.detach().sum(), count)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * (inputs.weight * inputs.entropy).sum()
    with torch.no_grad():
        policy, behavior = inputs.logprobs.detach(), inputs.behavior_logprobs
        size = torch.tensor(float(ratio.numel()), dtype=count.dtype)
        metrics["clip_frac"] = (clipped.to(count.dtype).sum(), size)
        metrics["ratio/deviation"] = ((ratio.detach() - 1).abs().sum(), size)
        metrics["kl/behavior"] = (kl_estimate(behavior, policy, "k3").sum(), count)
        metrics["entropy"] = (inputs.entropy.detach().sum(), count)
        metrics["importance"] = (importance(inputs, config).sum(), count)
    return LossOutput(loss=loss, metrics=metrics)
