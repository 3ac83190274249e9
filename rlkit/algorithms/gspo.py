"""GSPO: one importance ratio per sequence, the geometric mean of its token ratios.

Zheng et al. 2025 (arXiv:2507.18071), eq. 5 to 7. On a tree the log-ratios are reduced along each path by the incidence
of paths over scored tokens, so a shared token is computed once and enters the ratio of every path through it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rlkit.algorithms.base import Algorithm, AlgorithmConfig, LossInputs, LossOutput
from rlkit.algorithms.grpo import credit
from rlkit.algorithms.surrogate import assemble_loss, importance
from rlkit.ops.ratios import clipped_gain

__all__ = ["ALGORITHM", "GspoConfig", "loss"]


@dataclass(frozen=True, kw_only=True)
class GspoConfig(AlgorithmConfig):
    """Clip range of the paper's experiments: sequence ratios move far less than token ratios."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4


def loss(inputs: LossInputs, config: GspoConfig) -> LossOutput:
    """-Σ_p W_p·min(s_p·A_p, clip(s_p)·A_p), s_p = exp(mean of log-ratios on the path), W_p = Σ_t w(p,t).

    An importance correction is averaged along the path like the ratio.
    """
    zeros = torch.zeros(inputs.num_paths, dtype=inputs.logprobs.dtype, device=inputs.logprobs.device)

    def reduce(values: torch.Tensor) -> torch.Tensor:
        return zeros.index_add(0, inputs.path_index, values)

    length = reduce(torch.ones_like(inputs.path_weight)).clamp(min=1)
    log_ratio = (inputs.logprobs - inputs.anchor)[inputs.path_token]
    ratio = (reduce(log_ratio) / length).exp()
    correction = reduce(importance(inputs, config)[inputs.path_token]) / length
    gain = correction * reduce(inputs.path_weight * inputs.path_advantage)
    zero = torch.zeros_like(gain)
    positive, negative = torch.where(gain >= 0, gain, zero), torch.where(gain < 0, gain, zero)
    total = clipped_gain(ratio, positive, negative, config.clip_low, config.clip_high, config.dual_clip).sum()
    clipped = ((ratio > 1 + config.clip_high) & (positive > 0)) | ((ratio < 1 - config.clip_low) & (negative < 0))
    return assemble_loss(inputs, config, -total, ratio=ratio, clipped=clipped)


ALGORITHM = Algorithm(config=GspoConfig, credit=credit, loss=loss)
