"""Where keys and values live between forwards: one buffer per shared prefix, one row per sample in flight.

    Prefix   P leading tokens of a task, computed once         per layer [Hkv, P, D] Slots    S rows, each the
    suffix of one sample in flight   per layer [S, Hkv, C, D]   columns C grow as needed Suffix   what a
    sample leaves behind between two turns     per layer [Hkv, n, D]

Shapes come from the first keys that a layer hands over, so layers and models may differ in heads and widths.
Hkv: key/value heads, D: width of a head (values may have another), P, C, n: tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["PAGE", "KeyValue", "Prefix", "Slots", "Suffix", "pages"]

PAGE = 32
"""Columns are read in multiples of this. Not fewer: torch has a slower loop, with other rounding, for tiny products."""


class KeyValue(NamedTuple):
    """One layer's keys and values, tokens in the last dimension but one."""

    keys: Tensor
    values: Tensor

    def columns(self, start: int, stop: int) -> KeyValue:
        """A view of the tokens `start..stop`."""
        return KeyValue(self.keys[..., start:stop, :], self.values[..., start:stop, :])

    def assign(self, source: KeyValue) -> None:
        """Copy `source` into this view."""
        self.keys.copy_(source.keys)
        self.values.copy_(source.values)


@dataclass(slots=True, eq=False, kw_only=True)
class Suffix:
    """Keys and values of one sample's own tokens, put aside until its next turn."""

    tokens: list[int]
    """[n] what they were computed for, after the shared prefix."""
    layers: dict[int, KeyValue]
    """Layer index -> [Hkv, n, D]."""

    def shared_with(self, path: Sequence[int]) -> int:
        """Number of leading tokens that `path` has in common: so many need no computing."""
        common = 0
        for mine, theirs in zip(self.tokens, path, strict=False):
            if mine != theirs:
                break
            common += 1
        return common


@dataclass(slots=True, eq=False, kw_only=True)
class Prefix:
    """The tokens that all samples of a task share. Their keys and values are computed once."""

    tokens: list[int]
    """[P]"""
    num_computed: int = 0
    """Leading tokens whose keys and values are there."""
    layers: dict[int, KeyValue] = field(default_factory=dict)
    """Layer index -> [Hkv, P, D]."""
    logits: NDArray[np.float32] | None = None
    """[V] after the last token, from which every sample draws its first; None until all P are computed."""
    suffixes: dict[int, Suffix] = field(default_factory=dict)
    """Sample index -> what its last turn left; a later sample may fork from any of them."""

    @property
    def complete(self) -> bool:
        """True once all P tokens are computed."""
        return self.num_computed == len(self.tokens)

    @property
    def origin(self) -> int:
        """Position of the first token on the path."""
        return 0

    def write(self, layer: int, start: int, new: KeyValue) -> KeyValue:
        """Store `new` [Hkv, n, D] from token `start` on; returns all up to its end, [Hkv, start + n, D]."""
        if layer not in self.layers:
            size = len(self.tokens)
            self.layers[layer] = KeyValue(*(x.new_zeros(x.shape[0], size, x.shape[-1]) for x in new))
        stop = start + new.keys.shape[1]
        self.layers[layer].columns(start, stop).assign(new)
        return self.layers[layer].columns(0, stop)


class Slots:
    """A row per sample in flight. Columns beyond its own tokens hold finite leftovers that nobody reads."""

    def __init__(self) -> None:
        self._layers: dict[int, KeyValue] = {}
        self._rows = 0
        self._columns = 0

    def reserve(self, rows: int, columns: int) -> None:
        """Make room for at least so many rows and columns; existing ones keep their content."""
        if rows <= self._rows and columns <= self._columns:
            return
        if columns > self._columns:  # growing copies everything, so grow by half at least
            self._columns = pages(max(columns, self._columns * 3 // 2))
        self._rows = max(rows, self._rows)
        for layer, old in self._layers.items():
            self._layers[layer] = grown = self._empty(old)
            num_rows, _, num_columns, _ = old.keys.shape
            for new, kept in zip(grown, old, strict=True):
                new[:num_rows, :, :num_columns] = kept

    def layer(self, layer: int, like: KeyValue) -> KeyValue:
        """The whole buffers of a layer, [S, Hkv, C, D]; made like `like` [Hkv, n, D] on first use."""
        if layer not in self._layers:
            self._layers[layer] = self._empty(KeyValue(like.keys[None], like.values[None]))
        return self._layers[layer]

    def save(self, row: int, tokens: list[int]) -> Suffix:
        """A copy of a row's first columns, those of `tokens` [n]."""
        n = len(tokens)
        layers = {
            layer: KeyValue(kv.keys[row, :, :n].clone(), kv.values[row, :, :n].clone())
            for layer, kv in self._layers.items()
        }
        return Suffix(tokens=tokens, layers=layers)

    def restore(self, row: int, suffix: Suffix, num_tokens: int) -> None:
        """Fill a row with the first `num_tokens` tokens of a suffix; `reserve` comes first."""
        for layer, kv in suffix.layers.items():
            target = self.layer(layer, kv)
            target.keys[row, :, :num_tokens] = kv.keys[:, :num_tokens]
            target.values[row, :, :num_tokens] = kv.values[:, :num_tokens]

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first `num_tokens` columns of a row to another row."""
        for kv in self._layers.values():
            for buffer in kv:
                buffer[target, :, :num_tokens] = buffer[source, :, :num_tokens]

    def _empty(self, like: KeyValue) -> KeyValue:
        # Zeros, not garbage: a column that is masked out is multiplied by 0, and 0 times NaN would be NaN.
        return KeyValue(*(x.new_zeros(self._rows, x.shape[1], self._columns, x.shape[3]) for x in like))


def pages(num_tokens: int) -> int:
    """`num_tokens` rounded up to whole pages."""
    return -(-num_tokens // PAGE) * PAGE
