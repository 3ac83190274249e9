"""A graph of entities over passages: who is named where, who refers to whom, and which of them belong together.

    extraction   an entity per page and per row of the given files; links between pages and given relations are edges
    mentions     passages of the entity's page, those that link to it, those that name it
    communities  Louvain (Blondel et al. 2008) with a fixed seed, each summarised by its best-connected members
    walk         entities of the query -> their neighbours, 1 or 2 hops -> source passages, nearest to the query first

GraphRAG's local search (Edge et al. 2024, arXiv:2404.16130) in the reading of adqa §2.2, without a model that
extracts or summarises. Saved as arrays and JSON, opened memory-mapped. E entities, M mentions, R directed edges.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import DataError
from rlkit.evidence.urls import canonical, extract_urls
from rlkit.retriever import Passage

__all__ = ["Graph", "Walk", "build_graph"]

Ints = NDArray[np.int32]
WORD = re.compile(r"[a-z0-9]+(?:[._+-][a-z0-9]+)*", re.IGNORECASE)
MAX_NAME_WORDS = 8
COMMON = 0.02
"""A name in a larger share of the passages says nothing about them."""
SUMMARY_MEMBERS = 8
ARRAYS = ("mention_offsets", "mentions", "edge_offsets", "neighbours", "relations", "communities")


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What the graph channel did for one query."""

    linked: tuple[int, ...] = ()
    """Entities found in the query."""
    edges: tuple[tuple[int, int, int], ...] = ()
    """(entity, relation, entity) in the order they were walked."""
    reached: tuple[tuple[int, int], ...] = ()
    """(passage, entity that led to it), best first."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Entities with their passages, neighbours and communities."""

    names: Sequence[str]
    """[E]"""
    urls: Sequence[str]
    """[E] empty where there is none."""
    about: Sequence[str]
    """[E] a description; may be empty."""
    relation_names: Sequence[str]
    summaries: Sequence[str]
    """One per community."""
    mention_offsets: Ints
    """[E + 1]"""
    mentions: Ints
    """[M] passages."""
    edge_offsets: Ints
    """[E + 1]"""
    neighbours: Ints
    """[R] each edge stands in both directions."""
    relations: Ints
    """[R] index into `relation_names`."""
    communities: Ints
    """[E] index into `summaries`."""

    def passages_of(self, entity: int) -> list[int]:
        """Passages that speak of it."""
        return [int(p) for p in self.mentions[self.mention_offsets[entity] : self.mention_offsets[entity + 1]]]

    def edges_of(self, entity: int) -> list[tuple[int, int]]:
        """(relation, neighbour) pairs."""
        span = slice(self.edge_offsets[entity], self.edge_offsets[entity + 1])
        return [(int(r), int(n)) for r, n in zip(self.relations[span], self.neighbours[span], strict=True)]

    @cached_property
    def _by_name(self) -> dict[str, dict[tuple[str, ...], list[int]]]:
        """First word -> words of a name -> entities."""
        found: dict[str, dict[tuple[str, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for entity, name in enumerate(self.names):
            if words := _words(name):
                found[words[0]][words].append(entity)
        return found

    def named_in(self, query: str) -> list[int]:
        """Entities whose whole name stands in the query, the longest at each place."""
        return _named(_words(query), self._by_name)

    def walk(
        self,
        linked: Sequence[int],
        *,
        hops: int,
        max_degree: int,
        max_entities: int,
        likeness: Callable[[Sequence[int]], NDArray[Any]],
        top_k: int,
    ) -> Walk:
        """From `linked` over at most `hops` edges; entities with more than `max_degree` edges are ends.

        `likeness` of passages to the query, at most 1. A passage's score is its likeness less a tenth for each hop.
        """
        distance = dict.fromkeys(linked, 0)
        walked: list[tuple[int, int, int]] = []
        frontier = list(distance)
        for hop in range(1, hops + 1):
            fresh: list[int] = []
            for entity in frontier:
                edges = self.edges_of(entity)
                if len(edges) > max_degree and hop > 1:
                    continue
                for relation, neighbour in edges[:max_degree]:
                    if neighbour not in distance and len(distance) < max_entities:
                        distance[neighbour] = hop
                        walked.append((entity, relation, neighbour))
                        fresh.append(neighbour)
            frontier = fresh
        leads: dict[int, int] = {}
        for entity in distance:  # nearest entities first, so they are the ones named as leads
            for passage in self.passages_of(entity):
                leads.setdefault(passage, entity)
        candidates = list(leads)
        scores = likeness(candidates) - 0.1 * np.array([distance[leads[p]] for p in candidates], dtype=np.float64)
        order = sorted(range(len(candidates)), key=lambda i: (-scores[i], candidates[i]))[:top_k]
        reached = tuple((candidates[i], leads[candidates[i]]) for i in order)
        return Walk(linked=tuple(linked), edges=tuple(walked), reached=reached)

    def save(self, folder: Path) -> None:
        """Arrays and one JSON file."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        texts = {name: list(getattr(self, name)) for name in ("names", "urls", "about", "relation_names", "summaries")}
        (folder / "graph.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> Graph:
        """The saved graph, arrays memory-mapped."""
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        return cls(**json.loads((folder / "graph.json").read_text(encoding="utf-8")), **arrays)


class _Draft:
    """Entities and edges under construction; an entity is known by its URL, or by its name where it has none."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.urls: list[str] = []
        self.about: list[str] = []
        self.by_url: dict[str, int] = {}
        self.by_name: dict[str, int] = {}
        self.edges: dict[tuple[int, int], str] = {}

    def entity(self, name: str, url: str = "", about: str = "") -> int:
        """The index of the entity, new or old; a file's name replaces that of the page."""
        url, name = canonical(url), name.strip()
        found = self.by_url.get(url) if url else self.by_name.get(name.lower())
        if found is None:
            found = len(self.names)
            self.names.append(name)
            self.urls.append(url)
            self.about.append(about)
        else:
            self.names[found], self.about[found] = name, about or self.about[found]
        if url:
            self.by_url[url] = found
        self.by_name.setdefault(name.lower(), found)
        return found

    def edge(self, source: int, relation: str, target: int) -> None:
        """The first relation between two entities stays."""
        if source != target and (target, source) not in self.edges:
            self.edges.setdefault((source, target), relation)


def build_graph(
    passages: Sequence[Passage],
    *,
    kept: Iterable[int] | None = None,
    folders: Sequence[Path] = (),
    resolution: float = 1.0,
) -> Graph:
    """The graph of the passages `kept` (None: all), with `entities.jsonl.gz` and `edges.jsonl.gz` of the folders.

    Entities that no kept passage speaks of are left out. Raises `DataError` for files that cannot be read.
    """
    chosen = sorted(set(range(len(passages)) if kept is None else kept))
    draft = _Draft()
    for index in chosen:
        passage = passages[index]
        if passage.url and canonical(passage.url) not in draft.by_url:
            draft.entity(passage.title, passage.url, passage.text[:200])
    for folder in folders:
        _read_files(folder, draft)
    mentions = _mentions(passages, chosen, draft)
    return _finished(draft, mentions, resolution)


def _read_files(folder: Path, draft: _Draft) -> None:
    for row in _rows(folder / "entities.jsonl.gz", ("name",)):
        draft.entity(row["name"], row.get("url") or "", row.get("description") or "")
    for row in _rows(folder / "edges.jsonl.gz", ("source", "relation", "target")):
        ends = [
            draft.by_url[url]
            if (url := canonical(row.get(f"{end}_url") or "")) in draft.by_url
            else draft.entity(row[end])
            for end in ("source", "target")
        ]
        draft.edge(ends[0], row["relation"], ends[1])


def _rows(file: Path, required: Sequence[str]) -> Iterable[dict[str, Any]]:
    if not file.is_file():
        raise DataError(f"retriever.graph_folders: no file {file}")
    line = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line, content in enumerate(lines, start=1):
                row = json.loads(content)
                if lacking := [key for key in required if not row.get(key)]:
                    raise DataError(f"{file}:{line}: {', '.join(lacking)} missing or empty")
                yield row
    except (OSError, EOFError, zlib.error, ValueError, AttributeError) as error:
        raise DataError(f"{file}:{max(line, 1)}: cannot be read: {error}") from error


def _mentions(passages: Sequence[Passage], chosen: Sequence[int], draft: _Draft) -> dict[int, list[int]]:
    """Entity -> passages of its page, that link to it or that name it; links between pages become edges."""
    table: dict[str, dict[tuple[str, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for entity, name in enumerate(draft.names):
        words = _words(name)
        if 1 < len(words) <= MAX_NAME_WORDS or (len(words) == 1 and len(words[0]) > 3):
            table[words[0]][words].append(entity)
    named: dict[int, list[int]] = defaultdict(list)
    certain: dict[int, list[int]] = defaultdict(list)
    for index in chosen:
        passage = passages[index]
        page = draft.by_url.get(canonical(passage.url)) if passage.url else None
        if page is not None:
            certain[page].append(index)
        for url in extract_urls(passage.text):
            target = draft.by_url.get(canonical(url.partition("#")[0]))
            if target is not None and target != page:
                certain[target].append(index)
                if page is not None:
                    draft.edge(page, "links_to", target)
        for entity in _named(_words(passage.text), table):
            named[entity].append(index)
    limit = max(COMMON * len(chosen), 3)
    for entity, found in named.items():
        if len(found) <= limit:
            certain[entity] += found
    return {entity: sorted(set(found)) for entity, found in certain.items()}


def _finished(draft: _Draft, mentions: Mapping[int, list[int]], resolution: float) -> Graph:
    import networkx

    linked = {end for edge in draft.edges for end in edge if mentions.get(edge[0]) or mentions.get(edge[1])}
    kept = [entity for entity in range(len(draft.names)) if mentions.get(entity) or entity in linked]
    new = {entity: number for number, entity in enumerate(kept)}
    edges = sorted((new[a], new[b], r) for (a, b), r in draft.edges.items() if a in new and b in new)
    relation_names = sorted({relation for *_, relation in edges})
    outward: list[list[tuple[int, int]]] = [[] for _ in kept]
    for source, target, relation in edges:
        number = relation_names.index(relation)
        outward[source].append((target, number))
        outward[target].append((source, number))
    network = networkx.Graph()
    network.add_nodes_from(range(len(kept)))
    network.add_edges_from((a, b) for a, b, _ in edges)
    found = networkx.community.louvain_communities(network, seed=0, resolution=resolution) if kept else []
    groups = sorted((sorted(group) for group in found), key=lambda group: group[0])
    communities = np.zeros(len(kept), np.int32)
    for number, group in enumerate(groups):
        communities[group] = number
    names = [draft.names[entity] for entity in kept]
    about = [draft.about[entity] for entity in kept]
    degree = Counter({entity: len(ends) for entity, ends in enumerate(outward)})
    return Graph(
        names=names,
        urls=[draft.urls[entity] for entity in kept],
        about=about,
        relation_names=relation_names,
        summaries=[_summary(group, names, about, degree) for group in groups],
        mention_offsets=_offsets([mentions.get(entity, []) for entity in kept]),
        mentions=np.array([p for entity in kept for p in mentions.get(entity, [])], np.int32),
        edge_offsets=_offsets(outward),
        neighbours=np.array([target for ends in outward for target, _ in ends], np.int32),
        relations=np.array([relation for ends in outward for _, relation in ends], np.int32),
        communities=communities,
    )


def _summary(group: Sequence[int], names: Sequence[str], about: Sequence[str], degree: Mapping[int, int]) -> str:
    """The best-connected members by name, and what the first two are about."""
    members = sorted(group, key=lambda entity: (-degree[entity], entity))[:SUMMARY_MEMBERS]
    told = " ".join(about[entity][:200] for entity in members[:2])
    return f"{', '.join(names[entity] for entity in members)}. {told}".strip()


def _offsets(lists: Sequence[Sequence[Any]]) -> Ints:
    return np.concatenate([[0], np.cumsum([len(each) for each in lists], dtype=np.int64)]).astype(np.int32)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in WORD.findall(text))


def _named(words: Sequence[str], table: Mapping[str, Mapping[tuple[str, ...], list[int]]]) -> list[int]:
    """Entities named in `words`, the longest name at each place, without repeats."""
    found: dict[int, None] = {}
    position = 0
    while position < len(words):
        names = table.get(words[position])
        step = 1
        if names:
            for length in range(min(MAX_NAME_WORDS, len(words) - position), 0, -1):
                entities = names.get(tuple(words[position : position + length]))
                if entities:
                    found.update(dict.fromkeys(entities))
                    step = length
                    break
        position += step
    return list(found)
