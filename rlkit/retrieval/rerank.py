"""The final order: fused ranks as they are, likeness to the question itself, or a cross-encoder in a folder.

A reranker that fails or takes too long costs its order and not the search: the fused order stays, and it is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rlkit.settings import above, at_least

__all__ = ["CrossEncoder", "RerankSettings", "Reranker", "within_deadline"]


@dataclass(frozen=True, kw_only=True)
class RerankSettings:
    """How the fused candidates are ordered."""

    kind: Literal["none", "similarity", "model"] = "none"
    """`similarity`: the fused score plus the likeness to the question (cosine and BM25), each divided by its best;
    `model`: a sequence classifier in `path` that reads question and passage together."""
    path: str = ""
    """Folder in the transformers format, with safetensors weights."""
    candidates: int = 40
    """Passages that are reordered; those below keep their places."""
    max_tokens: int = 384
    """Tokens of question and passage together that a model reads."""
    deadline_s: float = 10.0
    """Seconds for one question; then the fused order stays."""

    def __post_init__(self) -> None:
        at_least(self, 1, "candidates", "max_tokens")
        above(self, 0, "deadline_s")
        if self.kind == "model" and not Path(self.path).expanduser().is_dir():
            raise ValueError(f"path: no folder '{self.path}'; kind=model needs one")


class Reranker(Protocol):
    """Scores candidates, given as rows of the corpus and their texts."""

    def scores(self, question: str, texts: Sequence[str]) -> Sequence[float]:
        """One per text, higher is better; may raise and may hang."""
        ...


class CrossEncoder:
    """A sequence classifier; of several logits the last is "relevant"."""

    def __init__(self, settings: RerankSettings) -> None:
        self.settings = settings
        self._loaded: tuple[Any, Any] | None = None

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """All candidates in one batch."""
        import torch

        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            folder = Path(self.settings.path).expanduser()
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
            self._loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True), model.eval()
        tokenizer, model = self._loaded
        pairs = [[question] * len(texts), list(texts)]
        limits = {"padding": True, "truncation": "only_second", "max_length": self.settings.max_tokens}
        with torch.inference_mode():
            logits = model(**tokenizer(*pairs, return_tensors="pt", **limits)).logits
        return [float(row[-1]) for row in logits]


def within_deadline(
    reranker: Reranker, question: str, texts: Sequence[str], deadline_s: float
) -> tuple[list[float] | None, str]:
    """The scores and "", or None and why: `timeout` or `failed`."""
    found: list[list[float]] = []

    def run() -> None:
        try:
            found.append([float(score) for score in reranker.scores(question, texts)])
        except Exception:  # whatever a model throws: the caller sees that nothing was found
            return

    worker = threading.Thread(target=run, daemon=True, name="rerank")  # a pool would wait for it at exit
    worker.start()
    worker.join(deadline_s)
    if worker.is_alive():
        return None, "timeout"
    return (found[0], "") if found and len(found[0]) == len(texts) else (None, "failed")
