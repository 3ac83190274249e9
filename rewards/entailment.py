"""A small model of natural-language inference that says whether sources entail a statement; optional, and local.

A folder in the transformers format with safetensors weights, whose configuration names a label that begins with
"entail". torch is imported when the first statement is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rlkit.errors import RewardError

__all__ = ["entails"]

MAX_TOKENS = 256
"""Of premise and statement together; the premise is cut."""
THRESHOLD = 0.5
"""Probability of entailment from which a statement is supported."""


def entails(folder: str, premises: Sequence[str], statement: str) -> bool:
    """True if any premise entails `statement`. Raises `RewardError` for a folder that cannot say so."""
    if not premises:
        return False
    import torch

    tokenizer, model, label = _loaded(folder)
    limits = {"padding": True, "truncation": "only_first", "max_length": MAX_TOKENS}
    with torch.inference_mode():
        logits = model(**tokenizer(list(premises), [statement] * len(premises), return_tensors="pt", **limits)).logits
    return bool(logits.float().softmax(-1)[:, label].max() >= THRESHOLD)


@cache  # one model per process of rewards
def _loaded(folder: str) -> tuple[Any, Any, int]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise RewardError(f"faithfulness.nli: no folder '{folder}'")
    model = AutoModelForSequenceClassification.from_pretrained(path, local_files_only=True, use_safetensors=True)
    labels = [number for number, name in model.config.id2label.items() if str(name).lower().startswith("entail")]
    if not labels:
        known = ", ".join(map(str, model.config.id2label.values()))
        raise RewardError(f"faithfulness.nli: {folder} has no label 'entailment' but {known}")
    return AutoTokenizer.from_pretrained(path, local_files_only=True), model.eval(), int(labels[0])
