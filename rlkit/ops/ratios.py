"""Ratios, clips, KL estimators and importance correction on scored tokens. Pure functions of tensors [S]."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["ImportanceKind", "KlEstimator", "clipped_gain", "importance_weight", "kl_estimate"]

KlEstimator = Literal["k1", "k2", "k3"]
ImportanceKind = Literal["none", "truncate", "mask"]


def kl_estimate(policy: Tensor, reference: Tensor, kind: KlEstimator, limit: float | None = None) -> Tensor:
    """Per-token estimate, in nats, of KL(policy || reference) from tokens drawn by the policy (Schulman 2020).

    With d = log reference - log policy: k1 = -d (unbiased, noisy, any sign), k2 = d²/2 (biased, never negative),
    k3 = exp(d) - d - 1 (unbiased, never negative). As a *loss* on-policy only k2 has the gradient of the true KL.
    `limit` cuts the estimate to [-limit, limit]: a token beyond it has no KL gradient.
    """
    difference = reference - policy
    if kind == "k1":
        value = -difference
    elif kind == "k2":
        value = 0.5 * difference**2
    else:  # beyond e^20 one token would own the batch
        value = difference.clamp(max=20.0).exp() - difference - 1
    return value if limit is None else value.clamp(-limit, limit)


def clipped_gain(
    ratio: Tensor, c_pos: Tensor, c_neg: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """Σ_paths w·min(r·A, clip(r)·A) on shared tokens: C⁺·min(r, 1+ε_high) + C⁻·max(r, 1-ε_low) (design.md section 3).

    `dual_clip` c bounds the loss of a token with A < 0 at ratio c (Ye et al. 2020): max(r, 1-ε_low) -> min(..., c).
    """
    up = ratio.clamp(max=1 + clip_high)
    down = ratio.clamp(min=1 - clip_low)
    if dual_clip is not None:
        down = down.clamp(max=dual_clip)
    return c_pos * up + c_neg * down


def importance_weight(proximal: Tensor, behavior: Tensor, kind: ImportanceKind, low: float, high: float) -> Tensor:
    """π_proximal / π_behavior per token, without gradient: the correction for the engine being another distribution.

    `truncate` caps the weight at `high`; `mask` gives tokens outside [low, high] weight 0; `none` gives ones.
    """
    if kind == "none":
        return torch.ones_like(proximal)
    weight = (proximal - behavior).detach().exp()
    if kind == "truncate":
        return weight.clamp(max=high)
    return torch.where((weight >= low) & (weight <= high), weight, torch.zeros_like(weight))
