"""Citation heat: how often a passage was retrieved, and the hot part of the corpus that becomes the graph (adqa, §2.1).

The log of a run is one JSON object per line; the first names the corpus that the others are about.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.errors import DataError

__all__ = ["CitationHeat", "RetrievalLog", "read_log"]


@dataclass(kw_only=True)
class CitationHeat:
    """Passage id -> number of different queries whose final evidence held it."""

    counts: Counter[str] = field(default_factory=Counter)
    window: int | None = None
    """Only the last so many queries count; None: all."""
    _queries: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def update(self, query: str, passages: Iterable[str]) -> None:
        """The evidence of one query; asked again it counts once, with its newest evidence."""
        self.counts.subtract(self._queries.pop(query, ()))
        self._queries[query] = tuple(dict.fromkeys(passages))
        self.counts.update(self._queries[query])
        while self.window is not None and len(self._queries) > self.window:
            self.counts.subtract(self._queries.pop(next(iter(self._queries))))

    def top(self, share: float, corpus: Sequence[str]) -> list[str]:
        """The hottest ceil(share · |corpus|) passages, ties by id; one that was never retrieved cannot enter."""
        known = {passage for passage in corpus if self.counts[passage] > 0}
        ranked = sorted(known, key=lambda passage: (-self.counts[passage], passage))
        return ranked[: math.ceil(share * len(corpus))]


class RetrievalLog:
    """Appends what was retrieved; every query once per index version."""

    def __init__(self, path: Path, *, corpus: str, version: str, allow_changed: bool = False) -> None:
        """Raises `DataError` if `path` is about another corpus, unless `allow_changed`."""
        self.path = path
        self.version = version
        self._seen: set[str] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(read_log(path)) if path.is_file() else []
        about = [line["corpus"] for line in lines if "corpus" in line]
        if about and about[-1] != corpus and not allow_changed:
            raise DataError(
                f"retriever.log: {path} was written over corpus {about[-1]}, this one is {corpus}: the passages "
                "changed since the run began; set retriever.allow_changed_corpus=true to go on, or choose another `out`"
            )
        if not about or about[-1] != corpus or lines[-1].get("version", version) != version:
            self._write({"corpus": corpus, "version": version})
        self._seen = {line["query"] for line in lines if line.get("version") == version and "query" in line}

    def add(self, query: str, passages: Sequence[str], walk: Mapping[str, Any] | None) -> None:
        """Note the final evidence of a query and the walk over the graph that led to it."""
        if query not in self._seen:
            self._seen.add(query)
            self._write({"version": self.version, "query": query, "passages": list(passages), "walk": walk})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a killed run left unfinished ends it. Raises `DataError` if there is no file."""
    found = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    break
                found.append(dict(json.loads(line)))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is no retrieval log: {error}") from error
    return found
