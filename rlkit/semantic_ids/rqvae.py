"""RQ-VAE: semantic IDs by residual quantisation inside a small autoencoder (TIGER, Rajput et al. 2023, section 3.1).

    z = encoder(x)   r_0 = z   code_l = argmin_s ||r_l - c_l,s||²   ẑ = Σ_l c_l,code   x̂ = decoder(z + sg[ẑ - z])
    L = ||x - x̂||² + Σ_l ||sg[r_l] - c_l,code||² + β ||r_l - sg[c_l,code]||²

sg stops gradients. Settings are MiniOneRec's where its code states them. Departures: codebooks begin as the k-means of
the first codes (Zeghidour et al. 2021), and a code that no item had in an epoch is moved onto a random residual,
because codebooks collapse otherwise. Squared errors are sums over dimensions and means over items.

    B items of a step · D dimensions of a vector · E of the code · S codes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlkit.semantic_ids.rq_kmeans import kmeans

__all__ = ["RqVae", "RqVaeSettings", "fit_rqvae"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RqVaeSettings:
    """Size and training."""

    levels: int = 3
    size: int = 256
    """Codes per level."""
    hidden: tuple[int, ...] = (512, 256, 128)
    """Widths of the encoder, outside in; the decoder mirrors them."""
    dim: int = 32
    """E."""
    commitment: float = 0.25
    """β."""
    lr: float = 1e-3
    batch: int = 1024
    epochs: int = 100

    def __post_init__(self) -> None:
        for name in ("levels", "size", "dim", "batch", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")


class RqVae(nn.Module):
    """See the module."""

    def __init__(self, width: int, settings: RqVaeSettings) -> None:
        super().__init__()
        self.settings = settings
        widths = (width, *settings.hidden, settings.dim)
        self.encoder, self.decoder = _mlp(widths), _mlp(widths[::-1])
        self.books = nn.Parameter(torch.zeros(settings.levels, settings.size, settings.dim))

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [B, E] -> (codes [B, L], ẑ [B, E] without gradient, loss of codebooks and commitment)."""
        left, found, loss, codes = z, torch.zeros_like(z), z.new_zeros(()), []
        for book in self.books:
            code = torch.cdist(left.detach(), book.detach()).argmin(1)
            chosen = book[code]
            loss = loss + ((left.detach() - chosen) ** 2).sum(1).mean()
            loss = loss + self.settings.commitment * ((left - chosen.detach()) ** 2).sum(1).mean()
            codes.append(code)
            found = found + chosen.detach()
            left = left - chosen.detach()
        return torch.stack(codes, 1), found, loss

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, D] -> (loss, codes [B, L], mean squared reconstruction error)."""
        z = self.encoder(x)
        codes, found, loss = self.quantise(z)
        error = ((x - self.decoder(z + (found - z).detach())) ** 2).sum(1).mean()
        return error + loss, codes, error


def fit_rqvae(
    vectors: Floats, settings: RqVaeSettings, *, seed: int = 0, log: Callable[[str], None] = lambda line: None
) -> tuple[Ints, Sequence[float]]:
    """(codes [I, L], reconstruction error of every epoch). The global random state is left alone.

    Vectors are centred and scaled to unit variance as a whole, so that one learning rate fits all embeddings.
    """
    points = np.asarray(vectors, np.float32)
    if len(points) < settings.size:
        raise ValueError(f"size: {settings.size} codes for {len(points)} items; a codebook needs one item each")
    points = points - points.mean(0)
    x = torch.from_numpy(points / max(float(points.std()), 1e-12))
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RqVae(x.shape[1], settings)
    _begin_codebooks(model, x, rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    errors: list[float] = []
    for epoch in range(1, settings.epochs + 1):
        total, used = 0.0, torch.zeros(settings.levels, settings.size, dtype=torch.bool)
        order = rng.permutation(len(x))
        for start in range(0, len(x), settings.batch):
            part = x[torch.from_numpy(order[start : start + settings.batch])]
            loss, codes, error = model(part)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(error.detach()) * len(part)
            for level, column in enumerate(codes.T):
                used[level, column] = True
        if epoch < settings.epochs:
            _move_unused(model, x, used, rng)
        errors.append(total / len(x))
        log(f"epoch {epoch}: reconstruction {errors[-1]:.4f}, codes in use {used.float().mean():.3f}")
    with torch.no_grad():
        codes, _, _ = model.quantise(model.encoder(x))
    return codes.numpy(), errors


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # no rectifier behind the last


@torch.no_grad()
def _begin_codebooks(model: RqVae, x: Tensor, rng: np.random.Generator) -> None:
    left = model.encoder(x)
    for book in model.books:
        book.copy_(torch.from_numpy(kmeans(left.numpy(), len(book), rng, iterations=10)))
        left = left - book[torch.cdist(left, book).argmin(1)]


@torch.no_grad()
def _move_unused(model: RqVae, x: Tensor, used: Tensor, rng: np.random.Generator) -> None:
    """Codes that no item had get the residual of a random item of their level."""
    if bool(used.all()):
        return
    left = model.encoder(x)
    for book, hit in zip(model.books, used, strict=True):
        free = torch.nonzero(~hit).flatten()
        book[free] = left[torch.from_numpy(rng.integers(len(left), size=len(free)))]
        left = left - book[torch.cdist(left, book).argmin(1)]
