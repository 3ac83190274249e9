"""Learning-rate schedule and optimizer. Pure but for the optimizer's own state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from rlkit.models.value_head import VALUE_PREFIX
from rlkit.recipe import Optim

__all__ = ["adamw", "learning_rate", "set_rate"]


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


def adamw(parameters: Iterable[tuple[str, torch.nn.Parameter]], optim: Optim) -> torch.optim.AdamW:
    """AdamW on named parameters, without decay on vectors (norms, biases), as is usual; fused where torch has a kernel.

    Its groups have a `multiple`, of the policy's rate: above 1 where the value head is to learn faster (`set_rate`).
    """
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    head = [p for name, p in trained if VALUE_PREFIX in name] if optim.value_lr is not None else []
    inside = {id(p) for p in head}
    body = [p for _, p in trained if id(p) not in inside]
    groups = [*_groups(body, optim, 1.0), *_groups(head, optim, (optim.value_lr or optim.lr) / optim.lr)]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
    set_rate(optimizer.param_groups, optim.lr)
    return optimizer


def _groups(parameters: list[torch.nn.Parameter], optim: Optim, multiple: float) -> Iterator[dict[str, Any]]:
    matrices, vectors = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    if parameters:
        yield {"params": matrices, "weight_decay": optim.weight_decay, "multiple": multiple}
        yield {"params": vectors, "weight_decay": 0.0, "multiple": multiple}


def set_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Let an optimizer's groups of parameters run at this rate times their multiple."""
    for group in groups:
        group["lr"] = lr * group["multiple"]
