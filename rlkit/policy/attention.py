"""Attention over trees whose samples share their prefix: one forward, a single row of many samples' tokens.

The function is registered with `transformers` as `rlkit_tree`, so any causal model runs on it unmodified.
What each of the Q tokens of a forward belongs to is written in a `Plan`, which travels beside the model, not
through it:

    row    | s0 s1 s2 s3 | o o o o o | p p p p p p p p |      Q tokens
             Decode        Chunk       Chunk
             one new token observation prompt of
             of 4 samples  of sample 4 another task

Decoding reads a prefix once for all samples of its tree (one product), and their suffixes in one batched
product. Grouped heads are rows of that product, not copies of keys.

With products that are invariant (`invariance.py`), a token's result depends on its own path only. Three rules
see to it: a product never has fewer than `ROWS` rows (MKL has other routines for them), the suffix is summed in
fixed blocks (the order of a longer sum may depend on its length), and masked columns contribute exact zeros.

Q: tokens, n: decoding samples, W: tokens of a chunk, H = Hkv·g heads, D: width of a head, P: prefix tokens,
L: suffix columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel

from rlkit.errors import EngineError
from rlkit.policy.invariance import ROWS
from rlkit.policy.kv import KeyValue, Prefix, Slots

__all__ = [
    "IMPLEMENTATION",
    "Attends",
    "Chunk",
    "Decode",
    "Plan",
    "Siblings",
    "attend_padded",
    "running",
    "trace_windows",
]

IMPLEMENTATION = "rlkit_tree"
BLOCK = 128
"""Suffix columns that are summed in one product; up to so many MKL adds up in one order, whatever the length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Siblings:
    """The decoding samples of one tree."""

    prefix: Prefix | None
    """None where they share nothing."""
    members: slice | Tensor
    """Which of the n decoding samples; a slice where they are neighbours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Samples that advance by one token: the first n tokens of the forward, in order of their slots."""

    rows: Tensor
    """[n] slot of each sample, ascending."""
    columns: Tensor
    """[n] position of the token in its own suffix."""
    num_rows: int
    """Slots that are read: the last row + 1. More than n where a slot in between does not decode."""
    bias: Tensor
    """[n, 1, 1, L] 0 where a suffix column is in the token's past, else -inf; L whole pages."""
    trees: tuple[Siblings, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive tokens of one path: of a prefix, or of one sample's suffix."""

    start: int
    """First token of the forward that belongs to it."""
    stop: int
    offset: int
    """Position of the first token in its prefix or suffix."""
    prefix: Prefix | None
    """What it belongs to if `slot` is None, else what it continues (None: nothing)."""
    slot: int | None
    """Row of the sample whose suffix it belongs to; None: it is a part of `prefix`."""
    bias: Tensor
    """[W, 1, L] 0 for columns in the past, else -inf."""


class Attends(Protocol):
    """What a forward's tokens may see, and where their keys and values are kept."""

    def attend(self, layer: int, q: Tensor, new: KeyValue, softcap: float | None) -> Tensor:
        """Store `new` [Hkv, Q, D] and return [Q, Hkv, g, D] for the scaled queries `q` [Q, Hkv, g, D]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What each token of one forward belongs to."""

    slots: Slots
    decode: Decode | None
    chunks: list[Chunk] = field(default_factory=list)

    def attend(self, layer: int, q: Tensor, new: KeyValue, softcap: float | None) -> Tensor:
        """See `Attends`."""
        out = q.new_zeros(*q.shape[:-1], new.values.shape[-1])  # zeros: tokens that only fill up the row
        if (decode := self.decode) is not None:
            n = len(decode.rows)
            slots = self.slots.layer(layer, new)
            slots.keys[decode.rows, :, decode.columns] = new.keys[:, :n].transpose(0, 1)
            slots.values[decode.rows, :, decode.columns] = new.values[:, :n].transpose(0, 1)
            out[:n] = _decode(q[:n], slots, decode, layer, softcap)
        for chunk in self.chunks:
            own = _store(self.slots, chunk, layer, new.columns(chunk.start, chunk.stop))
            shared = chunk.prefix.layers[layer] if chunk.prefix is not None and chunk.slot is not None else None
            out[chunk.start : chunk.stop] = _chunk(q[chunk.start : chunk.stop], shared, own, chunk.bias, softcap)
        return out


_PLAN: ContextVar[Attends | dict[int, int | None]] = ContextVar("rlkit_plan")


@contextmanager
def running(plan: Attends) -> Iterator[None]:
    """Forwards inside this context follow `plan`."""
    token = _PLAN.set(plan)
    try:
        yield
    finally:
        _PLAN.reset(token)


def trace_windows(model: PreTrainedModel) -> dict[int, int | None]:
    """Layer index -> its sliding window in tokens (None: unlimited), for layers that call this attention.

    One forward over one token. Raises `EngineError` for attention with terms that are not implemented here.
    """
    windows: dict[int, int | None] = {}
    token = _PLAN.set(windows)
    try:
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(input_ids=ids, position_ids=ids, use_cache=False)
    finally:
        _PLAN.reset(token)
    return windows


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """The attention interface of `transformers`.

    query [1, H, Q, D], key and value [1, Hkv, Q, D] -> [1, Q, H, D]
    """
    plan = _PLAN.get(None)
    if plan is None:
        raise EngineError(f"attention {IMPLEMENTATION!r} works inside an engine only; give the learner its own model")
    _, num_heads, num_tokens, _ = query.shape
    layer: int = module.layer_idx  # type: ignore[assignment]
    if isinstance(plan, dict):
        _refuse_unknown(module, attention_mask, other)
        plan[layer] = sliding_window
        return value.new_zeros(1, num_tokens, num_heads, value.shape[-1]), None

    num_kv = key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q = (query[0].transpose(0, 1) * scale).reshape(num_tokens, num_kv, num_heads // num_kv, -1)  # [Q, Hkv, g, D]
    out = plan.attend(layer, q, KeyValue(key[0], value[0]), softcap)
    return out.view(1, num_tokens, num_heads, -1), None


AttentionInterface.register(IMPLEMENTATION, tree_attention)


def _refuse_unknown(module: nn.Module, attention_mask: Tensor | None, other: dict[str, Any]) -> None:
    """Attention sinks and position biases would silently be left out."""
    terms = [name for name in ("s_aux", "position_bias", "bias") if other.get(name) is not None]
    if attention_mask is not None:
        terms.append("attention_mask")
    if terms:
        raise EngineError(f"{type(module).__name__} passes {', '.join(terms)}, which HfEngine does not implement")


def _store(slots: Slots, chunk: Chunk, layer: int, new: KeyValue) -> KeyValue:
    """Write a chunk's keys and values; returns the segment it belongs to, [Hkv, L, D]."""
    if chunk.slot is None:
        assert chunk.prefix is not None
        return chunk.prefix.write(layer, chunk.offset, new)
    keys, values = slots.layer(layer, new)
    row = KeyValue(keys[chunk.slot], values[chunk.slot])
    row.columns(chunk.offset, chunk.offset + chunk.stop - chunk.start).assign(new)
    return row.columns(0, chunk.bias.shape[-1])


def _decode(q: Tensor, slots: KeyValue, decode: Decode, layer: int, softcap: float | None) -> Tensor:
    """q [n, Hkv, g, D], slots [S, Hkv, C, D] -> [n, Hkv, g, D]."""
    n, num_kv = q.shape[:2]
    rows, length = decode.num_rows, decode.bias.shape[-1]
    own = KeyValue(*(x[:rows].flatten(0, 1)[:, :length] for x in slots))  # [rows·Hkv, L, D], a view

    def by_slot(x: Tensor) -> Tensor:  # [n, Hkv, g, ...] -> [rows·Hkv, g, ...]
        if n < rows:
            x = x.new_zeros(rows, *x.shape[1:]).index_copy_(0, decode.rows, x)
        return x.flatten(0, 1)

    def by_sample(x: Tensor) -> Tensor:  # and back
        x = x.unflatten(0, (rows, num_kv))
        return x[decode.rows] if n < rows else x

    scores = _capped(by_sample(_product(by_slot(q), own.keys.mT)), softcap) + decode.bias  # [n, Hkv, g, L]
    weights = torch.empty_like(scores)
    shared_out: list[tuple[slice | Tensor, Tensor]] = []
    for tree in decode.trees:
        if tree.prefix is None:
            weights[tree.members] = _softmax(scores[tree.members])
            continue
        shared = tree.prefix.layers[layer]
        num_shared = shared.keys.shape[1]
        q_tree = q[tree.members].transpose(0, 1)  # [Hkv, W, g, D], W siblings
        heads = q_tree.shape[:3]
        over_prefix = _capped(_product(q_tree.flatten(1, 2), shared.keys.mT), softcap).view(*heads, num_shared)
        both = _softmax(torch.cat([over_prefix, scores[tree.members].transpose(0, 1)], -1))
        weights[tree.members] = both[..., num_shared:].transpose(0, 1)
        mixed = _product(both[..., :num_shared].flatten(1, 2), shared.values).view(*heads, -1)
        shared_out.append((tree.members, mixed.transpose(0, 1)))
    out = by_sample(_mix(by_slot(weights), own.values))
    for members, mixed in shared_out:
        out[members] += mixed
    return out


def _chunk(q: Tensor, shared: KeyValue | None, own: KeyValue, bias: Tensor, softcap: float | None) -> Tensor:
    """q [W, Hkv, g, D], shared [Hkv, P, D], own [Hkv, L, D] -> [W, Hkv, g, D]."""
    heads = (q.shape[1], q.shape[0], q.shape[2])
    rows = q.transpose(0, 1).flatten(1, 2)  # [Hkv, W·g, D]
    scores = _capped(_product(rows, own.keys.mT), softcap).view(*heads, -1) + bias
    if shared is None:
        out = _mix(_softmax(scores).flatten(1, 2), own.values)
    else:
        num_shared = shared.keys.shape[1]
        over_prefix = _capped(_product(rows, shared.keys.mT), softcap).view(*heads, num_shared)
        weights = _softmax(torch.cat([over_prefix, scores], -1)).flatten(1, 2)
        out = _mix(weights[..., num_shared:], own.values) + _product(weights[..., :num_shared], shared.values)
    return out.view(*heads, -1).transpose(0, 1)


def attend_padded(q: Tensor, seen: KeyValue, bias: Tensor, softcap: float | None, split: int) -> Tensor:
    """q [U, n, Hkv, g, D], seen [U, Hkv, L, D], bias [U, n, L] -> [U, n, Hkv, g, D]: rows that share nothing.

    Columns before and after `split` are summed apart, so that where the split lies does not change a sum.
    """
    users, width, num_kv, grouped = q.shape[:4]
    rows = q.transpose(1, 2).reshape(users * num_kv, width * grouped, -1)
    keys, values = (x.flatten(0, 1) for x in seen)
    scores = _capped(_product(rows, keys.mT), softcap).view(users, num_kv, width, grouped, -1)
    weights = _softmax(scores + bias[:, None, :, None]).view(users * num_kv, width * grouped, -1)
    out = _mix(weights[..., :split], values[:, :split])
    if split < values.shape[1]:
        out = out + _mix(weights[..., split:], values[:, split:])
    return out.view(users, num_kv, width, grouped, -1).transpose(1, 2)


def _capped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[B, M, K] times [B, K, N], never with fewer than `ROWS` rows."""
    missing = ROWS - a.shape[1]
    return torch.bmm(a, b) if missing <= 0 else torch.bmm(pad(a, (0, 0, 0, missing)), b)[:, : a.shape[1]]


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """[B, M, L] times [B, L, D], adding up one block of columns after the other."""
    blocks: Sequence[tuple[Tensor, Tensor]] = [
        (weights[..., start : start + BLOCK], values[:, start : start + BLOCK])
        for start in range(0, values.shape[1], BLOCK)
    ]
    out = _product(*blocks[0])
    for block in blocks[1:]:
        out = out + _product(*block)
    return out
