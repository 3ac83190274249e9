"""Questions about documentation whose answers cite pages: advertising products, and others of the same layout.

Layout of the folder, one JSON object per line of each file:

    microsoft_ads/  customer_insights/  prebid/   qa_train qa_test_public pages entities edges  .jsonl.gz
    aws/                                          qa_train qa_test_public pages                 .jsonl.gz
    covid_faq/                                    qa_train qa_test_public                       .jsonl.gz

`test` is the published part of the test questions, `dev` a fifth of the training questions, chosen by their ids.
Questions of folders named in `unanswerable` are asked without their pages: the reference answer declines.

Counterfactual questions are made of answerable ones: a number of the answer, or a word that has an opposite, which its
pages hold too, is another one in the reference and, by `task.data["replace"]`, in the evidence that is shown. Only an
answer that follows the evidence is right (FaithEval, Ming et al. 2025, arXiv:2410.03727). For `dev` and `test` only.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlkit.data.chunks import absolute_links, chunks, with_urls
from rlkit.errors import DataError, nearest
from rlkit.records import Task
from rlkit.retriever import Passage
from rlkit.settings import at_least
from rlkit.text import replaced

__all__ = ["DECLINED", "DocsQa", "counterfactual"]

SPLITS = {"train": "qa_train", "dev": "qa_train", "test": "qa_test_public"}
DECLINED = "The documentation does not contain an answer to this question."
"""Reference answer of a question without one."""
NUMBER = re.compile(r"(?<!\S)\(?[a-z]+[,;:]? \(?(\d{1,4})(?![\w/=&?%#@~+-]|[.,:]\w)")
"""After a word in lower case: neither the number of a list's item nor that of a product (Dynamics 365)."""
SENTENCE = re.compile(r"(?<=[.!?]\s)(?=\S)|(?<=\n)")
"""Where a sentence or a line begins; splitting there loses nothing."""
OPPOSITES = (
    ("required", "optional"),
    ("automatically", "manually"),
    ("enabled", "disabled"),
    ("minimum", "maximum"),
    ("increase", "decrease"),
    ("daily", "monthly"),
    ("public", "private"),
    ("mandatory", "forbidden"),
    ("supported", "unsupported"),
)
"""Words of which a counterfactual question turns the first that it finds; each stands for the other."""
DEV_SHARE = 5
"""One in so many training questions is held out."""


class DocsQa:
    """The task source kind `docs_qa`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the task source `docs_qa`."""

        path: str
        """Folder of the layout above."""
        corpora: list[str] = field(default_factory=lambda: ["microsoft_ads", "customer_insights", "prebid"])
        """Folders with questions and pages, in this order."""
        unanswerable: list[str] = field(default_factory=list)
        """Folders whose questions are asked although their pages are not there."""
        num_unanswerable: int = 16
        """At most so many of these per split, from the front."""
        num_counterfactual: int = 0
        """At most so many counterfactual questions in `dev` and in `test`, from the front."""
        grounded: bool = False
        """Only questions whose answer cites or lies on one of the pages; other answers have no evidence here."""
        cite: Literal["published", "page"] = "published"
        """URLs of a reference: those that were published, or only that of the first page that holds the answer."""
        reference_words: int | None = None
        """Only the first sentences of a reference, whole, up to so many words and at least one; null: all of it."""
        chunk_words: int = 160
        """Words of a passage, at most; about 250 tokens."""
        limit: int | None = None
        """At most so many questions of each folder and split, from the front; null: all."""

        def __post_init__(self) -> None:
            at_least(self, 1, "limit", "reference_words")
            at_least(self, 0, "num_unanswerable", "num_counterfactual")
            at_least(self, 16, "chunk_words")
            if not self.corpora:
                raise ValueError("corpora: is empty; name folders such as microsoft_ads")
            both = set(self.corpora) & set(self.unanswerable)
            if both or len(set(self.corpora)) < len(self.corpora):
                raise ValueError(f"corpora: {self.corpora} and unanswerable: {self.unanswerable} name a folder twice")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = Path(config.path).expanduser()

    def tasks(self, split: str) -> Sequence[Task]:
        """The questions of `train`, `dev` or `test`, folder by folder in file order."""
        if split not in SPLITS:
            raise DataError(f"task docs_qa: unknown split {split!r}{nearest(split, SPLITS)}")
        found = [task for folder in self.config.corpora for task in self._tasks(folder, split, self.config.limit)]
        turned = self._turned(found) if split != "train" and self.config.num_counterfactual else []
        for folder in self.config.unanswerable:
            found += self._tasks(folder, split, self.config.num_unanswerable, answerable=False)
        return found + turned

    def passages(self) -> Sequence[Passage]:
        """All pages in passages; a page without URL can be read but not cited, one without text has none."""
        return self._passages

    @cached_property
    def _passages(self) -> tuple[Passage, ...]:
        return tuple(
            passage
            for folder in self.config.corpora
            for row in self._rows(folder, "pages", ("id",))
            for passage in chunks(
                page=row["id"],
                title=row.get("title") or row["id"],
                url=row.get("url") or "",
                text=absolute_links(row.get("text") or "", _anchors(row.get("links"))),
                words=self.config.chunk_words,
            )
        )

    def _tasks(self, folder: str, split: str, limit: int | None, *, answerable: bool = True) -> list[Task]:
        rows = list(self._rows(folder, SPLITS[split], ("id", "question")))
        if split != "test":
            rows = [row for row in rows if (zlib.crc32(row["id"].encode()) % DEV_SHARE == 0) == (split == "dev")]
        tasks = [self._task(folder, row, answerable) for row in rows]
        if answerable and self.config.grounded:
            tasks = [task for task in tasks if task.data["pages"]]
        return tasks[:limit]

    def _turned(self, tasks: Sequence[Task]) -> list[Task]:
        """The counterfactual questions of these."""
        texts: dict[str, list[str]] = {}
        for passage in self._passages:
            texts.setdefault(passage.url, []).append(passage.text)
        made = (
            counterfactual(task, "\n".join(text for page in task.data["pages"] for text in texts.get(page, ())))
            for task in tasks
        )
        return [task for task in made if task is not None][: self.config.num_counterfactual]

    def _task(self, folder: str, row: Mapping[str, Any], answerable: bool) -> Task:
        pages = [str(url).partition("#")[0] for url in row.get("cited_pages") or ()]
        if row.get("from_faq_page") is False and row.get("page_url"):
            pages.append(row["page_url"].partition("#")[0])  # the answer is a section of this page
        data: dict[str, Any] = {"corpus": folder, "unanswerable": not answerable, "pages": list(dict.fromkeys(pages))}
        reference = DECLINED
        if answerable:
            cited = _anchors(row.get("citations"))
            written = absolute_links(row.get("answer_markdown") or row["answer"], cited)
            data["citations"] = list(dict.fromkeys(cited.values()))
            if self.config.cite == "published":
                reference = self._begun(with_urls(written))
            else:
                reference = " ".join([self._begun(row["answer"]), *(f"See {page}." for page in pages[:1])])
        return Task(id=row["id"], question=row["question"].strip(), answers=(reference,), data=data)

    def _begun(self, reference: str) -> str:
        """As much of a reference as is wanted."""
        limit = self.config.reference_words
        if limit is None:
            return reference.strip()
        kept: list[str] = []
        for sentence in SENTENCE.split(reference.strip()):
            if kept and sum(len(part.split()) for part in [*kept, sentence]) > limit:
                break
            kept.append(sentence)
        return "".join(kept).strip()

    def _rows(self, folder: str, stem: str, required: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The objects of one file; whatever is wrong with it becomes a `DataError` with file and line."""
        file = self.root / folder / f"{stem}.jsonl.gz"
        if not file.is_file():
            folders = [found.parent.name for found in self.root.glob("*/qa_train.jsonl.gz")]
            where = f"no file {file}" if self.root.is_dir() else f"path: no folder {self.root}"
            raise DataError(f"task docs_qa: {where}{nearest(folder, folders)}")
        line = 0
        try:
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                for line, content in enumerate(lines, start=1):
                    row = json.loads(content)
                    if lacking := [key for key in required if not row.get(key)]:
                        raise DataError(f"{file}:{line}: {', '.join(lacking)} missing or empty")
                    yield row
        except (OSError, EOFError, zlib.error, ValueError, AttributeError, KeyError) as error:
            raise DataError(f"{file}:{max(line, 1)}: cannot be read: {error}") from error


def counterfactual(task: Task, evidence: str) -> Task | None:
    """The question with another answer and evidence to match; None where `evidence` holds nothing to turn.

    The new number depends on the task's id alone and occurs neither in the reference nor in the evidence.
    """
    reference = task.answers[0]
    known = {*re.findall(r"\d+", reference), *re.findall(r"\d+", evidence)}
    for old in NUMBER.findall(reference):
        new = int(old) + 1 + zlib.crc32(task.id.encode()) % 9
        while str(new) in known:
            new += 1
        if (turned := _turn(task, evidence, {old: str(new)})) is not None:
            return turned
    for pair in OPPOSITES:
        for old, new_word in (pair, pair[::-1]):
            both = {old: new_word, old.capitalize(): new_word.capitalize()}
            if not re.search(rf"\b{new_word}\b", reference, re.I) and (turned := _turn(task, evidence, both)):
                return turned
    return None


def _turn(task: Task, evidence: str, words: dict[str, str]) -> Task | None:
    answers = tuple(replaced(answer, words) for answer in task.answers)
    if answers == task.answers or replaced(evidence, words) == evidence:
        return None
    data = {**task.data, "counterfactual": True, "replace": words}
    return Task(id=f"{task.id}~counterfactual", question=task.question, answers=answers, data=data)


def _anchors(links: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    """Anchor text -> URL, the first of each."""
    found: dict[str, str] = {}
    for link in links or ():
        found.setdefault(str(link.get("anchor") or "").strip(), str(link.get("url") or ""))
    return found
