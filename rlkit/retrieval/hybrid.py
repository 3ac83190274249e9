"""The retriever kind `hybrid`: words, vectors and a graph, asked with several queries and fused (adqa, §2).

    question ─> queries ─┬─ BM25 ───────────┐
                         ├─ vectors ────────┼─> reciprocal ranks ─> without repeats ─> reranked ─> top_k
    question ────────────┴─ graph (walk) ───┘

All channels search what is indexed once, saved and opened memory-mapped. A channel, rewriter or reranker that fails is
counted and left out; only a search without any channel has failed.

With `log` every query is written down, and the passages that training used most become the graph: those of an earlier
run (`heat_log`), and every `refresh_every` steps those of this one. That is the paper's co-adaptation: the policy is
trained on what the graph finds, and the graph is built of what the policy was given.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlkit.envs.batching import BatchedRetriever, Batching
from rlkit.envs.bm25 import Bm25
from rlkit.errors import DataError
from rlkit.judging import Endpoint
from rlkit.retrieval.dense import DenseIndex
from rlkit.retrieval.embed import EmbedderSettings, make_embedder
from rlkit.retrieval.folders import complete
from rlkit.retrieval.fusion import different, reciprocal_rank_fusion
from rlkit.retrieval.graph import Graph, Walk, build_graph
from rlkit.retrieval.heat import CitationHeat, RetrievalLog, read_log
from rlkit.retrieval.queries import rewritten, variants
from rlkit.retrieval.rerank import CrossEncoder, Reranker, RerankSettings, within_deadline
from rlkit.retriever import IndexReport, Passage, Phase, Retrieval
from rlkit.settings import at_least

__all__ = ["GraphSettings", "Hybrid"]

Channel = Literal["bm25", "dense", "graph"]
CHANNELS: tuple[Channel, ...] = ("bm25", "dense", "graph")
FORMAT = "1"
"""Of the saved index; part of its fingerprint."""


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """How the graph is built and walked."""

    folders: list[str] = field(default_factory=list)
    """Folders with `entities.jsonl.gz` and `edges.jsonl.gz`, beside what the passages' own links say."""
    hops: int = 2
    """Edges from an entity of the query, at most."""
    linked: int = 6
    """Entities that a query is linked to, at most."""
    max_degree: int = 40
    """Edges followed from one entity; one with more is an end after the first hop."""
    max_entities: int = 150
    """Entities of one walk."""
    resolution: float = 1.0
    """Of the communities; higher makes more and smaller ones."""
    share: float = 0.1
    """Part of the corpus that becomes the graph, the most used first; without `heat_log` all of it does."""

    def __post_init__(self) -> None:
        at_least(self, 1, "hops", "linked", "max_degree", "max_entities")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share} is not in (0, 1]")


class Hybrid:
    """Several channels in this process; calls from many trajectories share one batched search."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the retriever kind `hybrid`."""

        channels: list[str] = field(default_factory=lambda: list(CHANNELS))
        """Which of bm25, dense and graph."""
        embedder: EmbedderSettings = field(default_factory=EmbedderSettings)
        """Vectors of the dense channel, of entities and of likeness."""
        graph: GraphSettings = field(default_factory=GraphSettings)
        """The graph channel."""
        rerank: RerankSettings = field(default_factory=RerankSettings)
        """The final order."""
        num_queries: int = 4
        """The question and its variants, together."""
        rewriter: Endpoint | None = None
        """A model that writes the variants; null: rules do."""
        per_list: int = 20
        """Passages of one channel for one query."""
        cache_dir: str | None = None
        """Folder of built indexes, one per fingerprint, opened memory-mapped; null: a temporary one."""
        log: str | None = None
        """File that retrievals are written to, e.g. `${out}/retrieval.jsonl`; null: none."""
        heat_log: str | None = None
        """Log of an earlier run; the passages that it used most become the graph."""
        refresh_every: int = 0
        """Steps after which the graph is built anew from the passages that training used most, by `heat_log` and
        `log`; 0: never."""
        allow_changed_corpus: bool = field(default=False, repr=False)  # not printed: no part of a recipe's fingerprint
        """Go on with a `log` or a checkpoint of another corpus."""
        progress: bool = False
        """Say on stderr what is being built."""
        batching: Batching = field(default_factory=Batching)
        """Batch size, queue and deadline."""

        def __post_init__(self) -> None:
            at_least(self, 1, "num_queries", "per_list")
            at_least(self, 0, "refresh_every")
            unknown = [name for name in self.channels if name not in CHANNELS]
            if unknown or not self.channels:
                raise ValueError(f"channels: {unknown or self.channels} is not among {', '.join(CHANNELS)}")
            if self.refresh_every and (self.log is None or "graph" not in self.channels):
                lacks = "log: null" if self.log is None else f"channels: {self.channels} without graph"
                raise ValueError(f"{lacks}, but refresh_every={self.refresh_every} builds the graph from the log")

    def __init__(self, config: Config, passages: Sequence[Passage], *, reranker: Reranker | None = None) -> None:
        """`reranker` replaces the one of the settings, for tests. Raises `DataError` for an empty or changed corpus."""
        if not passages:
            raise DataError("retriever hybrid: the corpus is empty; the task source came without passages")
        self.config = config
        self.passages = tuple(passages)
        self.counts: Counter[str] = Counter()
        """Events: `queries`, `graph_empty`, `rewrite_failed`, `rerank_timeout`, `rerank_failed`, `<channel>_failed`."""
        self.seconds: Counter[str] = Counter()
        """Time spent by stage."""
        self._rows = {passage.id: row for row, passage in enumerate(self.passages)}
        if len(self._rows) < len(self.passages):
            raise DataError("retriever hybrid: passage ids are not unique, so a log could not name them")
        self._temporary = None if config.cache_dir else tempfile.TemporaryDirectory(prefix="rlkit-index-")
        self._root = Path(config.cache_dir or str(self._temporary and self._temporary.name)).expanduser()
        self.corpus = _fingerprint(self.passages)
        self._words = Bm25(Bm25.Config(cache_dir=str(self._root)), self.passages)
        self._embedder = make_embedder(config.embedder)
        vectors_key = _digest(self.corpus, FORMAT, self._embedder.fingerprint())
        self._open_vectors(complete(self._root / f"vectors-{vectors_key}", self._build_vectors))
        self._graph: Graph | None = None
        self._log: RetrievalLog | None = None
        self._open_graph(self._hottest())
        if config.log:
            self._log = RetrievalLog(
                Path(config.log), corpus=self.corpus, version=self.version, allow_changed=config.allow_changed_corpus
            )
        self._reranker = reranker
        if reranker is None and config.rerank.kind == "model":
            self._reranker = CrossEncoder(config.rerank)
        self._batched = BatchedRetriever(_Blocking(self), config.batching)

    @property
    def graph(self) -> Graph | None:
        """The entities; None without the graph channel."""
        return self._graph

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        """One `Retrieval` per question, in order."""
        return await self._batched.search(queries, top_k)

    def search_now(self, queries: Sequence[str], top_k: int) -> list[Retrieval]:
        """The same without queue and deadline, in the calling thread."""
        return [self._search(question, top_k) if top_k > 0 else Retrieval() for question in queries]

    def walk(self, question: str) -> Walk:
        """What the graph channel does for one question."""
        return self._walk(question, self._embed([question])[0])

    def index_version(self) -> str:
        """`version`."""
        return self.version

    def enter(self, phase: Phase) -> None:
        """Searches from now on are logged as this phase's."""
        if self._log is not None:
            self._log.phase = phase

    def refresh(self) -> IndexReport:
        """The graph anew, over the passages that training used most so far."""
        before = self._kept
        self._open_graph(self._hottest())
        if self._log is not None:
            self._log.use(self.version)
        rows = range(len(self.passages)) if self._kept is None else self._kept
        kept = len(rows) if before is None else len(set(before).intersection(rows))
        return IndexReport(version=self.version, num_passages=len(rows), num_kept=kept)

    def index_state(self) -> dict[str, Any]:
        """Fingerprints, the passages of the graph, and how much of the log there is."""
        kept = None if self._kept is None else [self.passages[row].id for row in self._kept]
        written = 0 if self._log is None else self._log.size()
        return {"corpus": self.corpus, "version": self.version, "kept": kept, "log": written}

    def restore_index(self, state: Mapping[str, Any] | None, *, resume: bool = True) -> None:
        """The graph over the passages of `state`; see `rlkit.retriever.Refreshable`."""
        if self._log is not None and resume:
            heat_log = self.config.heat_log
            if state is not None:
                self._log.cut(state["log"])
            elif heat_log is None or Path(heat_log).resolve() != self._log.path.resolve():
                self._log.cut(0)
        self._open_graph(self._hottest() if state is None else state["kept"])
        if state is not None and state["version"] != self.version and not self.config.allow_changed_corpus:
            what = "the passages" if state["corpus"] != self.corpus else "the files or settings of the graph"
            raise DataError(
                f"retriever: the checkpoint searched index {state['version']}, this one is {self.version}: {what} "
                "changed since; set retriever.allow_changed_corpus=true to go on all the same, or choose another `out`"
            )
        if self._log is not None:
            self._log.use(self.version)

    def _search(self, question: str, top_k: int) -> Retrieval:
        self.counts["queries"] += 1
        queries = self._timed("rewrite", lambda: self._queries(question))
        vectors = self._timed("embed", lambda: self._embed(queries))
        walk = Walk()
        lists: list[list[int]] = []
        failed: list[str] = []
        for channel in self.config.channels:
            try:
                if channel == "bm25":
                    lists += self._timed("bm25", lambda: self._by_words(queries))
                elif channel == "dense":
                    lists += self._timed("dense", lambda: self._by_vectors(vectors))
                else:
                    walk = self._timed("graph", lambda: self._walk(question, vectors[0]))
                    lists.append([passage for passage, _ in walk.reached])
            except Exception as error:  # one channel of several: the others still answer
                self.counts[f"{channel}_failed"] += 1
                failed.append(f"{channel}: {type(error).__name__}: {error}")
        if len(failed) == len(self.config.channels):
            return Retrieval(status=f"failed: {'; '.join(failed)}")
        fused = reciprocal_rank_fusion(lists)
        scores = dict(fused)
        order = different([row for row, _ in fused], self.passages)
        order = self._timed("rerank", lambda: self._reranked(question, vectors[0], order, scores))[:top_k]
        found = tuple(self.passages[row] for row in order)
        if self._log is not None:
            self._log.add(question, [passage.id for passage in found], self._told(walk))
        return Retrieval(passages=found, scores=tuple(scores[row] for row in order))

    def _queries(self, question: str) -> list[str]:
        if self.config.rewriter is None:
            return variants(question, self.config.num_queries)
        queries, problem = rewritten(question, self.config.num_queries, self.config.rewriter)
        self.counts["rewrite_failed"] += bool(problem)
        return queries

    def _embed(self, queries: Sequence[str]) -> NDArray[np.float32]:
        return self._embedder.embed([self.config.embedder.query_prefix + query for query in queries])

    def _by_words(self, queries: Sequence[str]) -> list[list[int]]:
        found = self._words.search_now(queries, self.config.per_list)
        return [[self._rows[passage.id] for passage in each.passages] for each in found]

    def _by_vectors(self, vectors: NDArray[np.float32]) -> list[list[int]]:
        return [[row for row, _ in hits] for hits in self._dense.search(vectors, self.config.per_list)]

    def _walk(self, question: str, vector: NDArray[np.float32]) -> Walk:
        settings, graph = self.config.graph, self._graph
        if graph is None or not len(graph.names):
            self.counts["graph_empty"] += 1
            return Walk()
        linked = graph.named_in(question)[: settings.linked]
        [near] = self._entities.search(vector[None], settings.linked)
        linked += [entity for entity, _ in near if entity not in linked]
        linked = linked[: settings.linked]
        [theme] = self._summaries.search(vector[None], 1)
        if theme:  # the community that the question is about speaks through its best-connected member
            members = np.flatnonzero(graph.communities == theme[0][0])
            degrees = graph.edge_offsets[members + 1] - graph.edge_offsets[members]
            best = int(members[np.argmax(degrees)])
            linked += [best] if best not in linked else []
        return graph.walk(
            linked,
            hops=settings.hops,
            max_degree=settings.max_degree,
            max_entities=settings.max_entities,
            likeness=partial(self._likeness, question, vector),
            top_k=self.config.per_list,
        )

    def _likeness(self, question: str, vector: NDArray[np.float32], rows: Sequence[int]) -> NDArray[np.float64]:
        """[rows] mean of the cosine and of BM25 divided by the corpus's best."""
        cosines = self._dense.scores(vector, rows).astype(np.float64)
        words = self._words.scores(question)
        return (cosines + words[list(rows)] / max(float(words.max()), 1e-9)) / 2

    def _reranked(
        self, question: str, vector: NDArray[np.float32], order: list[int], scores: dict[int, float]
    ) -> list[int]:
        settings = self.config.rerank
        head, tail = order[: settings.candidates], order[settings.candidates :]
        if not head or (settings.kind == "none" and self._reranker is None):
            return order
        if self._reranker is None:
            alike = np.maximum(self._likeness(question, vector, head), 0)
            fused = np.array([scores[row] for row in head])
            found: list[float] | None = list(fused / fused.max() + alike / max(alike.max(), 1e-9))
        else:
            texts = [f"{self.passages[row].title}\n{self.passages[row].text}" for row in head]
            found, problem = within_deadline(self._reranker, question, texts, settings.deadline_s)
            if found is None:
                self.counts[f"rerank_{problem}"] += 1
                return order
        return [row for _, row in sorted(zip(found or (), head, strict=True), key=lambda pair: -pair[0])] + tail

    def _told(self, walk: Walk) -> dict[str, Any] | None:
        """The walk by names, for people: the linked entities, the edges that led to evidence, and where to."""
        if self._graph is None or not walk.linked:
            return None
        graph, leads = self._graph, {entity for _, entity in walk.reached}
        before = {target: (source, relation) for source, relation, target in walk.edges}
        edges: dict[tuple[int, int, int], None] = {}
        for entity in leads:
            while entity in before:
                source, relation = before[entity]
                edges[source, relation, entity] = None
                entity = source
        return {
            "linked": [graph.names[entity] for entity in walk.linked],
            "edges": [[graph.names[a], graph.relation_names[r], graph.names[b]] for a, r, b in edges],
            "reached": [[self.passages[row].id, graph.names[entity]] for row, entity in walk.reached],
        }

    def _hottest(self) -> list[str] | None:
        """Ids of the passages that `heat_log` and this run's log used most; None, so all, where there is neither."""
        logs = [self.config.heat_log] if self.config.heat_log is not None else []
        logs += [str(self._log.path)] if self._log is not None and self._log.size() else []
        if not logs:
            return None
        heat = CitationHeat()
        for log in logs:
            heat.read(read_log(Path(log)))
        return heat.top(self.config.graph.share, list(self._rows))

    def _open_graph(self, kept: Sequence[str] | None) -> None:
        """Walk the graph over these passages from now on, None: over all; built where the cache has none for it."""
        config = self.config
        self._kept: list[int] | None = None
        """Rows of the passages that the graph is built over; None: all."""
        if "graph" not in config.channels:
            self.version = _digest(self.corpus, FORMAT, "")
            return
        if kept is not None:
            self._kept = [self._rows[passage] for passage in kept if passage in self._rows]
        chosen = "all" if self._kept is None else repr([self.passages[row].id for row in self._kept])
        files = [_content(Path(folder).expanduser()) for folder in config.graph.folders]
        self.version = _digest(self.corpus, FORMAT, repr((files, config.graph.resolution)), chosen)
        """Of the index: corpus, files and settings of the graph, and the passages that it is built over."""
        key = _digest(self.version, self._embedder.fingerprint())
        folder = complete(self._root / f"graph-{key}", partial(self._build_graph, self._kept))
        self._graph = Graph.open(folder)
        self._entities = DenseIndex.open(folder / "entities.faiss")
        self._summaries = DenseIndex.open(folder / "summaries.faiss")

    def _build_vectors(self, folder: Path) -> None:
        texts = [f"{passage.title}. {passage.text}" for passage in self.passages]
        self._say(f"fitting vectors to {len(texts)} passages")
        self._embedder.fit(texts)
        self._embedder.save(folder)
        DenseIndex.build(self._embedder.embed(texts, self._progress("passages embedded"))).save(
            folder / "passages.faiss"
        )

    def _open_vectors(self, folder: Path) -> None:
        self._embedder.open(folder)
        self._dense = DenseIndex.open(folder / "passages.faiss")

    def _build_graph(self, kept: list[int] | None, folder: Path) -> None:
        settings = self.config.graph
        self._say(f"building the graph over {len(self.passages) if kept is None else len(kept)} passages")
        folders = [Path(path).expanduser() for path in settings.folders]
        graph = build_graph(self.passages, kept=kept, folders=folders, resolution=settings.resolution)
        self._say(f"graph of {len(graph.names)} entities, {len(graph.summaries)} communities")
        graph.save(folder)
        about = [f"{name}. {text}" for name, text in zip(graph.names, graph.about, strict=True)]
        for name, texts in (("entities", about), ("summaries", list(graph.summaries))):
            vectors = self._embedder.embed(texts or [""], self._progress(f"{name} embedded"))
            DenseIndex.build(vectors[: len(texts)]).save(folder / f"{name}.faiss")

    def _say(self, what: str) -> None:
        if self.config.progress:
            print(f"index: {what}", file=sys.stderr, flush=True)

    def _progress(self, what: str) -> Callable[[int, int], None]:
        shown = [0]

        def show(done: int, total: int) -> None:
            if done == total or done >= shown[0] + total / 10:
                shown[0] = done
                self._say(f"{done}/{total} {what}")

        return show

    def _timed(self, stage: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        try:
            return run()
        finally:
            self.seconds[stage] += time.perf_counter() - start  # type: ignore[assignment]  # Counter of floats


class _Blocking:
    """The index as a retriever that blocks while it computes; `BatchedRetriever` runs it in a thread."""

    def __init__(self, hybrid: Hybrid) -> None:
        self._hybrid = hybrid

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        return self._hybrid.search_now(queries, top_k)


def _fingerprint(passages: Sequence[Passage]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for passage in passages:
        content = f"\0{passage.id}\0{passage.title}\0{passage.url}\0{passage.text}"
        digest.update(content.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _content(folder: Path) -> str:
    """Digest of a folder's graph files; one that is missing is said when the graph is built."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.glob("*.jsonl.gz")):
        if file.name.startswith(("entities", "edges")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
