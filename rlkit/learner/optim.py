"""Learning-rate schedule and optimizer. Pure but for the optimizer's own state."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from rlkit.recipe import Optim

__all__ = ["adamw", "learning_rate"]


def learning_rate(update: int, optim: Optim, total_updates: int) -> float:
    """Rate of the 0-based optimizer update: linear warm-up to `lr`, then constant, linear or cosine to 0.

    With warmup_steps=4 the first four updates run at lr/4, lr/2, 3·lr/4, lr.
    """
    if update < optim.warmup_steps:
        return optim.lr * (update + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    left = max(1, total_updates - optim.warmup_steps)
    progress = min(1.0, (update - optim.warmup_steps) / left)
    if optim.schedule == "linear":
        return optim.lr * (1 - progress)
    return optim.lr * 0.5 * (1 + math.cos(math.pi * progress))


def adamw(parameters: Iterable[torch.nn.Parameter], optim: Optim) -> torch.optim.AdamW:
    """AdamW without decay on vectors (norms, biases), as is usual; fused where torch has a kernel."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
