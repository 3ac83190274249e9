"""Completions in progress, and how the tokens they wait for are packed into the next forward.

Each forward feeds every sample that decodes (one token each), then as many chunks of observations and prompts as its
budget admits. Chunks end at fixed positions of their path, so how a path is cut does not depend on the load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlkit.policy.attention import Chunk, Decode, Plan, Siblings
from rlkit.policy.base import Completion, SampleRequest
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
    path: list[int]
    """Tokens after the shared prefix; grows with each sampled token."""
    slot: int = -1
    fed: int = 0
    """Leading tokens of `path` whose keys are in the slot."""
    draws: list[Draw] = field(default_factory=list)

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

    def advance(self) -> None:
        """Note on the owner that its keys are computed."""
        if isinstance(self.owner, Prefix):
            self.owner.filled += self.num_tokens
        else:
            self.owner.fed += self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """The inputs of one forward. Q: tokens, filling included."""

    token_ids: list[int]
    """[Q]"""
    positions: list[int]
    """[Q] along each path."""
    plan: Plan
    pieces: tuple[Piece, ...]


def pack(
    drafts: Sequence[Draft], slots: Slots, *, budget: int, fill: Callable[[int], int], device: torch.device
) -> Forward | None:
    """The next forward for `drafts` (in flight, ascending slots), or None if nothing is left to feed.

    `budget` bounds the tokens of all chunks and is the grid of their ends; `fill` says how many tokens to feed instead
    of Q.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    pieces: list[Piece] = []
    chunks: list[Chunk] = []

    def feed(owner: Prefix | Draft, tokens: Sequence[int], position: int, num_missing: int) -> int:
        start = len(token_ids)
        token_ids.extend(int(token) for token in tokens)
        positions.extend(range(position, position + len(tokens)))
        last = len(token_ids) - 1 if len(tokens) == num_missing else None
        pieces.append(Piece(owner=owner, num_tokens=len(tokens), last=last))
        return start

    ready = [draft for draft in drafts if draft.prefix.complete]
    decoding = [draft for draft in ready if len(draft.path) - draft.fed == 1]
    slots.reserve(
        max((draft.slot + 1 for draft in drafts), default=0), max((len(draft.path) for draft in ready), default=0)
    )
    for draft in decoding:
        feed(draft, draft.path[-1:], len(draft.prefix.token_ids) + draft.fed, 1)

    seen: set[int] = set()
    for draft in drafts:
        prefix, first = draft.prefix, len(draft.prefix.token_ids)
        if prefix.complete:
            owner, tokens, offset, missing = draft, draft.path, draft.fed, len(draft.path) - draft.fed
            if missing < 2:
                continue
        else:
            owner, tokens, offset, first = prefix, prefix.token_ids, prefix.filled, 0
            missing = len(tokens) - offset
            if id(prefix) in seen:
                continue
            seen.add(id(prefix))
        count = min(missing, budget - (first + offset) % budget)
        if chunks and sum(chunk.stop - chunk.start for chunk in chunks) + count > budget:
            continue
        start = feed(owner, tokens[offset : offset + count], first + offset, missing)
        chunks.append(_chunk(draft, start, count, offset, device))

    if not token_ids:
        return None
    decode = _decode(decoding, device) if decoding else None
    filling = fill(len(token_ids)) - len(token_ids)
    return Forward(
        token_ids=token_ids + [0] * filling,
        positions=positions + [0] * filling,
        plan=Plan(slots=slots, decode=decode, chunks=tuple(chunks)),
        pieces=tuple(pieces),
    )


def _chunk(draft: Draft, start: int, count: int, offset: int, device: torch.device) -> Chunk:
    in_suffix = draft.prefix.complete
    width = pages(offset + count) if in_suffix else offset + count
    return Chunk(
        start=start,
        stop=start + count,
        offset=offset,
        prefix=draft.prefix if len(draft.prefix.token_ids) else None,
        slot=draft.slot if in_suffix else None,
        bias=_bias(torch.arange(offset, offset + count), width, device)[:, None],
    )


def _decode(drafts: Sequence[Draft], device: torch.device) -> Decode:
    members: dict[int, list[int]] = {}
    for index, draft in enumerate(drafts):
        members.setdefault(id(draft.prefix), []).append(index)
    columns = torch.tensor([draft.fed for draft in drafts])
    return Decode(
        rows=torch.tensor([draft.slot for draft in drafts], device=device),
        columns=columns.to(device),
        num_rows=drafts[-1].slot + 1,
        bias=_bias(columns, pages(int(columns.max()) + 1), device)[:, None, None],
        trees=tuple(_siblings(drafts[indices[0]].prefix, indices, device) for indices in members.values()),
    )


def _siblings(prefix: Prefix, indices: list[int], device: torch.device) -> Siblings:
    first, last = indices[0], indices[-1]
    neighbours = last - first + 1 == len(indices)
    return Siblings(
        prefix=prefix if len(prefix.token_ids) else None,
        members=slice(first, last + 1) if neighbours else torch.tensor(indices, device=device),
    )


def _bias(queries: Tensor, width: int, device: torch.device) -> Tensor:
    """[W, width] 0 where a column is not after the query's own, else -inf."""
    future = torch.arange(width) > queries[:, None]
    return torch.zeros(future.shape).masked_fill_(future, -torch.inf).to(device)


def whole_vectors(num_tokens: int, widths: Sequence[int], num_threads: int) -> int:
    """The fewest tokens, at least `num_tokens`, with which element-wise operations run on whole vectors only.

    Torch computes SiLU and GELU in blocks of up to 32 numbers and the rest of a thread's share by another formula, one
    rounding apart. `widths` are those of the model's activations; multiples of 64 need no filling on 1 or 2 threads.
    """
    grain = 32768  # numbers below which torch does not employ another thread
    while any(
        num_tokens * width % (32 * min(num_threads, -(-num_tokens * width // grain))) for width in widths
    ):
        num_tokens += 1
    return num_tokens
