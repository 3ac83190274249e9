"""How ranks share weights, gradients and optimizer state, behind one small protocol.

The learner adds up losses; a sharding turns the ranks' sums into one gradient and one step. `Replicated` (one process,
or every rank with a full copy) lives here; the others are in rlkit/learner/sharded.py. Nothing here knows of files:
weights and moments leave and arrive whole, by name, so any sharding continues what any other has saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rlkit.learner.optim import adamw, set_rate
from rlkit.learner.tree_policy import TreePolicy
from rlkit.recipe import Optim

__all__ = ["MOMENTS", "Replicated", "Sharding", "all_sum", "gathered"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's names of the means of gradients and squared gradients."""


class Sharding(Protocol):
    """One rank's view of the shared model. All methods are collective: every rank calls them in the same order."""

    rank: int
    size: int
    policy: TreePolicy
    """The module whose weights are trained."""
    module: nn.Module
    """What to call for a forward pass."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's share of the loss."""
        ...

    def step(self, lr: float, max_norm: float) -> float:
        """Sum gradients over ranks, clip them to `max_norm`, update at this rate, clear them.

        Returns the global norm before clipping; where it is not finite, nothing but the gradients changes.
        """
        ...

    def discard(self) -> None:
        """Clear the gradients without an update."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Full weights by the model's names, tied ones once, on rank 0 at least; no copies where there is no need."""
        ...

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state on rank 0 at least: `step`, and `exp_avg.<name>` and `exp_avg_sq.<name>` shaped like the
        weights. Empty before the first update."""
        ...

    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Take over full weights and moments, given on every rank."""
        ...


def all_sum(values: Mapping[str, tuple[float, float]], size: int) -> dict[str, tuple[float, float]]:
    """Add (sum, count) metrics over ranks; every rank must hold the same names."""
    if size == 1:
        return dict(values)
    names = sorted(values)
    table = torch.tensor([values[name] for name in names], dtype=torch.float64).reshape(-1, 2)
    dist.all_reduce(table)
    return {name: (float(a), float(b)) for name, (a, b) in zip(names, table.tolist(), strict=True)}


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which this rank may hold a part only. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """What this rank holds of `whole` if it is spread like `like`."""
    whole = whole.to(like.device)
    if not isinstance(like, DTensor):
        return whole
    # Every rank has the whole tensor: nothing to send.
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


class Replicated:
    """Every rank holds all weights; gradients are summed over ranks in one flat bucket, once per update."""

    def __init__(self, policy: TreePolicy, optim: Optim, *, rank: int = 0, size: int = 1) -> None:
        self.policy = policy
        self.module: nn.Module = policy
        self.rank, self.size = rank, size
        self.optimizer = adamw(policy.named_parameters(), optim)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        model: Any = self.policy.model
        return ((name, p) for name, p in model.named_parameters() if p.requires_grad)

    def backward(self, loss: Tensor) -> None:
        """Plain autograd."""
        loss.backward()

    def step(self, lr: float, max_norm: float) -> float:
        """AdamW on the clipped sum."""
        parameters = [p for _, p in self._named()]
        for parameter in parameters:
            if parameter.grad is None:  # an expert that no token was sent to: its moments decay all the same
                parameter.grad = torch.zeros_like(parameter)
        self._sum_over_ranks(parameters)
        norm = float(gathered(nn.utils.clip_grad_norm_(parameters, max_norm)))
        if math.isfinite(norm):
            set_rate(self.optimizer.param_groups, lr)
            self.optimizer.step()
        self.discard()
        return norm

    def _sum_over_ranks(self, parameters: list[nn.Parameter]) -> None:
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def discard(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """The parameters themselves."""
        return {name: p.detach() for name, p in self._named()}

    def moments(self) -> dict[str, Tensor]:
        """AdamW's own tensors where they are whole, gathered where they are not; in main memory."""
        out: dict[str, Tensor] = {}
        for name, parameter in self._named():
            state = self.optimizer.state.get(parameter, {})
            for key in MOMENTS if state else ():
                whole = gathered(state[key])
                if self.rank == 0:
                    out[f"{key}.{name}"] = whole.cpu()
            if state and self.rank == 0:
                out["step"] = state["step"]  # the same for all: every update moves every parameter
        return out

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Copy weights in place; AdamW's state is made anew."""
        self.optimizer.state.clear()
        for name, parameter in self._named():
            parameter.copy_(own_part(weights[name], parameter))
            if moments:
                # A fused AdamW counts where its parameters live.
                state = {"step": moments["step"].clone().to(parameter.device)}
                state |= {key: own_part(moments[f"{key}.{name}"], parameter).clone() for key in MOMENTS}
                self.optimizer.state[parameter] = state
