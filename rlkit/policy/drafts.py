"""Completions in progress, and how the tokens they wait for are packed into the next forward.

Each forward feeds every sample that decodes (one token each), then as many chunks of observations and prompts
as its budget admits. Chunks end at fixed positions of their path, so how a path is cut does not depend on the
load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlkit.policy.attention import Chunk, Decode, Plan, Siblings
from rlkit.policy.base import Completion, SampleRequest
from rlkit.policy.invariance import ROWS
from rlkit.policy.kv import Prefix, Slots, pages
from rlkit.policy.sampling import Draw
from rlkit.policy.tokens import StopWatch
from rlkit.randomness import Address

__all__ = ["Draft", "Forward", "Piece", "pack", "whole_vectors"]


@dataclass(slots=True, eq=False, kw_only=True)
class Draft:
    """One request on its way to a completion."""

    request: SampleRequest
    future: asyncio.Future[Completion]
    """Resolved on the event loop that asked."""
    address: Address
    prefix: Prefix
    watch: StopWatch
    limit: int
    """Most tokens to sample: `max_tokens`, or what the context has left."""
    tokens: list[int]
    """The path after the shared prefix; grows with each sampled token."""
    num_computed: int = 0
    """Leading tokens whose keys and values are in the slot."""
    slot: int = -1
    draws: list[Draw] = field(default_factory=list)

    @property
    def origin(self) -> int:
        """Position of the first of `tokens` on the path."""
        return len(self.prefix.tokens)

    @property
    def sampled(self) -> list[int]:
        """Tokens drawn so far."""
        return [draw.token_id for draw in self.draws]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one owner got fed in a forward."""

    owner: Prefix | Draft
    num_tokens: int
    last: int | None
    """Token of the forward whose logits the owner needs; None if more of it must be fed first."""


@dataclass(slots=True, eq=False, kw_only=True)
class Forward:
    """The inputs of one forward. Q: tokens, filling included."""

    plan: Plan
    token_ids: list[int] = field(default_factory=list)
    """[Q]"""
    positions: list[int] = field(default_factory=list)
    """[Q] along each path."""
    pieces: list[Piece] = field(default_factory=list)

    def feed(self, owner: Prefix | Draft, count: int) -> int:
        """Append the next `count` tokens that `owner` needs computed; returns where they start."""
        start, begin = len(self.token_ids), owner.num_computed
        self.token_ids += owner.tokens[begin : begin + count]
        self.positions += range(owner.origin + begin, owner.origin + begin + count)
        last = start + count - 1 if begin + count == len(owner.tokens) else None
        self.pieces.append(Piece(owner=owner, num_tokens=count, last=last))
        return start

    def fill(self, num_tokens: int) -> None:
        """Append tokens that belong to nobody, up to `num_tokens` in all."""
        missing = num_tokens - len(self.token_ids)
        self.token_ids += [0] * missing
        self.positions += [0] * missing


def pack(drafts: Sequence[Draft], slots: Slots, *, budget: int, like: Tensor) -> Forward:
    """The next forward for `drafts`, those in flight in order of arrival; empty if nothing is left to compute.

    `budget` bounds the tokens of all chunks, and is the grid on which chunks end. `like` is a weight of the model:
    biases take its device and dtype.
    """
    ready = [draft for draft in drafts if draft.prefix.complete]
    slots.reserve(
        max((draft.slot + 1 for draft in drafts), default=0),
        max((len(draft.tokens) for draft in ready), default=0),
    )
    decoding = sorted(
        (draft for draft in ready if len(draft.tokens) - draft.num_computed == 1),
        key=lambda draft: draft.slot,
    )
    forward = Forward(plan=Plan(slots=slots, decode=_decode(decoding, like) if decoding else None))
    for draft in decoding:
        forward.feed(draft, 1)

    left = budget
    owners: dict[int, Draft] = {}  # of siblings that wait for the same prefix, the first
    for draft in drafts:
        if draft not in decoding:
            owners.setdefault(id(draft if draft.prefix.complete else draft.prefix), draft)
    for draft in owners.values():
        owner = draft if draft.prefix.complete else draft.prefix
        missing = len(owner.tokens) - owner.num_computed
        count = min(missing, budget - (owner.origin + owner.num_computed) % budget)
        if 0 < count <= left:
            left -= count
            forward.plan.chunks.append(_chunk(draft, forward.feed(owner, count), count, like))
    return forward


def _chunk(draft: Draft, start: int, count: int, like: Tensor) -> Chunk:
    in_suffix = draft.prefix.complete
    offset = draft.num_computed if in_suffix else draft.prefix.num_computed
    width = pages(offset + count) if in_suffix else offset + count
    return Chunk(
        start=start,
        stop=start + count,
        offset=offset,
        prefix=draft.prefix if draft.prefix.tokens else None,
        slot=draft.slot if in_suffix else None,
        bias=_bias(torch.arange(offset, offset + count), width, like)[:, None],
    )


def _decode(drafts: Sequence[Draft], like: Tensor) -> Decode:
    members: dict[int, list[int]] = {}
    for index, draft in enumerate(drafts):
        members.setdefault(id(draft.prefix), []).append(index)
    columns = torch.tensor([draft.num_computed for draft in drafts])
    return Decode(
        rows=torch.tensor([draft.slot for draft in drafts], device=like.device),
        columns=columns.to(like.device),
        num_rows=drafts[-1].slot + 1,
        bias=_bias(columns, pages(int(columns.max()) + 1), like)[:, None, None],
        trees=tuple(_siblings(drafts[indices[0]].prefix, indices, like) for indices in members.values()),
    )


def _siblings(prefix: Prefix, indices: list[int], like: Tensor) -> Siblings:
    first, last = indices[0], indices[-1]
    neighbours = last - first + 1 == len(indices)
    return Siblings(
        prefix=prefix if prefix.tokens else None,
        members=slice(first, last + 1) if neighbours else torch.tensor(indices, device=like.device),
    )


def _bias(queries: Tensor, width: int, like: Tensor) -> Tensor:
    """[W, width] 0 where a column is not after the query's own, else -inf."""
    future = torch.arange(width) > queries[:, None]
    return torch.zeros(future.shape).masked_fill_(future, -torch.inf).to(like)


def whole_vectors(num_tokens: int, widths: Sequence[int], num_threads: int) -> int:
    """The fewest tokens, at least `num_tokens`, in whole `invariance.ROWS` and vectors.

    Torch computes SiLU and GELU in blocks of up to 32 numbers and the rest of a thread's share by another
    formula, one rounding apart. `widths` are those of the model's activations; multiples of 64 need no
    filling on 1 or 2 threads.
    """
    grain = 32768  # numbers below which torch does not employ another thread
    num_tokens += -num_tokens % ROWS
    while any(num_tokens * width % (32 * min(num_threads, -(-num_tokens * width // grain))) for width in widths):
        num_tokens += ROWS
    return num_tokens
