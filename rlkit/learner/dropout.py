"""Dropout for supervised training, put on a model from outside: causal language models of today come without.

Dropped are units of the embeddings and of what the parts of each layer add to the residual stream, where GPT-2 has its
`embd_pdrop` and `resid_pdrop`. What scores a batch, and what an engine runs, is always the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout
from transformers.modeling_layers import GradientCheckpointingLayer

from rlkit.errors import LearnerError
from rlkit.randomness import stream

__all__ = ["branches", "dropping"]


def branches(model: Any) -> list[nn.Module]:
    """The embeddings, and the parts of every layer that hold matrices: its attention and its MLP, not its norms."""
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    parts = [part for layer in layers for part in layer.children() if any(w.ndim > 1 for w in part.parameters())]
    if not parts:
        raise LearnerError(f"algorithm.dropout: the layers of {type(model).__name__} are not known; use 0")
    return [model.get_input_embeddings(), *parts]


@contextmanager
def dropping(model: Any, rate: float, *address: object) -> Iterator[None]:
    """Forward passes inside drop units at `rate`; which ones is told by `address` alone, also when resumed.

    The rest of the process keeps its random state. Backward passes belong inside too: a layer that is recomputed
    has to drop the same units again. Raises `LearnerError` for a model of unknown layers.
    """
    if not rate:
        yield
        return

    def drop(_: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention: states first, then its weights or nothing
            return (dropout(output[0], rate), *output[1:])
        return dropout(output, rate)

    device = next(model.parameters()).device
    hooks = [part.register_forward_hook(drop) for part in branches(model)]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(stream("dropout", *address).integers(2**63)))
            yield
    finally:
        for hook in hooks:
            hook.remove()
