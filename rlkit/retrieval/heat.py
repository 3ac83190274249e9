"""Citation heat: how often a passage was retrieved, and the hot part of the corpus that becomes the graph (adqa, §2.1).

The log of a run is one JSON object per line; the first names the corpus that the others are about.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.errors import DataError
from rlkit.retriever import Phase

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

    def read(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """The evidence of a log's training queries; held-out questions must not shape what training searches."""
        for line in lines:
            if "query" in line and line.get("phase", "train") == "train":
                self.update(line["query"], line["passages"])

    def top(self, share: float, corpus: Sequence[str]) -> list[str]:
        """The hottest ceil(share · |corpus|) passages, ties by id; one that was never retrieved cannot enter."""
        known = {passage for passage in corpus if self.counts[passage] > 0}
        ranked = sorted(known, key=lambda passage: (-self.counts[passage], passage))
        return ranked[: math.ceil(share * len(corpus))]


class RetrievalLog:
    """Appends what was retrieved; every query once per index version and phase."""

    def __init__(self, path: Path, *, corpus: str, version: str, allow_changed: bool = False) -> None:
        """Raises `DataError` if `path` is about another corpus, unless `allow_changed`."""
        self.path = path
        self.version = version
        self.phase: Phase = "train"
        """Written to lines that are not of training."""
        self._corpus = corpus
        self._seen: set[tuple[str, str]] = set()
        self._writing = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._mend()
        about = [line["corpus"] for line in self._lines() if "corpus" in line]
        if about and about[-1] != corpus and not allow_changed:
            raise DataError(
                f"retriever.log: {path} was written over corpus {about[-1]}, this one is {corpus}: the passages "
                "changed since the run began; set retriever.allow_changed_corpus=true to go on, or choose another `out`"
            )
        self.use(version)

    def use(self, version: str) -> None:
        """Lines from now on are about this version of the index."""
        lines = self._lines()
        heads = [(line["corpus"], line.get("version")) for line in lines if "corpus" in line]
        self.version = version
        if heads[-1:] != [(self._corpus, version)]:
            self._write({"corpus": self._corpus, "version": version})
        mine = (line for line in lines if line.get("version") == version and "query" in line)
        self._seen = {(line.get("phase", "train"), line["query"]) for line in mine}

    def add(self, query: str, passages: Sequence[str], walk: Mapping[str, Any] | None) -> None:
        """Note the final evidence of a query and the walk over the graph that led to it."""
        with self._writing:  # batches run in threads
            if (self.phase, query) not in self._seen:
                self._seen.add((self.phase, query))
                line = {"version": self.version, "query": query, "passages": list(passages), "walk": walk}
                self._write(line | ({} if self.phase == "train" else {"phase": self.phase}))

    def size(self) -> int:
        """Bytes written; a place to come back to."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def cut(self, size: int) -> None:
        """Forget what was written beyond `size` bytes. Raises `DataError` if there is less."""
        if self.size() < size:
            raise DataError(f"retriever.log: {self.path} has {self.size()} of the checkpoint's {size} bytes")
        with self.path.open("ab") as file:
            file.truncate(size)

    def _mend(self) -> None:
        """A line that a killed run left unfinished goes, or the next one would be glued to it."""
        written = self.path.read_bytes() if self.path.is_file() else b""
        if written and not written.endswith(b"\n"):
            self.cut(written.rfind(b"\n") + 1)

    def _lines(self) -> list[dict[str, Any]]:
        return read_log(self.path) if self.path.is_file() else []

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a killed run left unfinished ends it. Raises `DataError` if there is no file."""
    found = []
    try:
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                found.append(dict(json.loads(line)))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is no retrieval log: {error}") from error
    return found
