"""Keys and values of many users whose tries are searched side by side, and one forward over any of their nodes.

Each user has a row: columns for the prompt, which is computed once, then one column per node of the search tree that
was evaluated. A node sees its user's prompt, its ancestors and itself, and nothing of its siblings or of other users.

    columns   | p p p p p . . . | n1 n2 n3 n4 ...      n3, a child of n1, sees p, n1 and n3
                prompt, paged     nodes in order of evaluation

A user's numbers do not depend on who is beside it (see attention.py for the three rules that make it so): columns are
padded to whole pages, masked ones contribute exact zeros, and tokens of users lie in one row without padding between.

U users · n most nodes of a user in a forward · Q tokens · H = Hkv·g heads · D width of a head · L columns
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlkit.policy.attention import attend_padded
from rlkit.policy.kv import KeyValue, pages

__all__ = ["Cohort", "Fed", "Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """One node that goes through the model."""

    user: int
    token: int
    position: int
    """On its path, prompt included."""
    column: int
    """0-based among the columns of nodes; new for every node."""
    sees: Sequence[int]
    """Columns of its ancestors."""


class Cohort:
    """The rows of U users; `capacity` bounds the nodes that each may have evaluated."""

    def __init__(self, prompts: Sequence[NDArray[np.integer]], capacity: int, like: Tensor) -> None:
        self.prompts = prompts
        self.lengths = np.array([len(prompt) for prompt in prompts])
        self.base = pages(int(self.lengths.max()))
        self.capacity = capacity
        self._like = like
        self._layers: dict[int, KeyValue] = {}

    def layer(self, layer: int, new: KeyValue) -> KeyValue:
        """Buffers [U, Hkv, columns, D]; zeros, because a masked column is multiplied by 0."""
        if layer not in self._layers:
            columns = pages(self.base + self.capacity)
            shapes = [(len(self.prompts), x.shape[0], columns, x.shape[-1]) for x in new]
            self._layers[layer] = KeyValue(*(x.new_zeros(shape) for x, shape in zip(new, shapes, strict=True)))
        return self._layers[layer]

    def prefill(self, users: Sequence[int]) -> Step:
        """The forward over the whole prompts of some users."""
        tokens = np.concatenate([self.prompts[user] for user in users])
        lengths = self.lengths[list(users)]
        width = int(lengths.max())
        offsets = np.concatenate([np.arange(size) for size in lengths])
        causal = np.tri(width, pages(width), dtype=bool)
        return self._step(
            tokens,
            positions=offsets,
            columns=offsets,
            users=users,
            counts=lengths,
            mask=np.broadcast_to(causal, (len(users), *causal.shape)),
        )

    def extend(self, nodes: Sequence[Fed]) -> Step:
        """The forward over nodes, grouped by user."""
        users = list(dict.fromkeys(node.user for node in nodes))
        counts = np.array([0] * len(users))
        places = {user: index for index, user in enumerate(users)}
        for node in nodes:
            counts[places[node.user]] += 1
        stop = self.base + 1 + max(node.column for node in nodes)
        mask = np.zeros((len(users), int(counts.max()), pages(stop)), bool)
        at = [0] * len(users)
        for node in nodes:
            user = places[node.user]
            row = mask[user, at[user]]
            row[: self.lengths[node.user]] = True
            row[[self.base + column for column in (*node.sees, node.column)]] = True
            at[user] += 1
        return self._step(
            np.array([node.token for node in nodes]),
            positions=np.array([node.position for node in nodes]),
            columns=self.base + np.array([node.column for node in nodes]),
            users=users,
            counts=counts,
            mask=mask,
        )

    def _step(
        self,
        tokens: NDArray[np.integer],
        *,
        positions: NDArray[np.integer],
        columns: NDArray[np.integer],
        users: Sequence[int],
        counts: NDArray[np.integer],
        mask: NDArray[np.bool_],
    ) -> Step:
        width = mask.shape[1]
        rows = np.repeat(np.arange(len(users)), counts)
        inside = np.arange(len(tokens)) - np.repeat(np.cumsum(counts) - counts, counts)
        bias = torch.zeros(mask.shape).masked_fill_(torch.from_numpy(~mask), -torch.inf)
        bias[:, :, 0] = 0.0  # every query sees the prompt's first token; those that only pad must see something
        device = self._like.device
        everyone = list(users) == list(range(len(self.prompts)))
        return Step(
            cohort=self,
            token_ids=tokens,
            positions=positions,
            users=slice(None) if everyone else torch.tensor(list(users), device=device),
            rows=torch.from_numpy(np.asarray(users)[rows]).to(device),
            columns=torch.from_numpy(np.ascontiguousarray(columns)).to(device),
            slots=torch.from_numpy(rows * width + inside).to(device),
            bias=bias.to(self._like),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One forward; `attend` is what attention does in it (`rlkit.policy.attention.Attends`)."""

    cohort: Cohort
    token_ids: NDArray[np.integer]
    """[Q]"""
    positions: NDArray[np.integer]
    """[Q]"""
    users: slice | Tensor
    """[U] rows of the cohort that take part."""
    rows: Tensor
    """[Q] row of the cohort that each token is kept in."""
    columns: Tensor
    """[Q] its column there."""
    slots: Tensor
    """[Q] its place among the U·n padded queries."""
    bias: Tensor
    """[U, n, L] 0 for visible columns, else -inf."""

    def attend(self, layer: int, q: Tensor, new: KeyValue, softcap: float | None) -> Tensor:
        """Keep `new`, read what is visible. Tokens of the forward beyond Q only fill it up; they get zeros."""
        kept, size = self.cohort.layer(layer, new), len(self.rows)
        for buffer, fresh in zip(kept, new, strict=True):
            buffer[self.rows, :, self.columns] = fresh[:, :size].transpose(0, 1)
        users, width, length = self.bias.shape
        padded = q.new_zeros(users * width, *q.shape[1:])
        padded[self.slots] = q[:size]
        seen = KeyValue(*(buffer[self.users, :, :length] for buffer in kept))
        found = attend_padded(
            padded.view(users, width, *q.shape[1:]), seen, self.bias, softcap, min(self.cohort.base, length)
        )
        out = q.new_zeros(*q.shape[:-1], found.shape[-1])
        out[:size] = found.flatten(0, 1)[self.slots]
        return out
