"""CISPO: the importance weight is clipped and held constant, so no token loses its gradient.

MiniMax-M1 (arXiv:2506.13585), eq. 4 and 5: maximise Σ sg(clip(r, 1-ε_low, 1+ε_high))·A·log π. The paper leaves the
lower side open and does not print ε_high; 5.0 is the value that the ScaleRL study (arXiv:2510.13786) found stable.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.algorithms.base import Aggregation, Algorithm, AlgorithmConfig, LossInputs, LossOutput
from rlkit.algorithms.grpo import credit
from rlkit.algorithms.surrogate import assemble_loss, importance

__all__ = ["ALGORITHM", "CispoConfig", "loss"]


@dataclass(frozen=True, kw_only=True)
class CispoConfig(AlgorithmConfig):
    """Open below (ε_low = 1 lets the ratio fall to 0), token mean over the batch."""

    aggregation: Aggregation = "token_mean"
    clip_low: float = 1.0
    clip_high: float = 5.0


def loss(inputs: LossInputs, config: CispoConfig) -> LossOutput:
    """-Σ_t sg(clip(r_t))·(C⁺ + C⁻)·log π_t."""
    ratio = (inputs.logprobs.detach() - inputs.anchor).exp()
    held = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    gain = importance(inputs, config) * held * (inputs.c_pos + inputs.c_neg) * inputs.logprobs
    return assemble_loss(inputs, config, -gain.sum(), ratio=ratio, clipped=held != ratio)


ALGORITHM = Algorithm(config=CispoConfig, credit=credit, loss=loss)
