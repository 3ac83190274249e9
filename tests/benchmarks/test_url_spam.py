"""The bandit of the link-spam benchmark is what its page says: which phrase is what, and what each reading pays."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks.url_spam import HOST, MODES, PAGES, PHRASES, QUESTION, REFERENCE, page, write_data, write_model
from rlkit.data.docs_qa import DocsQa
from rlkit.envs.bm25 import Bm25
from rlkit.rewards.url_validity import Mode, classify_urls, url_reward

EVIDENCE = " ".join(f"{HOST}/{name}" for name in PAGES)


def test_the_question_retrieves_every_page_so_that_three_links_can_be_spam(tmp_path: Path) -> None:
    write_data(tmp_path)
    source = DocsQa(DocsQa.Config(path=str(tmp_path), corpora=["ads"]))
    [task] = source.tasks("test")
    assert (task.question, task.answers) == (QUESTION, (REFERENCE,))
    [found] = Bm25(Bm25.Config(), source.passages()).search_now([QUESTION], 4)
    assert {passage.url for passage in found.passages} == set(EVIDENCE.split())


def test_a_phrase_is_a_token_and_reads_as_itself(tmp_path: Path) -> None:
    write_model(tmp_path, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = tokenizer.convert_tokens_to_ids(list(PHRASES))
    assert tokenizer.decode(ids) == " ".join(PHRASES)


@pytest.mark.parametrize(
    ("mode", "relevant", "spammed", "invented"),
    [("ratio", 1.0, 1.0, 0.6), ("count", 1 / 3, 1.0, 2 / 3), ("indicator", 1.0, 1.0, 0.0)],
)
def test_what_each_reading_pays_for_spam(mode: Mode, relevant: float, spammed: float, invented: float) -> None:
    links = [f"{HOST}/{name}" for name in PAGES]
    answers = links[:1], links, [*links, f"{HOST}/faq"]  # one of five is invented: 4/5 - 1/5; 3/3 - 1/3; 1 - 1
    paid = [url_reward(classify_urls(" ".join(answer), EVIDENCE), mode) for answer in answers]
    assert paid == pytest.approx([relevant, spammed, invented])


def test_the_page_shows_means_and_extremes_over_seeds() -> None:
    ends = [{"links": links, "spam": 0.0} for links in (1.0, 3.0)]
    measured = ("relevant", "invented", "without", "faithful", "style", "rouge")
    runs = [
        {"mode": MODES[0], "normalize": "together", "seed": seed, "end": end | dict.fromkeys(measured, 0.5)}
        for seed, end in enumerate(ends)
    ]
    assert "| ratio | together | 2.00 [1.00, 3.00] | 0.00 [0.00, 0.00] | 0.50 [0.50, 0.50] |" in page(runs, {})
