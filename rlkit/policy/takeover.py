"""What the engine does to a `transformers` model, and what it needs to know of it: nothing else is touched."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rlkit.errors import EngineError
from rlkit.policy.attention import IMPLEMENTATION, trace_windows
from rlkit.policy.tokens import Tokenizer

__all__ = ["Traits", "device_of", "end_ids", "take_over"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Facts about a model that runs on our attention."""

    vocab_size: int
    context: int | None
    """Most tokens of a path that its positions allow; None: unlimited."""
    window: int | None
    """Narrowest sliding window of its layers, in tokens; None: all layers see everything."""
    widths: tuple[int, ...]
    """Widths that its activations may have: the sides of its weight matrices."""


def take_over(model: PreTrainedModel) -> Traits:
    """Put our attention in. Raises `EngineError` unless every layer calls it, with terms that it implements."""
    name = type(model).__name__
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise EngineError(
            f"{name}.forward takes no logits_to_keep, which HfEngine needs; is it a causal language model?"
        )
    model.set_attn_implementation(IMPLEMENTATION)
    windows = trace_windows(model)
    config = model.config.get_text_config()
    if len(windows) != config.num_hidden_layers:
        raise EngineError(
            f"{name}: {len(windows)} of {config.num_hidden_layers} layers use the attention interface of "
            "transformers, and HfEngine needs all of them (recurrent layers keep a state that it does not share)"
        )
    sides = {side for parameter in model.parameters() if parameter.ndim == 2 for side in parameter.shape}
    return Traits(
        vocab_size=config.vocab_size,
        context=getattr(config, "max_position_embeddings", None),
        window=min((window for window in windows.values() if window is not None), default=None),
        widths=tuple(sorted(sides - {config.vocab_size})),
    )


def device_of(name: str) -> torch.device:
    """The device that a setting names; `auto` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def end_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """End tokens of the generation config and of the tokenizer; models differ in which of them they fill."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or ())
    return frozenset(found)
