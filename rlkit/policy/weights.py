"""New weights into a running model, by name, with nothing missing and nothing left over.

They are copied, or, where they last (`Buckets.lasting`) and the model is on a CPU, become its parameters as they lie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlkit.errors import EngineError
from rlkit.models.lora import BASE, travelling
from rlkit.sync.arrays import to_tensor
from rlkit.sync.buckets import Buckets, parts_of
from rlkit.sync.fingerprint import combined, digests

__all__ = ["assign_weights"]

BORROWED = "_borrowed_parameters"
"""Attribute of a model: names of parameters whose numbers lie in memory that is not its own."""


@torch.no_grad()
def assign_weights(model: nn.Module, weights: Mapping[str, Any]) -> str:
    """Run `weights` (names of `model.state_dict()` -> array or tensor); the fingerprint of what now runs.

    A model with adapters is sent these only, and the digest of the frozen weights, which must be its own.
    Tied tensors may come under one of their names or all. Raises `EngineError`, before anything is copied,
    for names that are missing or unknown and for other shapes or dtypes.
    """
    _check(travelling(model.state_dict()), weights)
    borrowed = _borrowed(model, weights)
    state = travelling(model.state_dict())
    found: dict[str, str] = {}
    for part in parts_of(weights):
        for name, source in part.items():
            arriving = source if isinstance(source, Tensor) else to_tensor(source, borrow=True)
            if name == BASE and not torch.equal(state[name].cpu(), arriving.cpu()):
                raise EngineError(
                    "the engine's frozen weights are not the learner's: under model.lora both start from model.path, "
                    "and train.init_from may name adapters only"
                )
            if name in borrowed:
                borrowed[name].data = state[name] = arriving
            else:
                state[name].copy_(arriving)
        found |= digests({name: state[name] for name in part})
    return combined(found)


def _borrowed(model: nn.Module, weights: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """The parameters that take what arrives as it lies. Those that did before, and now must not, get memory again."""
    parameters = dict(model.named_parameters(remove_duplicate=False))  # tied ones under each of their names
    lasting = isinstance(weights, Buckets) and weights.lasting
    found = {name: p for name, p in parameters.items() if lasting and name in weights and p.device.type == "cpu"}
    for name in getattr(model, BORROWED, set()) - found.keys():
        parameters[name].data = torch.empty_like(parameters[name])
    setattr(model, BORROWED, set(found))
    return found


def _check(state: Mapping[str, Tensor], weights: Mapping[str, Any]) -> None:
    tied: dict[tuple[int, torch.Size], list[str]] = defaultdict(list)
    for name, tensor in state.items():
        tied[tensor.data_ptr(), tensor.shape].append(name)
    problems = [f"missing {names[0]}" for names in tied.values() if not any(name in weights for name in names)]
    for name, source in (weights.described if isinstance(weights, Buckets) else weights).items():
        if name not in state:
            problems.append(f"unknown {name}")
        elif tuple(source.shape) != tuple(state[name].shape):
            problems.append(f"{name} has shape {tuple(source.shape)}, the model {tuple(state[name].shape)}")
        elif (given := str(source.dtype).removeprefix("torch.")) != str(state[name].dtype).removeprefix("torch."):
            problems.append(f"{name} is {given}, the model {str(state[name].dtype).removeprefix('torch.')}")
    if problems:
        rest = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise EngineError(f"weights do not fit the model: {'; '.join(problems[:5])}{rest}")
