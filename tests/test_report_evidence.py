"""The report's picture of an answer's URLs and of the walk that found its evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rlkit.report.evidence import Evidence, answer_parts, read_evidence, walk_of
from tests.rewards.paths import path

WALK = {
    "linked": ["Budget"],
    "edges": [["Budget", "links_to", "Campaign"], ["Campaign", "links_to", "Bid"]],
    "reached": [["budget#0", "Budget"], ["bid#0", "Bid"]],
}


def test_every_url_of_an_answer_is_coloured_by_its_verdict() -> None:
    about = Evidence(
        pool=("https://ok.com",),
        statuses={"https://ok.com/live": 301, "https://ok.com/dead": 404, "https://x.com": 200},
    )
    urls = ["https://a.com/1", "https://ok.com/live", "https://ok.com/dead", "https://ok.com/new", "https://x.com"]
    answer = f"See {', '.join(urls)}."
    shown = path("e:<information>https://a.com/1</information>", "m:x", answer=answer)
    parts = answer_parts(shown, about)
    assert parts is not None
    assert "".join(text for text, _ in parts) == answer
    assert [verdict for _, verdict in parts if verdict] == ["evidence", "alive", "invented", "unchecked", "invented"]
    assert answer_parts(path("m:x", answer="No link."), about) is None
    assert answer_parts(path("m:x"), about) is None


def test_the_walk_is_laid_out_by_distance_and_marks_what_was_used() -> None:
    about = Evidence(walks={"How?": {"query": "How?", "version": "v", "passages": ["bid#0"], "walk": WALK}})
    assert walk_of("How?", about) == {
        "entities": [["Budget", 0], ["Campaign", 1], ["Bid", 2]],
        "edges": [("Campaign", "links_to", "Bid"), ("Budget", "links_to", "Campaign")],
        "passages": [["bid#0", "Bid", True], ["budget#0", "Budget", False]],
        "version": "v",
    }
    assert walk_of("Why?", about) is None


@pytest.mark.parametrize(
    "walk", [None, {}, {"linked": 3}, {**WALK, "edges": [["a"]]}, {**WALK, "edges": [["a", "r", "a"]]}]
)
def test_a_damaged_walk_is_no_picture_and_no_error(walk: object) -> None:
    found = walk_of("q", Evidence(walks={"q": {"query": "q", "passages": [], "walk": walk}}))
    assert found is None or found["entities"]


def test_what_a_run_left_behind_is_read_and_what_is_missing_is_not_needed(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read_evidence(tmp_path, notes) == Evidence()
    (tmp_path / "web.json").write_text(json.dumps({"https://OK.com/x/": 200}))
    (tmp_path / "cache.jsonl").write_text('["https://ok.com/y", null]\n')
    reward = {
        "kind": "url_validity",
        "pool": ["https://ok.com"],
        "table": str(tmp_path / "web.json"),
        "cache_file": str(tmp_path / "cache.jsonl"),
        "evidence_tag": "info",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"rewards": [{"kind": "style"}, reward]}))
    (tmp_path / "retrieval.jsonl").write_text('{"corpus": "c"}\n{"query": "q", "walk": null}\nnonsense\n')
    about = read_evidence(tmp_path, notes)
    assert (about.pool, about.tag) == (("https://ok.com",), "info")
    assert about.statuses == {"https://ok.com/x": 200, "https://ok.com/y": None}
    assert list(about.walks) == ["q"]
    assert notes == ["retrieval.jsonl has a line that cannot be read."]
    (tmp_path / "web.json").write_text("[")
    assert read_evidence(tmp_path, notes).statuses == {}
    assert any("Statuses of URLs are unreadable" in note for note in notes)
