"""The hybrid retriever over a small shelf: its channels, its graph, and what happens when a part fails."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rlkit.errors import DataError
from rlkit.plugins import TABLES, load_object
from rlkit.retrieval.embed import EmbedderSettings
from rlkit.retrieval.graph import build_graph
from rlkit.retrieval.heat import read_log
from rlkit.retrieval.hybrid import GraphSettings, Hybrid
from rlkit.retrieval.rerank import RerankSettings
from rlkit.retriever import Passage

PAGES = {
    "budget": ("Daily budget", "A daily budget limits spending. It belongs to a [campaign](https://a.com/campaign)."),
    "campaign": ("Campaign", "A campaign holds groups of advertisements and has [bids](https://a.com/bid)."),
    "bid": ("Bid strategy", "Automated bidding raises or lowers what is paid for a click."),
    "review": ("Editorial review", "Reviewers check every advertisement within two business days."),
    "pixel": ("Conversion pixel", "A snippet of script that reports purchases."),
    "island": ("Lonely island", "Nobody links here and it links to nobody."),
}
SHELF = [Passage(id=name, title=title, text=text, url=f"https://a.com/{name}") for name, (title, text) in PAGES.items()]
SMALL = EmbedderSettings(dim=4, features=512)


def hybrid(folder: Path, shelf: Sequence[Passage] = SHELF, **settings: object) -> Hybrid:
    reranker = settings.pop("reranker", None)
    config = {"embedder": SMALL, "cache_dir": str(folder / "index"), **settings}
    return Hybrid(Hybrid.Config(**config), shelf, reranker=reranker)  # type: ignore[arg-type]


def found(retriever: Hybrid, question: str, top_k: int = 3) -> list[str]:
    [retrieval] = retriever.search_now([question], top_k)
    assert retrieval.status == "ok"
    return [passage.id for passage in retrieval.passages]


@pytest.mark.parametrize("channels", [["bm25"], ["dense"], ["graph"], ["bm25", "dense", "graph"]])
def test_each_channel_alone_and_all_together_find_the_page(tmp_path: Path, channels: list[str]) -> None:
    retriever = hybrid(tmp_path, channels=channels)
    assert "review" in found(retriever, "Who does the editorial review of my advertisement?", 2)


def test_the_graph_reaches_pages_that_share_no_word_with_the_question(tmp_path: Path) -> None:
    retriever = hybrid(tmp_path, channels=["graph"], graph=GraphSettings(linked=1))
    walk = retriever.walk("daily budget")
    graph = retriever.graph
    assert graph is not None
    edges = [(graph.names[a], graph.relation_names[r], graph.names[b]) for a, r, b in walk.edges]
    assert ("Daily budget", "links_to", "Campaign") in edges
    assert ("Campaign", "links_to", "Bid strategy") in edges  # the second hop
    assert {SHELF[passage].id for passage, _ in walk.reached} >= {"budget", "campaign", "bid"}


def test_hops_are_bounded_and_an_isolated_entity_leads_to_itself_alone(tmp_path: Path) -> None:
    graph = build_graph(SHELF)
    island, budget = graph.names.index("Lonely island"), graph.names.index("Daily budget")

    def near(rows: Sequence[int]) -> np.ndarray:
        return np.ones(len(rows))

    limits = {"max_degree": 9, "max_entities": 99, "likeness": near, "top_k": 9}
    alone = graph.walk([island], hops=2, **limits)  # type: ignore[arg-type]
    assert (alone.edges, [row for row, _ in alone.reached]) == ((), [5])
    one_hop = graph.walk([budget], hops=1, **limits)  # type: ignore[arg-type]
    # Budget's own page first, then campaign's, a tenth lower; bids are two hops away and only named by campaign's page.
    assert [SHELF[row].id for row, _ in one_hop.reached][:2] == ["budget", "campaign"]
    assert graph.communities[island] not in {graph.communities[i] for i in range(len(graph.names)) if i != island}


def test_relations_and_entities_of_files_join_those_of_the_pages(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    rows = {
        "entities": [{"name": "Spending limit", "url": "https://a.com/budget", "description": "Money per day."}],
        "edges": [
            {"source": "Spending limit", "source_url": "https://a.com/budget", "relation": "alias_of", "target": "Cap"}
        ],
    }
    for stem, lines in rows.items():
        with gzip.open(folder / f"{stem}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    graph = build_graph(SHELF, folders=[folder])
    budget = graph.names.index("Spending limit")  # the file's name for the page
    assert "Daily budget" not in graph.names
    assert (graph.relation_names.index("alias_of"), graph.names.index("Cap")) in graph.edges_of(budget)
    with pytest.raises(DataError, match="graph_folders: no file"):
        build_graph(SHELF, folders=[tmp_path])


def test_an_empty_graph_is_a_silent_channel_and_not_a_failure(tmp_path: Path) -> None:
    shelf = [Passage(id=str(n), title="", text=text) for n, text in enumerate(["alpha beta", "gamma delta", "epsilon"])]
    retriever = hybrid(tmp_path, shelf)
    assert retriever.graph is not None and list(retriever.graph.names) == []
    assert found(retriever, "gamma", 1) == ["1"]
    assert retriever.counts["graph_empty"] == 1
    assert retriever.counts["graph_failed"] == 0


def test_only_the_passages_that_were_used_most_become_the_graph(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first = hybrid(tmp_path, log=str(log))
    found(first, "conversion pixel purchases", 1)
    second = hybrid(tmp_path, log=str(log), heat_log=str(log))  # ceil(0.1 · 6) = 1 passage
    assert second.graph is not None and list(second.graph.names) == ["Conversion pixel"]
    assert second.version != first.version
    assert found(second, "editorial review", 1) == ["review"]  # the other channels still search everything
    versions = [line["version"] for line in read_log(log) if "query" in line]
    assert versions == [first.version, second.version]


def test_the_log_tells_the_walk_that_led_to_the_evidence(tmp_path: Path) -> None:
    retriever = hybrid(tmp_path, log=str(tmp_path / "log.jsonl"), graph=GraphSettings(linked=1))
    found(retriever, "daily budget")
    walk = read_log(tmp_path / "log.jsonl")[-1]["walk"]
    assert "Daily budget" in walk["linked"]
    assert ["Daily budget", "links_to", "Campaign"] in walk["edges"]
    assert ["budget", "Daily budget"] in walk["reached"]


def test_a_changed_corpus_is_refused_on_resume_with_a_switch(tmp_path: Path) -> None:
    log = str(tmp_path / "log.jsonl")
    hybrid(tmp_path, log=log)
    changed = [*SHELF[:-1], Passage(id="island", title="Lonely island", text="A bridge was built.")]
    with pytest.raises(DataError, match="the passages changed since the run began"):
        hybrid(tmp_path, changed, log=log)
    hybrid(tmp_path, changed, log=log, allow_changed_corpus=True)


def test_an_index_is_built_once_opened_again_and_a_broken_one_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = hybrid(tmp_path, progress=True)
    assert "6/6 passages embedded" in capsys.readouterr().err
    again = hybrid(tmp_path, progress=True)
    assert capsys.readouterr().err == ""  # nothing was built
    question = "Who reviews advertisements?"
    assert found(first, question) == found(again, question)
    [file] = tmp_path.glob("index/vectors-*/passages.faiss")
    file.write_bytes(b"torn")
    with pytest.raises(DataError, match="broken and was removed; run again"):
        hybrid(tmp_path)
    assert found(hybrid(tmp_path), question) == found(first, question)
    assert not list(tmp_path.rglob("*.pkl"))


class Backwards:
    """Prefers what the others put last."""

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        return [float(rank) for rank, _ in enumerate(texts)]


class Hanging:
    """Answers too late."""

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        time.sleep(0.5)
        return [0.0] * len(texts)


class Broken:
    """Raises."""

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        raise RuntimeError("no weights")


def test_a_reranker_orders_and_one_that_hangs_or_fails_costs_only_its_order(tmp_path: Path) -> None:
    question = "campaign budget bidding review"
    plain = found(hybrid(tmp_path, rerank=RerankSettings(kind="none")), question, 4)
    fast = RerankSettings(kind="none", deadline_s=0.05, candidates=4)
    assert found(hybrid(tmp_path, rerank=fast, reranker=Backwards()), question, 4) == plain[::-1]
    for reranker, event in ((Hanging(), "rerank_timeout"), (Broken(), "rerank_failed")):
        retriever = hybrid(tmp_path, rerank=fast, reranker=reranker)
        assert found(retriever, question, 4) == plain
        assert retriever.counts[event] == 1


def test_a_channel_that_fails_is_counted_and_only_all_of_them_fail_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk")

    retriever = hybrid(tmp_path)
    monkeypatch.setattr(retriever, "_walk", refuse)
    assert found(retriever, "editorial review", 1) == ["review"]
    assert retriever.counts["graph_failed"] == 1
    monkeypatch.setattr(retriever, "_by_words", refuse)
    monkeypatch.setattr(retriever, "_by_vectors", refuse)
    [retrieval] = retriever.search_now(["editorial review"], 1)
    assert retrieval.status.startswith("failed: bm25: OSError: disk")


def test_duplicates_of_one_text_are_given_once(tmp_path: Path) -> None:
    copy = Passage(id="copy", title="Copy", text=PAGES["review"][1], url="https://a.com/copy")
    ids = found(hybrid(tmp_path, [*SHELF, copy]), "Reviewers check every advertisement", 6)
    assert len({"review", "copy"} & set(ids)) == 1


def test_searches_of_many_callers_share_the_index(tmp_path: Path) -> None:
    retriever = hybrid(tmp_path)

    async def ask() -> list[str]:
        results = await asyncio.gather(*(retriever.search([title], 1) for title, _ in PAGES.values()))
        return [result[0].passages[0].id for result in results]

    assert asyncio.run(ask()) == list(PAGES)


def test_odd_queries_are_answered_and_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    retriever = hybrid(tmp_path)
    for question in ("", "???", "https://a.com " * 200, "中文", "\ud800"):
        assert retriever.search_now([question], 2)[0].status == "ok"
    assert retriever.search_now(["budget"], 0)[0].passages == ()
    with pytest.raises(DataError, match="the corpus is empty"):
        hybrid(tmp_path, [])
    with pytest.raises(DataError, match="ids are not unique"):
        hybrid(tmp_path, [SHELF[0], SHELF[0]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": ["sparse"]}, r"channels: \['sparse'\] is not among bm25, dense, graph"),
        ({"channels": []}, "channels"),
        ({"num_queries": 0}, "num_queries: 0 is below 1"),
    ],
)
def test_bad_settings_name_themselves(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hybrid.Config(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"share: 0 is not in \(0, 1\]"):
        GraphSettings(share=0)
    with pytest.raises(ValueError, match="kind=model needs one"):
        EmbedderSettings(kind="model", path="/nowhere")


def test_the_kind_is_in_the_table() -> None:
    assert load_object(TABLES["retrievers"]["hybrid"]) is Hybrid


def test_pages_that_link_to_each_other_are_a_community_that_speaks_through_its_best_connected_member(
    tmp_path: Path,
) -> None:
    def link(name: str) -> str:
        return f"[{name}](https://a.com/{name})"

    texts = {
        "billing": "Money leaves an account here.",
        "invoice": f"An invoice is sent by {link('billing')}.",
        "refund": f"A refund follows an {link('invoice')} and {link('billing')}.",
        "card": f"A card is charged by {link('billing')}.",
        "creative": "Pictures and words are shown here.",
        "image": f"An image belongs to a {link('creative')}.",
        "video": f"A video belongs to a {link('creative')} and begins with an {link('image')}.",
        "headline": f"A headline belongs to a {link('creative')}.",
    }
    shelf = [Passage(id=n, title=n.title(), text=text, url=f"https://a.com/{n}") for n, text in texts.items()]
    graph = build_graph(shelf)
    assert graph.names == [name.title() for name in texts]
    assert list(graph.communities) == [0, 0, 0, 0, 1, 1, 1, 1]
    # Three neighbours, then two, two and one; then what the first two are about.
    assert graph.summaries[0].startswith("Billing, Invoice, Refund, Card. Money leaves an account here. An invoice")
    assert graph.summaries[1].startswith("Creative, Image, Video, Headline. Pictures and words are shown here.")
    retriever = hybrid(tmp_path, shelf, channels=["graph"], graph=GraphSettings(linked=1, hops=1))
    # It names the headline alone; its community's hub comes along, and with it the pages around the hub.
    reached = {shelf[passage].id for passage, _ in retriever.walk("headline").reached}
    assert reached >= {"headline", "creative", "image", "video"}
