"""Log-probabilities of the distribution that sampled, computed only where a token is scored.

S: scored tokens of a row, D: hidden size, V: vocabulary. Logits exist for at most `chunk` scored tokens at a time;
the backward pass recomputes them, so memory is chunk·V, not S·V.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["Support", "logprobs_of_logits", "scored_logprobs"]


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


def logprobs_of_logits(
    logits: Tensor, targets: Tensor, temperature: Tensor, support: Support | None, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [S] and entropies [S], in nats, after temperature and truncation.

    `logits` [S, V], `targets` [S], `temperature` [S]. The entropy is 0 where `with_entropy` is False.
    """
    # bfloat16 logits lose the third digit of a log-probability; the reduction is at least float32.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bool((temperature != 1).any()):
        logits = logits / temperature[:, None]
    if support is not None:
        logits = support.mask(logits)
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    if not with_entropy:
        return logprobs, torch.zeros_like(logprobs)
    terms = (logits - normaliser[:, None]).exp() * logits.masked_fill(logits == -torch.inf, 0.0)
    return logprobs, normaliser - terms.sum(-1)


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
        return checkpoint(score, hidden[span], use_reentrant=False)  # type: ignore[no-any-return]

    bounds = [*range(0, hidden.shape[0], chunk), hidden.shape[0]]
    parts = [piece(start, stop) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    if not parts:
        empty = hidden.new_zeros(0) + hidden.sum() * 0
        return empty, empty
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
