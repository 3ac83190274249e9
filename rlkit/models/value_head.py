"""A head that reads what a prefix of a completion is worth off the policy's last hidden states.

V-STAR (arXiv:2602.10699) asks for one shallow Transformer block over prefix states and an MLP to a scalar. The block
here is causal by construction: a state attends to the states before it on its path and to itself, not to what follows,
so learner and search read the same number. The last layer starts at zero: V = 0 until something is learned.

It hangs on the model as `model.value_head`: optimizer, sharding, weight sync and fingerprints treat it as a part of it.

    M states · K states on a path, the state itself last · D hidden width
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlkit.errors import CheckpointError

__all__ = ["VALUE_FILE", "VALUE_PREFIX", "ValueHead", "add_value_head", "chains"]

VALUE_FILE = "value_head.safetensors"
"""Where a checkpoint keeps the head, beside the model's own file, which stays loadable by transformers alone."""
VALUE_PREFIX = "value_head."


class ValueHead(nn.Module):
    """`forward(states [M, K, D], present [M, K]) -> [M]`."""

    def __init__(self, hidden: int, kind: Literal["mlp", "block"]) -> None:
        super().__init__()
        self.kind = kind
        self.heads = next(heads for heads in (4, 2, 1) if hidden % heads == 0)
        if kind == "block":
            self.norm = nn.LayerNorm(hidden)
            self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))
            self.norm_inner = nn.LayerNorm(hidden)
            self.inner = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))
        self.norm_out = nn.LayerNorm(hidden)
        self.regressor = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))
        last: Any = self.regressor[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """V of the last state of each path; `present` is False where a path is shorter than K (at its front)."""
        own = states[:, -1]
        if self.kind == "block":
            own = own + self.out(self._attend(self.norm(states), present))
            own = own + self.inner(self.norm_inner(own))
        values: Tensor = self.regressor(self.norm_out(own))
        return values[:, 0]

    def _attend(self, states: Tensor, present: Tensor) -> Tensor:
        num, length, hidden = states.shape
        width = hidden // self.heads
        query = self.query(states[:, -1]).view(num, self.heads, 1, width)
        key, value = (
            layer(states).view(num, length, self.heads, width).transpose(1, 2) for layer in (self.key, self.value)
        )
        scores = (query * key).sum(-1) * width**-0.5  # [M, heads, K]
        weights = scores.masked_fill(~present[:, None], -torch.inf).softmax(-1)
        return (weights[..., None] * value).sum(2).reshape(num, hidden)


def chains(parents: Tensor) -> tuple[Tensor, Tensor]:
    """States [M, K] on the path to each state, itself last, K the longest path; and which of them are there.

    `parents` [M] is the state before each on its path, or -1.
    """
    steps, at = [], torch.arange(len(parents), device=parents.device)
    while bool((at >= 0).any()):
        steps.append(at)
        at = torch.where(at >= 0, parents[at.clamp(min=0)], at)
    chain = torch.stack(steps[::-1], 1)
    return chain.clamp(min=0), chain >= 0


def add_value_head(
    model: Any,
    kind: Literal["none", "mlp", "block"],
    folder: Path | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Hang a head on `model`, in `dtype` or the model's: that of `folder` where it has one, else a fresh one, always
    the same.

    Raises `CheckpointError` for a file of another kind or width.
    """
    if kind == "none":
        return
    like = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = ValueHead(model.config.get_text_config().hidden_size, kind)
    file = None if folder is None else folder / VALUE_FILE
    if file is not None and file.is_file():
        try:
            head.load_state_dict({name.removeprefix(VALUE_PREFIX): w for name, w in load_file(file).items()})
        except RuntimeError as error:
            raise CheckpointError(f"value.head: {file} holds another head than '{kind}': {error}") from error
    model.value_head = head.to(device=like.device, dtype=dtype or like.dtype)
