"""A causal transformers model, unmodified, that scores packed trees.

One rule of attention (rlkit.ops.masks), positions along the path, and the output head only where a token is scored.
T: input tokens of a row, S: scored tokens, M: states that a value head reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rlkit.data.packing import Row
from rlkit.errors import LearnerError
from rlkit.models.value_head import chains
from rlkit.ops.logprobs import Support, scored_logprobs
from rlkit.ops.masks import block_mask, tree_attention

__all__ = ["RowInputs", "TreePolicy", "final_logits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowInputs:
    """What the model reads of a `Row`, as tensors on its device."""

    token_ids: Tensor
    """[T]"""
    positions: Tensor
    """[T]"""
    end: Tensor
    """[T]"""
    score_positions: Tensor
    """[S]"""
    targets: Tensor
    """[S]"""
    temperature: Tensor
    """[S]"""
    support: Support | None
    """Kept-token sets, or None where no token was truncated."""
    state_position: Tensor
    """[M]"""
    state_parent: Tensor
    """[M]"""

    @classmethod
    def of(cls, row: Row, device: torch.device, dtype: torch.dtype) -> RowInputs:
        """Copy a row to `device`; temperatures become `dtype`."""

        def ints(array: np.ndarray) -> Tensor:
            return torch.tensor(array, dtype=torch.long, device=device)  # a copy: Ray lends arrays read-only

        support = None
        if len(row.support_ids):
            support = Support(offsets=ints(row.support_offsets), ids=ints(row.support_ids))
        return cls(
            token_ids=ints(row.token_ids),
            positions=ints(row.positions),
            end=ints(row.end),
            score_positions=ints(row.score_positions),
            targets=ints(row.targets),
            temperature=torch.tensor(row.temperature, dtype=dtype, device=device),
            support=support,
            state_position=ints(row.state_position),
            state_parent=ints(row.state_parent),
        )


def final_logits(model: Any, hidden: Tensor) -> Tensor:
    """Output head with the scale or soft cap that some architectures put after it (Gemma 2, Cohere, Granite)."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    config = model.config.get_text_config()
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (scaling := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scaling
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


ATTENTION = "rlkit_learner"
"""Name under which `transformers` finds `attend`."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **other: Any,
) -> tuple[Tensor, None]:
    """The attention interface of `transformers`; the mask is a row's `end`. query [1, H, T, D] -> [1, T, H, D]."""
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if other.get(name) is not None]
    if dropout or unknown:
        raise LearnerError(
            f"model.attention: {type(module).__name__} needs {', '.join(unknown) or 'dropout'} in attention, "
            "which tree attention does not compute"
        )
    return tree_attention(query, key, value, attention_mask.flatten(), scaling).transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)


class TreePolicy(nn.Module):
    """`forward(row) -> (log-probabilities [S], entropies [S], values [M])`; wrap this module to shard it.

    Values are those of `model.value_head`, where the model has one and the row has states; else there are none.
    """

    compute_dtype: torch.dtype | None = None
    """Of the matrix products, where it is not that of the weights; engines are sent weights in it."""
    detach_values: bool = False
    """True: the gradient of values stops at the head."""

    def __init__(self, model: Any, *, attention: Literal["sdpa", "flex"] = "sdpa", chunk: int = 512) -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        self.chunk = chunk
        config = model.config.get_text_config()
        self.window: int | None = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            self.window = None
        implementation = "flex_attention" if attention == "flex" else ATTENTION
        model.set_attn_implementation(implementation)
        if config._attn_implementation != implementation:
            raise LearnerError(f"model.path: the attention of {type(model).__name__} cannot be replaced")

    def forward(self, row: RowInputs, with_entropy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Score the row's targets. Raises `LearnerError` where a path is longer than the model's sliding window."""
        longest = int(row.positions.max()) + 1
        if self.window is not None and longest > self.window:
            raise LearnerError(
                f"model.max_context: a path of {longest} tokens exceeds the model's sliding window of {self.window}; "
                "tree attention covers full attention only, lower model.max_context to the window"
            )
        # Of four dimensions, as only those pass through to the attention unchanged.
        mask = block_mask(row.end) if self.attention == "flex" else row.end[None, None, None]
        hidden = self.model.base_model(
            input_ids=row.token_ids[None],
            attention_mask=mask,
            position_ids=row.positions[None],
            use_cache=False,
        ).last_hidden_state[0]
        logprobs, entropies = scored_logprobs(
            hidden[row.score_positions],
            lambda states: final_logits(self.model, states),
            row.targets,
            row.temperature,
            row.support,
            chunk=self.chunk,
            with_entropy=with_entropy,
        )
        return logprobs, entropies, self._values(hidden, row)

    def _values(self, hidden: Tensor, row: RowInputs) -> Tensor:
        head = getattr(self.model, "value_head", None)
        if head is None or not len(row.state_position):
            return hidden.new_zeros(0)
        states = hidden[row.state_position]
        chain, present = chains(row.state_parent)
        values: Tensor = head((states.detach() if self.detach_values else states)[chain], present)
        return values.to(torch.promote_types(values.dtype, torch.float32))  # of autocast: the loss needs more digits
