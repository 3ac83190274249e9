"""Rollouts on disk: gzipped lines of JSON that give the records back exactly and need no rlkit to be read.

    line 1   {"format": "rlkit.trees", "schema": 1}
    line 2.. one tree each: {"task", "nodes", "leaves", "search", "terms", "paths", "values"}
             (paths and values are null before credit is given)

An array is `{"dtype": "<f4", "base64": "..."}`: its little-endian bytes, so a log-probability keeps every
bit. There is no pickle: a file from elsewhere can be opened without running its code. NaN outside an array is
written as `NaN`, as Python's json does. A file appears whole or not at all.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import DataError
from rlkit.records import (
    CreditedTree,
    CreditPath,
    Leaf,
    Node,
    NodeSearch,
    RewardTerm,
    SamplingState,
    ScoredTree,
    SearchReport,
    Task,
    Tree,
    ValueEdges,
)

__all__ = ["SCHEMA", "Decoder", "StoredTree", "node_from_json", "node_to_json", "packed", "read_trees", "write_trees"]

SCHEMA = 1
"""Version of the format; a reader accepts its own and older ones."""
_FORMAT = "rlkit.trees"

Decoder = Callable[[Sequence[int]], Sequence[str]]
"""Token ids -> one display string for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTree:
    """One tree read back, with what only a tokenizer could have known."""

    record: ScoredTree | CreditedTree
    """Equal to what was written."""
    token_texts: tuple[tuple[str, ...], ...] | None
    """[N][n] display string of every token; None: written without a decoder."""

    @property
    def scored(self) -> ScoredTree:
        """The scored tree, whether or not credit was given."""
        return self.record.scored if isinstance(self.record, CreditedTree) else self.record

    @property
    def tree(self) -> Tree:
        """The tree itself."""
        return self.scored.tree


def _pack(array: NDArray[Any] | None) -> dict[str, str] | None:
    if array is None:
        return None
    plain = np.ascontiguousarray(array)
    if plain.dtype.kind not in "biuf" or plain.ndim != 1:
        raise ValueError(f"store: an array of dtype {array.dtype}, shape {array.shape} has no place in a record")
    little = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
    return {"dtype": little.dtype.str, "base64": base64.b64encode(little.tobytes()).decode("ascii")}


def _unpack(packed: dict[str, str] | None) -> Any:
    if packed is None:
        return None
    dtype = np.dtype(packed["dtype"])
    if dtype.kind not in "biuf":  # a file from elsewhere could name an object type
        raise ValueError(f"array of dtype {dtype}")
    return np.frombuffer(base64.b64decode(packed["base64"], validate=True), dtype=dtype).astype(dtype.newbyteorder("="))


def node_to_json(node: Node, decode: Decoder | None = None) -> dict[str, Any]:
    """A node as plain values; `decode` adds a display string per token."""
    sampling = node.sampling and {
        "temperature": node.sampling.temperature,
        "support_offsets": _pack(node.sampling.support_offsets),
        "support_ids": _pack(node.sampling.support_ids),
    }
    texts = None if decode is None else [str(text) for text in decode([int(token) for token in node.token_ids])]
    if texts is not None and len(texts) != len(node.token_ids):
        raise ValueError(f"store: the decoder gave {len(texts)} strings for {len(node.token_ids)} tokens")
    return {
        "parent": int(node.parent),
        "author": node.author,
        "turn": int(node.turn),
        "text": node.text,
        "token_ids": _pack(node.token_ids),
        "token_texts": texts,
        "behavior_logprobs": _pack(node.behavior_logprobs),
        "policy_version": int(node.policy_version),
        "sampling": sampling,
        "search": node.search and asdict(node.search),
    }


def node_from_json(row: dict[str, Any]) -> Node:
    """The same node again."""
    sampling = row["sampling"] and SamplingState(
        temperature=row["sampling"]["temperature"],
        support_offsets=_unpack(row["sampling"]["support_offsets"]),
        support_ids=_unpack(row["sampling"]["support_ids"]),
    )
    return Node(
        parent=row["parent"],
        author=row["author"],
        turn=row["turn"],
        text=row["text"],
        token_ids=_unpack(row["token_ids"]),
        behavior_logprobs=_unpack(row["behavior_logprobs"]),
        policy_version=row["policy_version"],
        sampling=sampling,
        search=NodeSearch(**row["search"]) if row.get("search") else None,
    )


def _leaf_to_json(leaf: Leaf) -> dict[str, Any]:
    return {
        "node": int(leaf.node),
        "sample_index": int(leaf.sample_index),
        "status": leaf.status,
        "reason": leaf.reason,
        "answer": leaf.answer,
        "signals": {name: float(value) for name, value in leaf.signals.items()},
    }


def _term_to_json(term: RewardTerm) -> dict[str, Any]:
    return {
        "name": term.name,
        "weight": float(term.weight),
        "values": _pack(term.values),
        "status": list(term.status),
        "node_values": _pack(term.node_values),
    }


def _term_from_json(row: dict[str, Any]) -> RewardTerm:
    return RewardTerm(
        name=row["name"],
        weight=row["weight"],
        values=_unpack(row["values"]),
        status=tuple(row["status"]),
        node_values=_unpack(row["node_values"]),
    )


def _path_to_json(path: CreditPath) -> dict[str, Any]:
    arrays = {name: _pack(getattr(path, name)) for name in ("tokens", "advantages", "weights")}
    return {"leaf": int(path.leaf)} | arrays


def _path_from_json(row: dict[str, Any]) -> CreditPath:
    return CreditPath(
        leaf=row["leaf"],
        tokens=_unpack(row["tokens"]),
        advantages=_unpack(row["advantages"]),
        weights=_unpack(row["weights"]),
    )


def _values_to_json(values: ValueEdges | None) -> dict[str, Any] | None:
    if values is None:
        return None
    arrays = {name: _pack(getattr(values, name)) for name in ("node", "next", "reward", "weight")}
    return arrays | {"discount": values.discount}


def _values_from_json(row: dict[str, Any] | None) -> ValueEdges | None:
    if row is None:
        return None
    arrays = {name: _unpack(row[name]) for name in ("node", "next", "reward", "weight")}
    return ValueEdges(discount=row["discount"], **arrays)


def _tree_to_json(record: ScoredTree | CreditedTree, decode: Decoder | None) -> dict[str, Any]:
    scored = record.scored if isinstance(record, CreditedTree) else record
    task = scored.tree.task
    return {
        "task": {
            "id": task.id,
            "question": task.question,
            "answers": list(task.answers),
            "data": dict(task.data),
        },
        "nodes": [node_to_json(node, decode) for node in scored.tree.nodes],
        "leaves": [_leaf_to_json(leaf) for leaf in scored.tree.leaves],
        "search": scored.tree.search and asdict(scored.tree.search),
        "terms": [_term_to_json(term) for term in scored.terms],
        "paths": [_path_to_json(path) for path in record.paths] if isinstance(record, CreditedTree) else None,
        "values": _values_to_json(record.values) if isinstance(record, CreditedTree) else None,
    }


def _tree_from_json(row: dict[str, Any]) -> StoredTree:
    task = Task(**row["task"] | {"answers": tuple(row["task"]["answers"])})
    tree = Tree(
        task=task,
        nodes=tuple(map(node_from_json, row["nodes"])),
        leaves=tuple(Leaf(**leaf) for leaf in row["leaves"]),
        search=SearchReport(**row["search"]) if row.get("search") else None,
    )
    scored = ScoredTree(tree=tree, terms=tuple(map(_term_from_json, row["terms"])))
    texts = [node["token_texts"] for node in row["nodes"]]
    record: ScoredTree | CreditedTree = scored
    if row["paths"] is not None:
        values = _values_from_json(row.get("values"))
        record = CreditedTree(scored=scored, paths=tuple(map(_path_from_json, row["paths"])), values=values)
    return StoredTree(
        record=record,
        token_texts=None if None in texts else tuple(map(tuple, texts)),
    )


def write_trees(path: Path, trees: Iterable[ScoredTree | CreditedTree], decode: Decoder | None = None) -> None:
    """Write trees to `path` (`.jsonl.gz`), replacing it at once; `decode` adds a display string per token."""
    lines = [{"format": _FORMAT, "schema": SCHEMA}, *(_tree_to_json(tree, decode) for tree in trees)]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(packed(text))
    os.replace(partial, path)


def packed(text: str) -> bytes:
    """Gzipped: the same text is the same bytes, so two runs can be compared by checksum.

    Level 9, the default, takes fifteen times as long for 5 % less.
    """
    return gzip.compress(text.encode(), compresslevel=5, mtime=0)


def read_trees(path: Path) -> list[StoredTree]:
    """Read what `write_trees` wrote; a torn, foreign or newer file is a `DataError`."""
    try:
        header, *rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        if header.get("format") != _FORMAT or not isinstance(header.get("schema"), int):
            raise DataError(f"{path}: not a file of rollouts: it begins with {str(header)[:80]}")
        if header["schema"] > SCHEMA:
            raise DataError(f"{path}: written with schema {header['schema']}; this rlkit reads up to {SCHEMA}")
        return [_tree_from_json(row) for row in rows]
    except (
        OSError,
        EOFError,
        zlib.error,
        binascii.Error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise DataError(f"{path}: not a readable file of rollouts ({type(error).__name__}: {error})") from error
