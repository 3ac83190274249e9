"""Documentation pages in passages and questions with references, from files made here; real ones if they are there."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.data.chunks import absolute_links, chunks, with_urls
from rlkit.data.docs_qa import DECLINED, DocsQa, counterfactual
from rlkit.errors import DataError
from rlkit.evidence.urls import extract_urls
from rlkit.records import Task

DATA = Path(os.environ.get("RLKIT_DATA", "")) / "docs_qa"
PAGE = {
    "id": "p",
    "url": "https://a.com/p",
    "title": "Budgets",
    "text": "# Budgets\nSee [ads](ads.md) and ![x](x.png).\n\n## Daily\nAt least 5 dollars.",
    "links": [{"anchor": "ads", "url": "https://a.com/ads"}],
}
QUESTION = {
    "id": "q0",
    "question": " How much? ",
    "answer": "See the docs.",
    "answer_markdown": "See the [docs](docs.md) or [more](gone.md).",
    "citations": [{"anchor": "docs", "url": "https://a.com/docs"}],
    "cited_pages": ["https://a.com/docs"],
    "from_faq_page": False,
    "page_url": "https://a.com/p#daily",
}


def write(root: Path, folder: str, **files: list[Any]) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, rows in files.items():
        with gzip.open(root / folder / f"{stem}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def source(root: Path, **config: Any) -> DocsQa:
    return DocsQa(DocsQa.Config(path=str(root), **{"corpora": ["ads"], **config}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    questions = [QUESTION | {"id": f"q{number}"} for number in range(40)]
    write(tmp_path, "ads", pages=[PAGE], qa_train=questions, qa_test_public=[QUESTION | {"id": "t"}])
    write(tmp_path, "other", qa_train=[{"id": f"u{n}", "question": "Who?"} for n in range(40)], qa_test_public=[])
    return tmp_path


def test_pages_become_passages_with_absolute_links_under_their_headings(root: Path) -> None:
    first, second = source(root, chunk_words=16).passages()
    assert (first.id, first.title, first.url) == ("p#0", "Budgets", "https://a.com/p")
    assert first.text == "# Budgets\nSee [ads](https://a.com/ads) and x."
    assert (second.id, second.title, second.text) == ("p#1", "Budgets: Daily", "## Daily\nAt least 5 dollars.")


def test_references_keep_their_links_as_plain_urls_and_lose_those_that_nobody_knows(root: Path) -> None:
    [task] = source(root).tasks("test")
    assert task.question == "How much?"
    assert task.answers == ("See the docs (https://a.com/docs) or more.",)
    assert task.data["pages"] == ["https://a.com/docs", "https://a.com/p"]
    assert task.data["citations"] == ["https://a.com/docs"]


def test_a_reference_may_cite_the_page_that_holds_the_answer_and_nothing_else(tmp_path: Path) -> None:
    linked = {"answer": "Five dollars.", "answer_markdown": "[Five](https://x.com) dollars."}
    rows = [
        {"id": "q", "question": "?", "cited_pages": ["https://a.com/p"], **linked},
        {"id": "r", "question": "?", **linked},
    ]
    write(tmp_path, "ads", qa_test_public=rows)
    published, without = source(tmp_path).tasks("test")
    assert published.answers == without.answers == ("Five (https://x.com) dollars.",)
    [grounded] = source(tmp_path, cite="page", grounded=True).tasks("test")  # the other one has no page
    assert (grounded.id, grounded.answers) == ("q", ("Five dollars. See https://a.com/p.",))


def test_a_long_reference_may_be_cut_after_whole_sentences(tmp_path: Path) -> None:
    answer = "One two three. Four five!\n\n- Six seven eight\n- Nine"
    write(tmp_path, "ads", qa_test_public=[{"id": "q", "question": "?", "answer": answer}])

    def reference(**config: Any) -> str:
        return source(tmp_path, **config).tasks("test")[0].answers[0]

    assert reference() == answer
    assert reference(reference_words=1) == "One two three."  # at least one
    assert reference(reference_words=5) == "One two three. Four five!"
    assert reference(reference_words=9) == "One two three. Four five!\n\n- Six seven eight"  # the dash is a word


def test_train_and_dev_share_no_question_and_lose_none(root: Path) -> None:
    train, dev = ({task.id for task in source(root).tasks(split)} for split in ("train", "dev"))
    assert train and dev and not train & dev
    assert len(train | dev) == 40
    assert len(source(root, limit=3).tasks("train")) == 3


def test_questions_without_their_pages_are_declined_in_the_reference(root: Path) -> None:
    tasks = source(root, unanswerable=["other"], num_unanswerable=2).tasks("train")
    asked = [task for task in tasks if task.data["unanswerable"]]
    assert len(asked) == 2
    assert {task.answers for task in asked} == {(DECLINED,)}


def test_a_number_of_answer_and_pages_is_another_one_in_a_counterfactual_question() -> None:
    task = Task(id="q", question="How much?", answers=("You pay 5 dollars, see https://a.com/5.",), data={"pages": []})
    turned = counterfactual(task, "At least 5 dollars. Not 12.")
    # crc32(b"q") % 9 is 8, so 5 + 1 + 8 = 14: neither in the reference nor in the evidence
    assert turned is not None
    assert (turned.id, turned.question) == ("q~counterfactual", "How much?")
    assert turned.answers == ("You pay 14 dollars, see https://a.com/5.",)
    assert turned.data == {"pages": [], "counterfactual": True, "replace": {"5": "14"}}
    taken = counterfactual(task, "At least 5 dollars. Not 14.")
    assert taken is not None and taken.data["replace"] == {"5": "15"}
    assert counterfactual(task, "At least five dollars.") is None  # nothing in the evidence to turn


def test_without_a_number_a_word_is_turned_into_its_opposite() -> None:
    task = Task(id="q", question="?", answers=("Dynamics 365 does it automatically.",))
    turned = counterfactual(task, "Automatically, in Dynamics 365.")
    assert turned is not None and turned.answers == ("Dynamics 365 does it manually.",)
    assert turned.data["replace"] == {"automatically": "manually", "Automatically": "Manually"}
    both = Task(id="q", question="?", answers=("Done automatically, not manually.",))
    assert counterfactual(both, "Automatically.") is None  # it would contradict itself


def test_counterfactual_questions_are_for_evaluation_alone(tmp_path: Path) -> None:
    row = QUESTION | {"answer_markdown": "", "answer": "At least 5 dollars."}
    pages = [PAGE | {"url": "https://a.com/docs"}]
    write(tmp_path, "ads", pages=pages, qa_train=[row | {"id": f"q{n}"} for n in range(40)], qa_test_public=[row])
    made = source(tmp_path, num_counterfactual=2)
    turned = [task for task in made.tasks("dev") if task.data.get("counterfactual")]
    assert len(turned) == 2 and made.tasks("dev")[-2:] == turned
    assert len(made.tasks("test")) == 2
    assert not any(task.data.get("counterfactual") for task in made.tasks("train"))
    assert made.tasks("dev") == source(tmp_path, num_counterfactual=2).tasks("dev")


def test_a_page_without_url_can_be_read_and_one_without_text_has_no_passage(tmp_path: Path) -> None:
    write(tmp_path, "ads", pages=[{"id": "a", "text": "Read me."}, {"id": "b", "url": "https://a.com", "text": ""}])
    [passage] = source(tmp_path).passages()
    assert (passage.url, passage.title, passage.text) == ("", "a", "Read me.")


def test_what_is_wrong_with_the_files_is_said_with_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="path: no folder"):
        source(tmp_path / "nowhere").passages()
    write(tmp_path, "adz", qa_train=[QUESTION])
    with pytest.raises(DataError, match=r"no file .*; did you mean 'adz'"):
        source(tmp_path).tasks("train")
    write(tmp_path, "ads", pages=[PAGE, "{broken"], qa_train=[{"id": "q"}])
    with pytest.raises(DataError, match=r"pages.jsonl.gz:2: cannot be read"):
        source(tmp_path).passages()
    with pytest.raises(DataError, match=r"qa_train.jsonl.gz:1: question missing"):
        source(tmp_path).tasks("train")
    with pytest.raises(DataError, match="unknown split 'tset'; did you mean 'test'"):
        source(tmp_path).tasks("tset")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="name a folder twice"):
        DocsQa.Config(path="x", corpora=["a"], unanswerable=["a"])
    with pytest.raises(ValueError, match="corpora: is empty"):
        DocsQa.Config(path="x", corpora=[])


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["word", "https://a.com/x", "\n", "\n## Head\n", "(https://b.org/y)"]), max_size=80))
def test_passages_hold_every_word_and_cut_no_url(words: list[str]) -> None:
    text = " ".join(words)
    found = list(chunks(page="p", title="T", url="", text=text, words=16))
    assert " ".join(passage.text for passage in found).split() == text.split()
    assert {url for passage in found for url in extract_urls(passage.text)} == set(extract_urls(text))
    assert all(len(passage.text.split()) <= 16 + 2 for passage in found)
    assert len({passage.id for passage in found}) == len(found)


def test_links_of_markdown_are_read_with_brackets_and_titles() -> None:
    assert with_urls('[a](https://x.com/y_(z) "t") [b](rel.md)') == "a (https://x.com/y_(z)) b"
    assert absolute_links("[a](b.md)", {"a": ""}) == "a"


@pytest.mark.skipif(not DATA.is_dir(), reason="RLKIT_DATA names no folder with docs_qa")
def test_the_published_data_have_tasks_and_pages() -> None:
    docs = DocsQa(DocsQa.Config(path=str(DATA), corpora=["customer_insights"], unanswerable=["covid_faq"]))
    assert len(docs.tasks("test")) == 33 + 16
    pages = {passage.url for passage in docs.passages()}
    assert len(pages) == 457
    asked = [task for task in docs.tasks("test") if task.data["pages"]]
    assert asked and all(set(task.data["pages"]) <= pages for task in asked)
