"""Seconds and bytes of the parts of a step: whichever of arithmetic and memory takes longer.

    N parameters of the trunk · H of the output head · T unique tokens · S scored tokens · c keys that a token reads

Pure functions of sizes. Attention by its own term, 4·c·width FLOPs a token and layer (Kaplan et al. 2020,
arXiv:2001.08361, table 1, without its factor 1/2: c is the mean number of keys here).
"""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.forecast.hardware import Device

__all__ = [
    "Adam",
    "ModelSize",
    "adapter_parameters",
    "decode_step_s",
    "forward_flops",
    "gather_s",
    "learner_bytes",
    "prefill_s",
    "reduce_s",
    "score_s",
    "send_s",
    "train_s",
    "worker_bytes",
]

Adam = 28
"""Bytes that AdamW moves per float32 parameter: reads weight, gradient and two moments, writes all but the gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """Sizes of a dense decoder."""

    parameters: float
    """All; tied weights once."""
    layers: int
    hidden: int
    kv_width: int
    """Numbers of keys and values per token and layer."""
    vocabulary: int
    tied: bool = True
    """Whether the output head is the embedding."""

    @property
    def head(self) -> float:
        """Parameters of the output head."""
        return float(self.vocabulary * self.hidden)

    @property
    def trunk(self) -> float:
        """Parameters that every token passes: all but embedding and head."""
        return self.parameters - self.head * (1 if self.tied else 2)


def adapter_parameters(model: ModelSize, rank: int) -> float:
    """Of low-rank adapters on every linear layer but the head: rank·(in + out) each.

    Queries are taken to be as wide as the model; the gated MLP has what then remains of a layer.
    """
    h, kv = model.hidden, model.kv_width / 2
    inner = (model.trunk / model.layers - 2 * h * h - 2 * h * kv) / (3 * h)
    return rank * model.layers * (2 * (h + h) + 2 * (h + kv) + 3 * (h + inner))


def forward_flops(model: ModelSize, tokens: float, scored: float, context: float) -> float:
    """2·N·T + 2·H·S + 4·c·width·layers·T."""
    attention = 4 * context * model.hidden * model.layers * tokens
    return 2 * model.trunk * tokens + 2 * model.head * scored + attention


def decode_step_s(
    model: ModelSize, device: Device, batch: float, context: float, *, dtype_bytes: float = 2, devices: int = 1
) -> float:
    """Seconds to sample one token for each of `batch` sequences with `context` keys each, on `devices` together.

    Memory: every weight once, every key and value once. Arithmetic: `forward_flops` with a scored position each. Where
    devices share a model, two all-reduces a layer (Shoeybi et al. 2019, arXiv:1909.08053, figure 4).
    """
    kv = batch * context * model.layers * model.kv_width
    efficiency = device.efficiency
    memory_s = dtype_bytes * (model.parameters + kv) / (device.bandwidth * efficiency.bandwidth * devices)
    compute_s = forward_flops(model, batch, batch, context) / (device.flops * efficiency.prefill * devices)
    joint_s = 0.0
    if devices > 1:
        sums = reduce_s(batch * model.hidden * dtype_bytes, devices, device.node_link, efficiency.link)
        joint_s = 2 * model.layers * (sums + efficiency.collective_s)
    return max(memory_s, compute_s) + joint_s + efficiency.decode_overhead_s


def prefill_s(model: ModelSize, device: Device, tokens: float, context: float, *, devices: int = 1) -> float:
    """Seconds to compute the keys of `tokens` that nothing is sampled from."""
    return forward_flops(model, tokens, 0, context) / (device.flops * device.efficiency.prefill * devices)


def train_s(
    model: ModelSize,
    device: Device,
    tokens: float,
    scored: float,
    context: float,
    *,
    devices: int = 1,
    updates: int = 1,
    recompute: bool = False,
    adapters: float = 0.0,
) -> float:
    """Seconds of forward, backward (twice the forward) and AdamW; `recompute`: one more forward.

    With `adapters` frozen weights get no gradient, so backward costs one forward, and AdamW moves adapters alone.
    """
    passes = (2 if adapters else 3) + recompute
    flops = passes * forward_flops(model, tokens, scored, context)
    optimizer_s = updates * Adam * (adapters or model.parameters) / (device.bandwidth * device.efficiency.bandwidth)
    return flops / (device.flops * device.efficiency.training * devices) + optimizer_s


def score_s(
    model: ModelSize, device: Device, tokens: float, scored: float, context: float, *, devices: int = 1
) -> float:
    """Seconds of one forward pass of the learner without gradient: reference or proximal log-probs."""
    flops = forward_flops(model, tokens, scored, context)
    return flops / (device.flops * device.efficiency.training * devices)


def reduce_s(num_bytes: float, ranks: int, link: float, efficiency: float = 1.0) -> float:
    """Seconds of a ring all-reduce: 2·(k-1)/k of the bytes over the slowest link."""
    return 2 * (ranks - 1) / ranks * num_bytes / (link * efficiency)


def send_s(num_bytes: float, link: float, efficiency: float = 1.0) -> float:
    """Seconds until all workers have the weights: a pipelined broadcast moves the bytes over each link once."""
    return num_bytes / (link * efficiency)


def gather_s(num_bytes: float, ranks: int, link: float, efficiency: float = 1.0) -> float:
    """Seconds until every rank has what all share: (k-1)/k of the bytes over the slowest link."""
    return (ranks - 1) / ranks * num_bytes / (link * efficiency)


def learner_bytes(
    model: ModelSize,
    *,
    ranks: int,
    sharing: str,
    row_tokens: int,
    logit_chunk: int,
    dtype_bytes: float,
    recompute: bool,
    references: int = 0,
    adapters: float = 0.0,
) -> float:
    """Bytes of one rank: float32 weights, gradients, two moments, activations (Korthikanti et al. 2022: 34·h).

    `sharing` is `learner.kind`: zero1 shares the moments, zero2 gradients too, zero3 and fsdp2 all. With `adapters` the
    model is frozen in the engine's dtype, and is its own reference.
    """
    weights = 4 * (adapters or model.parameters)
    parts = {"single": (1, 1, 1), "ddp": (1, 1, 1), "zero1": (1, 1, ranks), "zero2": (1, ranks, ranks)}
    held, gradients, moments = parts.get(sharing, (ranks, ranks, ranks))
    frozen = dtype_bytes * model.parameters if adapters else weights * references
    states = weights * (1 / held + 1 / gradients + 2 / moments) + frozen / held
    per_layer = 17 * model.hidden * dtype_bytes
    kept = 1 if recompute else model.layers
    activations = row_tokens * (kept * per_layer + model.layers * model.hidden * dtype_bytes)
    return states + activations + 2 * logit_chunk * model.vocabulary * 4


def worker_bytes(model: ModelSize, *, cached_tokens: float, dtype_bytes: float) -> float:
    """Bytes of one engine: weights, and keys and values of `cached_tokens`."""
    return dtype_bytes * (model.parameters + cached_tokens * model.layers * model.kv_width)
