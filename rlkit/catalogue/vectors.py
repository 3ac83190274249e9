"""Text embeddings of a catalogue's items on disk: one safetensors file with its items' semantic IDs in the header."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlkit.catalogue.items import Catalogue
from rlkit.errors import DataError

__all__ = ["read_vectors", "relabelled", "sid_vectors", "write_vectors"]

Floats = NDArray[np.float64]


def write_vectors(file: Path, catalogue: Catalogue, vectors: NDArray[np.floating], *, made_by: str) -> None:
    """Write embeddings [I, D] of the catalogue's items, in its order. `made_by` says by which model."""
    from safetensors.numpy import save_file

    if len(vectors) != len(catalogue.item_ids):
        raise DataError(f"vectors: {len(vectors)} for {len(catalogue.item_ids)} items")
    header = {
        "made_by": made_by,
        "item_ids": json.dumps(catalogue.item_ids),
        "sids": json.dumps(catalogue.sid_texts),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": np.ascontiguousarray(vectors, np.float32)}, file, metadata=header)


def relabelled(source: Path, target: Path, catalogue: Catalogue) -> None:
    """The same embeddings under the semantic IDs of `catalogue`. Raises `DataError` if it has other items."""
    from safetensors import safe_open

    vectors, item_ids, _ = read_vectors(source)
    if item_ids != list(catalogue.item_ids):
        raise DataError(f"{source}: is of other items than the catalogue; make it again with: embed")
    with safe_open(source, framework="np") as stored:
        made_by = stored.metadata().get("made_by", "")
    write_vectors(target, catalogue, vectors, made_by=made_by)


def read_vectors(file: Path) -> tuple[Floats, list[int], list[str]]:
    """(embeddings [I, D], item ids [I], semantic IDs [I]). Raises `DataError` for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as stored:
            header = stored.metadata() or {}
            vectors = stored.get_tensor("vectors").astype(np.float64)
        return vectors, json.loads(header["item_ids"]), json.loads(header["sids"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{file}: holds no item embeddings ({error}); make them with: python -m rlkit.launch.sid embed"
        ) from error


def sid_vectors(file: Path) -> dict[str, Floats]:
    """Semantic ID as text -> embedding [D]; the mean over the items that share it."""
    vectors, _, sids = read_vectors(file)
    found: dict[str, list[Floats]] = {}
    for sid, vector in zip(sids, vectors, strict=True):
        found.setdefault(sid, []).append(vector)
    return {sid: np.mean(rows, axis=0) for sid, rows in found.items()}
