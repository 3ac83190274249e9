"""SASRec (Kang and McAuley 2018, arXiv:1808.09781), the usual strong baseline for next-item recommendation.

As published: item and position embeddings, causal self-attention blocks of feed-forward width d with residuals, dropout
and layer normalisation before each part, and scores that are products with the item embeddings. One departure, which
makes it stronger and spares a hyper-parameter: the loss is the softmax over all items at every position, not one
sampled negative (Klenitskiy and Vasilev 2023, arXiv:2309.07602). It stops when NDCG@10 on the validation items has not
risen for `patience` epochs, and keeps the best weights.

    B users · T places · I items · D width
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rlkit.catalogue.ranking import gains, places_of_scores

__all__ = ["SasRec", "SasRecSettings", "fit", "scores"]

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class SasRecSettings:
    """The published ones for sparse Amazon data, but for width and dropout, chosen on Beauty's validation items."""

    width: int = 64
    blocks: int = 2
    heads: int = 2
    places: int = 20
    """Latest items that are read."""
    dropout: float = 0.5
    lr: float = 1e-3
    batch: int = 256
    """Users of a step."""
    max_epochs: int = 100
    patience: int = 5
    """Epochs without a better NDCG@10 before it stops."""


class SasRec(nn.Module):
    """`forward(rows [B, T]) -> [B, T, D]`; row 0 of the item table is padding, item i stands in row i + 1."""

    def __init__(self, num_items: int, settings: SasRecSettings) -> None:
        super().__init__()
        width = settings.width
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.places = nn.Embedding(settings.places, width)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=width**-0.5)
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, width, settings.dropout, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, settings.blocks, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """Sequences stand at the left, padding follows, so a causal mask alone hides it from every real place."""
        size = rows.shape[1]
        states = self.dropout(self.items(rows) * self.items.embedding_dim**0.5 + self.places.weight[:size])
        mask = nn.Transformer.generate_square_subsequent_mask(size, device=rows.device)
        found: Tensor = self.blocks(states, mask=mask, is_causal=True)
        return found

    def logits(self, states: Tensor) -> Tensor:
        """[..., I] scores of all items."""
        return states @ self.items.weight[1:].T


def fit(
    sequences: Rows,
    histories: Rows,
    targets: Sequence[int],
    num_items: int,
    settings: SasRecSettings,
    *,
    seed: int,
    log: Callable[[str], None] = lambda line: None,
) -> SasRec:
    """Train on item rows of `sequences`; `histories` and `targets` are the validation cases."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = SasRec(num_items, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=(0.9, 0.98))
    windows = [window for row in sequences for window in _windows(row, settings.places)]
    best, kept, since, start = -1.0, {}, 0, time.perf_counter()
    for epoch in range(1, settings.max_epochs + 1):
        model.train()
        losses = []
        for part in _batches(len(windows), settings.batch, rng):
            rows = _padded([windows[index] for index in part])
            states, wanted = model(rows[:, :-1]), rows[:, 1:]
            real = wanted != 0
            loss = cross_entropy(model.logits(states[real]), wanted[real] - 1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        place = places_of_scores(scores(model, histories, settings), np.asarray(targets, np.int64))
        ndcg = float(gains(*place, 10).mean())
        log(f"epoch {epoch}: loss {np.mean(losses):.3f}, NDCG@10 {ndcg:.4f}, {time.perf_counter() - start:.0f} s")
        since += 1
        if ndcg > best:
            best, since = ndcg, 0
            kept = {name: weight.clone() for name, weight in model.state_dict().items()}
        if since >= settings.patience:
            break
    model.load_state_dict(kept)
    return model


@torch.inference_mode()
def scores(model: SasRec, histories: Rows, settings: SasRecSettings, *, batch: int = 512) -> NDArray[np.float32]:
    """[U, I] scores of all items after each history; an empty history is the padding item alone."""
    model.eval()
    parts = []
    for start in range(0, len(histories), batch):
        rows = [list(history[-settings.places :]) for history in histories[start : start + batch]]
        states = model(_padded(rows))
        last = torch.tensor([max(len(row), 1) - 1 for row in rows])
        parts.append(model.logits(states[torch.arange(len(rows)), last]).numpy())
    return np.concatenate(parts)


def _windows(row: Sequence[int], places: int) -> Iterator[Sequence[int]]:
    """Pieces of places + 1 items that overlap by one, so that every item but the first is a target once."""
    for start in range(0, max(len(row) - 1, 0), places):
        yield row[start : start + places + 1]


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    order = rng.permutation(count)
    return (order[start : start + size] for start in range(0, count, size))


def _padded(rows: Rows) -> Tensor:
    """[B, longest] rows + 1, then zeros."""
    out = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.long)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.tensor(row, dtype=torch.long) + 1
    return out
