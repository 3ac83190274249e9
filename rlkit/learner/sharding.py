"""How ranks share weights, gradients and optimizer state, behind one small protocol.

The learner adds up losses; a sharding turns the ranks' sums into one gradient and one step. `Replicated` (one process,
or every rank with a full copy) lives here; the others are in rlkit/learner/sharded.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlkit.learner.optim import adamw
from rlkit.recipe import Optim

__all__ = ["Replicated", "Sharding", "all_sum"]


class Sharding(Protocol):
    """One rank's view of the shared model."""

    rank: int
    size: int
    module: nn.Module
    """What to call for a forward pass."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's share of the loss."""
        ...

    def finish(self, max_norm: float) -> float:
        """Sum gradients over ranks, clip them to `max_norm`, return the global norm before clipping."""
        ...

    def step(self, lr: float) -> None:
        """One optimizer update at this rate; gradients are cleared."""
        ...

    def discard(self) -> None:
        """Clear the gradients without an update."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Full weights by name on every rank that needs them (rank 0 at least); no copies where there is no need."""
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's optimizer state into `folder`."""
        ...

    def load(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Take full weights and this rank's optimizer state from `folder`."""
        ...


def all_sum(values: Mapping[str, tuple[float, float]], size: int) -> dict[str, tuple[float, float]]:
    """Add (sum, count) metrics over ranks; every rank must hold the same names."""
    if size == 1:
        return dict(values)
    names = sorted(values)
    table = torch.tensor([values[name] for name in names], dtype=torch.float64).reshape(-1, 2)
    dist.all_reduce(table)
    return {name: (float(a), float(b)) for name, (a, b) in zip(names, table.tolist(), strict=True)}


class Replicated:
    """Every rank holds all weights; gradients are summed over ranks in one flat bucket per dtype."""

    def __init__(self, module: nn.Module, optim: Optim, *, rank: int = 0, size: int = 1) -> None:
        self.module, self.rank, self.size = module, rank, size
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = adamw(self.parameters, optim)

    def backward(self, loss: Tensor) -> None:
        """Plain autograd."""
        loss.backward()  # type: ignore[no-untyped-call]

    def finish(self, max_norm: float) -> float:
        """Sum over ranks, then clip by the global norm."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.size > 1:
            flat = torch.cat([p.grad.reshape(-1) for p in self.parameters if p.grad is not None])
            dist.all_reduce(flat)
            offset = 0
            for parameter in self.parameters:
                assert parameter.grad is not None
                count = parameter.numel()
                parameter.grad.copy_(flat[offset : offset + count].view_as(parameter))
                offset += count
        return float(nn.utils.clip_grad_norm_(self.parameters, max_norm))

    def step(self, lr: float) -> None:
        """AdamW."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """The parameters themselves, by the model's names; tied ones once."""
        model: Any = self.module.model
        return {name: p.detach() for name, p in model.named_parameters()}

    def save(self, folder: Path) -> None:
        """Replicas are equal: rank 0 writes for all."""
        if self.rank == 0:
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Copy weights in place and restore AdamW's moments."""
        with torch.no_grad():
            for name, parameter in self.weights().items():
                parameter.copy_(weights[name])
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
