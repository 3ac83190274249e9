"""Log-probabilities of the distribution that sampled, computed only where a token is scored.

S: scored tokens of a row, D: hidden size, V: vocabulary. Logits exist for at most `chunk` scored tokens at a time;
the backward pass recomputes them, so memory is chunk·V, not S·V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["Support", "logprobs_of_logits", "scored_logprobs"]

CACHED = 1 << 20
"""Numbers that a pass over some rows may touch and still stay in a core's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Kept-token sets of S scored tokens, as rows and ids of a sparse mask."""

    offsets: Tensor
    """[S + 1] start of each token's set in `ids`; an empty set stands for the whole vocabulary."""
    ids: Tensor
    """Token ids, grouped by scored token."""

    def slice(self, start: int, stop: int) -> Support:
        """The sets of scored tokens start..stop."""
        offsets = self.offsets[start : stop + 1]
        return Support(offsets=offsets - offsets[0], ids=self.ids[offsets[0] : offsets[-1]])

    def mask(self, logits: Tensor) -> Tensor:
        """[S, V] logits with -inf outside each token's kept set."""
        sizes = self.offsets.diff()
        if not bool(sizes.any()):
            return logits
        rows = torch.repeat_interleave(torch.arange(len(sizes), device=logits.device), sizes)
        kept = torch.zeros_like(logits, dtype=torch.bool)
        kept[rows, self.ids] = True
        kept |= (sizes == 0)[:, None]
        return logits.masked_fill(~kept, -torch.inf)


class _Scores(torch.autograd.Function):
    """Log-softmax, its pick and its entropy in passes over a few rows at a time, so that only p reaches memory.

    With z = logits / temperature on the kept set and p = softmax(z): d logprob / dz = onehot - p and
    d entropy / dz = -p (log p + entropy).
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: Tensor, support: Support | None, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        # bfloat16 logits lose the third digit of a log-probability; the reduction is at least float32.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        size, vocab = logits.shape
        probs = torch.empty_like(logits, dtype=dtype)
        logprobs, entropies = logits.new_empty(size, dtype=dtype), logits.new_zeros(size, dtype=dtype)
        step = max(1, CACHED // vocab) if logits.device.type == "cpu" else max(1, size)
        for start in range(0, size, step):
            span = slice(start, start + step)
            z = logits[span].to(dtype) / temperature[span, None]
            if support is not None:
                z = support.slice(start, min(start + step, size)).mask(z)
            z = z.log_softmax(-1)
            logprobs[span] = z.gather(-1, targets[span, None])[:, 0]
            p = torch.exp(z, out=probs[span])
            if with_entropy:
                entropies[span] = -z.clamp_(min=torch.finfo(dtype).min).mul_(p).sum(-1)
        ctx.save_for_backward(probs, targets, temperature, entropies)
        ctx.set_materialize_grads(False)
        ctx.dtype = logits.dtype
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        probs, targets, temperature, entropies = ctx.saved_tensors
        gradient = torch.zeros_like(probs) if of_logprobs is None else probs * (-of_logprobs / temperature)[:, None]
        if of_logprobs is not None:
            gradient.scatter_add_(-1, targets[:, None], (of_logprobs / temperature)[:, None])
        if of_entropies is not None:
            inside = torch.xlogy(probs, probs).addcmul_(probs, entropies[:, None])
            gradient.addcmul_(inside, (-of_entropies / temperature)[:, None])
        return gradient.to(ctx.dtype), None, None, None, None


def logprobs_of_logits(
    logits: Tensor, targets: Tensor, temperature: Tensor, support: Support | None, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [S] and entropies [S], in nats, after temperature and truncation.

    `logits` [S, V], `targets` [S], `temperature` [S]. The entropy is 0 where `with_entropy` is False.
    """
    return _Scores.apply(logits, targets, temperature, support, with_entropy)


def scored_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    temperature: Tensor,
    support: Support | None = None,
    *,
    chunk: int = 512,
    with_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """`hidden` [S, D] at the scoring positions -> log-probabilities [S] and entropies [S] of `targets` [S].

    `head` maps hidden states to logits and is called as given, so hooks of sharded modules fire.
    """

    def piece(start: int, stop: int) -> tuple[Tensor, Tensor]:
        part = support.slice(start, stop) if support is not None else None
        span = slice(start, stop)

        def score(states: Tensor) -> tuple[Tensor, Tensor]:
            return logprobs_of_logits(head(states), targets[span], temperature[span], part, with_entropy)

        # A single chunk keeps its logits: recomputing them would buy no memory.
        if not torch.is_grad_enabled() or hidden.shape[0] <= chunk:
            return score(hidden[span])
        return checkpoint(score, hidden[span], use_reentrant=False)

    bounds = [*range(0, hidden.shape[0], chunk), hidden.shape[0]]
    parts = [piece(start, stop) for start, stop in pairwise(bounds)]
    if not parts:
        empty = hidden.new_zeros(0) + hidden.sum() * 0
        return empty, empty
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
