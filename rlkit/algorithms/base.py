"""What an algorithm is: credit for trees (numpy, on the driver) and a loss for a row (torch, on a rank).

Both are pure functions. `credit` sees the whole batch, so every denominator is global before anything is packed, split
or sent to ranks; `loss` returns a sum that adds up over rows and ranks. One file per algorithm; adding one is that
file, its test and a line in the plug-in table.

G: group, L: leaves of a tree, S: scored tokens of a row, K: (path, token) pairs, P: paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rlkit.ops.ratios import ImportanceKind, KlEstimator
from rlkit.records import CreditedTree, ScoredTree

__all__ = ["Aggregation", "Algorithm", "AlgorithmConfig", "LossInputs", "LossOutput", "never_dropped"]

Floats = NDArray[np.float64]
Aggregation = Literal["sequence_mean", "sequence_sum", "token_mean", "group_token_mean", "constant"]


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """Settings that every algorithm of the family shares; each one's own config restates its paper's defaults."""

    aggregation: Aggregation = "sequence_mean"
    """How tokens are averaged: per sequence then over sequences; summed per sequence; over all tokens of the batch;
    over the tokens of each group then over groups; or divided by `constant_tokens` per sequence."""
    constant_tokens: int = 1
    """Denominator of `aggregation: constant`, in tokens per sequence."""
    clip_low: float = 0.2
    """ε_low: where A < 0 the ratio stops paying below 1 - ε_low."""
    clip_high: float = 0.2
    """ε_high: where A >= 0 the ratio stops paying above 1 + ε_high."""
    dual_clip: float | None = None
    """Bound of the ratio where A < 0 (Ye et al. 2020), e.g. 3.0; None: unbounded, as in the papers of this family."""
    kl_coef: float = 0.0
    """β of the KL to the reference model (the weights that the run started from)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL enters: a term of the loss, or subtracted from the reward."""
    kl_estimator: KlEstimator = "k3"
    """Schulman's k1, k2 or k3."""
    kl_max: float | None = None
    """Bound of a token's KL estimate on both sides, in nats; None: unbounded. Search-R1's code cuts at 10."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus in the loss."""
    importance: ImportanceKind = "none"
    """Correction for behaviour (engine) and proximal (learner) log-probs being different: none, truncate or mask."""
    importance_low: float = 0.5
    """Lower bound of the weight for `mask`."""
    importance_high: float = 2.0
    """Cap of the weight for `truncate`, upper bound for `mask`."""
    normalize: Literal["together", "apart", "group_z"] = "together"
    """Several rewards: summed then made relative; each made relative, summed and whitened over the batch (GDPO, Liu et
    al. 2026); or each made relative, summed and made relative again in its group (adqa, §3.4)."""
    std_ddof: Literal[0, 1] = 1
    """Degrees of freedom of the group's standard deviation; 1 as in the reference implementations."""
    eps: float = 1e-6
    """Added to a standard deviation."""

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "kl_coef", "eps", "importance_low"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is below 0")
        if self.constant_tokens < 1:
            raise ValueError(f"constant_tokens: {self.constant_tokens} is below 1")
        if self.kl_max is not None and self.kl_max <= 0:
            raise ValueError(f"kl_max: {self.kl_max} is not above 0")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip: {self.dual_clip} is not above 1")
        if self.importance_high < self.importance_low:
            raise ValueError(f"importance_high: {self.importance_high} is below importance_low")

    @property
    def dropout(self) -> float:
        """Share of units that training drops; 0 where a loss compares with log-probs of engines, which drop none."""
        return 0.0

    @property
    def needs_reference(self) -> bool:
        """True when a frozen reference model has to score the batch."""
        return self.kl_coef != 0

    @property
    def needs_silent(self) -> bool:
        """True when the loss speaks of tokens without advantage too: an entropy bonus, or a KL that is a term of it."""
        return self.entropy_coef != 0 or (self.kl_coef != 0 and self.kl_in == "loss")

    @property
    def needs_proximal(self) -> bool:
        """True when the learner has to score the batch before its first update."""
        return self.importance != "none"


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """One row at the learner, all torch on one device."""

    logprobs: Tensor
    """[S] nats, of the policy being trained, with gradient."""
    entropy: Tensor
    """[S] nats; with gradient only where the config has an entropy bonus."""
    behavior_logprobs: Tensor
    """[S] nats, of the engine that sampled."""
    proximal_logprobs: Tensor | None
    """[S] nats, of the learner before its first update on this batch; None: the behaviour ones stand in."""
    reference_logprobs: Tensor | None
    """[S] nats, of the frozen reference."""
    c_pos: Tensor
    """[S] C⁺."""
    c_neg: Tensor
    """[S] C⁻."""
    weight: Tensor
    """[S] Σ w."""
    path_index: Tensor
    """[K] path of each pair, 0..P-1."""
    path_token: Tensor
    """[K] scored token of each pair."""
    path_advantage: Tensor
    """[K] A(p, t)."""
    path_weight: Tensor
    """[K] w(p, t)."""
    num_paths: int
    """P."""

    @property
    def anchor(self) -> Tensor:
        """[S] denominator of the ratio: proximal log-probs where they were computed, else behaviour."""
        return self.behavior_logprobs if self.proximal_logprobs is None else self.proximal_logprobs


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A row's share of the loss."""

    loss: Tensor
    """Scalar; the batch's loss is the sum over rows and ranks."""
    metrics: Mapping[str, tuple[Tensor, Tensor]]
    """name -> (sum, count)."""


Credit = Callable[[Sequence[ScoredTree], Any, Sequence[Floats] | None], list[CreditedTree]]


def never_dropped(scored: ScoredTree, config: Any) -> str | None:
    """No group is dropped but those without a single valid leaf."""
    return None


def nothing_to_add(trees: Sequence[CreditedTree]) -> dict[str, tuple[float, float]]:
    """No metrics beyond those of every algorithm."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One member of the family."""

    config: type[AlgorithmConfig]
    """Its settings."""
    credit: Credit
    """`(scored trees of the batch, config, per-token KL [T] of each tree or None) -> credited trees`."""
    loss: Callable[[LossInputs, Any], LossOutput]
    """Loss of one row."""
    drop: Callable[[ScoredTree, Any], str | None] = never_dropped
    """Reason to leave a group out and draw another one, or None (dynamic sampling)."""
    describe: Callable[[Sequence[CreditedTree]], dict[str, tuple[float, float]]] = nothing_to_add
    """Metrics of its own about the credit that it gave, as (sum, count) pairs."""
    min_group_size: int = 2
    """Smallest `rollout.group_size` that gives a signal."""
