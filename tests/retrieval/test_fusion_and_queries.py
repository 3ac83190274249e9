"""Fusion by ranks, variants of a question, citation heat and its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.errors import DataError
from rlkit.retrieval.fusion import different, reciprocal_rank_fusion
from rlkit.retrieval.heat import CitationHeat, RetrievalLog, read_log
from rlkit.retrieval.queries import parts, variants
from rlkit.retriever import Passage


def test_reciprocal_ranks_are_the_oracle_of_the_spec() -> None:
    # 0 is 1st and 3rd: 1/61 + 1/63 = 0.032266; 1 is 2nd twice: 2/62 = 0.032258.
    fused = reciprocal_rank_fusion([[0, 1, 2], [3, 1, 0]])
    assert fused[0] == (0, pytest.approx(0.032266, abs=1e-6))
    assert fused[1] == (1, pytest.approx(0.032258, abs=1e-6))


def test_equal_scores_are_ordered_by_item_and_repeats_in_a_list_count_once() -> None:
    assert [item for item, _ in reciprocal_rank_fusion([[5], [2]])] == [2, 5]
    assert reciprocal_rank_fusion([[7, 7]]) == [(7, 1 / 61)]
    assert reciprocal_rank_fusion([]) == []


def test_passages_of_the_same_words_are_one() -> None:
    shelf = [Passage(id=str(i), title="", text=text) for i, text in enumerate(["The Budget.", "budget", "Bids"])]
    assert different([1, 0, 2], shelf) == [1, 2]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("How do I set a budget and what is the minimum bid?", ["How do I set a budget", "what is the minimum bid"]),
        ("What is the difference between Bulk API and Campaign Management?", ["Bulk API", "Campaign Management"]),
        ("How do I set a budget?", []),
        ("What is an ad? How long is review?", ["What is an ad", "How long is review"]),
    ],
)
def test_questions_of_several_parts_are_taken_apart(question: str, found: list[str]) -> None:
    assert parts(question) == found


def test_variants_begin_with_the_question_and_are_all_different() -> None:
    assert variants("How do I set a daily budget?", 4) == ["How do I set a daily budget?", "set daily budget"]
    assert variants("budget", 4) == ["budget"]
    assert len(variants("What is an ad? How long is review? Who pays?", 2)) == 2
    assert variants("???", 4) == ["???"]


def test_heat_counts_queries_and_the_top_is_rounded_up_with_ties_by_id() -> None:
    heat = CitationHeat()
    heat.update("q1", ["b", "b", "a"])
    heat.update("q2", ["b", "c"])
    heat.update("q2", ["b", "d"])  # asked again: its newest evidence
    assert {name: heat.counts[name] for name in "abcd"} == {"a": 1, "b": 2, "c": 0, "d": 1}
    corpus = [*"abcdefghijk"]  # ceil(0.1 · 11) = 2
    assert heat.top(0.1, corpus) == ["b", "a"]
    assert heat.top(1.0, corpus) == ["b", "a", "d"]  # what was never retrieved cannot enter


def test_heat_forgets_what_left_the_window() -> None:
    heat = CitationHeat(window=1)
    heat.update("q1", ["a"])
    heat.update("q2", ["b"])
    assert heat.top(1.0, ["a", "b"]) == ["b"]


def test_a_log_keeps_each_query_once_per_version_also_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "run" / "log.jsonl"
    for _ in range(2):
        log = RetrievalLog(file, corpus="c", version="1")
        log.add("q", ["a"], None)
        log.add("q", ["a"], None)
    RetrievalLog(file, corpus="c", version="2").add("q", ["b"], None)
    assert [line for line in read_log(file) if "query" in line] == [
        {"version": "1", "query": "q", "passages": ["a"], "walk": None},
        {"version": "2", "query": "q", "passages": ["b"], "walk": None},
    ]


def test_a_log_over_another_corpus_is_refused_unless_allowed(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    RetrievalLog(file, corpus="old", version="1")
    with pytest.raises(DataError, match=r"over corpus old, this one is new.*allow_changed_corpus=true"):
        RetrievalLog(file, corpus="new", version="1")
    RetrievalLog(file, corpus="new", version="1", allow_changed=True)
    RetrievalLog(file, corpus="new", version="1")  # the change is on record now


def test_an_unfinished_last_line_ends_the_log_and_nonsense_is_said(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"corpus": "c"}\n{"query": ')
    assert read_log(file) == [{"corpus": "c"}]
    file.write_text("nonsense\n")
    with pytest.raises(DataError, match="is no retrieval log"):
        read_log(file)
