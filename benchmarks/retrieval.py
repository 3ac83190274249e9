"""Recall and latency of the retrieval channels on documentation questions whose answers cite pages.

    RLKIT_DATA=DATA python -m benchmarks.retrieval         writes benchmarks/results/retrieval.{json,md}, three minutes

A question's gold pages are those that its answer cites, and the page itself where the question is one of its headings.
recall@k is the share of them among the pages of the first k passages, averaged over questions; the interval is a
bootstrap over questions. The hot tenth is chosen by what training questions retrieved, and measured on test questions.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from rlkit.data.docs_qa import DocsQa
from rlkit.metrics import bootstrap_mean
from rlkit.records import Task
from rlkit.retrieval.embed import EmbedderSettings
from rlkit.retrieval.hybrid import GraphSettings, Hybrid
from rlkit.retrieval.rerank import RerankSettings

RESULTS = Path(__file__).parent / "results"
KS = (5, 10, 20)
CORPORA = ["microsoft_ads", "customer_insights", "prebid"]
LIKENESS = RerankSettings(kind="similarity")


def recalls(retriever: Hybrid, tasks: Sequence[Task]) -> tuple[dict[int, list[float]], list[float]]:
    """recall@k of each question for every k of `KS`, and its seconds."""
    found: dict[int, list[float]] = {k: [] for k in KS}
    seconds = []
    for task in tasks:
        start = time.perf_counter()
        [retrieval] = retriever.search_now([task.question], max(KS))
        seconds.append(time.perf_counter() - start)
        assert retrieval.status == "ok", retrieval.status
        gold = set(task.data["pages"])
        for k in KS:
            pages = {passage.url for passage in retrieval.passages[:k]}
            found[k].append(len(gold & pages) / len(gold))
    return found, seconds


def main() -> None:
    """Build the index, measure every system, write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=f"{os.environ.get('RLKIT_DATA', 'data')}/docs_qa", help="folder of docs_qa")
    parser.add_argument("--corpora", nargs="+", default=CORPORA)
    parser.add_argument("--embedder", default="", help="folder of a sentence-embedding model; without it LSA")
    parser.add_argument("--name", default="retrieval", help="of the two files in benchmarks/results")
    arguments = parser.parse_args()
    source = DocsQa(DocsQa.Config(path=arguments.data, corpora=arguments.corpora))
    passages = source.passages()
    asked = {split: [t for t in source.tasks(split) if t.data["pages"]] for split in ("train", "dev", "test")}
    everything = [task for tasks in asked.values() for task in tasks]
    embedder = EmbedderSettings(kind="model", path=arguments.embedder) if arguments.embedder else EmbedderSettings()
    graph = GraphSettings(folders=[f"{arguments.data}/{corpus}" for corpus in arguments.corpora])
    with tempfile.TemporaryDirectory() as folder:
        base = Hybrid.Config(cache_dir=folder, embedder=embedder, graph=graph)
        log = f"{folder}/log.jsonl"
        start = time.perf_counter()
        recalls(Hybrid(replace(base, log=log), passages), asked["train"] + asked["dev"])
        built_s = time.perf_counter() - start
        start = time.perf_counter()
        Hybrid(base, passages)
        opened_s = time.perf_counter() - start
        systems = {
            "words": replace(base, channels=["bm25"]),
            "vectors": replace(base, channels=["dense"]),
            "classic: words and vectors": replace(base, channels=["bm25", "dense"]),
            "graph": replace(base, channels=["graph"]),
            "both": base,
            "both, one query": replace(base, num_queries=1),
            "classic, reranked by likeness": replace(base, channels=["bm25", "dense"], rerank=LIKENESS),
            "both, reranked by likeness": replace(base, rerank=LIKENESS),
            "both, graph of the hot tenth": replace(base, heat_log=log),
        }
        rows = [measured(name, Hybrid(config, passages), everything, asked["test"]) for name, config in systems.items()]
    facts = machine(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))) | {
        "passages": len(passages),
        "questions": f"{len(everything)} with gold pages, {len(asked['test'])} of them test",
        "embedder": Path(arguments.embedder).name or "lsa, 256 dimensions",
        "index_built_s": round(built_s, 1),
        "index_opened_s": round(opened_s, 2),
        "command": f"python -m benchmarks.retrieval --corpora {' '.join(arguments.corpora)}",
    }
    write(arguments.name, rows, facts)


def measured(name: str, retriever: Hybrid, tasks: Sequence[Task], test: Sequence[Task]) -> dict[str, Any]:
    """One row: recalls with intervals, and latency."""
    found, seconds = recalls(retriever, tasks)
    held_out, _ = recalls(retriever, test)
    row: dict[str, Any] = {"system": name}
    for k in KS:
        low, high = bootstrap_mean(found[k])
        row[f"recall@{k}"] = [float(np.mean(found[k])), low, high]
    row["test recall@10"] = [float(np.mean(held_out[10])), *bootstrap_mean(held_out[10])]
    row["ms_median"], row["ms_p95"] = (float(np.quantile(seconds, q) * 1000) for q in (0.5, 0.95))
    row["ms_by_stage"] = {
        stage: 1000 * total / retriever.counts["queries"] for stage, total in retriever.seconds.items()
    }
    print(json.dumps(row), flush=True)
    return row


def write(name: str, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """`results/NAME.json` and `results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    columns = [f"recall@{k}" for k in KS] + ["test recall@10"]
    lines = [
        "# Retrieval: words, vectors, graph and all of them",
        "",
        "Share of the gold pages among the first k passages, 95 % intervals over questions; milliseconds of one",
        "question in one thread, index opened memory-mapped (benchmarks/retrieval.py).",
        "",
        f"| channels | {' | '.join(columns)} | ms, median | ms, 95 % |",
        f"| --- |{' ---: |' * (len(columns) + 2)}",
    ]
    for row in rows:
        cells = [f"{mean:.3f} [{low:.2f}, {high:.2f}]" for mean, low, high in (row[column] for column in columns)]
        lines.append(f"| {row['system']} | {' | '.join(cells)} | {row['ms_median']:.0f} | {row['ms_p95']:.0f} |")
    lines += ["", *(f"- {key}: {fact}" for key, fact in facts.items())]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
