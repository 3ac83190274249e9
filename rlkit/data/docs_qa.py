"""Questions about documentation whose answers cite pages: advertising products, and others of the same layout.

Layout of the folder, one JSON object per line of each file:

    microsoft_ads/  customer_insights/  prebid/   qa_train qa_test_public pages entities edges  .jsonl.gz
    aws/                                          qa_train qa_test_public pages                 .jsonl.gz
    covid_faq/                                    qa_train qa_test_public                       .jsonl.gz

`test` is the published part of the test questions, `dev` a fifth of the training questions, chosen by their ids.
Questions of folders named in `unanswerable` are asked without their pages: the reference answer declines.
"""

from __future__ import annotations

import gzip
import json
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

__all__ = ["DECLINED", "DocsQa"]

SPLITS = {"train": "qa_train", "dev": "qa_train", "test": "qa_test_public"}
DECLINED = "The documentation does not contain an answer to this question."
"""Reference answer of a question without one."""
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
        grounded: bool = False
        """Only questions whose answer cites or lies on one of the pages; other answers have no evidence here."""
        cite: Literal["published", "page"] = "published"
        """URLs of a reference: those that were published, or only that of the first page that holds the answer."""
        chunk_words: int = 160
        """Words of a passage, at most; about 250 tokens."""
        limit: int | None = None
        """At most so many questions of each folder and split, from the front; null: all."""

        def __post_init__(self) -> None:
            at_least(self, 1, "limit")
            at_least(self, 0, "num_unanswerable")
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
        for folder in self.config.unanswerable:
            found += self._tasks(folder, split, self.config.num_unanswerable, answerable=False)
        return found

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
                reference = with_urls(written).strip()
            else:
                reference = " ".join([row["answer"].strip(), *(f"See {page}." for page in pages[:1])])
        return Task(id=row["id"], question=row["question"].strip(), answers=(reference,), data=data)

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


def _anchors(links: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    """Anchor text -> URL, the first of each."""
    found: dict[str, str] = {}
    for link in links or ():
        found.setdefault(str(link.get("anchor") or "").strip(), str(link.get("url") or ""))
    return found
